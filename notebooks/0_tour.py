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
# # 0. A tour
#
# A world model has watched recordings and learned two things: what a frame looks like, and how frames follow
# from one another. So it can make frames that were never recorded: after a clip, before it, between two
# clips, round in a loop, or one at a time under your actions.
#
# Three small worlds come with worldsim. This notebook loads them and tries every verb. It takes a minute or
# two on two CPU cores.

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import worldsim
from worldsim.data.sheet import contact_sheet, upscale
from worldsim.data.video import read_video, show_video, write_video
from worldsim.worlds import clips

FAST = bool(os.environ.get("WORLDSIM_FAST"))  # the tests set it
KNOWN = 8
FRAMES = 4 if FAST else 20
STEPS = 2 if FAST else 8  # masked passes per frame: the dial between fast and good
plt.rcParams.update({"figure.dpi": 70, "savefig.bbox": "tight"})

# %% [markdown]
# ## Three worlds
#
# - `pong`: the Atari game; the right paddle is yours.
# - `sprites`: a toy. Actions push the white shape, the other one bounces off the walls.
# - `doom`: a room seen from within, full of texture.
#
# Each comes with clips that it was not trained on.

# %%
NAMES = ("pong", "sprites", "doom")
worlds = {name: worldsim.load(name) for name in NAMES}
held_out = {name: clips(name) for name in NAMES}

for name, world in worlds.items():
    size, grid = world.config.tokenizer, world.config.tokenizer.grid
    millions = sum(leaf.size for leaf in jax.tree.leaves(world.params)) / 1e6
    print(
        f"{name:8} {size.height}x{size.width} pixels, {grid[0]}x{grid[1]} codes a frame, each one of "
        f"{size.codebook}; {millions:.1f} M parameters\n"
        f"         actions: {', '.join(world.config.dynamics.action.names)}"
    )

# %%
show_video({name: held_out[name][0].frames[:24] for name in NAMES}, fps=10, height=128)

# %% [markdown]
# A **clip** is video with the actions that led to its frames: `clip.actions[t]` leads from frame t-1 to frame
# t. The first one of a recording may be null (-1).

# %%
clip = held_out["pong"][0]
clip.frames.shape, clip.frames.dtype, clip.actions[:12], clip.fps

# %% [markdown]
# ## After a clip, and before it
#
# Each world now gets eight frames from the *middle* of a clip. It makes what came after them, and what came
# before them. Both times it is told the actions that were really taken, so that the result can be laid beside
# what really happened.
#
# Backward is no trick with reversed video. It is the same model and the same compiled program, which makes
# the frames of the past from the nearest to the farthest. Time and actions keep their sign.

# %%
first, last = FRAMES, FRAMES + KNOWN
end = last + FRAMES


def around(world, clip):
    """A clip's middle with a past and a future that the world made."""
    given = clip[first:last]
    after = world.extend(given, FRAMES, actions=clip.actions[last:end], steps=STEPS)
    before = world.extend(
        given, FRAMES, direction="backward", actions=clip.actions[:first], steps=STEPS, key=jax.random.key(1)
    )
    return np.concatenate([before.clip.frames, after.clip.frames[KNOWN:]])


SHOWN = NAMES[:1] if FAST else NAMES
truth = {name: held_out[name][1].frames[:end] for name in SHOWN}
made = {name: around(worlds[name], held_out[name][1]) for name in SHOWN}
for name in SHOWN:
    assert made[name].shape == truth[name].shape
    assert (made[name][first:last] == truth[name][first:last]).all()  # what is given comes back untouched

# %% [markdown]
# Truth above, the world below; blue frames were given, orange ones were made. The numbers below are frames:
# read from the blue ones to the right for the future, to the left for the past.

