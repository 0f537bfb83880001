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
# # 1. What a code is
#
# A world does not think in pixels. Its **tokenizer** turns every frame into a small grid of integers, the
# codes, and back. Everything that happens in the world happens to those integers; pixels are drawn
# afterwards.
#
# This notebook looks at codes from all sides: what one stands for, what happens when you change it, how much
# of a picture codes can hold, and who draws the rest.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

import worldsim
from worldsim.data.sheet import upscale
from worldsim.evaluate.pictures import high_energy
from worldsim.models.tokenizer import to_float, to_uint8
from worldsim.ops.scores import psnr
from worldsim.worlds import clips

FAST = bool(os.environ.get("WORLDSIM_FAST"))  # the tests set it
plt.rcParams.update({"figure.dpi": 70, "savefig.bbox": "tight"})


def bare(ax, title=""):
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])


# %% [markdown]
# ## A frame as integers
#
# `world.encode(clip)` gives the codes, `world.decode(codes)` draws them. In `pong` a frame of 64x64 pixels
# becomes 8x8 codes, each for a square of 8x8 pixels.
#
# Most of a court is empty, so most codes are the same few. The world marks what matters with other numbers.

# %%
world = worldsim.load("pong")
clip = clips("pong")[0]
codes = world.encode(clip)
rows, columns = world.config.tokenizer.grid
side = world.config.tokenizer.stride  # pixels of a code
assert codes.shape == (len(clip), rows, columns)

# A frame in which the ball lies in the square of a single code, away from paddles and score.
empty = world.statistics["median"]
stands_out = np.abs(clip.frames.astype(int) - empty).sum(-1) > 60
by_code = stands_out.reshape(len(clip), rows, side, columns, side).any((2, 4))
field = by_code[:, 2:, 2:6]
t = int(np.flatnonzero(field.sum((1, 2)) == 1)[0])
ball = tuple(int(i) for i in np.argwhere(field[t])[0] + 2)

rng = np.random.default_rng(3)
palette = ListedColormap(0.25 + 0.7 * rng.random((world.config.tokenizer.codebook, 3)))
fig, axes = plt.subplots(1, 3, figsize=(12, 4.2))
axes[0].imshow(clip.frames[t])
for line in np.arange(0, 64, side) - 0.5:
    axes[0].axhline(line, color="white", lw=0.3)
    axes[0].axvline(line, color="white", lw=0.3)
bare(axes[0], "a frame, cut into squares")
axes[1].imshow(codes[t], cmap=palette, vmin=0, vmax=world.config.tokenizer.codebook - 1)
for (i, j), code in np.ndenumerate(codes[t]):
    axes[1].text(j, i, code, ha="center", va="center", fontsize=8, weight="bold" if (i, j) == ball else None)
axes[1].add_patch(Rectangle((ball[1] - 0.5, ball[0] - 0.5), 1, 1, fill=False, lw=2.5))
bare(axes[1], "its codes; framed: the ball's")
axes[2].imshow(world.decode(codes[t : t + 1]).frames[0])
bare(axes[2], "drawn from the codes")
plt.show()

# %% [markdown]
# ## Change one code
#
# If the ball is one integer, then it can be taken away by changing one integer, and put elsewhere by changing
# another. Below, the ball's code is replaced by one that stands for empty court, and then written into
# another square.
#
# The lower row shows, from nearer by, which pixels differ from the first frame: those in the square, at most
# with a rim. The *encoder* looks at each square alone here (`cell_local`), so that a small thing touches one
# or two codes. The *decoder* looks at neighbouring codes as well, so that squares fit together.

# %%
frame = codes[t]
plain = world.encode(worldsim.Clip(empty[None]))[0]
target = (3, 4) if ball != (3, 4) else (5, 3)

gone, moved = frame.copy(), frame.copy()
gone[ball] = plain[ball]
moved[ball], moved[target] = plain[ball], frame[ball]
drawn = [world.decode(c[None]).frames[0] for c in (frame, gone, moved)]
change = [np.abs(d.astype(int) - drawn[0]).sum(-1) for d in drawn]

fig, axes = plt.subplots(2, 3, figsize=(10, 6.8))
for ax, picture, title in zip(
    axes[0], drawn, ("as encoded", "one code changed: no ball", "two codes changed: elsewhere"), strict=True
):
    ax.imshow(picture)
    bare(ax, title)
