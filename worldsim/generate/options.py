"""What a user may turn on every verb, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

import jax
import jax.numpy as jnp

from worldsim.config import WorldConfig
from worldsim.generate.rollout import Dials

REFINE_STEPS = 4
"""Of the refinement head, where nobody says otherwise."""

Render = Literal["codes", "decode", "refine"]
"""What new chunks come as: codes alone, pictures of the codes, or pictures with the detail drawn."""


class DialOptions(TypedDict, total=False):
    """How chunks are drawn; all may be left out.

    Attributes:
      steps: masked passes per chunk at most (8); more is slower and better.
      temperature: of sampling (1); 0 takes the likeliest codes and ignores the key.
      refine_steps: of the refinement head, which draws the detail; 0 decodes the codes alone, None is 4 in a
        world that has one.
      stabilize: how noisy the chunks that were made are said to be to those after them (0); a world that
        was trained on noisy chunks then trusts them less, up to its ``max_noise`` (Diffusion Forcing: Chen et
        al., https://arxiv.org/abs/2407.01392).
      guidance: how far a chunk is drawn beyond what its whole past says, away from what its nearest two
        chunks alone would say (0); a second pass beside each.
      doubt: nats that the codes which a pass draws together may lack of certainty (0): what is certain is
        drawn at once, and a chunk that is certain takes one pass, and revisions that are asked for. 0 takes
        all ``steps``.
      leads: first passes that draw the one least certain code each (0), fewer than ``steps``; those after
        them draw what is most certain first. With 2, what is rare, such as a sprite's turn, comes more often.
      revisions: of ``steps``, the last so many hide half of the codes each and draw them anew given the
        others, so that what was drawn together and does not fit is mended. None is half of them, as far as
        leads leave as many, rounded down to an even number, which draws every code as often: 4 of 8, 2 of 4,
        none of 3; and none with ``doubt``, which draws together only what is certain.
    """

    steps: int
    temperature: float
    refine_steps: int | None
    stabilize: float
    guidance: float
    doubt: float
    leads: int
    revisions: int | None


class Options(DialOptions, total=False):
    """How a verb draws; all may be left out.

    Attributes:
      key: of all randomness; ``jax.random.key(0)`` by default.
      conditions: what holds for all that is seen and made, by name: a class or a vector.
      render: ``decode`` is ``refine_steps=0``, ``refine`` insists on a head that draws the detail, and
        ``codes``, of a rollout alone, draws nothing; None does as ``refine_steps`` says.
    """

    key: jax.Array | None
    conditions: Mapping[str, Any] | None
    render: Render | None


DIALS: dict[str, Any] = {
    "steps": 8,
    "temperature": 1.0,
    "refine_steps": None,
    "stabilize": 0.0,
    "guidance": 0.0,
    "doubt": 0.0,
    "leads": 0,
    "revisions": None,
}
"""The options that are numbers, and their defaults."""


def filled(options: Options, *, verb: str) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
      TypeError: one that no verb has, or a key that is not one typed key.
      ValueError: one that the verb has no use for, or two that contradict each other.
    """
    there = {"key", "conditions", "render", *DIALS}
    unknown = sorted(set(options) - there)
    if unknown:
        raise TypeError(f"{verb}: no option {unknown}; there are {sorted(there)}.")
    if verb == "loop" and (options.get("stabilize") or options.get("guidance")):
        raise ValueError(
            "loop: stabilize and guidance are for what is made in one direction; leave them out."
        )
    if verb != "rollout" and options.get("render") == "codes":
        raise ValueError(
            f"{verb}: render 'codes'; its answer is a clip, with its codes beside it. Take world.rollout or "
            "worldsim.Simulator, which can leave the pictures out."
        )
    values: dict[str, Any] = {**DIALS, "conditions": None, "render": None, **options}
    values["refine_steps"] = refined(values["render"], values["refine_steps"], verb=verb)
    key = jax.random.key(0) if values.get("key") is None else values["key"]
    if not (is_key(key) and key.ndim == 0):
        raise TypeError(f"{verb}: the key is no single typed key; give jax.random.key(0), not {key!r}.")
    return {**values, "key": key}


def refined(render: str | None, steps: int | None, *, verb: str) -> int | None:
    """Steps of the refinement that a way to render asks for; see :class:`Options`.

    Raises:
      ValueError: there is no such way, or it needs other steps than those given.
    """
    if render is None:
        return steps
    if render not in get_args(Render):
        raise ValueError(f"{verb}: render {render!r}; take one of {', '.join(get_args(Render))}.")
    if render == "refine":
        steps = REFINE_STEPS if steps is None else steps
    if bool(steps) != (render == "refine"):
        raise ValueError(f"{verb}: render {render!r} with refine_steps {steps}; leave one of them out.")
    return steps or 0


def is_key(value: Any) -> bool:
    """Whether it is an array of typed keys, as ``jax.random.key`` makes them."""
    return isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


def make_dials(config: WorldConfig, options: DialOptions, *, refines: bool) -> Dials:
    """Checked sampling dials; see :meth:`worldsim.generate.extend.World.dials`.

    Args:
      config: of the world.
      options: those that are not there have their defaults.
      refines: whether the world has a refinement head.

    Raises:
      TypeError: an option that does not exist.
      ValueError: fewer than 1 pass, a negative temperature, guidance or doubt, as many leads
        or revisions as passes, refinement in a world without, or more noise than a world was trained on.
    """
    unknown = sorted(set(options) - set(DIALS))
    if unknown:
        raise TypeError(f"dials: no option {unknown}; there are {sorted(DIALS)}.")
    given: dict[str, Any] = DIALS | dict(options)
    steps, temperature, refine_steps, stabilize, guidance, doubt, leads, revisions = given.values()
    rows, columns = config.tokenizer.grid
    if steps < 1:
        raise ValueError(f"steps {steps}; take from 1 to {rows * columns}, the codes in a chunk.")
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature}; take 0 (the likeliest codes) or more.")
    if refine_steps is None:
        refine_steps = REFINE_STEPS if refines else 0
    if refine_steps < 0 or (refine_steps and not refines):
        most = "take 0 or more" if refines else "this world has no refinement head: take 0"
        raise ValueError(f"refine_steps {refine_steps}; {most}.")
    if not 0 <= stabilize <= config.dynamics.max_noise:
        raise ValueError(
            f"stabilize {stabilize}; take from 0 to {config.dynamics.max_noise}, the most noise that the "
            "world was trained on."
        )
    if not 0 <= guidance < float("inf"):
        raise ValueError(f"guidance {guidance}; take 0 (none) or more.")
    if not 0 <= doubt < float("inf"):
        raise ValueError(f"doubt {doubt}; take 0 (all passes) or more.")
    most = min(steps, rows * columns) - 1
    if not 0 <= leads <= most:
        raise ValueError(f"leads {leads}; take from 0 to {most}, fewer than the passes.")
    if revisions is None:
        steps = most + 1
        revisions = 0 if doubt else min(steps // 2, most - leads) // 2 * 2
    if not 0 <= revisions < steps - leads:
        raise ValueError(f"revisions {revisions}; take from 0 to {steps - 1 - leads}, fewer than the passes.")
    return Dials(
        jnp.int32(min(steps - revisions, rows * columns)),
        jnp.float32(temperature),
        jnp.int32(refine_steps),
        jnp.float32(stabilize),
        jnp.float32(guidance) if guidance else None,
        jnp.float32(doubt),
        jnp.int32(leads),
        jnp.int32(revisions),
        jnp.float32(jnp.inf),
    )