# %%
given = (np.arange(end) >= first) & (np.arange(end) < last)
same_size = lambda frames: upscale(frames, 64 // frames.shape[1])
rows = [same_size(frames) for name in SHOWN for frames in (truth[name], made[name])]
sheet = contact_sheet(
    rows,
    labels=[text for name in SHOWN for text in (name, "made")],
    known=[marks for _ in SHOWN for marks in (None, given)],
    every=max(1, end // 14),
    scale=1,
)
Image.fromarray(sheet)

# %%
for name in SHOWN:
    show_video({f"{name}: truth": truth[name], "made": made[name]}, fps=held_out[name][0].fps, height=128)

# %% [markdown]
# The future is open: another key gives another future that is as likely. So a world that is right about the
# rules may still part from the truth after some frames. The table in the README says how far it stays with
# it.
#
# ## Between two clips
#
# `infill` knows both sides and makes what leads from one to the other. To compare: what `extend` makes of the
# first side alone, without a word about where it should arrive.

# %%
left, right = clip[:KNOWN], clip[KNOWN + FRAMES : 2 * KNOWN + FRAMES]
actions = clip.actions[KNOWN : KNOWN + FRAMES]
between = worlds["pong"].infill(left, right, FRAMES, actions=actions, steps=STEPS)
onward = worlds["pong"].extend(left, FRAMES, steps=STEPS, key=jax.random.key(3))
assert (between.clip.frames[:KNOWN] == left.frames).all()
assert (between.clip.frames[-KNOWN:] == right.frames).all()
assert between.known.sum() == 2 * KNOWN

sheet = contact_sheet(
    [clip.frames[: len(between.clip)], between.clip.frames, onward.clip.frames],
    labels=["truth", "infill", "extend"],
    known=[None, between.known, onward.known],
    every=max(1, len(between.clip) // 13),
    scale=1,
)
Image.fromarray(sheet)

# %% [markdown]
# ## A loop
#
# `loop` makes a clip whose end meets its beginning: no copied, mirrored or crossfaded frames, but a course
# of events that comes round. It makes several (`candidates`), draws each of their frames again with all
# others in view (`sweeps`), and keeps the best.
#
# Not every length suits. `loop.closing` compares how surprising each frame is, given all others, with the
# frames of the clip itself, and says how much the loop moves. `why()` is empty where the loop holds.

# %%
effort = {"candidates": 1, "sweeps": 0} if FAST else {"candidates": 3, "sweeps": 1}
loop = worlds["pong"].loop(held_out["pong"][6], 8 if FAST else 32, steps=STEPS, **effort)
print("holds" if not loop.closing.why() else f"does not hold: {loop.closing.why()}")
print(f"it moves {loop.closing.motion:.2f} times as much as the clip")
show_video(np.concatenate([loop.clip.frames] * 4), fps=15)
assert loop.closing.motion > 0

# %% [markdown]
# A video of four rounds: can you see where one ends? The picture below helps. Each of its columns is a
# frame, seen edge-on: the brightest difference from an empty field in every row of pixels. Ball and paddles
# become lines through time. The dotted lines are the seams. Look within a round as well: what was made from
# both ends has to meet there, and a line that breaks is a jump. The score above is a hint, not a proof: it
# measures surprise by that of the clip itself, in which a ball may leave the court and a new one be served.

# %%
empty = worlds["pong"].statistics["median"]


def edge_on(frames):
    """Every frame as a column: what stands out in each row of pixels."""
    return np.abs(frames.astype(int) - empty).sum(-1).max(2).T


rounds = 3
plt.figure(figsize=(9, 2.4))
picture = edge_on(np.concatenate([loop.clip.frames] * rounds))
plt.imshow(picture, aspect="auto", cmap="magma", interpolation="nearest")
for seam in range(1, rounds):
    plt.axvline(seam * len(loop.clip) - 0.5, color="white", linestyle=":")
plt.xlabel("frame")
plt.ylabel("row of pixels")
plt.title("three rounds of the loop, edge-on")
plt.show()

# %% [markdown]
# ## A picture that moves
#
# One frame is a clip of length one. `animate` goes on from it. Nothing says how fast things were moving, so
# the world makes that up, too.

# %%
name = SHOWN[-1]
still = held_out[name][2].frames[0]
moving = worlds[name].animate(still, FRAMES, actions=np.full(FRAMES, 2), steps=STEPS)  # 2: turn left
assert (moving.clip.frames[0] == still).all()
sheet = contact_sheet([moving.clip.frames], known=[moving.known], every=max(1, FRAMES // 8), scale=2)
Image.fromarray(sheet)

# %% [markdown]
# ## What if I had pressed the other key?
#
# The same eight frames, the same random key, and two other courses of action. Whatever differs between the
# rows is what the keys did.

# %%
names = worlds["pong"].config.dynamics.action.names
opening = held_out["pong"][2][:KNOWN]
futures = {}
for action in ("right", "left"):  # what the Atari calls them: the paddle goes up, and down
    pressed = np.full(FRAMES, names.index(action))
    futures[action] = worlds["pong"].extend(opening, FRAMES, actions=pressed, steps=STEPS)

sheet = contact_sheet(
    [future.clip.frames for future in futures.values()],
    labels=list(futures),
    known=[future.known for future in futures.values()],
    every=max(1, (KNOWN + FRAMES) // 11),
    scale=1,
)
assert FAST or (futures["right"].codes != futures["left"].codes).any()
Image.fromarray(sheet)

# %% [markdown]
# One action at a time, with states that can be kept and stepped from twice, is the work of
# `worldsim.Simulator`: see notebook 3.
#
# ## Keep it
#
# `write_video` takes the kind of file from its name. `.npz` is the lossless one, with actions. A result can
# also be gone on with: `world.extend(result, 16)`.

# %%
folder = Path(tempfile.mkdtemp())
future = futures["right"]
for suffix in (".mp4", ".gif", ".npz", ".png"):
    path = write_video(folder / f"future{suffix}", future.clip)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
back = read_video(folder / "future.npz")
assert (back.frames == future.clip.frames).all() and (back.actions == future.clip.actions).all()

more = worlds["pong"].extend(future, 4, steps=STEPS)
assert len(more.clip) == len(future.clip) + 4

# %% [markdown]
# ## Where to go from here
#
# | notebook | what it explains |
# |---|---|
# | `1_tokenizer` | what a code is: change one, and see what changes |
# | `2_order_and_time` | why forward, backward, infill and loop are one program |
# | `3_long_rollouts` | rollouts without end, drift, the simulator and its branches |
# | `4_your_recordings` | from a folder of videos to a world |
# | `5_many_devices` | how training spreads over devices |
