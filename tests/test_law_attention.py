"""Laws of who sees whom: by the letter, by gradient, by perturbation, and through any layout."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.ops import attention
from worldsim.ops.attention import KNOWN, PADDING, QUERY, merge

pytestmark = pytest.mark.law
attend, attend_block = jax.jit(attention.attend), jax.jit(attention.attend_block)
visible = jax.jit(attention.visible)


def law(q, k):
    """The sentence in the docstring of ops/attention.py, word by word."""
    (q_segment, q_order, q_stream), (k_segment, k_order, k_stream) = q, k
    if k_segment == PADDING or q_segment != k_segment:
        return False
    if k_stream == KNOWN and k_order < q_order:
        return True
    return q_order == k_order and q_stream == k_stream


def some_ids(rng, batch, count):
    bounds = ((-1, 2), (0, 4), (0, 2))  # segment, order, stream
    return np.stack([rng.integers(*bound, (batch, count)) for bound in bounds], axis=-1).astype(np.int32)


def with_segment(ids, segment):
    return np.stack(np.broadcast_arrays(segment, ids[..., 1], ids[..., 2]), axis=-1).astype(np.int32)


def some_tokens(rng, batch, count, *, heads=2, size=8):
    return rng.normal(size=(3, batch, count, heads, size)).astype(np.float32)


def reference(q, k, v, seen):
    """Softmax over what is seen, in float64, one query and head at a time."""
    q, k, v, seen = (np.asarray(a, np.float64) for a in (q, k, v, seen))
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        js = np.flatnonzero(seen[b, i])
        if len(js):
            scores = k[b, js, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights / weights.sum() @ v[b, js, h]
    return out


def test_visible_is_the_law_by_brute_force():
    rng = np.random.default_rng(0)
    q, k = some_ids(rng, 2, 40), some_ids(rng, 2, 50)
    seen = np.asarray(visible(q, k))
    for b, i, j in np.ndindex(seen.shape):
        assert seen[b, i, j] == law(q[b, i].tolist(), k[b, j].tolist()), (q[b, i], k[b, j])
    assert 0.05 < seen.mean() < 0.95


def test_picture_of_the_docstring():
    known = [(0, order, KNOWN) for order in range(3)]
    query = [(0, order, QUERY) for order in (1, 2)]
    ids = np.asarray([known + query], np.int32)
    assert np.asarray(visible(ids, ids))[0, -1].tolist() == [True, True, False, False, True]


def test_attend_is_softmax_over_what_is_seen():
    rng = np.random.default_rng(1)
    q, k, v = some_tokens(rng, 2, 24)
    ids = some_ids(rng, 2, 24)
    want = reference(q, k, v, visible(ids, ids))
    assert np.abs(want).sum((2, 3)).min() == 0  # rows that see nothing are among them
    np.testing.assert_allclose(attend(q, k, v, ids, ids), want, atol=1e-5)


def test_rows_that_see_nothing_are_zero_with_finite_gradients():
    rng = np.random.default_rng(2)
    q, k, v = some_tokens(rng, 1, 6)
    blind = tiny.chunk_ids(0, np.zeros((1, 6)), KNOWN)
    unseen = tiny.chunk_ids(PADDING, np.zeros((1, 6)), KNOWN)

    def out(q, k, v):
        part = attend_block(q, k, v, blind, unseen)
        own = attend_block(q, k, v, blind, blind)
        return part[0].sum() + (merge([part, part]) ** 2).sum() + (merge([part, own]) ** 2).sum()

    assert not np.any(attend_block(q, k, v, blind, unseen)[0])
    assert not np.any(merge([attend_block(q, k, v, blind, unseen)] * 2))
    for gradient in jax.jit(jax.grad(out, argnums=(0, 1, 2)))(q, k, v):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


@pytest.mark.parametrize("cuts", [(7,), (1, 2, 3), (5, 5, 19)])
def test_blocks_merge_to_one_attention(cuts):
    """Disjoint blocks of keys, in any order, an empty-handed one among them."""
    rng = np.random.default_rng(3)
    q, k, v = some_tokens(rng, 2, 20)
    ids = some_ids(rng, 2, 20)
    bounds = [0, *cuts, 20]
    parts = [
        attend_block(q, k[:, lo:hi], v[:, lo:hi], ids, ids[:, lo:hi])
        for lo, hi in itertools.pairwise(bounds)
        if hi > lo
    ]
    parts.append(attend_block(q, 9 * k, 9 * v, ids, with_segment(ids, PADDING)))
    np.testing.assert_allclose(merge(parts[::-1]), attend(q, k, v, ids, ids), atol=1e-5)


def test_layout_does_not_matter():
    """The integers travel with the tokens: shuffled queries and keys give the same rows, shuffled."""
    rng = np.random.default_rng(4)
    q, k, v = some_tokens(rng, 2, 30)
    ids = some_ids(rng, 2, 30)
    rows, columns = rng.permutation(30), rng.permutation(30)
    want = attend(q, k, v, ids, ids)[:, rows]
    got = attend(q[:, rows], k[:, columns], v[:, columns], ids[:, rows], ids[:, columns])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_packed_segments_do_not_leak():
    """Two clips in one row, interleaved, come out as each alone."""
    rng = np.random.default_rng(5)
    q, k, v = some_tokens(rng, 1, 24)
    ids = with_segment(some_ids(rng, 1, 24), rng.integers(0, 2, (1, 24)))
    packed = attend(q, k, v, ids, ids)
    for segment in (0, 1):
        own = np.flatnonzero(ids[0, :, 0] == segment)
        alone = attend(q[:, own], k[:, own], v[:, own], ids[:, own], ids[:, own])
        np.testing.assert_allclose(packed[:, own], alone, atol=1e-5)


def test_padding_is_seen_by_nobody():
    rng = np.random.default_rng(6)
    q, k, v = some_tokens(rng, 1, 24)
    ids = some_ids(rng, 1, 24)
    padding = (ids[..., 0] == PADDING)[..., None, None]
    assert padding.sum() > 3
    changed = attend(q, np.where(padding, 7 * k, k), np.where(padding, np.float32(1e6), v), ids, ids)
    np.testing.assert_array_equal(changed, attend(q, k, v, ids, ids))
    assert not np.asarray(visible(ids, ids))[:, :, padding[0, :, 0, 0]].any()


ORDERS = {"in order": (0, 1, 2, 3, 4), "shuffled": (3, 0, 4, 1, 2)}


def streams(orders, *, batch=1, patch=1):
    """A dynamics model and both streams of a plan laid out as ``orders`` says, every chunk queried."""
    world = tiny.config(patch=patch, conditions=tiny.CONDITIONS)
    rng = np.random.default_rng(7)
    p = len(orders)
    model = tiny.model("dynamics", world)
    known = Chunks(
        codes=jnp.asarray(np.broadcast_to(rng.integers(0, 9, (p, 2, 2)), (batch, p, 2, 2)), jnp.int32),
        times=jnp.broadcast_to(jnp.asarray(rng.permutation(p), jnp.float32), (batch, p)),
        ids=tiny.chunk_ids(0, np.broadcast_to(orders, (batch, p)), KNOWN),
        noise=jnp.zeros((batch, p)),
        actions=jnp.zeros((batch, p, 1), jnp.int32),
    )
    query = Chunks(
        codes=jnp.full((batch, p, 2, 2), model.mask),
        times=known.times,
        ids=tiny.chunk_ids(0, np.broadcast_to(orders, (batch, p)), QUERY),
        noise=jnp.zeros((batch, p)),
        actions=known.actions,
    )
    return model, known, query


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("orders", ORDERS.values(), ids=list(ORDERS))
def test_no_chunk_sees_a_later_order_and_every_token_of_every_earlier_one(orders, patch, monkeypatch):
    """By gradient of each query chunk's logits with respect to each token that enters."""
    model, known, query = streams(orders, patch=patch)
    plain, p = Dynamics.embed, len(orders)
    weights = jax.random.normal(jax.random.key(0), (p, 2, 2, 9))

    def answers(into_known, into_query):
        """One number per query chunk."""

        def embed(self, chunks):
            return plain(self, chunks) + jnp.concatenate([into_known, into_query], axis=1)

        monkeypatch.setattr(Dynamics, "embed", embed)
        return jnp.einsum("phwv,phwv->p", model.two_stream(known, query)[0], weights)

    zeros = jnp.zeros((1, p * model.tokens, 32))
    by_known, by_query = jax.jit(jax.jacrev(answers, argnums=(0, 1)))(zeros, zeros)
    by_known, by_query = (np.abs(g).reshape(p, p, model.tokens, 32).sum(-1) for g in (by_known, by_query))
    for i, j in itertools.product(range(p), repeat=2):
        if orders[j] < orders[i]:
            assert by_known[i, j].min() > 1e-6, (i, j)
        else:
            assert not by_known[i, j].any(), (i, j)  # its own true codes included
        assert by_query[i, j].all() if i == j else not by_query[i, j].any(), (i, j)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_answer_depends_on_every_code_and_action_of_every_earlier_chunk_and_on_no_later_one(patch):
    """Perturb each in turn, all in one batch."""
    orders = ORDERS["shuffled"]
    p = len(orders)
    places = list(itertools.product(range(p), range(5)))  # four codes and the action
    model, known, query = streams(orders, batch=len(places) + 1, patch=patch)
    codes, actions = np.array(known.codes), np.array(known.actions)
    for row, (chunk, place) in enumerate(places):
        if place < 4:
            cell = (row, chunk, *divmod(place, 2))
            codes[cell] = (codes[cell] + 4) % 9
        else:
            actions[row, chunk] = 2
    known = Chunks(jnp.asarray(codes), known.times, known.ids, known.noise, jnp.asarray(actions))
    logits = np.asarray(jax.jit(type(model).two_stream)(model, known, query))
    change = np.abs(logits[:-1] - logits[-1:]).max((2, 3, 4))
    for (chunk, place), moved in zip(places, change, strict=True):
        for i in range(p):
            if orders[chunk] < orders[i]:
                assert moved[i] > 1e-4, (chunk, place, i)
            else:
                assert moved[i] < 1e-6, (chunk, place, i)
