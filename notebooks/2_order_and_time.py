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
# # 2. Order against time
#
# Most video models make frames in the order in which they are shown. worldsim keeps two things apart:
#
# - the **time** of a chunk says where it lies in the video;
# - its **order** says when it is made, and so what its maker could see.
#
# With that, forward, backward, infilling, keyframes and loops are one model and one compiled program. They
# differ in a few integers, the **plan**. This notebook draws plans, then runs them. (A chunk is what is made
# at a time; in the bundled worlds it is one frame.)

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from PIL import Image

import worldsim
from worldsim import plan as plans
from worldsim.data.sheet import contact_sheet
from worldsim.generate import rollout
from worldsim.ops.attention import KNOWN, QUERY, visible
from worldsim.worlds import clips

FAST = bool(os.environ.get("WORLDSIM_FAST"))  # the tests set it
STEPS = 2 if FAST else 8
BLUE, ORANGE = "#60a5fa", "#fb923c"  # known, generated
plt.rcParams.update({"figure.dpi": 70, "savefig.bbox": "tight"})

# %% [markdown]
# ## Five plans
#
# A plan has a row for each chunk, in the order of generation: its time, and whether it is known. Known ones
# come first. This one knows chunks 0 and 1, and makes what came before them:

# %%
plan = plans.backward(known=2, new=3)
for order, time, known in zip(plan.orders, plan.times, plan.known, strict=True):
    print(f"order {order}: time {time:2.0f}, {'known' if known else 'generated'}")
assert plan.times.tolist() == [1, 0, -1, -2, -3]

# %% [markdown]
# Here are five plans as pictures. To the right goes time, downwards goes the order of generation. Blue chunks
# are known, orange ones are made.

# %%
PLANS = {
    "forward": plans.forward(known=4, new=8),
    "backward": plans.backward(known=4, new=8),
    "infill": plans.infill(before=3, after=3, new=6),
    "keyframes": plans.keyframes(known=2, new=10),
    "loop": plans.loop(opening=3, total=9),
}


def draw_plan(ax, plan, title):
    """Time to the right, order downwards."""
    colors = np.where(plan.known, BLUE, ORANGE)
    ax.scatter(plan.times, plan.orders, c=colors, marker="s", s=70)
    ax.plot(plan.times, plan.orders, color="grey", lw=0.6, zorder=0)
    ax.set(title=title, xlabel="time")
    ax.set_ylim(len(plan) - 0.4, -0.6)


fig, axes = plt.subplots(1, 5, figsize=(14, 3), sharey=True)
for ax, (name, plan) in zip(axes, PLANS.items(), strict=True):
    draw_plan(ax, plan, name)
axes[0].set_ylabel("order of generation")
plt.show()

# %% [markdown]
# - *Infill* takes what lies after the gap first. What is given never changes while the gap is filled.
# - *Keyframes* makes the farthest frame first and then halves the gaps.
# - *Loop* knows its opening twice: at its own time, and one round later. The chunks between are made from
#   both ends by turns, so the model sees what it is about to become.
#
# ## One law of who sees whom
#
# Each token carries three integers: segment (which clip), order, and stream. The whole attention mask is one
# line about them. A token sees what is known and of lower order, and its own chunk:

# %%
draw = lambda ids: np.asarray(visible(ids, ids)[0])


def known_ids(plan):
    """(segment, order, stream) of every chunk of a plan, once it has been made."""
    return np.stack([np.zeros(len(plan), int), plan.orders, np.full(len(plan), KNOWN)], axis=-1)[None]


# %% [markdown]
# Sorted by **time**, the five masks have nothing in common: a triangle, the other triangle, blocks, a tree,
# a ring. Sorted by **order**, all of them are the same triangle. That is why one program is enough: it runs
# over rows in the order of generation and takes times as data.
#
# (Row sees column. Blue columns are known chunks, orange ones are made.)