for ax, size, picked in zip(axes[1], change, ((), (ball,), (ball, target)), strict=True):
    ax.imshow(size, cmap="inferno", vmin=0, vmax=200)
    ax.set(xlim=(7.5, 55.5), ylim=(55.5, 7.5))
    for i, j in picked:
        ax.add_patch(
            Rectangle((j * side - 0.5, i * side - 0.5), side, side, fill=False, color="white", lw=1.5)
        )
    bare(ax, f"{(size > 12).sum()} pixels differ")
plt.show()

# All change lies in the square and the squares around it.
i, j = ball
near = np.zeros_like(change[1], bool)
near[max(0, i - 1) * side : (i + 2) * side, max(0, j - 1) * side : (j + 2) * side] = True
assert change[1][near].sum() > 0.9 * change[1].sum() > 0

# %% [markdown]
# ## The alphabet
#
# A codebook is an alphabet of small pictures. Which letters does a world use? Here are the most frequent
# ones in its held-out clips, each drawn amid copies of itself. The alphabet of `pong` has balls at many
# places of a square and pieces of paddles and score; that of `doom` has shades of sky, grass and stone.

# %%
LETTERS = 24 if FAST else 60


def letters(world, seen, count):
    """The most frequent codes, and each as the square that it draws."""
    found, often = np.unique(np.concatenate([world.encode(c) for c in seen]), return_counts=True)
    top = found[np.argsort(-often, kind="stable")[:count]]
    grid, s = world.config.tokenizer.grid, world.config.tokenizer.stride
    tokenizer = nnx.merge(*world.tokenizer)  # the module itself; apart, or they would be each other's past
    sheets = [tokenizer.detokenize(np.full((1, 1, *grid), code))[0, 0] for code in top]
    middle = slice(grid[0] // 2 * s, grid[0] // 2 * s + s)
    return top, often, np.stack([np.asarray(to_uint8(sheet))[middle, middle] for sheet in sheets])


doom = worldsim.load("doom")
fig, axes = plt.subplots(2, 2, figsize=(12, 5.2), width_ratios=(2.2, 1))
for (left, right), name, one in zip(axes, ("pong", "doom"), (world, doom), strict=True):
    top, often, tiles = letters(one, clips(name)[: 2 if FAST else 8], LETTERS)
    wide = 20 if len(tiles) > 24 else 12
    padded = np.pad(upscale(tiles, 4), ((0, -len(tiles) % wide), (1, 1), (1, 1), (0, 0)), constant_values=255)
    h, w = padded.shape[1:3]
    left.imshow(padded.reshape(-1, wide, h, w, 3).swapaxes(1, 2).reshape(-1, wide * w, 3))
    bare(left, f"{name}: its {len(tiles)} most frequent codes")
    right.semilogy(np.sort(often)[::-1] / often.sum(), lw=2)
    right.set_title(f"{len(often)} of {one.config.tokenizer.codebook} codes in use", fontsize=10)
    right.set_xlabel("code, by rank")
    right.set_ylabel("share")
    assert 1 < len(often) <= one.config.tokenizer.codebook
fig.tight_layout()
plt.show()

# %% [markdown]
# ## A code knows nothing of its past
#
# Below, one frame of a clip is painted over, and the clip is encoded again. Which codes change? Those of that
# frame and no others, exactly. In words of the design: no information crosses a chunk's border inside the
# codes (here a chunk is one frame).
#
# That is what lets a clip be generated in any order. If the codes of frame 9 told something about frame 8, a
# world that is given frame 9 in order to make frame 8 would be reading the answer.
#
# The decoder is another matter: it may look at the codes of the frames before and after, so that what it
# draws does not flicker. On the right the change may leak a little into the pictures beside it.

# %%
CHANGED, SHOWN = 9, 20
painted = clip.frames[:SHOWN].copy()
painted[CHANGED, 20:44, 20:44] = 236
before, after = world.encode(clip[:SHOWN]), world.encode(worldsim.Clip(painted))
differs = (before != after).reshape(SHOWN, -1)
assert differs[CHANGED].any() and not np.delete(differs, CHANGED, axis=0).any()

pictures = [world.decode(c).frames.astype(int) for c in (before, after)]
per_frame = np.abs(pictures[1] - pictures[0]).mean((1, 2, 3))
assert per_frame.argmax() == CHANGED and (per_frame[: CHANGED - 1] == 0).all()

fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), width_ratios=(1, 2, 2))
axes[0].imshow(painted[CHANGED])
bare(axes[0], f"frame {CHANGED}, painted over")
axes[1].imshow(differs, aspect="auto", cmap="Reds")
axes[1].set(xlabel="code", ylabel="frame", yticks=range(0, SHOWN, 3))
axes[1].set_title("codes that changed", fontsize=10)
axes[2].bar(range(SHOWN), per_frame)
axes[2].set(xlabel="frame", ylabel="mean change", xticks=range(0, SHOWN, 3))
axes[2].set_yscale("symlog", linthresh=1e-3)
axes[2].set_title("pixels that changed, drawn from codes", fontsize=10)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What codes leave out
#
# Codes are coarse on purpose: the fewer there are, the easier the future is to predict. What they leave out
# has a place, though. The encoder first gives a continuous latent `z`; the quantizer then takes the nearest
# vector `q` of the codebook, in the same space. The decoder learned to draw from both.
#
# On `doom` the difference can be seen: from `q` the room is there but its walls are smooth, from `z` they
# have more of their texture. The difference `z - q` is the **residual**.

