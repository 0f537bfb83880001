"""What one token of a chunk looks at while the world predicts it: attention over earlier chunks, drawn.

The fused attention of the model gives no weights. Here its own queries and keys, as every layer has them in a
first pass with all codes of the chunk masked, are put through the readable reference, for one token.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.generate.requests import Direction, extend_request
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.ops.attention import KNOWN, QUERY, weights
from worldsim.types import Clip

Read = tuple[Float[Array, "l k m e"], Float[Array, "l k e"]]
"""The values of all tokens, and what attention made of them."""


@dataclasses.dataclass(frozen=True)
class Looked:
    """Attention of one token, of every layer.

    Attributes:
      weights: ``[l k p n]``, over the tokens of p chunks in the order of time; 1 in all.
      frames: ``[p]``, the first frame of each chunk in the clip.
      own: which of them is its own.
      token: (row, column) in the grid of tokens.
      grid: (rows, columns) of tokens.
      lead: tokens before the grid, one an action.
      nats: with which the world draws the token's true codes in this pass, all of them.
    """

    weights: Float[np.ndarray, "l k p n"]
    frames: Int[np.ndarray, "p"]
    own: int
    token: tuple[int, int]
    grid: tuple[int, int]
    lead: int
    nats: float

    def chosen(self, layer: int | None = None, head: int | None = None) -> Float[np.ndarray, "p n"]:
        """One layer's and head's; the mean over those that are not chosen.

        Raises:
          ValueError: a layer or head that there is not.
        """
        picked = self.weights
        for axis, (name, index) in enumerate((("layer", layer), ("head", head))):
            count = self.weights.shape[axis]
            if index is not None:
                if not 0 <= index < count:
                    raise ValueError(f"inspect: --{name} {index}; the world has {name}s 0 to {count - 1}.")
                picked = picked.take([index], axis)
        return picked.mean((0, 1))

    def over_grid(self, picked: Float[np.ndarray, "p n"]) -> Float[np.ndarray, "p h w"]:
        """Of such weights those on the grids."""
        return picked[:, self.lead :].reshape(-1, *self.grid)


def look(
    world: World,
    clip: Clip,
    *,
    token: tuple[int, int] | None = None,
    frame: int | None = None,
    direction: Direction = "forward",
) -> Looked:
    """What a token of the chunk with a frame reads while it is predicted from the chunks that come before it.

    Args:
      world: whose dynamics is looked at.
      clip: with the chunk's true frames and those that it is predicted from.
      token: (row, column) in the grid of tokens; by default the one whose pixels change most there.
      frame: of the clip, in the chunk to look at; by default the first with as many chunks before it as the
        world sees, or the last one.
      direction: ``forward``, where earlier chunks are seen, or ``backward``, where later ones are.

    Raises:
      ValueError: a frame or token outside the clip or the grid; a chunk from which nothing is seen.
    """
    f, context = world.config.tokenizer.frames_per_chunk, world.config.dynamics.context
    count, onward = len(clip) // f, direction == "forward"
    default = min(context, count - 1) if onward else max(0, count - 1 - context)
    chunk = default if frame is None else frame // f
    seen = np.arange(max(0, chunk - context), chunk) if onward else np.arange(chunk + 1, count)[:context]
    if count < 2:
        raise ValueError(
            f"inspect: a clip of {len(clip)} frames; give at least {2 * f}, to predict {f} of them."
        )
    if not 0 <= chunk < count or not len(seen):
        first, last = (f, count * f - 1) if onward else (0, (count - 1) * f - 1)
        raise ValueError(
            f"inspect: --frame {frame} of a clip of {len(clip)} frames; take {first} to {last}, so that "
            f"{direction} there is one to predict it from."
        )
    known = clip[int(seen[0]) * f : int(seen[-1] + 1) * f]
    own = clip[chunk * f : (chunk + 1) * f]
    led = None if world.config.dynamics.action.kind == "none" else own.actions
    request = extend_request(known, f, world.config, direction=direction, actions=led, verb="inspect")
    codes = tokenize(
        *world.tokenizer, np.concatenate([request.frames, own.frames])[None], frames_per_chunk=f
    )[:, [*request.sources[:-1], -1]]
    graph, params = world.dynamics
    model = nnx.merge(graph, params)
    place = _token(model, clip, chunk * f, f) if token is None else token
    rows, columns = model.grid
    if not (0 <= place[0] < rows and 0 <= place[1] < columns):
        raise ValueError(
            f"inspect: --token {place[0]},{place[1]}; rows go from 0 to {rows - 1}, columns to {columns - 1}."
        )
    chunks = _chunks(codes, request.plan.times, request.actions)
    at = model.lead + place[0] * columns + place[1]
    found, _, logits = token_weights(graph, params, *_split(chunks, model.mask), jnp.int32(at))
    order = np.argsort(request.plan.times)
    found = rearrange(np.asarray(found), "l k (p n) -> l k p n", p=len(request.plan))
    patch = model.config.patch
    cut = slice(place[0] * patch, (place[0] + 1) * patch), slice(place[1] * patch, (place[1] + 1) * patch)
    said = np.asarray(jax.nn.log_softmax(logits[0, 0][cut], axis=-1))
    true = np.take_along_axis(said, codes[0, -1][cut][..., None], -1)
    return Looked(
        weights=found[:, :, order],
        frames=np.sort(np.append(seen, chunk)) * f,
        own=int(np.argmax(order)),
        token=place,
        grid=model.grid,
        lead=model.lead,
        nats=max(0.0, -float(true.sum())),
    )


def _chunks(codes: np.ndarray, times: np.ndarray, actions: np.ndarray | None) -> Chunks:
    """A plan's chunks in the order in which they enter, the last the one to predict."""
    p = codes.shape[1]
    ids = np.stack([np.zeros(p), np.arange(p), np.full(p, KNOWN)], axis=-1)
    return Chunks(
        codes=jnp.asarray(codes),
        times=jnp.asarray(times, jnp.float32)[None],
        ids=jnp.asarray(ids, jnp.int32)[None],
        noise=jnp.zeros((1, p), jnp.float32),
        actions=None if actions is None else jnp.asarray(actions)[None],
    )