# %%
fig, axes = plt.subplots(2, 5, figsize=(14, 6.2))
for column, (name, plan) in zip(axes.T, PLANS.items(), strict=True):
    mask = draw(known_ids(plan))
    assert (mask == np.tri(len(plan), dtype=bool)).all()  # in the order of generation
    for ax, sort, by in zip(
        column, (np.argsort(plan.times), np.arange(len(plan))), ("time", "order"), strict=True
    ):
        color = np.where(plan.known[sort], 1, 2)[None] * mask[sort][:, sort]
        ax.imshow(color, cmap=ListedColormap(["white", BLUE, ORANGE]), vmin=0, vmax=2)
        ax.set(
            xticks=np.arange(len(plan)) - 0.5,
            yticks=np.arange(len(plan)) - 0.5,
            xticklabels=[],
            yticklabels=[],
        )
        ax.grid(color="lightgrey", lw=0.5)
        ax.tick_params(length=0)
        ax.set_title(f"{name}, by {by}", fontsize=10)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Training: two streams
#
# To learn all orders, training shows the model a clip twice. The **known stream** holds the true codes of
# every chunk. The **query stream** holds masked copies of some of them; only these are asked for.
#
# The same law says who sees whom. A query sees the known chunks of lower order and itself; not its own true
# codes, and no other query. So every query is in the situation that it will be in when the world generates,
# and all of them are trained in one pass.

# %%
order = np.arange(8)
asked = np.array([2, 5, 6])
ids = np.concatenate(
    [
        np.stack([0 * order, order, np.full(8, KNOWN)], -1),
        np.stack([0 * asked, asked, np.full(len(asked), QUERY)], -1),
    ]
)[None]
mask = draw(ids)
for row, own in enumerate(asked, start=8):
    assert mask[row, :8].sum() == own and not mask[row, own]  # all before it, and not its own answer
    assert mask[row, 8:].sum() == 1 and mask[row, row]  # itself, and no other query
assert not mask[:8, 8:].any()  # nobody who is known sees a query

names = [f"K{i}" for i in order] + [f"Q{i}" for i in asked]
stream = np.where(np.arange(len(names)) < 8, 1, 2)
fig, ax = plt.subplots(figsize=(4.6, 4.6))
ax.imshow(mask * stream[:, None], cmap=ListedColormap(["white", BLUE, ORANGE]))
ax.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
ax.set_xticks(np.arange(len(names)) - 0.5, minor=True)
ax.set_yticks(np.arange(len(names)) - 0.5, minor=True)
ax.grid(which="minor", color="lightgrey", lw=0.5)
ax.tick_params(which="minor", length=0)
ax.xaxis.tick_top()
ax.set(xlabel="is seen", ylabel="sees")
plt.show()

# %% [markdown]
# ## The same on frames
#
# Now the plans run. The verbs (`extend`, `infill`, `loop`) make plans for you; here they are given to the
# rollout by hand. It takes a plan, the codes of the known rows, and the actions; it gives codes for every
# row. To see the effect of the plan alone, all of them play on the same stretch of a game, with the true
# actions.

# %%
world = worldsim.load("pong")
clip = clips("pong")[0]
codes = world.encode(clip)
dials = world.dials(steps=STEPS)
TOTAL = 10 if FAST else 28
SEEN = 4


def carry_out(plan, key=0):
    """A plan over the clip: the frames of its times, in the order of time, and which of them were given."""
    times = plan.times.astype(int)
    state = rollout.start(*world.dynamics, keys=jax.random.key(key)[None])
    _, drawn = rollout.run(
        world.dynamics,
        state,
        plan,
        codes=codes[None, times],  # those of generated rows are not looked at
        dials=dials,
        actions=clip.actions[None, times, None],  # what led to each frame
    )
    by_time = np.argsort(times)
    return world.decode(drawn[0, by_time]).frames, plan.known[by_time]


start, rest, stop = np.arange(SEEN), np.arange(SEEN, TOTAL - SEEN), np.arange(TOTAL - SEEN, TOTAL)
ORDERS = {
    "forward": plans.make_plan(start, np.arange(SEEN, TOTAL)),
    "backward": plans.make_plan(stop[::-1], np.arange(TOTAL - SEEN)[::-1]),
    "infill": plans.make_plan(np.concatenate([stop, start]), rest, pinned=SEEN),
    "keyframes": plans.keyframes(SEEN, TOTAL - SEEN),
}