# %%
tokenizer = nnx.merge(*doom.tokenizer)
view = clips("doom")[3][30:34] if FAST else clips("doom")[3][30:38]
z = tokenizer.encode(to_float(view.frames[None]))
q, _ = tokenizer.quantizer(z)
from_q, from_z = (np.asarray(to_uint8(tokenizer.decode(latents)))[0] for latents in (q, z))
quality = {name: psnr(f, view.frames).mean() for name, f in (("q", from_q), ("z", from_z))}
assert quality["z"] > quality["q"]

fig, axes = plt.subplots(1, 4, figsize=(12, 3.4))
for ax, picture, title in zip(
    axes,
    (view.frames[2], from_q[2], from_z[2]),
    ("truth", f"from q: {quality['q']:.1f} dB", f"from z: {quality['z']:.1f} dB"),
    strict=False,
):
    ax.imshow(picture)
    bare(ax, title)
axes[3].imshow(np.linalg.norm(np.asarray(z - q)[0, 2], axis=-1), cmap="viridis")
bare(axes[3], "size of the residual z - q, per code")
plt.show()

# %% [markdown]
# ## Drawing the residual
#
# When the world makes new frames there is no `z`, only codes. The **refinement head** then draws a residual
# that could belong to them: a small diffusion model that turns noise into `z - q`, given `q` of the frame and
# of its neighbours. `refine_steps` is its dial; 0 leaves the detail out.
#
# Beside the pictures stand two numbers. PSNR asks whether the pixels are right. Sharpness asks whether there
# is as much fine detail as in truth (energy of the finest Haar bands; truth is 1, and `z` is the most that
# the head can reach). One step gives the *mean* of all that could be there, which is soft; more steps give
# *one* of them, which is sharper. A drawn texture is not the true one, so it costs a little PSNR by nature.

# %%
DRAWN = (0, 1, 2, 4)


seen = doom.encode(view)
key = jax.random.key(0)
refined = {steps: doom.decode(seen, refine_steps=steps, key=key).frames for steps in DRAWN}
columns = {f"{steps} step{'s' * (steps != 1)}": frames for steps, frames in refined.items()}
columns |= {"from z": from_z, "truth": view.frames}
sharp = {name: high_energy(f[None]) / high_energy(view.frames[None]) for name, f in columns.items()}
for name, frames in list(columns.items())[:-1]:
    print(f"{name}: PSNR {psnr(frames, view.frames).mean():.1f} dB, sharpness {sharp[name]:.2f}")
assert sharp["4 steps"] > sharp["0 steps"]

fig, axes = plt.subplots(2, len(columns), figsize=(14, 4.9))
for (top, bottom), (name, frames) in zip(axes.T, columns.items(), strict=True):
    top.imshow(frames[2])
    top.add_patch(Rectangle((14, 12), 32, 32, fill=False, color="white"))
    bare(top, name)
    bottom.imshow(frames[2, 12:44, 14:46])
    bare(bottom)
plt.show()

# %% [markdown]
# Another key draws other detail on the same codes. What happens in the world stays the same: the codes alone
# decide that, and no detail ever flows back into them. So refinement can't make a rollout drift, and any
# frame can be drawn again later, in more or fewer steps.

# %%
others = [doom.decode(seen, refine_steps=4, key=jax.random.key(i)).frames for i in range(2)]
assert (others[0] == refined[4]).all() and (others[1] != refined[4]).any()
print(f"a pixel differs by {np.abs(others[1].astype(int) - others[0]).mean():.1f} of 255 on average")

# %% [markdown]
# Codes are the state, latents are the picture. The next notebook is about what happens to codes: in which
# order they are made.
