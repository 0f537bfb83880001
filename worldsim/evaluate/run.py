"""A world evaluated: every figure, the report, the plots, the sheet and the page."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldsim.data.sheet import contact_sheet
from worldsim.data.sprites import SpriteConfig
from worldsim.data.video import write_video
from worldsim.evaluate import drift, plots, pong, sprite_laws
from worldsim.evaluate.bands import nanmean, plain
from worldsim.evaluate.curves import action_gain, curve
from worldsim.evaluate.features import LABEL, bucketed
from worldsim.evaluate.held_out import HeldOut, load_held_out, provenance_notes, splits_of
from worldsim.evaluate.nats import nats
from worldsim.evaluate.neighbours import neighbour_table
from worldsim.evaluate.outcomes import outcomes
from worldsim.evaluate.page import page
from worldsim.evaluate.pictures import picture_table, renderers, shares_closed
from worldsim.evaluate.play import Played, play
from worldsim.evaluate.sprites import read_sprites
from worldsim.generate.extend import World
from worldsim.generate.options import DIALS
from worldsim.generate.rollout import Dials
from worldsim.ops.scores import loop_ratios, peak_ratio
from worldsim.parallel.agreement import check_alike, meet, text_from_lead
from worldsim.parallel.distributed import is_lead
from worldsim.plain import to_dict

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is judged.

    Attributes:
      clips: held-out windows; more is slower and narrows the bands.
      horizon: frames made in each direction; less where episodes are short. Where they are, and from
        ``drift.FAR`` on, as many are made onward as are asked for and judged without truth.
      samples: answers to each question.
      steps, temperature: of sampling.
      refine_steps: of the refinement of all that is generated; None is 4 where the world has a head for it.
      stabilize, guidance, doubt, leads, revisions: see :class:`worldsim.generate.options.Options`.
      sinks: first chunks seen that stay in view of what goes on forward and backward, however far.
      seed: of all randomness.
      split: that nobody trained on; the world's own held-out one by default.
    """

    clips: int = 12
    horizon: int = 64
    samples: int = 2
    steps: int = 8
    temperature: float = 1.0
    refine_steps: int | None = None
    stabilize: float = 0.0
    guidance: float = 0.0
    doubt: float = 0.0
    leads: int = 0
    revisions: int | None = None
    sinks: int = 0
    seed: int = 0
    split: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"evaluate: {self.samples} samples; take 1 or more.")


class _Clock:
    """Says what is under way and keeps how long each part took."""

    def __init__(self, note: Note) -> None:
        self._note, self._began = note, time.monotonic()
        self._last, self.seconds = self._began, {}

    def done(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part], self._last = now - self._last, now
        self.seconds["all"] = now - self._began
        self._note(f"{part}: {self.seconds[part]:.0f} s")


