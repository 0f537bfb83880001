"""What a world makes of a clip: its codes, a continuation beside the truth, and where it looks."""

from __future__ import annotations

import colorsys
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from worldsim.data.registered import find_registered, is_registered
from worldsim.data.source import open_source, read_info
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.generate.requests import Direction
from worldsim.inspect.attention import look
from worldsim.inspect.findings import Section, Sheet, Table
from worldsim.inspect.heat import attention_section
from worldsim.ops.scores import PSNR_CAP, psnr
from worldsim.types import Clip

_GIVEN, _COLUMNS, _LONGEST = 4, 16, 48
"""Given frames that a sheet shows, frames in all, and frames of a clip that is taken from a dataset."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What to ask of a world.

    Attributes:
      frames: to make.
      direction: of time, of what is made and of what attention reads.
      steps: masked passes a chunk.
      seed: of the draws.
      token: (row, column) of the token whose attention is drawn; the one that changes most by default.
      frame: of the clip, in the chunk that it lies in.
      layer, head: of attention; None is the mean over all.
    """

    frames: int = 12
    direction: Direction = "forward"
    steps: int = 8
    seed: int = 0
    token: tuple[int, int] | None = None
    frame: int | None = None
    layer: int | None = None
    head: int | None = None


def held_out_clip(provenance: dict[str, Any]) -> tuple[Clip, str] | None:
    """The first frames held out of the data that a world was trained on, where it is still there.

    Args:
      provenance: of the world.

    Returns:
      The clip and where it is from, or None.

    Raises:
      ValueError: a registered set (``tfds:NAME``) that is here and has no such split, or can't be read.
    """
    data = provenance.get("train", {}).get("data", {})
    path, split = data.get("path"), data.get("eval_split")
    if not path or not split or not _is_here(path):
        return None
    info = read_info(path)
    if not is_registered(path) and (split not in info.splits or not info.splits[split].records):
        return None
    has = info.action.kind != "none" and "actions" in info.keys
    record = open_source(path, split, keys=("frames", "actions")[: 1 + has], cache=0)[0]
    clip = Clip(record["frames"][:_LONGEST], record["actions"][:_LONGEST] if has else None, fps=info.fps)
    return clip, f"{path}, {split} record 0"


def _is_here(path: str) -> bool:
    """Whether there is such a file or folder, or such a registered set is prepared."""
    if not is_registered(path):
        return Path(path).exists()
    try:
        find_registered(path)
    except FileNotFoundError:
        return False
    return True


def played(world: World, clip: Clip, ask: Question, *, source: str) -> tuple[list[Section], dict[str, Any]]:
    """Run a world on a clip, briefly.

    Args:
      world: to run.
      clip: with more frames than are made; more frames than the world sees are cut off.
      ask: what to make and what to look at.
      source: of the clip, in words.

    Returns:
      Sections to be shown, and facts as JSON values.

    Raises:
      ValueError: a clip that the world can't take, or that is too short; a token, frame, layer or head that
        there is not.
    """
    if world.config.dynamics.action.kind == "none":
        clip = dataclasses.replace(clip, actions=None)
    found = look(world, clip, token=ask.token, frame=ask.frame, direction=ask.direction)
    attention, weights = attention_section(found, clip, layer=ask.layer, head=ask.head)
    made, figures = _continued(world, clip, ask, source)
    codes, use = _codes(world, clip)
    facts = {"clip": source, "continuation": figures, "attention": weights, "codes": use}
    return [made, attention, codes], facts


