"""The World and its verbs: extend, infill, loop, animate, reconstruct."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import jax
import numpy as np
from jaxtyping import Int

from worldsim.checkpoint import load_world, resolve_world, save_world
from worldsim.config import WorldConfig
from worldsim.generate import loop as loops
from worldsim.generate import requests
from worldsim.generate.answer import go_on
from worldsim.generate.batch import futures, run_batch
from worldsim.generate.check import check_clip, condition_rows
from worldsim.generate.codes import decode, encode
from worldsim.generate.keyframed import check_keyframes, extend_keyframed
from worldsim.generate.options import DIALS, DialOptions, Options, filled, make_dials
from worldsim.generate.render import Module, Renderer
from worldsim.generate.requests import Direction, Generated, Request
from worldsim.generate.rollout import Dials
from worldsim.generate.stream import Standing, Stream, stream
from worldsim.models.world import fill_params, split_module
from worldsim.parallel.mesh import compute_dtype
from worldsim.types import Actions, Clip

Conditions = Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class World:
    """A trained world: its models, what is known of its data, and the verbs that run it.

    Attributes:
      config: of the models.
      tokenizer, dynamics: (graph, parameters) of each.
      refine: of the refinement head, or None in a world without.
      statistics: of the training data, such as its median frame.
      provenance: data, hashes, steps, scores.
      progress: told, while a verb runs, how many of the chunks to make are done; set it by
        ``dataclasses.replace``.
    """

    config: WorldConfig
    tokenizer: Module
    dynamics: Module
    refine: Module | None = None
    statistics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None

    @staticmethod
    def make(
        config: WorldConfig,
        params: dict[str, Any],
        *,
        statistics: dict[str, np.ndarray] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> World:
        """A world from its config and its parameters by part; ``refine`` may be missing.

        The tokenizer computes in float32 everywhere, so that a frame has the codes it had in training.
        """
        parts = {
            name: (split_module(name, config, dtype=dtype)[0], params[name])
            for name, dtype in (("tokenizer", None), ("dynamics", compute_dtype()), ("refine", None))
            if name in params
        }
        models = parts["tokenizer"], parts["dynamics"], parts.get("refine")
        return World(config, *models, statistics or {}, provenance or {})

    @staticmethod
    def load(path_or_name: str | Path) -> World:
        """Rebuild a world from its folder or a bundled name, with nothing else given.

        Raises:
          FileNotFoundError: no such world; the bundled ones are listed.
          ValueError: weights that don't fit the config, all at once.
        """
        config, values, statistics, provenance = load_world(resolve_world(path_or_name))
        names = ("tokenizer", "dynamics", *values.keys() & {"refine"})
        params = {name: fill_params(name, config, values.get(name, {})) for name in names}
        return World.make(config, params, statistics=statistics, provenance=provenance)

    def save(self, folder: str | Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Path:
        """Write the world as a folder that :meth:`load` rebuilds."""
        return save_world(
            folder,
            config=self.config,
            params=self.params,
            statistics=self.statistics,
            provenance=self.provenance,
            dtype=dtype,
        )

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by part."""
        parts = {"tokenizer": self.tokenizer, "dynamics": self.dynamics, "refine": self.refine}
        return {name: part[1] for name, part in parts.items() if part is not None}

    @property
    def renderer(self) -> Renderer:
        """What draws this world's frames from its codes; see :func:`worldsim.generate.render.render`."""
        return Renderer(self.tokenizer, self.refine, self.config.tokenizer.frames_per_chunk)

    def extend(
        self,
        clip: Clip | Generated,
        frames: int,
        *,
        direction: Direction | None = None,
        actions: Actions | None = None,
        keyframes: int | None = None,
        sinks: int = 0,
        **options: Unpack[Options],
    ) -> Generated:
        """Continue a clip after its end, or before its beginning.

        Args:
          clip: what is known (``[t h w c]``, of which the nearest ``config.dynamics.context`` chunks are
            seen), or an earlier result of this verb, which goes on in its own direction and from its own
            state, exactly as if it had been asked for more at first.
          frames: how many to make.
          direction: ``forward`` or ``backward`` in time (no frames are ever reversed); None is forward, or
            the direction of the earlier result.
          actions: one per new frame, in the order of time: ``actions[i]`` leads to new frame i. What leads
            from the last new frame of a backward extension to the clip is the clip's own first action.
            None lets the world run free.
          keyframes: frames from one keyframe to the next: these are made first, as far as is asked for, then
            what lies between; None makes frame after frame.
          sinks: how many of the first chunks seen stay in view for good, at most ``config.dynamics.pinned``;
            the others go when they are the oldest. Worlds know them that trained with ``mix.gaps``.
          options: see :class:`worldsim.generate.options.Options`; the key is unused when going on.

        Returns:
          The whole clip, given frames untouched.

        Raises:
          ValueError: a clip, a number of frames or actions that the world can't take; an earlier result
            that ran in the other direction.
        """
        if isinstance(clip, Generated):
            if direction not in (None, clip.direction):
                raise ValueError(
                    f"extend: direction {direction!r} from a result that ran {clip.direction}; give its "
                    "clip instead to turn round."
                )
            if keyframes is not None or sinks:
                raise ValueError("extend: keyframes or sinks of an earlier result; give its clip instead.")
            return go_on(self, clip, frames, actions, filled(options, verb="extend"))
        told = {"direction": direction or "forward", "actions": actions, "sinks": sinks}
        request = requests.extend_request(clip, frames, self.config, **told)
        if keyframes is None:
            return self._answer(request, options, verb="extend")
        how = filled(options, verb="extend")
        if sinks or how["stabilize"]:
            raise ValueError("extend: sinks or stabilize beside keyframes; take one of them.")
        every = check_keyframes(keyframes, self.config.tokenizer.frames_per_chunk)
        dials = self.dials(**{name: how[name] for name in DIALS})
        return extend_keyframed(
            self, request, every=every, dials=dials, key=how["key"], conditions=how["conditions"]
        )

    def futures(
        self,
        clip: Clip,
        frames: int,
        *,
        samples: int,
        direction: Direction = "forward",
        actions: Actions | None = None,
        sinks: int = 0,
        **options: Unpack[Options],
    ) -> list[Generated]:
        """So many answers of :meth:`extend` to one clip, in one batch: what is known is read once for all.

        Args:
          clip, frames, direction, actions, sinks, options: as in :meth:`extend`; each answer has a key of its
            own, of ``jax.random.split(key, samples)``, and is what that key draws alone.
          samples: how many.

        Raises:
          ValueError: as in :meth:`extend`, or fewer than one sample.
        """
        told = {"direction": direction, "actions": actions, "sinks": sinks}
        request = requests.extend_request(clip, frames, self.config, **told)
        return futures(self, request, samples, options=filled(options, verb="futures"))

    def rollout(
        self,
        clip: Clip | Standing,
        frames: int | None = None,
        *,
        direction: Direction | None = None,
        actions: Actions | Callable[[int], Any] | None = None,
        sinks: int = 0,
        **options: Unpack[Options],
    ) -> Stream:
        """:meth:`extend` in pieces, in constant memory: an iterator over clips of new frames.

        Args:
          clip: what is known; or where another stream stood
            (:meth:`worldsim.generate.stream.Stream.standing`), which goes on by its own key, to
            the same total of ``frames``.
          frames: how many to make; None is without end.
          direction: ``forward``, or ``backward``: then each piece lies before the one that came before it;
            None is forward, or as the other stream ran.
          actions: one per new frame in the order of time, or a function that is asked for the action of each
            frame, numbered as they are made, a piece ahead.
          sinks, options: as in :meth:`extend`.

        Returns:
          Pieces with the frames that :meth:`extend` would have made at once; with ``render="codes"``, their
          codes ``[n h w]``.

        Raises:
          ValueError: as in :meth:`extend`.
        """
        how = filled(options, verb="rollout") | {"sinks": sinks}
        return stream(self, clip, frames, direction=direction, actions=actions, options=how)

    def infill(
        self,
        before: Clip,
        after: Clip,
        frames: int,
        *,
        actions: Actions | None = None,
        **options: Unpack[Options],
    ) -> Generated:
        """Make the frames between two clips; with nothing after, this is :meth:`extend`.

        Of ``after``, the nearest ``config.dynamics.pinned`` chunks are seen. ``actions`` are one per new
        frame; what leads to the first frame after is its own first action. The rest is as in :meth:`extend`.
        """
        request = requests.infill_request(before, after, frames, self.config, actions=actions)
        return self._answer(request, options, verb="infill")

    def loop(
        self,
        clip: Clip,
        frames: int,
        *,
        candidates: int = 4,
        sweeps: int = 2,
        actions: Actions | None = None,
        **options: Unpack[Options],
    ) -> Generated:
        """Make a clip of ``frames`` frames whose end meets its beginning.

        It opens with the clip's first frames, at most ``config.dynamics.pinned`` chunks of them, which the
        world also knows one round later while it makes the rest. ``actions`` are one per frame of the
        loop: the first leads from its last frame to its first; those of the other opening frames are the
        clip's. Of ``candidates`` loops the one is kept whose least likely chunk is most likely, after each of
        its chunks was drawn again ``sweeps`` times with all others in view. The result's ``closing`` says
        whether it holds. The rest is as in :meth:`extend`, ``steps`` and ``temperature`` included.
        """
        request = requests.loop_request(clip, frames, self.config, actions=actions)
        effort = loops.Effort(candidates, sweeps)
        return self._answer(request, options, verb="loop", effort=effort)

    def _answer(
        self, request: Request, options: Options, *, verb: str, effort: loops.Effort | None = None
    ) -> Generated:
        """One request, carried out with a user's options."""
        how = filled(options, verb=verb)
        dials = self.dials(**{name: how[name] for name in DIALS})
        asked = {"keys": how["key"][None], "conditions": how["conditions"], "effort": effort}
        return self.run([request], dials, **asked)[0]

    def animate(self, image: Clip | np.ndarray, frames: int, **options: Any) -> Generated:
        """Continue a single image ``[h w c]`` uint8, or a one-frame clip; options as in :meth:`extend`.

        Raises:
          ValueError: more than one frame, or an image that the world can't take.
        """
        clip = image if isinstance(image, Clip) else Clip(np.asarray(image)[None])
        if len(clip) != 1:
            raise ValueError(f"animate: {len(clip)} frames; give one image, or use extend for a clip.")
        f = self.config.tokenizer.frames_per_chunk
        actions = clip.actions if f == 1 else None  # of a still chunk nobody knows what led on within it
        still = Clip(np.repeat(clip.frames, f, axis=0), actions, fps=clip.fps)
        return self.extend(still, frames, **options)

    def encode(self, clip: Clip) -> Int[np.ndarray, "p h w"]:
        """The codes of a clip, a grid of integers for each of its whole chunks."""
        return encode(self, clip)

    def decode(
        self, codes: Int[np.ndarray, "p h w"], *, refine_steps: int = 0, key: jax.Array | None = None
    ) -> Clip:
        """Frames of codes that :meth:`encode` or a verb gave; see :func:`worldsim.generate.codes.decode`."""
        return decode(self, codes, refine_steps=refine_steps, key=key)

    def reconstruct(self, clip: Clip, *, refine_steps: int = 0) -> Clip:
        """The clip through the codes and back; frames past the last whole chunk stay as they are.

        By default what the codes alone hold, without detail drawn by the refinement head.
        """
        check_clip(clip, self.config, verb="reconstruct")
        drawn = self.decode(self.encode(clip), refine_steps=refine_steps).frames
        return dataclasses.replace(clip, frames=np.concatenate([drawn, clip.frames[len(drawn) :]]))

    def dials(self, **options: Unpack[DialOptions]) -> Dials:
        """Checked sampling dials; more passes than a chunk has codes are as many as it has.

        Raises:
          ValueError: numbers that the world can't take.
        """
        return make_dials(self.config, options, refines=self.refine is not None)

    def run(
        self,
        batch: Sequence[Request],
        dials: Dials,
        *,
        keys: jax.Array,
        conditions: Conditions = None,
        effort: loops.Effort | None = None,
    ) -> list[Generated]:
        """Carry out requests of one plan as one batch; each comes out as it would alone.

        Args:
          batch: requests with equal plans (same verb, same numbers of frames).
          dials: from :meth:`dials`; of loops without ``stabilize`` and ``guidance``.
          keys: ``[len(batch)]`` typed keys.
          conditions: as :meth:`extend` takes them.
          effort: of loops; None draws each once and does not score it.

        Raises:
          ValueError: plans that differ.
        """
        return run_batch(self, batch, dials, keys=keys, conditions=conditions, effort=effort)

    def condition_rows(self, conditions: Conditions, clips: int, chunks: int) -> dict[str, np.ndarray]:
        """``[clips chunks ...]`` per name."""
        rows = condition_rows(conditions, chunks, self.config)
        return {name: np.broadcast_to(row, (clips, *row.shape)) for name, row in rows.items()}
