"""Sequences that grow while the dynamics trains, with the rotary base raised in step."""

from __future__ import annotations

import dataclasses

from worldsim.config.train import PhaseConfig, TrainConfig

LWM = ((1, 1, 1200), (4, 10, 3000), (8, 10, 3000), (16, 25, 720), (32, 50, 450))
"""Length and rotary base, each as a multiple of the first, and steps of the five phases of Liu et al.,
https://arxiv.org/abs/2402.08268 (table 1): 32K, 128K, 256K, 512K and 1M tokens with bases of 1M, 10M, 10M,
25M and 50M, and 4M tokens a batch in all of them."""


def lengthen(config: TrainConfig, *, phases: int = len(LWM)) -> TrainConfig:
    """The config with its sequences lengthened as LWM's were.

    Chunks, queries, frames, context and the rotary base grow from the config's own by LWM's multiples; the
    batch shrinks as sequences grow, to a row at least; ``dynamics.steps`` is dealt out in LWM's proportions.

    Args:
      config: of the first phase, but for its steps, which are those of all of them.
      phases: how many of the five.

    Raises:
      ValueError: a number of phases that LWM does not have, or too few steps for them; or a ``reach``, which
        a longer context outgrows.
    """
    if not 1 <= phases <= len(LWM) or config.dynamics.steps < phases:
        raise ValueError(
            f"lengthen: {phases} phases in {config.dynamics.steps} steps; take from 1 to {len(LWM)} phases "
            "and a step or more for each."
        )
    taken = LWM[:phases]
    total = sum(steps for *_, steps in taken)
    shown = [
        PhaseConfig(
            share=steps / total,
            chunks=config.mix.chunks * times,
            queries=config.mix.queries * times,
            frames=config.dynamics.frames * times,
            batch=max(1, config.dynamics.batch // times),
            rope_base=config.world.dynamics.rope_base * base,
        )
        for times, base, steps in taken
    ]
    context = (config.world.dynamics.context + 1) * taken[-1][0] - 1
    longest = config.during(shown[-1], context=context)
    return dataclasses.replace(longest, curriculum=tuple(shown[:-1]))
