"""The report as one self-contained HTML page: numbers in tables, pictures inline, each with what it says."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from worldsim.evaluate.document import document, number, picture, table
from worldsim.evaluate.features import LABEL
from worldsim.evaluate.pong import FLIGHTS
from worldsim.generate.options import DIALS


def page(report: dict[str, Any], folder: Path) -> str:
    """The whole page.

    Args:
      report: as it stands in ``report.json``.
      folder: where the plots and the sheet are.
    """
    told = report["settings"]
    others = "".join(
        f", {name} {told[name]:g}"
        for name in (*DIALS, "sinks")
        if name not in ("steps", "temperature") and told.get(name) not in (None, DIALS.get(name, 0))
    )
    actions = ", true actions given" if report["actions_given"] else ", no actions given"
    parts = [
        f"<h1>{escape(report['world'])} on {escape(report['data'])}</h1>",
        f'<p class="dim">{report["clips"]} held-out windows of {report["episodes"]} episodes, '
        f"{report['known']} frames known{actions}; {told['samples']} samples, {told['steps']} passes a "
        f"chunk, temperature {told['temperature']:g}{others}, seed {told['seed']}. Bands hold 90 % of the "
        "means of clips drawn again (bootstrap); with few clips they are themselves rough.</p>",
        "".join(f'<p class="dim">Note: {escape(note)}.</p>' for note in report["notes"]),
        *_curves(report, folder),
        *_surprise(report),
        *_outcomes(report),
        *_pictures(report),
        *_loops(report),
        *_distances(report),
        *_state(report, folder),
        *_drift(report, folder),
        "<h2>Frames</h2><p>Truth above each answer; blue borders are given frames, orange ones "
        "generated.</p>",
        picture(folder / "contact_sheet.png", "sheet"),
        f'<p class="dim">Made in {report["seconds"]["all"]:.0f} s. All numbers are in report.json.</p>',
    ]
    return document(report["world"], parts)


def _curves(report: dict[str, Any], folder: Path) -> list[str]:
    """Tables and plots of PSNR and SSIM over horizon."""
    parts = [
        "<h2>How far it stays with the truth</h2><p>Frames made and true, one by one. Copying is what a "
        "world must beat; the tokenizer alone is the most that it can reach. Where the future is open, a "
        "sharp wrong answer scores less than a blurred or missing one: PSNR falls for guessing, so look "
        "at the state below. The best of several samples, chosen over the whole horizon, is a look at what "
        "is possible, not a score.</p>"
    ]
    for name, scores in report["curves"].items():
        parts.append(picture(folder / f"{name}.png"))
        rows, marks = [], [h for h in (1, 4, 8, 16, 32, 64) if h <= len(scores["psnr"]["mean"])]
        for key, one in scores.items():
            for label, row in (("mean of samples", "mean"), ("best of samples", "best"), ("copy", "copy")):
                cells = [float(sum(one[row][:h]) / h) for h in marks]
                rows.append(
                    [f"{key.upper()}, {label}", *(number(c, 2 if key == "psnr" else 3) for c in cells)]
                )
        parts.append(
            table([f"{name.replace('_', ', gap of ')}: mean of frames 1 to", *map(str, marks)], rows)
        )
    return parts


def _surprise(report: dict[str, Any]) -> list[str]:
    """Nats and the worth of actions."""
    parts = [
        "<h2>How surprised it is by the truth</h2><p>Nats a frame at the true codes, one code at a time "
        "in a random order, given the true frames before (or after): an upper bound on what the world "
        "pays for the truth. Comparable only between worlds with the same tokenizer.</p>"
    ]
    told = {name: one for name, one in report["nats"].items() if isinstance(one, dict)}
    told |= {
        f"{name}, but the pushed sprite": one | one["free"] for name, one in told.items() if "free" in one
    }
    rows = [
        [name, one["mean"], f"{number(one['low'])} to {number(one['high'])}", one["frames"],
         f"{one['past'][0]} to {one['past'][1]}"]
        for name, one in told.items()
    ]  # fmt: skip
    parts.append(table(["", "nats a frame", "band", "frames judged", "frames given"], rows))
    if "entropy" in report["nats"]:
        parts.append(
            f"<p>The sprites' next places have an entropy of exactly {report['nats']['entropy']:.3f} nats a "
            "frame; where a sprite hides, the past knows more than one frame shows.</p>"
        )
    if report["actions"]:
        parts.append(
            "<h2>What actions are worth</h2><p>PSNR under the true actions less PSNR under another clip's, "
            "shuffled, from the same frames and the same random key. Zero means that actions do nothing.</p>"
        )
        rows = [
            [h, one["mean"], f"{number(one['low'])} to {number(one['high'])}", one["at"]["mean"]]
            for h, one in report["actions"].items()
        ]
        parts.append(table(["frames", "ΔPSNR up to, dB", "band", "at, dB"], rows))
    return parts


def _outcomes(report: dict[str, Any]) -> list[str]:
    """Rewards and ends."""
    if not report["outcomes"]:
        return []
    share = lambda x: "" if x is None else f"{100 * x:.1f} %"
    rows = [
        [name, f"{one['there']} of {one['chunks']}", share(one["found"]), share(one["false"]),
         number(one["nats"], 4), number(one["base"], 4)]
        for name, one in report["outcomes"].items()
    ]  # fmt: skip
    return [
        "<h2>Rewards and ends</h2><p>What the world tells of true chunks, each given the true ones before "
        "it, at the ends of episodes and at other places. A reward is found where the told one is off by "
        "less than half of it, an end where it is likelier than not. The base knows how often which value "
        "comes, and nothing of the frames.</p>",
        table(["", "chunks that have one", "found", "told of others", "nats a chunk", "base"], rows),
    ]


def _pictures(report: dict[str, Any]) -> list[str]:
    """The tokenizer's table."""
    names = ("psnr", "ssim", "sharpness", "features", "frechet", "flicker")
    rows = [
        [way, *(number(one.get(name), 2 if name == "psnr" else 3) for name in names)]
        for way, one in report["pictures"].items()
    ]
    closed = [
        [way, *("" if one.get(name) is None else f"{100 * one[name]:.0f} %" for name in names[2:5])]
        for way, one in report["closed"].items()
    ]
    shares = table(["of the way from q to z", "sharpness", "features", "Fréchet"], closed) if closed else ""
    return [
        "<h2>What a picture keeps</h2><p>Real frames drawn from their codes (q), which is all that is "
        "ever generated, and from their latents before rounding (z), which is the ceiling of refinement. "
        "Sharpness: energy of the finest Haar bands over that of the truth, 1 is alike. Features: "
        f"distance from the truth in {LABEL}, paired and as a Fréchet distance, 0 is alike. Flicker: "
        "energy of second differences in time over that of z.</p>",
        table(["", "PSNR, dB", "SSIM", "sharpness", "features", "Fréchet", "flicker"], rows),
        shares,
    ]


