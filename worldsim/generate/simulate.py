"""The Simulator: a world that takes an action and answers with a frame, one step at a time.

    sim = Simulator(world)
    state = sim.reset(clips, key)
    state, frames = sim.step(state, actions)

A step is a row of the plan that :meth:`worldsim.generate.extend.World.extend` carries out: with the same key
and actions both draw the same codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, UInt8

from worldsim.generate import requests, rollout
from worldsim.generate.answer import detail_keys, take_in
from worldsim.generate.check import action_problems
from worldsim.generate.extend import World
from worldsim.generate.options import DialOptions, Render, is_key, refined
from worldsim.generate.prefill import Rows
from worldsim.generate.render import draw_next
from worldsim.generate.rollout import Dials
from worldsim.models.cache import KVCache, write
from worldsim.ops import twohot
from worldsim.types import Clip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SimulatorState:
    """Where b simulated worlds stand; arrays alone, so that it can be kept, copied, saved and sent.

    Attributes:
      cache: committed chunks.
      keys: ``[b]``, one per world; a chunk's stream is folded from its time.
      time: of the next chunk's first frame, in frames from the first one seen; whole up to 2^24, some 13 days
        at 15 a second, and still from there on.
      order: of the next chunk.
      turn: slots that have been given out behind the pinned ones; the next chunk takes the one of them that
        was written longest ago.
      pinned: slots that are never given out again.
      codes: of the latest chunk.
      latents: of the latest chunk as it was drawn, or as its codes are where only these were asked for; the
        next one is drawn beside it.
      rewards: what the world expects of arriving at the latest chunk; None where it tells no rewards.
      ends: how likely the episode ended with it; None where it tells no ends. Both are 0 after a reset.
    """

    cache: KVCache
    keys: Array
    time: Float[Array, ""]
    order: Int[Array, ""]
    turn: Int[Array, ""]
    pinned: Int[Array, ""]
    codes: Int[Array, "b 1 h w"]
    latents: Float[Array, "b 1 h w z"]
    rewards: Float[Array, "b"] | None = None
    ends: Float[Array, "b"] | None = None


@partial(jax.jit, static_argnames=("graphs", "frames", "draws"))
def _step(
    graphs: tuple[nnx.GraphDef, nnx.GraphDef, nnx.GraphDef | None], params: tuple[Any, ...],
    state: SimulatorState, actions: Array | np.ndarray | None, dials: Dials, *, frames: int, draws: bool,
) -> tuple[SimulatorState, Array]:  # fmt: skip
    """The next state, and the new chunk of so many frames: these if it draws, else its codes."""
    slot = state.pinned + state.turn % (state.cache.times.shape[1] - state.pinned)
    row = Rows(
        codes=state.codes,
        times=state.time[None],
        orders=state.order[None],
        slots=slot[None],
        real=jnp.ones(1, bool),
        actions=actions,
        conditions={},
    )
    model = nnx.merge(graphs[0], params[0])
    new, entry, told = rollout.generate(model, state.cache, row, state.keys, dials)
    shown, latents = new[:, 0], nnx.merge(graphs[1], params[1]).quantizer.lookup(new)
    if draws:
        codes, keys = jnp.concatenate([state.codes, new], axis=1), detail_keys(state.keys, dials)
        there = jnp.asarray(True)
        shown, latents = draw_next(graphs[1:], params[1:], codes, state.latents, there, keys, dials.refine)
    after = SimulatorState(
        cache=write(state.cache, entry, slot[None]),
        keys=state.keys,
        time=state.time + frames,
        order=state.order + 1,
        turn=state.turn + 1,
        pinned=state.pinned,
        codes=new,
        latents=latents,
        rewards=twohot.mean(told["rewards"][:, 0]) if "rewards" in told else None,
        ends=jax.nn.sigmoid(told["ends"][:, 0, 0]) if "ends" in told else None,
    )
    return after, shown


@jax.jit
def graft(
    state: SimulatorState, other: SimulatorState, where: Bool[Array | np.ndarray, "b"]
) -> SimulatorState:
    """A state in which some worlds are those of another, as when one of many episodes begins anew.

    The others' chunks are moved to this state's time and order, which only change what their draws are.

    Args:
      state: of b worlds.
      other: of as many, or of one, of the same simulator, with as many pinned chunks.
      where: which of them to take from ``other``.
    """
    slots, pinned = jnp.arange(state.cache.times.shape[1]), state.pinned
    late, behind = state.turn - other.turn, state.order - other.order
    ring = pinned + (slots - pinned - late) % (len(slots) - pinned)
    source = jnp.where(slots < pinned, slots, ring)

    def move(a: Array) -> Array:
        b, k, m, e = a.shape
        return a.reshape(b, k, len(slots), -1, e)[:, :, source].reshape(b, k, m, e)

    ids = other.cache.ids.at[..., 1].add(behind)
    cache = KVCache(
        tuple(map(move, other.cache.keys)),
        tuple(map(move, other.cache.values)),
        (other.cache.times + (state.time - other.time))[:, source],
        ids[:, source],
    )
    moved = dataclasses.replace(other, cache=cache, time=state.time, order=state.order, turn=state.turn)

    def choose(new: Array, old: Array) -> Array:
        return old if jnp.ndim(old) == 0 else jnp.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    keys = jax.random.wrap_key_data(
        choose(jax.random.key_data(moved.keys), jax.random.key_data(state.keys)),
        impl=jax.random.key_impl(state.keys),
    )
    plain = [dataclasses.replace(one, keys=jnp.zeros(())) for one in (moved, state)]
    return dataclasses.replace(jax.tree.map(choose, *plain), keys=keys)


class Simulator:
    """Steps a world under actions, any number of copies at once, at a constant cost and in constant memory.

    Nothing is kept in it: :meth:`step` is a pure function of the state that it is given, so a state may be
    stepped from twice, which is how worlds branch. It may be traced, by ``jax.lax.scan`` for one; then nobody
    looks whether actions are in range.
    """

    def __init__(
        self,
        world: World,
        *,
        sinks: int = 0,
        render: Render | None = None,
        **dials: Unpack[DialOptions],
    ):
        """Set how a world is run; nothing is compiled before the first step.

        Args:
          world: to run.
          sinks: see :meth:`worldsim.generate.extend.World.extend`.
          render: what a step answers with: ``codes``, or pictures, where ``decode`` is ``refine_steps=0``,
            ``refine`` insists on a head that draws the detail, and None does as ``refine_steps`` says.
          dials: ``steps``, ``temperature`` and others; see :class:`worldsim.generate.options.DialOptions`.

        Raises:
          ValueError: dials that the world can't take, or another way to render.
        """
        steps = refined(render, dials.get("refine_steps"), verb="Simulator")
        self.world, self.dials = world, world.dials(**(dials | {"refine_steps": steps}))
        self.sinks = sinks
        self.frames = world.config.tokenizer.frames_per_chunk
        self.draws = render != "codes"
        refine = world.refine if int(self.dials.refine) else None
        self._graphs = world.dynamics[0], world.tokenizer[0], refine and refine[0]
        self._params = world.dynamics[1], world.tokenizer[1], refine and refine[1]

    def reset(self, clips: Clip | Sequence[Clip], key: Array | None = None) -> SimulatorState:
        """The state after clips, of which the nearest ``config.dynamics.context`` chunks are seen.

        Args:
          clips: one, or one for each of several worlds; of equal length.
          key: of all randomness: one key, which is split where there are several clips, or one each
            (``jax.random.key(0)`` by default). A world draws what it would draw alone.

        Raises:
          ValueError: clips that the world can't take or of different lengths, or another number of keys.
        """
        clips = [clips] if isinstance(clips, Clip) else list(clips)
        if not clips:
            raise ValueError("reset: no clips; give at least one.")
        config = self.world.config
        how = {"sinks": self.sinks, "verb": "reset"}
        asked = [requests.extend_request(clip, self.frames, config, **how) for clip in clips]
        if any(not requests.same_plan(one, asked[0]) for one in asked):
            raise ValueError(
                f"reset: clips of {[len(clip) for clip in clips]} frames; give clips that show equally many "
                "chunks."
            )
        codes, state = take_in(self.world, asked, self.dials, keys=_keys(key, len(clips)))
        known = codes.shape[1]
        latest = codes[:, np.maximum([known - 2, known - 1], 0)]
        _, latents = draw_next(
            self._graphs[1:], self._params[1:], latest, None, jnp.asarray(known > 1),
            detail_keys(state.keys, self.dials), self.dials.refine,
        )  # fmt: skip
        return SimulatorState(
            cache=state.cache,
            keys=state.keys,
            time=jnp.float32(asked[0].plan.times[known]),
            order=jnp.int32(state.next_order),
            turn=jnp.int32(state.ring),
            pinned=jnp.int32(state.pinned),
            codes=jnp.asarray(latest[:, 1:]),
            latents=latents,
            **{name: jnp.zeros(len(clips)) for name in config.dynamics.outcomes},
        )

    def step(
        self, state: SimulatorState, actions: np.ndarray | Array | None = None
    ) -> tuple[SimulatorState, UInt8[Array, "b f H W c"] | Int[Array, "b h w"]]:
        """One chunk further: the next state, and the chunk's frames, or its codes.

        Frames are drawn beside those before them alone: :meth:`World.extend`, which knows what comes
        after, draws the same codes with a little more accord.

        Args:
          state: from :meth:`reset` or another step; it stays as it is.
          actions: what leads to each new frame, one per world: ``[b]`` or ``[b a]``; in worlds with several
            frames a chunk ``[b f]`` or ``[b f a]``. None is the null action: the world runs free.

        Raises:
          ValueError: actions that the world can't take.
        """
        told = self._actions(actions, len(state.keys))
        how = {"frames": self.frames, "draws": self.draws}
        return _step(self._graphs, self._params, state, told, self.dials, **how)

    def save(self, path: str | Path, state: SimulatorState) -> Path:
        """Write a state as one file, from which :meth:`load` goes on to the same bits."""
        from worldsim.generate.standing import save_simulated

        return save_simulated(path, state, self.world)

    def load(self, path: str | Path) -> SimulatorState:
        """The state that :meth:`save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is none, or one of another world.
        """
        from worldsim.generate.standing import load_simulated

        return load_simulated(path, self.world)

    def _actions(self, actions: np.ndarray | Array | None, clips: int) -> np.ndarray | Array | None:
        """``[b 1 f ...]``, as the dynamics read them."""
        config = self.world.config
        null = requests.null_actions(clips * self.frames, config)
        if null is None or actions is None:
            if actions is not None:
                raise ValueError("step: the world takes no actions; leave them out.")
            return None if null is None else null.reshape(clips, 1, self.frames, *null.shape[1:])
        traced = isinstance(actions, Tracer)  # of which the values are not known yet
        given: Any = actions if traced else np.asarray(actions)
        single = (clips, *null.shape[1:])
        many = (clips, self.frames, *null.shape[1:])
        if given.shape != many and not (self.frames == 1 and given.shape == single):
            want = single if self.frames == 1 else many
            raise ValueError(f"step: actions are {list(given.shape)}; give {list(want)}.")
        known = null if traced else given.reshape(null.shape)
        problems = action_problems(known, config.dynamics.action, len(null))
        if problems:
            raise ValueError("step: the actions can't be used: " + "; ".join(problems) + ".")
        return given.astype(null.dtype).reshape(clips, 1, self.frames, *null.shape[1:])


def _keys(key: Array | None, clips: int) -> Array:
    """``[clips]`` keys.

    Raises:
      TypeError: something else than typed keys.
      ValueError: another number of keys.
    """
    key = jax.random.key(0) if key is None else key
    if not is_key(key):
        raise TypeError("reset: the key is no typed key; give jax.random.key(0), not a number or a PRNGKey.")
    if key.ndim == 0:
        return key[None] if clips == 1 else jax.random.split(key, clips)
    if key.shape != (clips,):
        raise ValueError(f"reset: {len(key)} keys for {clips} clips; give one, or one each.")
    return key
