"""Which block of attention runs: the one in pure JAX, or a fused one that has proved itself on this device.

A block is a module with ``block_forward`` and ``block_backward`` over the same tiles. One that is asked for
by name either serves or says why not; ``auto`` takes the fastest that serves, and none is taken for the name
of a platform alone: at first use with a type and a width of heads it is compared with float64 here.

    with blocks.use_block("pallas"): ...      or      WORLDSIM_BLOCK=pallas worldsim train ...
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

BLOCKS = ("jax", "pallas", "auto")
"""Pure JAX everywhere; fused for GPUs; the latter where it serves."""

VARIABLE = "WORLDSIM_BLOCK"
"""Of the environment: the block of a process that does not say otherwise."""

TOLERANCE = {"float32": 2e-6, "bfloat16": 4e-3, "float16": 4e-3}
"""Of outputs and gradients against float64, as relative root mean square, by type: the bars that pure JAX is
held to over many devices."""

_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("block", default=None)


@contextlib.contextmanager
def use_block(name: str) -> Iterator[None]:
    """Attention that is traced inside runs with this block: ``jax``, ``pallas`` or ``auto``.

    Raises:
      ValueError: an unknown name. That a block cannot serve is said, as a ``RuntimeError``, where attention
        is traced.
    """
    token = _asked.set(_known(name))
    try:
        yield
    finally:
        _asked.reset(token)


def chosen(dtype: np.dtype, *, width: int, group: int) -> str:
    """The block for queries of a type, with heads so wide, so many of which share a key head.

    Raises:
      RuntimeError: a block was asked for by name and cannot serve.
    """
    name = _asked.get() or _known(os.environ.get(VARIABLE) or "jax")
    if name == "jax":
        return name
    refusal = _refusal(str(dtype), width, group)
    if refusal and name == "auto":
        return "jax"
    if refusal:
        raise RuntimeError(f"attention block 'pallas' cannot serve: {refusal}; take 'jax' or 'auto'.")
    return "pallas"


def module(name: str) -> ModuleType:
    """The module of a block."""
    if name == "pallas":
        from worldsim.ops import pallas_attention

        return pallas_attention
    from worldsim.ops import tiled_attention

    return tiled_attention


def _known(name: str) -> str:
    if name not in BLOCKS:
        raise ValueError(f"attention block {name!r}; take one of {list(BLOCKS)}.")
    return name


@functools.cache
def _refusal(dtype: str, width: int, group: int) -> str:
    """Why the fused block does not serve here; empty if it does."""
    if (platform := jax.default_backend()) != "gpu":
        return f"it needs a GPU, and JAX computes on {platform} here"
    if odd := [x for x in (width, group) if x & (x - 1)]:
        return f"head width and heads per key head must be powers of two; {odd[0]} is not"
    if not 16 <= width <= 256 or group > 64 or dtype not in TOLERANCE:
        return f"it takes heads of width 16 to 256, up to 64 to a key head, in {list(TOLERANCE)}"
    try:
        with ThreadPoolExecutor(1) as clean:  # a thread of its own: outside of the trace and of its mesh
            errors = clean.submit(errors_of, "pallas", dtype, width=width, group=group).result()
    except Exception as error:  # whatever a compiler says of a kernel
        return f"it did not run: {type(error).__name__}: {str(error)[:400]}"
    wrong = {name: value for name, value in errors.items() if not value < TOLERANCE[dtype]}
    said = ", ".join(f"{name} {value:.1e}" for name, value in wrong.items())
    return f"it is wrong here in {dtype}, against at most {TOLERANCE[dtype]}: {said}" if wrong else ""


def errors_of(block: str, dtype: str, *, width: int, group: int) -> dict[str, float]:
    """Relative root mean square errors of a block's output and gradients against float64, on random tokens.

    Two clips in two streams, with padding, over tiles that are seen whole, in part and not at all.
    """
    from worldsim.ops.ring_attention import Ring, attend_shards
    from worldsim.ops.visible import visible

    rows, columns = tiles(width, group)
    side = max(rows, columns)
    stretch = np.arange(2 * side)  # known chunks of one clip, then its queries; then a short clip and padding
    long = [np.stack([0 * stretch, stretch // 12, 0 * stretch + stream], axis=-1) for stream in (0, 1)]
    short = np.stack([1 + 0 * stretch, stretch // 12, stretch // 6 % 2], axis=-1)[: side + side // 2]
    found = np.concatenate([*long, short, np.full((side // 2, 3), -1)])
    rng, count, ids = np.random.default_rng(0), len(found), jax.numpy.asarray(found[None], np.int32)
    heads = (2 * group, 2, 2, 2 * group)
    q, k, v, do = (jax.numpy.asarray(rng.normal(size=(1, count, h, width)), dtype) for h in heads)
    ring = Ring(rows, columns, exact=True, block=block)

    def all_of(q: Array, k: Array, v: Array, do: Array) -> tuple[Array, ...]:
        def attend(q: Array, k: Array, v: Array) -> Array:
            out, _ = attend_shards(ring, q, k, v, ids, ids)  # type: ignore[misc]
            return out

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(do.astype(out.dtype))

    found = jax.jit(all_of)(q, k, v, do)
    q, k, v, do = (np.asarray(x, np.float64) for x in (q, k, v, do))
    want = _exact(q, k, v, do, np.asarray(visible(ids, ids)))
    distance = lambda x, y: float(np.sqrt(np.mean((np.asarray(x, np.float64) - y) ** 2) / np.mean(y**2)))
    return dict(zip(("o", "dq", "dk", "dv"), map(distance, found, want), strict=True))


def tiles(width: int, group: int) -> tuple[int, int]:
    """Queries and keys of a pair of tiles of the fused block: 128 rows, fewer where heads are wide."""
    rows = 128 if width <= 64 else 64
    return max(1, rows // group), 64 if width <= 128 else 32


def _exact(
    q: Float[np.ndarray, "b n h e"],
    k: Float[np.ndarray, "b n g e"],
    v: Float[np.ndarray, "b n g e"],
    do: Float[np.ndarray, "b n h e"],
    seen: Bool[Array | np.ndarray, "b n n"],
) -> tuple[np.ndarray, ...]:
    """Attention and its gradients in float64, with all scores in memory."""
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    wide_k, wide_v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("bnhe,bmhe->bhnm", q, wide_k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen[:, None]
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhnm,bmhe->bnhe", weights, wide_v)
    mean = np.einsum("bnhe,bnhe->bhn", do, out)[..., None]
    slope = weights * (np.einsum("bnhe,bmhe->bhnm", do, wide_v) - mean) * scale
    dk, dv = (np.einsum("bhnm,bnhe->bmhe", x, y) for x, y in ((slope, q), (weights, do)))
    share = lambda x: x.reshape(*k.shape[:3], group, -1).sum(3)
    return out, np.einsum("bhnm,bmhe->bnhe", slope, wide_k), share(dk), share(dv)
