# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Long rollouts, and acting
#
# A world model is used for longer than it was trained: it plays on, minute after minute, and somebody acts
# in it. This notebook asks three questions. What does the thousandth frame cost? What is it worth? And what
# can be done with a state that can be copied?

# %%
import os
import time

import gymnasium
import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import worldsim
import worldsim.envs
from worldsim.data.sheet import contact_sheet
from worldsim.data.video import show_video
from worldsim.ops.scores import psnr
from worldsim.worlds import clips

FAST = bool(os.environ.get("WORLDSIM_FAST"))  # the tests set it
STEPS = 2 if FAST else 4
plt.rcParams.update({"figure.dpi": 70, "savefig.bbox": "tight"})

world = worldsim.load("pong")
held_out = clips("pong")[: 1 if FAST else None]
names = world.config.dynamics.action.names
start = held_out[0][:8]

# %% [markdown]
# ## Without an end
#
# `world.rollout(clip)` is an iterator. Each piece is a clip of new frames (16 chunks, as a rule), with the
# actions that led to them. Actions may come from an array or from a function that is asked for each frame.
#
# What is kept between two pieces is a cache of the last few chunks. Its size does not grow, and neither does
# the time that a frame takes.

# %%
FRAMES = 48 if FAST else 512
rng = np.random.default_rng(0)
keys_pressed = np.repeat(rng.choice([names.index("right"), names.index("left"), 0], FRAMES // 4 + 1), 4)


def player(frame):
    """Someone who presses a key for four frames and then maybe another one."""
    return keys_pressed[frame]


stream = world.rollout(start, FRAMES, actions=player, steps=STEPS)
pieces, seconds, kept = [], [], []
for _ in range(FRAMES // 16 + 1):
    began = time.process_time()
    piece = next(stream, None)
    if piece is None:
        break
    seconds.append((time.process_time() - began) / len(piece))
    pieces.append(piece)
    kept.append(sum(leaf.nbytes for leaf in jax.tree.leaves(stream.standing().state.cache)))

frames = np.concatenate([piece.frames for piece in pieces])
assert len(frames) == FRAMES == stream.made
assert len(set(kept)) == 1  # bytes

fig, axes = plt.subplots(1, 2, figsize=(11, 2.8))
made = np.cumsum([len(piece) for piece in pieces])
axes[0].plot(made, 1000 * np.array(seconds), marker=".")
axes[0].set(xlabel="frames made", ylabel="CPU ms a frame", ylim=(0, 1000 * np.median(seconds) * 3))
axes[0].set_title("time (the first piece compiles)", fontsize=10)
axes[1].plot(made, np.array(kept) / 2**20, marker=".")
axes[1].set(xlabel="frames made", ylabel="MiB", ylim=(0, None))
axes[1].set_title("what is kept", fontsize=10)
fig.tight_layout()
plt.show()

# %%
every = max(1, FRAMES // 12)
Image.fromarray(contact_sheet([frames], every=every, scale=1))

# %% [markdown]
# The last seconds of it, as a video:

# %%
show_video(frames[-48:], fps=15, height=192)

# %% [markdown]
# ## Stop, and go on
#
# A stream can be asked where it stands. What it answers is enough to go on later, to the same bits as if it
# had never stopped: the randomness of a frame comes from the key and the frame's time, not from how often
# somebody paused.

# %%
ALL = 32 if FAST else 64
whole = np.concatenate([p.frames for p in world.rollout(start, ALL, actions=player, steps=STEPS)])

stream = world.rollout(start, ALL, actions=player, steps=STEPS)
before = next(stream)
standing = stream.standing()
del stream  # anything may happen here
after = np.concatenate([p.frames for p in world.rollout(standing, ALL, actions=player, steps=STEPS)])

assert (np.concatenate([before.frames, after]) == whole).all()
print(f"{len(before)} frames, a pause, {len(after)} frames: the same {whole.size} bytes")

# %% [markdown]
# ## What a far frame is worth
#
# A single number can't say how good a rollout is: it depends on how far you look. So scores are curves over
# the horizon, with honest company. Below, all held-out clips are continued under the actions that were
# really taken. The lower line copies the last known frame for ever: a world that does not beat it knows
# nothing. The upper one is what the tokenizer makes of the *true* frames: no rollout can beat that.
#
# As many worlds run at once, in a `Simulator`: `reset` takes clips, `step` takes one action for each world
# and gives a frame for each.

# %%
KNOWN, HORIZON = 8, 8 if FAST else 40
sim = worldsim.Simulator(world, steps=STEPS)
state = sim.reset([clip[:KNOWN] for clip in held_out], jax.random.key(0))
truth = np.stack([clip.frames[KNOWN : KNOWN + HORIZON] for clip in held_out])
actions = np.stack([clip.actions[KNOWN : KNOWN + HORIZON] for clip in held_out])

played = []
for t in range(HORIZON):
    state, new = sim.step(state, actions[:, t])
    played.append(np.asarray(new)[:, 0])
played = np.stack(played, axis=1)
assert played.shape == truth.shape

# %%
copied = np.repeat(np.stack([clip.frames[KNOWN - 1 : KNOWN] for clip in held_out]), HORIZON, axis=1)
ceiling = np.stack([world.reconstruct(clip).frames[KNOWN : KNOWN + HORIZON] for clip in held_out])
curves = {
    "tokenizer alone": (ceiling, "grey"),
    "world": (played, "tab:orange"),
    "copy the last frame": (copied, "tab:blue"),
}
plt.figure(figsize=(8, 3.6))
scores = {}
for name, (made, color) in curves.items():
    rows = np.stack([psnr(one, true, cap=50.0) for one, true in zip(made, truth, strict=True)])
    scores[name] = rows.mean(0)
    plt.plot(np.arange(1, HORIZON + 1), scores[name], color=color, label=name)
    low, high = np.quantile(rows, [0.25, 0.75], axis=0)
    plt.fill_between(np.arange(1, HORIZON + 1), low, high, color=color, alpha=0.15)
plt.xlabel(f"frames after the last known one ({len(held_out)} clips: mean, and the middle half)")
plt.ylabel("PSNR (at most 50), dB")
plt.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, frameon=False)
plt.show()

for name in scores:
    first, last = scores[name][: HORIZON // 4].mean(), scores[name][-(HORIZON // 4) :].mean()
    print(f"{name}: {first:.1f} dB over the first quarter, {last:.1f} over the last")
near = slice(0, 4)
assert scores["world"][near].mean() > scores["copy the last frame"][near].mean()
assert scores["world"].mean() <= scores["tokenizer alone"].mean() + 1

# %% [markdown]
# The world parts from the truth because the game is not decided by its pixels alone: a ball may come back
# from a paddle in more than one way. What matters then is whether the world still plays Pong. That needs
# other scores, without truth; `worldsim evaluate --horizon 1024` has them.
#
# ## Branches
#
# A simulator's state is a bundle of arrays, and `step` is a pure function. Nothing is used up. So a state can
# be stepped from twice, and worlds branch. One state, six players, the same random key: what differs is what
# the players did.

# %%
BRANCH = 6 if FAST else 24
fork = sim.reset(held_out[0][:12], jax.random.key(4))
right, left, noop = names.index("right"), names.index("left"), 0
half = BRANCH // 2
courses = {
    "up": [right] * BRANCH,
    "up, then still": [right] * 3 + [noop] * (BRANCH - 3),
    "still": [noop] * BRANCH,
    "up, then down": [right] * half + [left] * (BRANCH - half),
    "down, then up": [left] * half + [right] * (BRANCH - half),
    "down": [left] * BRANCH,
}


def play(state, course):
    """The frames that a course of actions leads to."""
    seen = []
    for action in course:
        state, new = sim.step(state, np.array([action]))
        seen.append(np.asarray(new)[0, 0])
    return np.stack(seen)


branches = {name: play(fork, course) for name, course in courses.items()}
again = play(fork, courses["up"])
assert (again == branches["up"]).all()  # the state is still what it was
assert FAST or (branches["up"] != branches["down"]).any()

# %% [markdown]
# A fan of futures: where the green paddle is in each of them. In the Atari's words `right` is up and `left`
# is down. The paddle has inertia, and the world learned that as well.

# %%


def paddle(frames):
    """The mean row of what is green between the walls: the right paddle."""
    red, green, _ = np.moveaxis(frames[:, 10:60].astype(int), -1, 0)
    with np.errstate(invalid="ignore"):
        shape = (green - red > 40).sum(2)
        return 10 + (shape * np.arange(shape.shape[1])).sum(1) / shape.sum(1)


fig, (ax, side) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1.8, 1))
past = paddle(held_out[0].frames[:12])
ax.plot(np.arange(-11, 1), past, color="black", lw=3, label="given")
for (name, seen), color in zip(branches.items(), plt.cm.turbo(np.linspace(0.05, 0.95, 6)), strict=True):
    ax.plot(np.arange(0, BRANCH + 1), [past[-1], *paddle(seen)], color=color, lw=2, label=name)
ax.invert_yaxis()
ax.set(xlabel="frames after the fork", ylabel="row of the paddle")
ax.legend(fontsize=8, loc="upper left")
last = np.stack([seen[-1] for seen in branches.values()]).astype(int)
furthest = np.abs(last - world.statistics["median"]).sum(-1).argmax(0)
side.imshow(np.take_along_axis(last, furthest[None, ..., None], axis=0)[0])
side.set_title("the last frames of all six, one over the other", fontsize=10)
side.axis("off")
plt.show()

# %% [markdown]
# ## As an environment
#
# Reinforcement learning knows worlds by another name. `import worldsim.envs` registers each bundled world
# with Gymnasium. Observations are frames. Rewards and ends come from worlds that were trained to tell them;
# where a world was learned from video alone, rewards are 0 and only a limit of steps ends an episode.

# %%
env = gymnasium.make("worldsim/Pong-v0", steps=STEPS, max_episode_steps=4 if FAST else 16)
observation, info = env.reset(seed=0)
episode = [observation]
over = False
while not over:
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    episode.append(observation)
    over = terminated or truncated
assert env.observation_space.contains(observation)
print(env.observation_space, env.action_space, f"{len(episode)} frames")

# %% [markdown]
# `make_vec` runs all copies as one program:

# %%
COPIES = 1 if FAST else 8
envs = gymnasium.make_vec("worldsim/Pong-v0", num_envs=COPIES, steps=STEPS)
observations, _ = envs.reset(seed=1)
rows = [observations]
for _ in range(3 if FAST else 12):
    observations, *_ = envs.step(envs.action_space.sample())
    rows.append(observations)
assert observations.shape == (COPIES, 64, 64, 3)
films = np.stack(rows, axis=1)
show_video(np.concatenate(list(films), axis=2), fps=8, height=64)

# %% [markdown]
# For speed, a step may also be traced: `jax.lax.scan` over `sim.step` keeps hundreds of steps on the device,
# with `render="codes"` if nobody looks at the pictures.
