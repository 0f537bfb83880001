"""Whether a world can take what it is given; every refusal names the numbers and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldsim.config import ActionConfig, TokenizerConfig, WorldConfig
from worldsim.types import Actions, Clip


def check_clip(clip: Clip, config: WorldConfig, *, verb: str) -> None:
    """Refuse clips of another size or fewer frames than a chunk, or with actions that don't fit.

    Raises:
      TypeError: bare frames.
      ValueError: everything that is wrong with the clip, at once.
    """
    if not isinstance(clip, Clip):
        raise TypeError(f"{verb}: got {type(clip).__name__}; give a worldsim.Clip(frames, actions).")
    tokenizer: TokenizerConfig = config.tokenizer
    problems = []
    size = clip.frames.shape[1:]
    want = (tokenizer.height, tokenizer.width, tokenizer.channels)
    if size[:2] != want[:2]:
        problems.append(
            f"frames are {size[0]}x{size[1]} and the world takes {want[0]}x{want[1]}; resize them (--resize, "
            "or worldsim.data.video.resize_clip)"
        )
    if size[2] != want[2]:
        problems.append(
            f"frames have {size[2]} channels and the world takes {want[2]}; change them "
            "(worldsim.data.video.with_channels)"
        )
    if len(clip) < tokenizer.frames_per_chunk:
        problems.append(f"it has {len(clip)} frames; give at least {tokenizer.frames_per_chunk}")
    if clip.mask is not None and not clip.mask.all():
        problems.append(f"{int((~clip.mask).sum())} of its {len(clip)} frames are padding; cut them off")
    if clip.actions is not None and config.dynamics.action.kind != "none":
        problems += action_problems(clip.actions, config.dynamics.action, len(clip))
    if problems:
        raise ValueError(f"{verb}: the clip can't be used: " + "; ".join(problems) + ".")


def check_codes(codes: np.ndarray, tokenizer: TokenizerConfig, *, verb: str) -> None:
    """Refuse codes that are no grids of this tokenizer's integers.

    Raises:
      ValueError: the shape, the kind or the range, with what it should be.
    """
    if codes.ndim != 3 or codes.shape[1:] != tokenizer.grid or not len(codes):
        want = f"[chunks, {tokenizer.grid[0]}, {tokenizer.grid[1]}]"
        raise ValueError(f"{verb}: codes are {list(codes.shape)}; give {want}, of at least one chunk.")
    whole = np.issubdtype(codes.dtype, np.integer)
    if not whole or codes.min() < 0 or codes.max() >= tokenizer.codebook:
        raise ValueError(
            f"{verb}: codes are {codes.dtype} from {codes.min()} to {codes.max()}; give integers from 0 to "
            f"{tokenizer.codebook - 1}."
        )


def action_problems(actions: Actions, config: ActionConfig, count: int) -> list[str]:
    """What is wrong with ``count`` rows of actions."""
    actions = np.asarray(actions)
    if actions.ndim == 0:
        return [f"actions are the single value {actions}; give one for each of {count} frames"]
    if len(actions) != count:
        return [f"there are {len(actions)} actions for {count} frames; give one for each"]
    if config.kind == "none":
        return ["the world takes no actions; leave them out"]
    if config.kind == "discrete":
        if actions.ndim != 1 or not np.issubdtype(actions.dtype, np.integer):
            return [f"actions are {actions.dtype} {list(actions.shape)}; give integers [t]"]
        if actions.size and (actions.max() >= config.size or actions.min() < -1):
            names = f" ({', '.join(config.names)})" if config.names else ""
            return [
                f"actions go from {actions.min()} to {actions.max()}; the world has 0 to "
                f"{config.size - 1}{names}, and -1 for none"
            ]
        return []
    if actions.ndim != 2 or actions.shape[1] != config.size:
        return [f"actions are {list(actions.shape)}; give floats [t, {config.size}]"]
    return []


def check_actions(actions: Actions | None, config: WorldConfig, *, frames: int, verb: str) -> None:
    """Refuse actions of another count, kind or range than ``frames`` new frames need.

    Raises:
      ValueError: with the numbers.
    """
    if actions is not None:
        problems = action_problems(actions, config.dynamics.action, frames)
        if problems:
            raise ValueError(f"{verb}: the new actions can't be used: " + "; ".join(problems) + ".")


def chunk_count(frames: int, config: WorldConfig, *, verb: str) -> int:
    """New chunks for a number of new frames.

    Raises:
      ValueError: a number below one or no multiple of a chunk's frames; the nearest that fits is named.
    """
    f = config.tokenizer.frames_per_chunk
    if frames < 1 or frames % f:
        near = max(f, round(frames / f) * f)
        raise ValueError(f"{verb}: {frames} frames; the world makes {f} at a time: ask for {near}.")
    return frames // f


def condition_rows(
    conditions: Mapping[str, Any] | None, count: int, config: WorldConfig
) -> dict[str, np.ndarray]:
    """Conditions that hold for a whole clip, a row for each of ``count`` chunks: per name ``[count ...]``.

    Raises:
      ValueError: names that the world doesn't have, classes out of range, vectors of another length.
    """
    have, rows = {one.name: one for one in config.dynamics.conditions}, {}
    for name, value in (conditions or {}).items():
        if name not in have:
            raise ValueError(f"conditions: no {name!r}; the world has {sorted(have) or 'none'}.")
        array, size = np.asarray(value), have[name].size
        if have[name].kind == "class":
            if array.shape or array.dtype.kind not in "iu" or not -1 <= array < size:
                raise ValueError(
                    f"conditions: {name}={value!r}; give one class from 0 to {size - 1}, or -1 for none."
                )
            rows[name] = np.full(count, array, np.int32)
        else:
            if array.shape != (size,):
                raise ValueError(f"conditions: {name} is {list(array.shape)}; give {size} numbers.")
            rows[name] = np.tile(array.astype(np.float32), (count, 1))
    return rows
