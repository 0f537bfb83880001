# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first world
#
# `pong` is a small world model that comes with worldsim. It has watched recorded play and learned what a
# frame looks like (the tokenizer) and how frames follow from one another (the dynamics). Here it is loaded
# and run in both directions of time.
#
# Open this file with `jupytext --to ipynb notebooks/first_world.py`, or as a notebook in an editor that
# reads percent cells.

# %%
import os

import jax
import mediapy
import numpy as np

import worldsim
from worldsim.data.sheet import contact_sheet
from worldsim.data.video import show_video
from worldsim.ops.scores import psnr
from worldsim.worlds import clips

FRAMES = 4 if os.environ.get("WORLDSIM_FAST") else 32  # the test of this notebook sets it
KNOWN = 8

# %%
world = worldsim.load("pong")
world.config

# %% [markdown]
# A **clip** is video with the actions that led to its frames: `clip.actions[t]` leads from frame t-1 to
# frame t. These clips are from games that the world was not trained on.

# %%
clip = clips("pong")[0]
show_video(clip)
clip.frames.shape, clip.actions[:12]

# %% [markdown]
# ## Forward
#
# The world gets the first frames and the actions that were really taken afterwards. What it draws can be
# compared with what really happened. The given frames come back untouched.

# %%
opening = clip[:KNOWN]
future = world.extend(opening, FRAMES, actions=clip.actions[KNOWN : KNOWN + FRAMES], key=jax.random.key(0))
forward = future.clip.frames
assert len(forward) == KNOWN + FRAMES
assert (forward[:KNOWN] == opening.frames).all()
show_video(future.clip)

# %% [markdown]
# Truth above, world below; blue frames were given and orange ones generated.

# %%
truth = clip.frames[: KNOWN + FRAMES]
given = np.arange(len(truth)) < KNOWN
every = max(1, len(truth) // 10)
sheet = contact_sheet([truth, forward], labels=["truth", "world"], known=[None, given], every=every)
mediapy.show_image(sheet)
psnr(forward[KNOWN:], truth[KNOWN:], cap=50.0).round(1)

# %% [markdown]
# ## Backward
#
# The same model and the same compiled program, with another plan: now the *last* frames are given and those
# before them are generated. Nothing is played in reverse: time and actions keep their sign.

# %%
last = FRAMES + KNOWN
ending = clip[FRAMES:last]
past = world.extend(
    ending, FRAMES, direction="backward", actions=clip.actions[:FRAMES], key=jax.random.key(1)
)
backward = past.clip.frames
assert len(backward) == FRAMES + KNOWN
assert (backward[FRAMES:] == ending.frames).all()
show_video(past.clip)

# %%
given = np.arange(last) >= FRAMES
sheet = contact_sheet(
    [clip.frames[:last], backward], labels=["truth", "world"], known=[None, given], every=every
)
mediapy.show_image(sheet)
psnr(backward[:FRAMES], clip.frames[:FRAMES], cap=50.0).round(1)

# %% [markdown]
# Another key gives another future, and other actions give another game:
#
# ```python
# world.extend(opening, 64, actions=np.full(64, 2), key=jax.random.key(7))
# ```
