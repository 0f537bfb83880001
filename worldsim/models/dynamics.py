"""The chunk-causal transformer over codes: two-stream training, cached prediction and commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.config import DynamicsConfig, Remat, TokenizerConfig
from worldsim.models.cache import Entry, KVCache, empty_cache, write
from worldsim.models.transformer import Transformer
from worldsim.ops import rope, twohot
from worldsim.ops.attention import attend, attend_block, context_size, merge
from worldsim.ops.cached_attention import Part, attend_parts
from worldsim.ops.once import once
from worldsim.ops.visible import UNSEEN, visible

NOISE_BUCKETS = 16
Sight = Float[Array, ""] | float

Look = Callable[[int, tuple[Array, Array, Array], Array], None]
"""Is told of a layer: its number, the chunks' own queries, keys and values ``[b m k e]``, the first two
rotated, and what attention read with them ``[b m k e]``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks of one stream as the model reads them.

    Attributes:
      codes: ``[b p h w]``; the value v (one past the codebook) is the mask.
      times: ``[b p]``, the time of the chunk's first frame, in frames.
      ids: ``[b p 3]`` (segment, order, stream).
      noise: ``[b p]``, how corrupted the codes are, 0 to 1.
      actions: ``[b p f]`` int32 (-1 is null) or ``[b p f a]`` float32 (NaN is null), or None.
      conditions: per name ``[b p]`` int32 (-1 is null) or ``[b p s]`` float32 (NaN is null).
    """

    codes: Int[Array, "b p h w"]
    times: Float[Array, "b p"]
    ids: Int[Array, "b p 3"]
    noise: Float[Array, "b p"]
    actions: Array | None = None
    conditions: dict[str, Array] = dataclasses.field(default_factory=dict)


class Door(nnx.Module):
    """One input beside the codes: a class or a vector, either of which may be null."""

    def __init__(self, kind: str, size: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.kind = kind
        self.table = nnx.Param(init(rngs.params(), (size, width)))
        self.null = nnx.Param(init(rngs.params(), (width,)))

    def __call__(self, x: Array) -> Float[Array, "*n d"]:
        if self.kind in ("class", "discrete"):
            missing, value = x < 0, self.table[...][jnp.maximum(x, 0)]
        else:
            missing = jnp.isnan(x).any(-1)
            value = jnp.nan_to_num(x).astype(jnp.float32) @ self.table[...]
        return jnp.where(missing[..., None], self.null[...], value)


class Outcomes(nnx.Module):
    """Rewards and ends of chunks, read from what the transformer makes of them once their codes are known."""

    def __init__(self, config: DynamicsConfig, *, rngs: nnx.Rngs, dtype=None):
        sizes = {"rewards": len(twohot.BINS), "ends": 1}
        zeros = nnx.initializers.zeros
        self.up = nnx.Linear(config.width, config.width, rngs=rngs, dtype=dtype)
        self.down = nnx.Dict(
            {
                name: nnx.Linear(config.width, sizes[name], kernel_init=zeros, rngs=rngs, dtype=dtype)
                for name in config.outcomes
            }
        )

    def __call__(self, x: Float[Array, "b p n d"]) -> dict[str, Float[Array, "b p v"]]:
        """Logits over the bins of rewards, and of the end, by name."""
        pooled = nnx.gelu(self.up(x)).max(2)  # one token may tell all
        return {name: layer(pooled).astype(jnp.float32) for name, layer in self.down.items()}


class Dynamics(nnx.Module):
    """Predicts the codes of a chunk from every chunk generated before it.

    A chunk is a row of tokens: one per frame for the action (where the world has actions), then its
    grid of codes, ``patch x patch`` codes a token. Codes are masked and drawn one by one all the same.
    Times, orders and streams are integers beside them; see :mod:`worldsim.ops.visible` for who sees
    whom.
    """

    def __init__(self, config: DynamicsConfig, tokenizer: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None):
        init = nnx.initializers.normal(0.02)
        rows, columns = tokenizer.grid
        frames, width = tokenizer.frames_per_chunk, config.width
        patch = config.patch
        self.config, self.dtype = config, dtype
        self.grid = rows // patch, columns // patch
        self.codebook = tokenizer.codebook
        self.lead = frames if config.action.kind != "none" else 0
        self.tokens = self.lead + self.grid[0] * self.grid[1]
        self.codes = nnx.Param(init(rngs.params(), (self.codebook + 1, width // patch**2)))
        self.space = nnx.Param(init(rngs.params(), (self.tokens, width)))
        self.stream = nnx.Param(init(rngs.params(), (2, width)))
        self.noise = nnx.Param(init(rngs.params(), (NOISE_BUCKETS, width)))
        action = config.action
        self.action = Door(action.kind, action.size, width, rngs=rngs) if self.lead else None
        self.conditions = nnx.Dict(
            {c.name: Door(c.kind, c.size, width, rngs=rngs) for c in config.conditions}
        )
        self.transformer = Transformer(config, self.grid, self.lead, rngs=rngs, dtype=dtype)
        self.outcomes = Outcomes(config, rngs=rngs, dtype=dtype) if config.outcomes else None
        self.head = nnx.Linear(width, patch**2 * self.codebook, kernel_init=init, rngs=rngs, dtype=dtype)

    @property
    def mask(self) -> int:
        """The code that stands for "not known yet"."""
        return self.codebook

    def embed(self, chunks: Chunks) -> Float[Array, "b m d"]:
        """Tokens of all chunks, flattened chunk by chunk."""
        b, p = chunks.codes.shape[:2]
        i = self.config.patch
        codes = rearrange(chunks.codes, "b p (h i) (w j) -> b p (h w) (i j)", i=i, j=i)
        x = self.codes[...][codes].reshape(b, p, codes.shape[2], -1)
        if self.action is not None:
            null = -1 if self.config.action.kind == "discrete" else jnp.nan
            shape = (b, p, self.lead) + ((self.config.action.size,) if null != -1 else ())
            actions = jnp.full(shape, null) if chunks.actions is None else chunks.actions
            x = jnp.concatenate([self.action(actions), x], axis=2)
        level = jnp.clip(
            jnp.ceil(chunks.noise / max(self.config.max_noise, 1e-6) * (NOISE_BUCKETS - 1)),
            0,
            NOISE_BUCKETS - 1,
        )
        chunk = self.noise[...][level.astype(jnp.int32)] + self.stream[...][chunks.ids[..., 2]]
        for condition in self.config.conditions:
            door, shape = self.conditions[condition.name], (b, p)
            null = (
                jnp.full(shape, -1)
                if condition.kind == "class"
                else jnp.full((*shape, condition.size), jnp.nan)
            )
            chunk = chunk + door(chunks.conditions.get(condition.name, null))
        x = x + self.space[...] + chunk[:, :, None]
        return x.reshape(b, p * self.tokens, -1).astype(self.dtype or x.dtype)

    def _angles(self, times: Float[Array, "b p"]) -> Float[Array, "b m r"]:
        """Rotary phases of all tokens of chunks at these times."""
        rows, columns = self.grid
        offset = np.concatenate([np.arange(self.lead), np.zeros(rows * columns)])
        row, column = np.divmod(np.arange(rows * columns), columns)
        row = np.concatenate([np.full(self.lead, (rows - 1) / 2), row])
        column = np.concatenate([np.full(self.lead, (columns - 1) / 2), column])
        full = (times[..., None] + offset).reshape(times.shape[0], -1)
        spread = lambda x: jnp.broadcast_to(jnp.tile(x, times.shape[1]), full.shape)
        head = self.config.width // self.config.heads
        return rope.phases(full, spread(row), spread(column), head=head, base=self.config.rope_base)

    def _ids(self, ids: Int[Array, "b p 3"]) -> Int[Array, "b m 3"]:
        return jnp.repeat(ids, self.tokens, axis=1)

    def tell(self, x: Float[Array, "b n d"]) -> dict[str, Float[Array, "b p v"]]:
        """Logits of the outcomes of known chunks, by name, from what the transformer made of their tokens."""
        if self.outcomes is None:
            return {}
        return self.outcomes(
            rearrange(x, "b (p n) d -> b p n d", n=self.tokens).astype(self.dtype or x.dtype)
        )

    def logits(self, x: Float[Array, "b m d"]) -> Float[Array, "b p h w v"]:
        """Of the codes of all chunks, from what the transformer made of their tokens."""
        b = x.shape[0]
        codes = x.reshape(b, -1, self.tokens, x.shape[-1])[:, :, self.lead :]
        logits = self.head(codes.astype(self.dtype or x.dtype)).astype(jnp.float32)
        i, (rows, _) = self.config.patch, self.grid
        return rearrange(logits, "b p (h w) (i j v) -> b p (h i) (w j) v", h=rows, i=i, j=i)

    def two_stream(
        self, known: Chunks, query: Chunks, *, strategy: str = "local", remat: Remat = "none"
    ) -> Float[Array, "b p h w v"]:
        """Logits of the query chunks, each reading the known chunks of lower order and itself.

        Args:
          known: the known stream, p chunks in any order.
          query: the query stream, masked copies of some of them.
          strategy: of :func:`worldsim.ops.attention.attend`. Where it is not ``local``, both streams are
            spread over the mesh axis ``context`` chunk by chunk.
          remat: what the backward pass computes anew (:class:`worldsim.models.transformer.Transformer`).

        Returns:
          Logits for every code of every query chunk.
        """
        return self.logits(self.streams(known, query, strategy=strategy, remat=remat)[1])

    def streams(
        self, known: Chunks, query: Chunks, *, strategy: str = "local", remat: Remat = "none"
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        """What the transformer makes of the tokens of both streams of :meth:`two_stream`."""
        parts = 1 if strategy == "local" else context_size()
        both = jax.tree.map(partial(_alternate, parts=parts), known, query)
        turns, ids = rope.turns(self._angles(both.times - known.times[:, :1])), self._ids(both.ids)

        def mix(q, k, v):
            q, k = rope.rotate(q, turns), rope.rotate(k, turns)
            return attend(q, k, v, ids, ids, strategy=strategy, unit=self.tokens)

        x = self.transformer(self.embed(both), lambda _: mix, remat=remat)
        share = known.codes.shape[1] // parts * self.tokens
        x = rearrange(x, "b (n s) d -> b n s d", n=parts)
        joined = lambda part: rearrange(part, "b n s d -> b (n s) d")
        return joined(x[:, :, :share]), joined(x[:, :, share:])

    def past(self, cache: KVCache, readers: Chunks, *, sight: Sight = jnp.inf) -> tuple[Part, ...]:
        """What a cache shows to chunks, per layer: keys rotated as seen from the first of them.

        Worked out once for all passes over the same chunks. The bias has an axis for them, ``[p b m]``; what
        lies more than ``sight`` frames before or after a reader is hidden from it.
        """
        away = cache.times - readers.times[:, :1]
        if self.config.reach:
            away = jnp.clip(away, -self.config.reach, self.config.reach)
        angles = self._angles(away)
        turns = tuple(part[:, None] for part in once(rope.turns, angles))
        keys = once(lambda turns, keys: [rope.turn(k, turns) for k in keys], turns, cache.keys)

        def hide(ids, past, times, others):
            seen = rearrange(visible(ids, past), "b p s -> p b s")
            seen &= jnp.abs(times.T[:, :, None] - others[None]) <= sight
            return jnp.where(jnp.repeat(seen, self.tokens, axis=-1), 0.0, UNSEEN)

        bias = once(hide, readers.ids, cache.ids, readers.times, cache.times)
        return tuple(Part(k, v, bias) for k, v in zip(keys, cache.values, strict=True))

    def nearest(
        self, past: tuple[Part, ...], cache: KVCache, readers: Chunks, *, count: int
    ) -> tuple[Part, ...]:
        """What :meth:`past` gave, of which readers see only the ``count`` chunks nearest to them in time."""
        seen = rearrange(visible(readers.ids, cache.ids), "b p s -> p b s")
        away = jnp.abs(readers.times.T[:, :, None] - cache.times[None])
        away = jnp.where(seen, away, jnp.inf)
        shown = seen & (away <= jnp.sort(away, axis=-1)[..., count - 1 : count])
        bias = jnp.where(jnp.repeat(shown, self.tokens, axis=-1), 0.0, UNSEEN)
        return tuple(dataclasses.replace(part, bias=bias) for part in past)

    def _read(self, chunks: Chunks, past: tuple[Part, ...] | None, look: Look | None = None):
        """Run chunks against the past, if any, and one another; also their keys and values per layer."""
        p = chunks.codes.shape[1]
        angles, ids = self._angles(chunks.times - chunks.times[:, :1]), self._ids(chunks.ids)
        turns = once(rope.turns, angles)
        kept: list[tuple[Array, Array]] = []
        heads_first = lambda a: rearrange(a, "b m k e -> b k m e")

        def mix(layer):
            def read(q, k, v):
                kept.append((heads_first(k), heads_first(v)))
                q, k = rope.rotate(q, turns), rope.rotate(k, turns)
                out = over(layer, q, k, v)
                if look is not None:
                    look(layer, (q, k, v), out)
                return out

            return read

        def over(layer, q, k, v):
            if past is None:
                return attend_block(q, k, v, ids, ids)[0]
            if p == 1:  # a chunk sees all of itself
                own, bias = Part(heads_first(k), heads_first(v)), past[layer].bias[0]
                parts = [dataclasses.replace(past[layer], bias=bias), own]
                return rearrange(attend_parts(heads_first(q), parts)[0], "b k n e -> b n k e")
            return merge([_over_past(q, past[layer]), attend_block(q, k, v, ids, ids)])

        return self.transformer(self.embed(chunks), mix), kept

    def predict(
        self, query: Chunks, past: tuple[Part, ...], *, look: Look | None = None
    ) -> Float[Array, "b p h w v"]:
        """Logits of masked chunks against what :meth:`past` gave for them; ``look`` is told of each layer."""
        return self.logits(self._read(query, past, look)[0])

    def enter(self, known: Chunks, past: tuple[Part, ...] | None) -> Entry:
        """What known chunks bring to a cache, read under the same law: each reads the past, and those of
        lower order among them."""
        return self.enter_and_tell(known, past)[0]

    def enter_and_tell(
        self, known: Chunks, past: tuple[Part, ...] | None
    ) -> tuple[Entry, dict[str, Float[Array, "b p v"]]]:
        """What :meth:`enter` gives, and the chunks' outcomes as :meth:`tell` has them."""
        x, kept = self._read(known, past)
        keys, values = zip(*kept, strict=True)
        return Entry(keys, values, known.times, known.ids), self.tell(x)

    def commit(
        self, known: Chunks, cache: KVCache, slots: Int[Array, "p"], *, sight: Sight = jnp.inf
    ) -> KVCache:
        """The cache with known chunks written to their slots; ``sight`` as in :meth:`past`."""
        return write(cache, self.enter(known, self.past(cache, known, sight=sight)), slots)

    def remember(self, known: Chunks) -> KVCache:
        """A cache of just these known chunks, each reading those of lower order."""
        entry = self.enter(known, None)
        return KVCache(entry.keys, entry.values, entry.times, entry.ids)

    def empty_cache(self, batch: int) -> KVCache:
        """A cache of ``context`` empty slots."""
        config = self.config
        return empty_cache(
            layers=config.layers,
            batch=batch,
            slots=config.context,
            tokens=self.tokens,
            heads=config.heads,
            head=config.width // config.heads,
            dtype=self.dtype or jnp.float32,
        )


def _alternate(known: Array, query: Array, *, parts: int) -> Array:
    """Chunks of both streams, each device's known ones beside its queries."""
    cut = [x.reshape(x.shape[0], parts, -1, *x.shape[2:]) for x in (known, query)]
    joined = jnp.concatenate(cut, axis=2)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])


def _over_past(q: Float[Array, "b m k e"], past: Part) -> tuple[Array, Array]:
    """What the tokens of several chunks read of a past, chunk by chunk, and their log-sum-exps."""

    def one(of):
        q, bias = of
        return attend_parts(q, [dataclasses.replace(past, bias=bias)])

    bias = jnp.asarray(past.bias)
    chunks = rearrange(q, "b (p n) k e -> p b k n e", p=len(bias))
    out, lse = jax.lax.map(one, (chunks, bias))
    return rearrange(out, "p b k n e -> b (p n) k e"), rearrange(lse, "p b k n -> b (p n) k")