def _loops(report: dict[str, Any]) -> list[str]:
    """Ratios of loops."""
    if not report["loops"]:
        return []
    names = ("seam", "jerk", "peak", "motion")
    rows = [[name, report["loops"][name], report["loops"][f"{name}_loops"]] for name in names]
    rows.append(["peak of real play", report["loops"]["peak_real"], report["clips"]])
    return [
        f"<h2>Loops of {report['loops']['frames']} frames</h2><p>The step over the seam (seam), its "
        "change of velocity (jerk), the largest step anywhere (peak), each over the loop's own median, "
        "and the mean step over that of real play (motion). 1 is alike; a small seam with little motion "
        "is a still picture.</p>",
        table(["median of loops", "ratio", "of loops"], rows),
    ]


def _distances(report: dict[str, Any]) -> list[str]:
    """Fréchet distance and nearest neighbours."""
    parts = [
        f"<h2>Does it look like real play</h2><p>Fréchet distance in {LABEL}, from other held-out play, "
        "in units of how far that scatters. The floor is as much real play in place of the generated: "
        "only what lies above it says anything.</p>"
    ]
    rows = [
        [f"{name}, frames {span}", one["made"], one["floor"], one["pieces"]]
        for name, spans in report["frechet"].items() for span, one in spans.items()
    ]  # fmt: skip
    parts.append(table(["", "world", "floor", "pieces"], rows, 3))
    if report["neighbours"]:
        parts.append(
            "<h2>Does it replay its training set</h2><p>Root mean square distance (0 to 255) to the "
            f"nearest of {report['neighbours']['compared']} training frames; medians. A ratio far below 1, "
            "above all for clips of four frames, is memorising."
            + (
                "</p>"
                if report["trained_on_this"]
                else " Here it is not known to be the world's own set.</p>"
            )
        )
        rows = [
            [name, one["made"], one["truth"], one["ratio"]]
            for name, one in report["neighbours"].items() if isinstance(one, dict)
        ]  # fmt: skip
        parts.append(table(["", "world", "held-out truth", "ratio"], rows))
    return parts


