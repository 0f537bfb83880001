"""Features of a fixed random network, and distances between sets of them. Not comparable with published FVD.

Nobody trained the network: it is drawn once from its own seed, which no loss uses. It sees pieces of four
frames, at three scales. A Fréchet distance over such features is biased upwards where samples are few and
misses weak noise; it sees frozen, shuffled and smeared video. It is a gauge for this package's own worlds,
and says something only beside its floor: the same distance for as many real pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

SEED, PIECE, WIDTHS, SIZE = 20_011, 4, (32, 48, 64), 48
"""Of the network; frames of a piece; channels per scale; length of a feature."""

LABEL = "own features of a random network, not comparable with published FVD"
_BATCH = 64

Pieces = UInt8[np.ndarray, "m f H W c"]
Network = Callable[[Pieces], tuple[Float[np.ndarray, "n d"], list[np.ndarray]]]


def make_network(channels: int, *, frames: int = PIECE, seed: int = SEED) -> Network:
    """A function from pieces to their features ``[n d]`` and to the maps ``[n h w c]`` of each scale."""
    rng = np.random.default_rng(seed)
    kernels, before = [], frames * channels
    for width in WIDTHS:
        kernel = rng.normal(size=(3, 3, before, width))
        kernels.append(jnp.asarray(kernel / np.sqrt(np.square(kernel).sum((0, 1, 2))), jnp.float32))
        before = width
    turn = np.linalg.qr(rng.normal(size=(2 * sum(WIDTHS), SIZE)))[0].astype(np.float32)

    @jax.jit
    def run(pieces: Array) -> tuple[Array, list[Array]]:
        x = jnp.asarray(pieces, jnp.float32) / 127.5 - 1.0
        x = jnp.moveaxis(x, 1, 3).reshape(*x.shape[:1], *x.shape[2:4], -1)
        maps, pooled = [], []
        for kernel in kernels:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims)
            x = jnp.abs(x)  # keeps as much of what is dark as of what is bright
            maps.append(x)
            pooled += [x.mean((1, 2)), x.std((1, 2))]
        return jnp.concatenate(pooled, -1) @ turn, maps

    def network(pieces):
        parts = []
        for start in range(0, len(pieces), _BATCH):
            part = pieces[start : start + _BATCH]
            padded = np.pad(part, ((0, _BATCH - len(part)), *[(0, 0)] * 4))
            parts.append(jax.tree.map(lambda a, n=len(part): np.asarray(a)[:n], run(padded)))
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    return network


def pieces(frames: UInt8[np.ndarray, "n t H W c"], *, every: int = PIECE) -> Pieces:
    """All pieces of ``PIECE`` neighbouring frames, one begun at each ``every``-th frame."""
    starts = range(0, frames.shape[1] - PIECE + 1, every)
    return np.concatenate([frames[:, start : start + PIECE] for start in starts])


def frechet(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance of two Gaussians fitted to features (Dowson and Landau 1982), as in FID.

    ``|mean x - mean y|^2 + tr(X + Y - 2 (X Y)^(1/2))`` with covariances X and Y. The trace of the root is the
    sum of the singular values of the product of the centred features, so that no root of a matrix is taken.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z)) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    gap = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(0.0, gap + np.square(a).sum() + np.square(b).sum() - 2 * root))


def spread(features: Float[np.ndarray, "n d"]) -> float:
    """How far a set scatters: the trace of its covariance, the unit of the distances in reports."""
    return float(features.var(0).sum()) or 1.0


def paired_distance(network: Network, x: Pieces, y: Pieces) -> float:
    """Mean squared distance of the maps of two renderings of the same pieces, over the energy of ``y``'s."""
    ours, theirs = network(x)[1], network(y)[1]
    shares = [
        np.square(a - b).sum() / max(1e-12, np.square(b - b.mean((0, 1, 2))).sum())
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(np.mean(shares))


def bucketed(
    made: UInt8[np.ndarray, "n h H W c"],
    truth: UInt8[np.ndarray, "n h H W c"],
    others: UInt8[np.ndarray, "m t H W c"],
    *,
    step: int = 1,
) -> dict[str, dict[str, float]]:
    """Fréchet distance from other real play, per stretch of the horizon, with its floor.

    Args:
      made, truth: counted from the known end; ``step`` -1 puts them into the order of time.
      others: real play of other windows.

    Returns:
      Per stretch (``1-8``, ``9-16``, ``17-32``, ...): ``made`` and ``floor`` (the truth of the same frames in
      its place), in units of the spread of ``others``, and ``pieces``, how many of each.
    """
    network = make_network(made.shape[-1])
    reference = network(pieces(others))[0]
    unit, out, start, stop = spread(reference), {}, 0, 8
    while start < made.shape[1]:
        stop = min(stop, made.shape[1])
        if stop - start >= PIECE:
            sets = [pieces(rows[:, start:stop][:, ::step], every=2) for rows in (made, truth)]
            far = [frechet(network(one)[0], reference) / unit for one in sets]
            out[f"{start + 1}-{stop}"] = {"made": far[0], "floor": far[1], "pieces": len(sets[0])}
        start, stop = stop, 2 * stop
    return out