# %% [markdown]
# An order that has no name is a plan as well. This one knows the middle of the clip and works its way
# outwards on both sides by turns:

# %%
middle = np.arange(TOTAL // 2 - 2, TOTAL // 2 + 2)
outside = np.setdiff1d(np.arange(TOTAL), middle)
outwards = outside[np.argsort(np.abs(outside - middle.mean()), kind="stable")]
ORDERS["outwards"] = plans.make_plan(middle, outwards)
print("known", middle, "then", outwards[:8], "...")

# %%
made = {}
programs = []
for name, plan in ORDERS.items():
    made[name] = carry_out(plan)
    programs.append(rollout.rollout_block._cache_size())
assert len(set(programs)) == 1, "each plan ran the program that the first one compiled"
for frames, known in made.values():
    assert len(frames) == TOTAL and known.sum() == 4 * (1 + (known[0] and known[-1]))
print(f"programs compiled after each of {len(programs)} plans: {programs}")

# %%
truth = clip.frames[:TOTAL]
sheet = contact_sheet(
    [truth, *(frames for frames, _ in made.values())],
    labels=["truth", *made],
    known=[None, *(known for _, known in made.values())],
    every=max(1, TOTAL // 11),
    scale=1,
)
Image.fromarray(sheet)

# %% [markdown]
# It is easier to see edge-on: a column for every frame, in which stands what differs from the empty court in
# every row of pixels. The ball draws a zigzag through time. The blue bar marks the given frames.
#
# Look where the line of the ball comes from. Forward, it leaves the blue bar to the right; backward, to the
# left; in the infill it leaves one bar and arrives at the other. Keyframes are the hardest task here: the
# first frame made is the farthest from all that is known, and a ball can be anywhere by then.

# %%
empty = world.statistics["median"]
edge_on = lambda frames: np.abs(frames.astype(int) - empty).sum(-1).max(2).T[12:58]
fig, axes = plt.subplots(6, 1, figsize=(9, 8.5), sharex=True)
for ax, (name, (frames, known)) in zip(axes, {"truth": (truth, None), **made}.items(), strict=True):
    ax.imshow(
        edge_on(frames),
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(-0.5, TOTAL - 0.5, 46, 0),
    )
    if known is not None:
        for t in np.flatnonzero(known):
            ax.plot([t - 0.5, t + 0.5], [45, 45], color=BLUE, lw=6, solid_capstyle="butt")
    ax.set(yticks=[], ylabel=name)
axes[-1].set_xlabel("frame")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## And round
#
# A loop is a plan whose opening is known twice, at its time and one round later. So the model does not only
# have to arrive at the right picture but with the right velocity, since it sees the frames that follow.
#
# Three rounds, edge-on; the dotted lines are the seams. The place to look at is another one, though: the
# middle of a round, where what was made from both ends has to meet. Not every length suits what moves, and a
# single draw may fail there. That is why `world.loop` draws several candidates, draws single chunks again
# with all others in view, and says with a score whether the loop holds.

# %%
ROUND, OPENING = (8, 3) if FAST else (24, 4)
plan = plans.loop(OPENING, ROUND)
state = rollout.start(*world.dynamics, keys=jax.random.key(2)[None])
known_twice = codes[None, plan.times.astype(int) % ROUND]
nobody = np.full((1, len(plan), 1), -1)  # the null action: the world plays by itself
_, drawn = rollout.run(world.dynamics, state, plan, codes=known_twice, dials=dials, actions=nobody)
assert rollout.rollout_block._cache_size() == programs[0]

once = np.argsort(plan.times)[:ROUND]  # without the second time of the opening
frames = world.decode(drawn[0, once]).frames
assert (drawn[0, once[:OPENING]] == codes[:OPENING]).all()

plt.figure(figsize=(9, 2.2))
plt.imshow(edge_on(np.concatenate([frames] * 3)), aspect="auto", cmap="magma", interpolation="nearest")
for seam in (1, 2):
    plt.axvline(seam * ROUND - 0.5, color="white", linestyle=":")
plt.yticks([])
plt.xlabel("frame")
plt.show()

# %% [markdown]
# Nothing was compiled for it, either. The next notebook lets plans run on and on.