def evaluate(
    world: World,
    data: str | Path,
    out: str | Path,
    *,
    settings: Settings = Settings(),
    regression: World | None = None,
    name: str = "world",
    note: Note | None = None,
) -> dict[str, Any]:
    """Judge a world on held-out episodes and write all that is found to a folder.

    Where there are several processes, all call this: each makes what its share of the windows asks for, on
    one device, and the first one alone then counts, draws and writes.

    Args:
      world: to judge.
      data: the dataset that it was trained on, or one of its kind.
      out: for ``report.json``, ``report.html``, ``contact_sheet.png`` and a plot per figure.
      regression: a world with the same tokenizer and a regression head, to compare the refinement with.
      name: of the world, for the page.
      note: is told what is under way.

    Returns:
      The report, as it is written; the same in every process.

    Raises:
      FileNotFoundError, ValueError: no such dataset or split; data that doesn't fit; too few frames;
        processes with other settings, worlds or data than the first one.
    """
    meet("evaluate")
    out, clock = Path(out), _Clock(note or (lambda _: None))
    dials = world.dials(**{name: getattr(settings, name) for name in DIALS})
    split, trained = splits_of(world.provenance, settings.split)
    settings = dataclasses.replace(settings, split=split)
    size = {"clips": settings.clips, "horizon": settings.horizon}
    held = load_held_out(data, world.config, split=split, trained=trained, **size)
    _check_alike(world, regression, held, settings)
    if is_lead():
        out.mkdir(parents=True, exist_ok=True)
    clock.done("reading data")
    f = world.config.tokenizer.frames_per_chunk
    ways = renderers(world, regression, seed=settings.seed)
    table, drawn = picture_table(ways, held.frames[:, : held.frames.shape[1] // f * f])
    clock.done("pictures")
    asked = {name: getattr(settings, name) for name in ("samples", "seed", "sinks")}
    played = play(world, held, dials, note=note or (lambda _: None), **asked)
    clock.done("play")
    far = _far(world, held, played, dials, settings, note=note or (lambda _: None))
    if far is not None:
        clock.done("far")
    surprise = {way: nats(world, held, way, seed=settings.seed) for way in ("forward", "backward")}
    clock.done("nats")
    told = outcomes(world, held.pieces)
    clock.done("outcomes")
    if not is_lead():
        return json.loads(text_from_lead(None))
    same, known = provenance_notes(world.provenance, held.info, split)
    report: dict[str, Any] = {
        "world": name, "data": held.info.name if held.info else Path(data).name, "game": held.game,
        "settings": dataclasses.asdict(settings), "clips": len(held), "episodes": held.episodes,
        "known": held.known, "horizon": held.horizon, "actions_given": held.actions is not None,
        "notes": [*held.notes, *known], "trained_on_this": same,
        "pictures": table, "closed": shares_closed(table), "nats": surprise,
        "outcomes": told,
    }  # fmt: skip
    if held.game == "sprites" and held.info and "next_entropy" in held.info.source:
        report["nats"]["entropy"] = held.info.source["next_entropy"]
    report |= figures(held, played, drawn["q"], seed=settings.seed)
    report["drift"] = None if far is None else drift.drift(far, held)
    clock.done("figures")
    _write(out, report, held, played)
    clock.done("plots")
    report = plain(report | {"seconds": clock.seconds})
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (out / "report.json").write_text(text, "utf-8")
    (out / "report.html").write_text(page(report, out), "utf-8")
    text_from_lead(text)
    return report


def _far(
    world: World, held: HeldOut, played: Played, dials: Dials, settings: Settings, *, note: Note
) -> np.ndarray | None:
    """Frames ``[n h H W c]`` of long rollouts: those that were made beside the truth, where it is as long."""
    if settings.horizon <= held.horizon:
        return played.answers["forward"].frames[0] if settings.horizon >= drift.FAR else None
    how = {"seed": settings.seed, "sinks": settings.sinks}
    return drift.play_far(world, held, dials, frames=settings.horizon, note=note, **how)


def _check_alike(world: World, regression: World | None, held: HeldOut, settings: Settings) -> None:
    """Whether all processes judge the same world in the same way on the same windows.

    Raises:
      ValueError: what differs, and in which processes.
    """
    if jax.process_count() == 1:
        return

    def checksum(tree: Any) -> int:
        flat = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
        return functools.reduce(lambda total, part: zlib.crc32(part, total), flat, 0)

    worlds = [world] if regression is None else [world, regression]
    parts = {
        "settings": dataclasses.asdict(settings),
        "configs": [to_dict(one.config) for one in worlds],
        "weights": [checksum(one.params) for one in worlds],
        "windows": checksum([held.frames, held.actions, held.pieces]),
    }
    check_alike(parts, what="evaluate")


def figures(held: HeldOut, played: Played, drawn: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Everything that is counted from generated frames; ``drawn`` are the real ones from their codes."""
    answers = played.answers
    ahead, behind = answers["forward"], answers["backward"]
    others = held.others
    return {
        "curves": {name: curve(answer, seed=seed) for name, answer in answers.items()},
        "actions": None if played.steered is None else action_gain(ahead, played.steered, seed=seed),
        "loops": None if played.loops is None else loop_table(played.loops, held),
        "frechet": {
            "forward": bucketed(ahead.frames[0], ahead.truth, others),
            "backward": bucketed(behind.frames[0], behind.truth, others, step=-1),
        },
        "frechet_label": LABEL,
        "neighbours": None
        if held.train is None
        else neighbour_table(ahead.frames[0], ahead.truth, held.train),
        "state": _state(held, played, drawn, seed),
    }


def loop_table(loops: np.ndarray, held: HeldOut) -> dict[str, Any]:
    """Medians of the seam, jerk, peak and motion ratios over the loops that have one."""
    real = [clip[: loops.shape[1]] for clip in held.frames]
    each = loop_ratios(list(loops), real)
    each["peak_real"] = [peak_ratio(frames, loop=False) for frames in real]
    out: dict[str, Any] = {"frames": loops.shape[1]}
    for name, values in each.items():
        finite = [value for value in values if np.isfinite(value)]
        out |= {name: float(np.median(finite)) if finite else None, f"{name}_loops": len(finite)}
    return out


def _state(held: HeldOut, played: Played, drawn: np.ndarray, seed: int) -> dict[str, Any] | None:
    """What the readers find, where there is one for the data."""
    both = {name: played.answers[name] for name in ("forward", "backward")}
    if held.game == "pong":
        ram = held.truth["ram"]
        state: dict[str, Any] = {"reader": pong.check_reader(held.frames, ram, held.median)}
        state |= {k: pong.over_horizon(a, ram, held.median, seed=seed) for k, a in both.items()}
        seen = np.stack([pong.ball(clip, held.median) for clip in drawn])
        ram = ram[:, : seen.shape[1]]
        return state | {"stages": pong.stages(state["forward"], seen, ram, drawn.shape[2])}
    if held.game == "sprites" and held.info is not None:
        config = SpriteConfig.of(held.info.source)
        truth = held.truth["state"]
        reader = [read_sprites(clip, config) for clip in held.frames]
        state = {"reader": sprite_laws.check_reader(reader, truth)}
        codes = sprite_laws.check_reader(
            [read_sprites(clip, config) for clip in drawn], truth[:, : drawn.shape[1]]
        )
        state["reader"]["right_from_codes"] = codes["right"]
        return state | {
            k: sprite_laws.over_horizon(a, truth, held.actions, config, seed=seed) for k, a in both.items()
        }
    return None


def _write(out: Path, report: dict[str, Any], held: HeldOut, played: Played) -> None:
    """The plots and the sheet."""
    ceiling = report["pictures"]["q"]["psnr"]
    for name, scores in report["curves"].items():
        plots.draw(out / f"{name}.png", plots.score_panels(name, scores, ceiling))
    if report["state"]:
        plots.draw(out / "state.png", plots.state_panels(report["game"], report["state"]))
    if report["drift"]:
        plots.draw(out / "drift.png", plots.drift_panels(report["drift"]))
    write_video(out / "contact_sheet.png", _sheet(held, played)[None], scale=1)


def _sheet(held: HeldOut, played: Played, count: int = 2, columns: int = 16) -> np.ndarray:
    """For the first clips: the truth above the first sample of each verb's answer, and the loop."""
    rows, labels, known = [], [], []

    def add(label: str, frames: np.ndarray, given: np.ndarray) -> None:
        rows.append(frames)
        labels.append(label)
        known.append(given)

    for i in range(min(count, len(held))):
        whole = held.frames[i]
        add(f"{i} truth", whole, np.ones(len(whole), bool))
        for name, answer in played.answers.items():
            frames, given = whole.copy(), np.ones(len(whole), bool)
            at = answer.first + answer.step * np.arange(answer.truth.shape[1])
            frames[at], given[at] = answer.frames[0, i], False
            add(f"{i} {name.replace('_', ' ')}", frames, given)
        if played.loops is not None:
            add(f"{i} loop", played.loops[i], np.arange(len(played.loops[i])) < played.opening)
    return contact_sheet(rows, labels=labels, known=known, every=-(-held.frames.shape[1] // columns))


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [f"note: {text}" for text in report["notes"]]
    for name, scores in report["curves"].items():
        one = scores["psnr"]
        marks = [h for h in (1, 4, 16, 64) if h <= len(one["mean"])]
        cells = ", ".join(
            f"1-{h} {nanmean(np.array(one['mean'][:h])):.1f} (copy {nanmean(np.array(one['copy'][:h])):.1f})"
            for h in marks
        )
        lines.append(f"{name.replace('_', ' ')}, PSNR in dB: {cells}")
    for name in ("forward", "backward"):
        one = report["nats"][name]
        lines.append(
            f"{name}: {one['mean']:.2f} nats a frame ({one['low']:.2f} to {one['high']:.2f}, "
            f"{one['frames']} frames)"
            + (f"; without the pushed sprite {one['free']['mean']:.2f}" if "free" in one else "")
        )
    for name, one in (report["outcomes"] or {}).items():
        found = "none there" if one["found"] is None else f"{100 * one['found']:.0f} % of {one['there']} told"
        false = "" if one["false"] is None else f", {100 * one['false']:.1f} % of the others falsely"
        lines.append(
            f"{name}: {found}{false}; {one['nats']:.4f} nats a chunk ({one['base']:.4f} without looking)"
        )
    if report["actions"]:
        gains = ", ".join(f"{h} frames {one['mean']:+.2f} dB" for h, one in report["actions"].items())
        lines.append(f"true against wrong actions: {gains}")
    for name, one in (report["neighbours"] or {}).items():
        if isinstance(one, dict):
            lines.append(
                f"nearest training {name}: RMS {one['made']:.2f}, of held-out truth {one['truth']:.2f}"
            )
    if report["drift"]:
        one = report["drift"]
        lines.append(
            f"{one['frames']} frames onward: {100 * one['alive']:.0f} % stay like real play, the median for "
            f"{one['collapse']:.0f}"
            + (f"; nothing impossible for {one['survival']:.0f}" if "survival" in one else "")
        )
    for name in ("forward", "backward") if report["state"] else ():
        for h, one in report["state"][name].items():
            if h.isdigit():
                cells = ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in one.items() if v is not None)
                lines.append(f"{name} {h}: {cells}")
    return "\n".join([*lines, f"{report['seconds']['all']:.0f} s"])