def _drift(report: dict[str, Any], folder: Path) -> list[str]:
    """Long rollouts."""
    told = report["drift"]
    if not told:
        return []
    rows = {f"frames {name}": row for name, row in told["stretches"].items()}
    named = ("first_quarter", "last_quarter", "last_200", "copy", "repeat")
    words = {"last_200": "last 200 frames", "copy": "last frame held", "repeat": "known frames repeated"}
    rows |= {words.get(name, name.replace("_", " ")): told[name] for name in named if name in told}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    survives = (
        f" Nothing impossible happens for {told['survival']:.0f} frames in the median, and in "
        f"{100 * told['survives']:.0f} % of the rollouts to the end."
        if "survival" in told
        else ""
    )
    return [
        f"<h2>Whether it stays alive</h2><p>{told['frames']} frames onward from each window. Fréchet "
        "distance from other real play beside its floor, motion and sharpness over those of real play (1 is "
        "alike), and what is found in the frames. A rollout is over when it stands still or "
        "when most pieces of 32 frames are farther from real play than 99 % of real ones are: "
        f"{100 * told['alive']:.0f} % of them last, the median for {told['collapse']:.0f} frames."
        f"{survives}</p>",
        picture(folder / "drift.png"),
        table(["", *(name.replace("_", " ") for name in names)],
              [[label, *(row.get(name) for name in names)] for label, row in rows.items()], 3),
    ]  # fmt: skip


def _flights(told: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of what Pong's ball did since the known end, and how often it is found then."""
    names = [name for name in FLIGHTS if any(name in one for one in told)]
    cell = lambda one: f"{number(one['ball_recall'], 3)} of {one['frames']}" if one else "-"
    return [[f"ball recall, {name}", *(cell(one.get(name)) for one in told)] for name in names]


def _state(report: dict[str, Any], folder: Path) -> list[str]:
    """What is read from frames."""
    state = report["state"]
    if not state:
        return []
    words = {
        "pong": "Ball and paddles read from frames, against the emulator's RAM. The reader's own recall "
        "and error on real frames come first: no score can be better. A free ball drifts off the "
        "truth where a return is a matter of luck; the own paddle is steered and has no excuse. A ball flies "
        "straight (off walls too) until a paddle returned it or it was served anew.",
        "sprites": "Shape, colour and place of each sprite read from frames, against the true state. "
        "Free sprites turn at random, so their error grows for any world; the pushed one "
        "follows the given actions.",
    }[report["game"]]
    parts = [f"<h2>What happens in the frames</h2><p>{words}</p>", picture(folder / "state.png")]
    reader = [[name.replace("_", " "), value] for name, value in state["reader"].items()]
    parts.append(table(["reader on real frames", ""], reader, 3))
    for name in ("forward", "backward"):
        spans = {key: one for key, one in state[name].items() if key.isdigit()}
        keys = list(next(iter(spans.values()), {}))
        rows = [[key.replace("_", " "), *(one[key] for one in spans.values())] for key in keys]
        rows += _flights([state[name].get("flights", {}).get(span, {}) for span in spans])
        parts.append(table([f"{name}, frames", *spans], rows))
    if "stages" in state:
        rows = [
            [name.replace("_", " "), 100 * value]
            for name, value in state["stages"].items()
            if value is not None
        ]
        parts.append(table(["which stage loses the ball", "% of true balls"], rows, 1))
    for name in ("forward", "backward") if report["game"] == "sprites" else ():
        one = state[name]
        rows = [
            [key, *(" of ".join(map(str, v)) if isinstance(v, list) else number(v, 3) for v in (m, t))]
            for key, m, t in ((k, one["made"][k], one["truth"][k]) for k in one["made"])
        ]
        rows.append(["redraw rate over the truth's", number(one["redraw_ratio"], 2), "1"])
        parts.append(table([f"laws, {name}", "world", "truth by the same reader"], rows))
    return parts
