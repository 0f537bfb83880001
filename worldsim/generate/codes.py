"""A clip as the codes that a world knows it by, and codes as a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Int

from worldsim.generate.check import check_clip, check_codes
from worldsim.generate.render import render, tokenize
from worldsim.types import Clip

if TYPE_CHECKING:
    from worldsim.generate.extend import World


def encode(world: World, clip: Clip) -> Int[np.ndarray, "p h w"]:
    """The codes of a clip, a grid of integers for each of its whole chunks.

    Raises:
      ValueError: a clip that the world can't take.
    """
    check_clip(clip, world.config, verb="encode")
    f = world.config.tokenizer.frames_per_chunk
    return tokenize(*world.tokenizer, clip.frames[None, : len(clip) // f * f], frames_per_chunk=f)[0]


def decode(
    world: World, codes: Int[np.ndarray, "p h w"], *, refine_steps: int = 0, key: jax.Array | None = None
) -> Clip:
    """The frames of chunks of codes that follow one another, such as :func:`encode` or a verb gave.

    Args:
      world: whose codes they are.
      codes: of at least one chunk.
      refine_steps: of the refinement head; by default what the codes alone hold.
      key: of the detail that it draws; ``jax.random.key(0)`` by default.

    Raises:
      ValueError: codes that the world does not have, or refinement in a world without.
    """
    codes, tokenizer = np.asarray(codes), world.config.tokenizer
    check_codes(codes, tokenizer, verb="decode")
    steps = int(world.dials(refine_steps=refine_steps).refine)
    keys = (jax.random.key(0) if key is None else key)[None]
    times = tokenizer.frames_per_chunk * np.arange(len(codes), dtype=np.float32)
    frames = render(world.renderer, codes[None], times, keys, refine_steps=steps)[0]
    return Clip(frames, fps=world.config.fps)