def _continued(world: World, clip: Clip, ask: Question, source: str) -> tuple[Section, dict[str, Any]]:
    """Truth above what the world makes of the same beginning, or end."""
    f = world.config.tokenizer.frames_per_chunk
    new = min(ask.frames, len(clip) - f) // f * f
    if new < f:
        raise ValueError(
            f"inspect: {len(clip)} frames of {source}, of which {ask.frames} are to be made; give a clip of "
            f"at least {2 * f} frames, and --frames {f} or more."
        )
    known = min(len(clip) - new, world.config.dynamics.context * f)
    onward = ask.direction == "forward"
    whole = clip[: known + new] if onward else clip[len(clip) - known - new :]
    given, rest = (whole[:known], whole[known:]) if onward else (whole[new:], whole[:new])
    told = {"direction": ask.direction, "steps": ask.steps, "key": jax.random.key(ask.seed)}
    answer = world.extend(given, new, actions=rest.actions, **told).clip.frames
    fresh = slice(known, None) if onward else slice(0, new)
    copy = np.broadcast_to(given.frames[-1 if onward else 0], rest.frames.shape)
    score = lambda frames: float(np.mean(psnr(np.asarray(frames), rest.frames, cap=PSNR_CAP)))
    first, last = (max(0, known - _GIVEN), len(whole)) if onward else (0, min(len(whole), new + _GIVEN))
    picks = np.arange(first, last)
    mark = np.ones(len(whole), bool)
    mark[fresh] = False
    every = -(-len(picks) // _COLUMNS)
    picks = picks[::every]
    sheet = Sheet(
        [_rgb(whole.frames[picks]), _rgb(answer[picks])],
        ["truth", "world"],
        known=[np.ones(len(picks), bool), mark[picks]],
        columns=[str(at) for at in picks],
        name="truth above the world",
    )
    figures = {"frames": new, "known": known, "psnr": score(answer[fresh]), "psnr_copy": score(copy)}
    actions = "its true actions" if clip.actions is not None else "no actions"
    note = (
        f"{source}: {known} frames known, {new} made {ask.direction} with {actions} in {ask.steps} passes a "
        f"chunk. Truth above, the world below; orange frames are made. PSNR {figures['psnr']:.1f} dB (at "
        f"most {PSNR_CAP:g}), of copying the nearest known frame {figures['psnr_copy']:.1f} dB."
    )
    return Section("What it makes", [sheet], note), figures


def _codes(world: World, clip: Clip) -> tuple[Section, dict[str, Any]]:
    """Frames above their codes, and how many different ones there are."""
    t = world.config.tokenizer
    f = t.frames_per_chunk
    count = len(clip) // f
    codes = tokenize(*world.tokenizer, clip.frames[None, : count * f], frames_per_chunk=f)[0]
    shares = np.bincount(codes.reshape(-1), minlength=t.codebook) / codes.size
    used = int((shares > 0).sum())
    perplexity = float(np.exp(-np.sum(shares[shares > 0] * np.log(shares[shares > 0]))))
    changed = float((codes[1:] != codes[:-1]).mean()) if count > 1 else None
    picks = np.unique(np.linspace(0, count - 1, min(8, count)).astype(int))
    frames = _rgb(clip.frames[picks * f])
    sheet = Sheet(
        [frames, colored(codes[picks], shares, t.height, t.width)],
        ["frame", "codes"],
        columns=[str(at * f) for at in picks],
        name="frames above their codes",
        side=128,
    )
    use = {"codebook": t.codebook, "used": used, "perplexity": perplexity, "changed": changed}
    rows = [
        ["codes in use", f"{used} of {t.codebook}"],
        ["perplexity", f"{perplexity:.1f}"],
        ["codes that change from chunk to chunk", "-" if changed is None else f"{100 * changed:.1f} %"],
    ]
    note = (
        f"Of the {count} chunks of this clip. Equal colours are equal codes; the most frequent one is dark."
    )
    return Section("Codes", [Table(("", ""), rows), sheet], note), use


def colored(
    codes: Int[np.ndarray, "p h w"], shares: np.ndarray, height: int, width: int
) -> UInt8[np.ndarray, "p H W 3"]:
    """A colour for each code: the rarer the brighter, hues by the golden ratio, as large as frames."""
    order = np.argsort(-shares, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    used = max(2, int((shares > 0).sum()))
    bright = 0.18 + 0.82 * np.minimum(1.0, rank / (used - 1)) ** 0.4
    hues = (np.arange(len(shares)) * 0.6180339887) % 1.0
    palette = np.array([colorsys.hsv_to_rgb(h, 0.65, v) for h, v in zip(hues, bright, strict=True)])
    small = np.round(255 * palette[codes]).astype(np.uint8)
    return small.repeat(height // codes.shape[1], 1).repeat(width // codes.shape[2], 2)


def _rgb(frames: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "t h w 3"]:
    return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:3], 3)))
