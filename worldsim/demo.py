"""The demo: a bundled world continues, precedes, fills and closes eight clips that it has never seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldsim.data.sheet import contact_sheet
from worldsim.data.video import write_video
from worldsim.generate.extend import World
from worldsim.generate.requests import Generated, extend_request, infill_request, loop_request
from worldsim.generate.rollout import Dials
from worldsim.ops.scores import PSNR_CAP, loop_ratios, peak_ratio, psnr
from worldsim.types import Clip

KNOWN, NEW, GAP = 16, 32, 16
"""Frames known at one end, frames to make from there, frames of the gap."""


def run_demo(
    out: str | Path,
    *,
    world: str = "pong",
    seed: int = 0,
    note: Callable[[str], None] | None = None,
    **dials: Any,
) -> dict[str, Any]:
    """Write ``{forward,backward,infill,loop}.mp4``, ``contact_sheet.png`` and ``report.json`` to ``out``.

    Args:
      out: a folder, made if needed.
      world: a bundled world that has clips.
      seed: of all randomness.
      note: is told what is under way.
      dials: of sampling; see :meth:`worldsim.generate.extend.World.dials`.

    Returns:
      The report: means over the clips, lists over frames counted from the known end, PSNR in dB capped at 50
      per frame; ``copy_last`` and ``copy_first`` repeat the nearest known frame.
    """
    from worldsim.worlds import clips as bundled_clips

    began = time.monotonic()
    out, note = Path(out), note or (lambda _: None)
    note(f"loading {world}")
    model, clips = World.load(world), bundled_clips(world)
    made = play(model, clips, model.dials(**dials), seed=seed, note=note)
    note("writing videos and scores")
    report = score(made, clips)
    for verb, results in made.items():
        frames = [result.clip.frames for result in results]
        truth = None if verb == "loop" else [clip.frames[: len(frames[0])] for clip in clips]
        write_video(
            out / f"{verb}.mp4",
            mosaic(frames, truth, rounds=3 if verb == "loop" else 1),
            fps=model.config.fps,
        )
    sheet = _sheet(made, clips)
    write_video(out / "contact_sheet.png", sheet[None], scale=1)
    report["seconds"] = round(time.monotonic() - began, 2)
    (out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def play(
    model: World, clips: Sequence[Clip], dials: Dials, *, seed: int = 0, note: Callable[[str], None]
) -> dict[str, list[Generated]]:
    """Every verb's answer to clips of KNOWN + NEW frames, by the verb's name."""
    made: dict[str, list[Generated]] = {}
    for verb, request in _requests(model).items():
        note(f"{verb}: {len(clips)} clips")
        keys = jax.random.split(jax.random.key(seed), len(clips))
        made[verb] = model.run([request(clip) for clip in clips], dials, keys=keys)
    return made


def _requests(model: World) -> dict[str, Callable[[Clip], Any]]:
    """What each verb is asked of a clip of KNOWN + NEW frames."""
    config = model.config

    def actions(clip: Clip, start: int, stop: int):
        return None if clip.actions is None else clip.actions[start:stop]

    total, gap = KNOWN + NEW, KNOWN + GAP
    return {
        "forward": lambda c: extend_request(c[:KNOWN], NEW, config, actions=actions(c, KNOWN, total)),
        "backward": lambda c: extend_request(
            c[NEW:total], NEW, config, direction="backward", actions=actions(c, 0, NEW)
        ),
        "infill": lambda c: infill_request(
            c[:KNOWN], c[gap:total], GAP, config, actions=actions(c, KNOWN, gap)
        ),
        "loop": lambda c: loop_request(c[:KNOWN], NEW, config),
    }


def score(made: dict[str, list[Generated]], clips: Sequence[Clip]) -> dict[str, Any]:
    """Scores of all verbs; see :func:`run_demo`."""
    total = KNOWN + NEW
    rows: dict[str, list[np.ndarray]] = {}
    for i, clip in enumerate(clips):
        truth = clip.frames
        ahead, behind = truth[KNOWN:total], truth[:NEW][::-1]
        gap = slice(KNOWN, KNOWN + GAP)
        nearest = [truth[KNOWN - 1]] * (GAP // 2) + [truth[KNOWN + GAP]] * (GAP - GAP // 2)
        pairs = {
            "psnr_forward": (made["forward"][i].clip.frames[KNOWN:], ahead),
            "psnr_backward": (made["backward"][i].clip.frames[:NEW][::-1], behind),
            "psnr_infill": (made["infill"][i].clip.frames[gap], truth[gap]),
            "psnr_copy_last": (np.broadcast_to(truth[KNOWN - 1], ahead.shape), ahead),
            "psnr_copy_first": (np.broadcast_to(truth[NEW], behind.shape), behind),
            "psnr_copy_nearest": (np.stack(nearest), truth[gap]),
        }
        for name, (frames, target) in pairs.items():
            rows.setdefault(name, []).append(np.asarray(psnr(frames, target, cap=PSNR_CAP)))
    report: dict[str, Any] = {
        name: np.mean(values, axis=0).round(3).tolist() for name, values in rows.items()
    }
    loops = [result.clip.frames for result in made["loop"]]
    real = [clip.frames for clip in clips]
    each = {f"{name}_ratio": values for name, values in loop_ratios(loops, real).items()}
    each["peak_ratio_real"] = [peak_ratio(frames[:NEW], loop=False) for frames in real]
    for name, values in each.items():
        finite = np.isfinite(values)  # a loop of a clip that stands still has no ratio
        report[name] = round(float(np.mean(values, where=finite)), 4) if finite.any() else None
        report[f"{name}_clips"] = int(finite.sum())
        report[f"{name}_each"] = [round(v, 4) if ok else None for v, ok in zip(values, finite, strict=True)]
    return report | {"clips": len(clips), "known": KNOWN, "new": NEW, "gap": GAP}


def mosaic(
    frames: Sequence[np.ndarray], truth: Sequence[np.ndarray] | None, *, rounds: int = 1
) -> np.ndarray:
    """Clips side by side, truth in a row above where there is one; played ``rounds`` times."""
    rows = [np.concatenate(part, axis=2) for part in ([truth] if truth else []) + [list(frames)]]
    line = np.full((*rows[0].shape[:1], 2, *rows[0].shape[2:]), 255, np.uint8)
    whole = rows[0] if len(rows) == 1 else np.concatenate([rows[0], line, rows[1]], axis=1)
    return np.concatenate([whole] * rounds)


def _sheet(
    made: dict[str, list[Generated]], clips: Sequence[Clip], count: int = 2, every: int = 3
) -> np.ndarray:
    """For the first clips: truth above each verb's answer."""
    rows, labels, known = [], [], []
    for i in range(min(count, len(clips))):
        rows.append(clips[i].frames[: KNOWN + NEW])
        labels.append(f"{i} truth")
        known.append(np.ones(KNOWN + NEW, bool))
        for verb, results in made.items():
            rows.append(results[i].clip.frames)
            labels.append(f"{i} {verb}")
            known.append(results[i].known)
    return contact_sheet(rows, labels=labels, known=known, every=every)


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [
        f"{'frames ahead':<18}{'forward':>9}{'copy last':>11}{'backward':>10}{'copy first':>12}   (PSNR, dB)"
    ]
    names = ("psnr_forward", "psnr_copy_last", "psnr_backward", "psnr_copy_first")
    for horizon in (4, 8, 16, 32):
        values = [sum(report[name][:horizon]) / horizon for name in names]
        lines.append(
            f"mean of 1 to {horizon:<6}"
            + "".join(f"{v:>{w}.2f}" for v, w in zip(values, (9, 11, 10, 12), strict=True))
        )
    ratios = (f"{name} {_mean(report, f'{name}_ratio')}" for name in ("seam", "jerk", "peak", "motion"))
    return "\n".join([*lines, f"loops: {', '.join(ratios)};  {report['seconds']:.0f} s"])


def _mean(report: dict[str, Any], name: str) -> str:
    """A mean of loops, and of how many where some have none."""
    value, count, clips = report[name], report[f"{name}_clips"], report["clips"]
    return ("none" if value is None else f"{value:.2f}") + ("" if count == clips else f" (of {count} loops)")