def _split(chunks: Chunks, mask: int) -> tuple[Chunks, Chunks]:
    """The known ones, and the last as a query with all its codes masked."""
    known = jax.tree.map(lambda a: a[:, :-1], chunks)
    query = jax.tree.map(lambda a: a[:, -1:], chunks)
    codes, ids = jnp.full_like(query.codes, mask), query.ids.at[..., 2].set(QUERY)
    return known, dataclasses.replace(query, codes=codes, ids=ids)


@partial(jax.jit, static_argnames="graph")
def token_weights(
    graph: nnx.GraphDef, params: nnx.State, known: Chunks, query: Chunks, token: Int[Array, ""]
) -> tuple[Float[Array, "l k m"], Read, Float[Array, "1 1 h w v"]]:
    """How much of each value one token of a query chunk reads, layer by layer.

    Args:
      graph, params: of the dynamics.
      known: chunks of one clip, whatever their orders: those that the query may not see get nothing.
      query: one chunk.
      token: its number in the chunk.

    Returns:
      The weights over the tokens of all known chunks and, last, of the query's own; the values of those
      tokens and what the model's attention read; the logits of the chunk.
    """
    model: Dynamics = nnx.merge(graph, params)
    cache = model.remember(known)
    past = model.past(cache, query)
    every = jnp.repeat(jnp.concatenate([cache.ids, query.ids], axis=1), model.tokens, axis=1)
    found, values, reads = [], [], []

    def watch(layer: int, own: tuple[Array, Array, Array], read: Array) -> None:
        q, k, v = own
        join = lambda old, new: jnp.concatenate([rearrange(old, "b k m e -> b m k e"), new], axis=1)
        pick = lambda a: jax.lax.dynamic_slice_in_dim(a, token, 1, axis=1)
        q, k, v = pick(q), join(past[layer].keys, k), join(past[layer].values, v)
        q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
        found.append(weights(q, k, query.ids, every)[0, :, 0])
        values.append(rearrange(v[0], "m k e -> k m e"))
        reads.append(pick(read)[0, 0].astype(jnp.float32))

    logits = model.predict(query, past, look=watch)
    return jnp.stack(found), (jnp.stack(values), jnp.stack(reads)), logits


def _token(model: Dynamics, clip: Clip, start: int, count: int) -> tuple[int, int]:
    """The token whose pixels change most between a chunk and the frame before it, or after it."""
    other = start - 1 if start else min(start + count, len(clip) - 1)
    change = np.abs(clip.frames[start].astype(float) - clip.frames[other]).sum(-1)
    rows, columns = model.grid
    each = change.reshape(rows, change.shape[0] // rows, columns, -1).sum((1, 3))
    row, column = np.unravel_index(int(each.argmax()), each.shape)
    return int(row), int(column)
