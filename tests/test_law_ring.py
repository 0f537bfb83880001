"""Laws of attention over many devices: what float64 gives, in any order, layout and number of devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from worldsim.ops import attention
from worldsim.ops import tiled_attention as tiled
from worldsim.ops.attention import KNOWN, PADDING, QUERY
from worldsim.parallel.mesh import make_mesh

pytestmark = pytest.mark.law

BATCH, TOKENS, HEADS, GROUPS, WIDTH = 2, 384, 4, 2, 16
KINDS = ("causal", "chunk-causal", "two-stream", "random orders", "packed", "padded")
LAYOUTS = ("contiguous", "zigzag", "striped")
DEVICES = (1, 2, 4, 8)
SOONER = (("ring", 4), ("allgather", 2))
LATER = [(strategy, count) for strategy in ("ring", "allgather") for count in DEVICES]
visible = jax.jit(attention.visible)


def ids_of(kind, rng):
    """``[b n 3]`` in the natural order of the tokens."""
    order, segment, stream = np.arange(TOKENS), np.zeros(TOKENS, int), np.full(TOKENS, KNOWN)
    if kind == "chunk-causal":
        order = order // 7
    elif kind == "two-stream":
        order = np.concatenate([np.arange(TOKENS * 2 // 3), np.arange(TOKENS // 3) * 2]) // 8
        stream = np.where(np.arange(TOKENS) < TOKENS * 2 // 3, KNOWN, QUERY)
    elif kind == "random orders":
        order = rng.permutation(TOKENS // 8).repeat(8)
    elif kind == "packed":
        segment = np.searchsorted([50, 200, 210], order, side="right")
        order = (order - np.asarray([0, 50, 200, 210])[segment]) // 5
    elif kind == "padded":
        segment = np.where(order < 300, 0, PADDING)
        order = order // 6
    ids = np.stack([segment, order, stream], axis=-1).astype(np.int32)
    return np.stack([ids] * BATCH)


def layout_of(kind, count):
    """Which token lies at which place of the global sequence."""
    places = np.arange(TOKENS)
    if kind == "zigzag":
        halves = places.reshape(2 * count, -1)
        return np.concatenate([np.concatenate([halves[i], halves[-1 - i]]) for i in range(count)])
    if kind == "striped":
        return places.reshape(-1, count, 8).swapaxes(0, 1).reshape(-1)
    return places


def tokens(seed, dtype=np.float32, *, width=WIDTH):
    rng = np.random.default_rng(seed)
    shapes = [(BATCH, TOKENS, heads, width) for heads in (HEADS, GROUPS, GROUPS, HEADS)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def exact(q, k, v, do, ids):
    """Outputs and gradients in float64, with every score in memory."""
    q, k, v, do = (np.asarray(x, np.float64) for x in (q, k, v, do))
    width = q.shape[-1]
    wide_k, wide_v = (x.repeat(HEADS // GROUPS, axis=2) for x in (k, v))
    seen = np.asarray(visible(ids, ids))[:, None]
    scores = np.einsum("bnhe,bmhe->bhnm", q, wide_k) / width**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)
    out = np.einsum("bhnm,bmhe->bnhe", weights, wide_v)
    slope = np.einsum("bnhe,bmhe->bhnm", do, wide_v)
    slope = weights * (slope - np.einsum("bnhe,bnhe->bhn", do, out)[..., None]) / width**0.5

    def join(x):
        return x.reshape(BATCH, TOKENS, GROUPS, -1, width).sum(3)

    return (
        out,
        np.einsum("bhnm,bmhe->bnhe", slope, wide_k),
        join(np.einsum("bhnm,bnhe->bmhe", slope, q)),
        join(np.einsum("bhnm,bnhe->bmhe", weights, do)),
    )


@functools.cache
def on(count, strategy):
    """The compiled attention and its gradients on so many devices."""
    mesh = make_mesh({"context": count})

    def run(q, k, v, do, ids):
        attend = functools.partial(attention.attend, strategy=strategy, tile=16)
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, ids, ids), q, k, v)
        return out, *back(do)

    def call(*args):
        with jax.set_mesh(mesh):
            return jax.jit(run)(*args)

    return call


def errors(found, want):
    """Relative root mean squares."""
    pairs = zip(found, want, strict=True)
    return [float(np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2) / np.mean(b**2))) for a, b in pairs]


@pytest.mark.parametrize(
    ("strategy", "count"),
    [pytest.param(*case, marks=() if case in SOONER else pytest.mark.slow) for case in LATER],
)
def test_every_kind_and_layout_is_exact(strategy, count):
    """Rows that see nothing (padding) give zeros, never NaN."""
    for number, kind in enumerate(KINDS):
        args, ids = tokens(number), ids_of(kind, np.random.default_rng(number))
        want = exact(*args, ids)
        for layout in LAYOUTS:
            place = layout_of(layout, count)
            found = on(count, strategy)(*(x[:, place] for x in (*args, ids)))
            back = np.argsort(place)
            found = [np.asarray(x)[:, back] for x in found]
            assert max(errors(found, want)) < 2e-6, (kind, layout)
            if kind == "padded":
                assert all(not x[:, 300:].any() for x in found)


def test_wide_heads_are_near_in_bfloat16():
    """Of a width whose root is no power of two, so that the scale of the scores is rounded too."""
    args = tokens(2, jnp.bfloat16, width=32)
    ids = ids_of("two-stream", np.random.default_rng(2))
    place = layout_of("striped", 4)
    found = on(4, "ring")(*(x[:, place] for x in (*args, ids)))
    assert all(x.dtype == jnp.bfloat16 for x in found)
    found = [np.asarray(x)[:, np.argsort(place)] for x in found]
    assert max(errors(found, exact(*args, ids))) < 4e-3


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "count"), LATER)
def test_every_kind_and_layout_is_near_in_bfloat16(strategy, count):
    found = {}
    for number, kind in enumerate(KINDS):
        args, ids = tokens(number, jnp.bfloat16), ids_of(kind, np.random.default_rng(number))
        want = exact(*args, ids=ids)
        for layout in LAYOUTS:
            place = layout_of(layout, count)
            got = on(count, strategy)(*(x[:, place] for x in (*args, ids)))
            assert all(x.dtype == jnp.bfloat16 for x in got)
            got = [np.asarray(x)[:, np.argsort(place)] for x in got]
            found[kind, layout] = max(errors(got, want))
            if kind == "padded":
                assert all(not x[:, 300:].any() for x in got)
    assert max(found.values()) < 4e-3, found


@pytest.mark.slow
def test_bfloat16_does_not_lose_with_the_number_of_devices():
    args, ids = tokens(0, jnp.bfloat16), ids_of("chunk-causal", np.random.default_rng(0))
    want = exact(*args, ids)
    found = {count: max(errors(on(count, "ring")(*args, ids), want)) for count in DEVICES}
    assert max(found.values()) < 4e-3, found
    assert max(found.values()) < 1.05 * min(found.values()), found


def test_the_ring_passes_keys_on_and_the_gather_collects_them():
    args, ids = tokens(0), ids_of("causal", np.random.default_rng(0))
    with jax.set_mesh(make_mesh({"context": 4})):
        for strategy, want, other in (
            ("ring", "collective-permute", "all-gather"),
            ("allgather", "all-gather", "collective-permute"),
        ):
            attend = functools.partial(attention.attend, strategy=strategy)
            text = jax.jit(attend).lower(*args[:3], ids, ids).compile().as_text()
            assert re.search(rf"= .*{want}", text)
            assert not re.search(rf"= .*{other}[-a-z]*\(", text)


def test_masks_of_a_scan_over_layers_are_not_kept():
    """The compiler may not build all masks before the scan: their bytes would be the square of the tokens."""
    n = 8192
    ids = jnp.stack([jnp.zeros(n, int), jnp.arange(n), jnp.zeros(n, int)], axis=-1)[None]
    x = jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32)

    def loss(x):
        def layer(x, _):
            return x + attention.attend(x, x, x, ids, ids, tile=256), None

        return jax.lax.scan(layer, x, length=4)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n


@pytest.mark.parametrize("tile", [8, 17, 24, None])
def test_empty_slots_hide_nothing(tile):
    """Keys of a cache that is part full: empty slots have -1 for all three ids, and share tiles."""
    q, k, v, _ = (jnp.asarray(x[:, :96]) for x in tokens(3))
    places = np.arange(96) // 4
    q_ids = np.stack([places * 0, places + 9, places * 0 + QUERY], axis=-1)
    k_ids = np.where(places[:, None] % 3 > 0, np.stack([places * 0, places, places * 0], axis=-1), PADDING)
    q_ids, k_ids = (jnp.asarray(np.stack([ids] * BATCH), jnp.int32) for ids in (q_ids, k_ids))
    found = attention.attend(q, k, v, q_ids, k_ids, tile=tile)
    np.testing.assert_allclose(found, attention.reference(q, k, v, q_ids, k_ids), atol=2e-6)


def test_what_does_not_fit_is_refused():
    q, k, v = map(jnp.asarray, tokens(0)[:3])
    ids = jnp.asarray(ids_of("causal", np.random.default_rng(0)))
    with pytest.raises(ValueError, match="'spiral'; take one of"):
        attention.attend(q, k, v, ids, ids, strategy="spiral")
    with pytest.raises(ValueError, match="4 query heads don't divide by 3"):
        attention.attend(q, k[:, :, [0, 1, 0]], v[:, :, [0, 1, 0]], ids, ids)
    with pytest.raises(ValueError, match="needs a mesh"):
        attention.attend(q, k, v, ids, ids, strategy="ring")
    with (
        jax.set_mesh(make_mesh({"context": 8})),
        pytest.raises(ValueError, match="380 tokens .* 8 devices .* 376 or 384"),
    ):
        attention.attend(*(x[:, :380] for x in (q, k, v, ids, ids)), strategy="ring")


@pytest.mark.parametrize("name", ["data", "model"])
def test_a_mesh_without_an_axis_for_the_context_attends_locally(name):
    args = (*tokens(0)[:3], ids_of("causal", np.random.default_rng(0)))
    q, k, v, ids = (jnp.asarray(x[:, :96]) for x in args)
    mesh = jax.make_mesh((2,), (name,), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        found = jax.jit(attention.attend)(q, k, v, ids, ids)
        for strategy in ("ring", "allgather"):
            with pytest.raises(ValueError, match=f"'{strategy}' needs a mesh with an axis 'context'"):
                attention.attend(q, k, v, ids, ids, strategy=strategy)
    np.testing.assert_allclose(found, attention.reference(q, k, v, ids, ids), atol=2e-6)


def test_rows_and_heads_that_do_not_divide_are_worked_on_by_every_device():
    """Three rows on four devices, and two key heads on a tensor axis of four."""
    args = (*tokens(0)[:3], ids_of("causal", np.random.default_rng(0)))
    q, k, v, ids = (jnp.asarray(x[[0, 1, 0], :96]) for x in args)
    want = attention.reference(q, k, v, ids, ids)
    for sizes in ({"data": 2, "fsdp": 2, "context": 2}, {"context": 2, "tensor": 4}):
        with jax.set_mesh(make_mesh(sizes)):
            found = jax.jit(functools.partial(attention.attend, strategy="ring"))(q, k, v, ids, ids)
        np.testing.assert_allclose(found, want, atol=2e-6)
        assert found.sharding.shard_shape(found.shape) == (3, 48, HEADS, WIDTH)


def test_relations_never_hide_a_visible_pair():
    """Tiles that see all or nothing of each other are those that say so, for any ids."""
    rng = np.random.default_rng(0)
    counts = {tiled.NOTHING: 0, tiled.SOME: 0, tiled.ALL: 0}
    for _ in range(60):
        bounds = ((-1, 2), (0, rng.integers(2, 40)), (0, 2))
        ids = np.stack([np.sort(rng.integers(*bound, (1, 64)), axis=1) for bound in bounds], axis=-1)
        ids[ids[..., 0] == PADDING] = rng.integers(-1, 50, 3) * [0, 1, 1] + [PADDING, 0, 0]
        tiles = tiled.cut_ids(jnp.asarray(ids, jnp.int32), 8)
        said = np.asarray(tiled.relations(tiles, tiles))
        nearer = np.asarray(tiled.relations(tiles, tiles, part=2))
        pairs = np.asarray(visible(ids, ids))[0].reshape(8, 8, 8, 8).swapaxes(1, 2)
        for found in (said, nearer):
            assert not pairs[found == tiled.NOTHING].any()
            assert pairs[found == tiled.ALL].all()
        assert (nearer == said)[said != tiled.SOME].all()
        for kind in counts:
            counts[kind] += int((said == kind).sum())
    assert min(counts.values()) > 10, counts


def test_parts_that_are_chunks_tell_what_whole_tiles_do_not():
    """Tiles of four chunks on two devices. Queries see no other chunk's, whatever lies between; and the end
    of one clip beside the start of the next sees no more than each of them alone."""
    chunk, tile = 4, 16

    def tiles(chunks):
        ids = np.repeat(np.asarray(chunks), chunk, axis=0)[None]
        return tiled.cut_ids(jnp.asarray(ids, jnp.int32), tile, repeat=2)

    even, odd = (tiles([(0, 2 * i + odd, QUERY) for i in range(4)]) for odd in (0, 1))
    assert tiled.relations(even, odd).item() == tiled.SOME
    assert tiled.relations(even, odd, part=chunk).item() == tiled.NOTHING
    assert tiled.relations(even, even, part=chunk).item() == tiled.SOME
    seam = tiles([(0, 8, KNOWN), (0, 9, KNOWN), (1, 0, KNOWN), (1, 1, KNOWN)])
    after = tiles([(1, i, KNOWN) for i in range(2, 6)])
    assert tiled.relations(seam, after).item() == tiled.SOME
    assert tiled.relations(seam, after, part=chunk).item() == tiled.NOTHING
    assert tiled.relations(after, seam, part=chunk).item() == tiled.SOME
    assert tiled.relations(after, seam[:, :, :, 8:16], part=chunk).item() == tiled.ALL


def test_tiles_of_chunks_are_exact_on_two_devices():
    """Chunks of 16 tokens in tiles of 32: both streams in stripes, and what sees nothing is left out."""
    order = np.arange(12).reshape(-1, 2).T.repeat(16, axis=1)
    ids = np.concatenate([np.stack([order * 0, order, order * 0 + s], -1) for s in (KNOWN, QUERY)], axis=1)
    ids = np.stack([ids.reshape(TOKENS, 3)] * BATCH).astype(np.int32)
    args = tokens(1)
    want = exact(*args, ids)
    for strategy in ("ring", "allgather"):
        with jax.set_mesh(make_mesh({"context": 2})):
            attend = functools.partial(attention.attend, strategy=strategy, tile=32, unit=16)
            run = lambda q, k, v, ids, attend=attend: jax.vjp(lambda *x: attend(*x, ids, ids), q, k, v)
            found = jax.jit(lambda q, k, v, do, ids, run=run: (lambda o, b: (o, *b(do)))(*run(q, k, v, ids)))
            assert max(errors(found(*args, ids), want)) < 2e-6, strategy
