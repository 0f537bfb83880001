"""Put a trained world into the package: weights, held-out clips, training log, scores; and tell the README.

    python scripts/bundle.py runs/pong --data data/pong --name pong

The README shows the scores between ``<!-- scores NAME -->`` and ``<!-- /scores NAME -->``.
The clips are ``CLIPS`` pieces of ``KNOWN + NEW`` frames from the middle of evenly spaced held-out records:
a rule, not a choice.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import worldsim
from worldsim.checkpoint import bundled_worlds, load_world, save_world
from worldsim.config import WorldConfig
from worldsim.data.episode import Episode
from worldsim.data.source import open_source
from worldsim.data.sprites import SpriteConfig
from worldsim.demo import KNOWN, NEW, play, score
from worldsim.evaluate.pong import ball
from worldsim.evaluate.sprites import read_sprites
from worldsim.generate.extend import World
from worldsim.generate.requests import Generated
from worldsim.ops.scores import PSNR_CAP, psnr
from worldsim.types import Clip
from worldsim.worlds import clips

ROOT = Path(__file__).resolve().parent.parent
CLIPS, LIMIT = 8, 16 * 2**20
HORIZONS = (4, 8, 16, 32)
RATIOS = ("seam_ratio", "jerk_ratio", "motion_ratio", "peak_ratio", "peak_ratio_real")


def held_out(data: str, config: WorldConfig) -> dict[str, np.ndarray]:
    """What ``clips.npz`` holds: ``frames [n t h w c]``, ``actions [n t]``, the world's outcomes ``[n t]``,
    ``fps`` and ``records [n]``."""
    keys = ("frames", "actions", *config.dynamics.outcomes)
    source, length = open_source(data, "test", keys=keys), KNOWN + NEW
    long = np.flatnonzero(np.asarray(source.lengths) >= length)
    if len(long) < CLIPS:
        raise SystemExit(f"{data}: {len(long)} held-out records of {length} frames; {CLIPS} are needed.")
    records = long[np.linspace(0, len(long) - 1, CLIPS).round().astype(int)]
    parts = []
    for i in records:
        start = (int(source.lengths[i]) - length) // 2
        parts.append({name: array[start : start + length] for name, array in source[int(i)].items()})
    arrays = {name: np.stack([part[name] for part in parts]) for name in keys}
    return arrays | {"fps": np.float32(config.fps), "records": records}


def tokenizer_psnr(world: World, held: Sequence[Clip]) -> float:
    """Mean PSNR of clips through the tokenizer: the ceiling of everything generated."""
    rows = [psnr(world.reconstruct(clip).frames, clip.frames, cap=PSNR_CAP) for clip in held]
    return round(float(np.mean(rows)), 3)


def ball_scores(
    made: Mapping[str, Sequence[Generated]], held: Sequence[Clip], median: np.ndarray, within: float = 3.0
) -> dict[str, dict[str, float]]:
    """For the demo's two extensions: of frames with a ball, the share that has it within some pixels; and how
    many frames have a ball at all, in truth and as made."""
    out = {}
    for verb in ("forward", "backward"):
        new = slice(KNOWN, KNOWN + NEW) if verb == "forward" else slice(NEW - 1, None, -1)
        both = (held, [one.clip for one in made[verb]])
        truth, drawn = (np.stack([ball(clip.frames[new], median) for clip in part]) for part in both)
        near = np.linalg.norm(truth - drawn, axis=-1) <= within
        there, seen = np.isfinite(truth[..., 0]), np.isfinite(drawn[..., 0])
        rates = {str(h): float(near[:, :h][there[:, :h]].mean()) for h in HORIZONS}
        rates |= {"seen": float(seen.mean()), "seen_in_truth": float(there.mean())}
        out[f"ball_{verb}"] = {key: round(value, 3) for key, value in rates.items()}
    return out


def sprite_scores(
    made: Mapping[str, Sequence[Generated]], held: Sequence[Clip], config: SpriteConfig, within: float = 1.0
) -> dict[str, dict[str, float]]:
    """For the demo's two extensions: of the sprites that can be read in the truth, the share that is there
    with its colour and shape and within some pixels of its place."""
    out = {}
    for verb in ("forward", "backward"):
        new = slice(KNOWN, KNOWN + NEW) if verb == "forward" else slice(NEW - 1, None, -1)
        there, right = [], []
        for clip, one in zip(held, made[verb], strict=True):
            truth, drawn = (read_sprites(part.frames[new], config) for part in (clip, one.clip))
            near = np.abs(truth.place - drawn.place).max(-1) <= within
            there.append(truth.certain)
            right.append(truth.certain & drawn.seen & near & (truth.shape == drawn.shape))
        counts = [np.stack(part) for part in (right, there)]
        rates = {str(h): counts[0][:, :h].sum() / counts[1][:, :h].sum() for h in HORIZONS}
        out[f"sprites_{verb}"] = {key: round(float(value), 3) for key, value in rates.items()}
    return out


def game_scores(
    source: Mapping[str, Any], world: World, made: Mapping[str, Sequence[Generated]], held: Sequence[Clip]
) -> dict[str, dict[str, float]]:
    """What can be read from the frames of a game or a toy that is known by its data's source."""
    if source.get("game") == "pong":
        return ball_scores(made, held, world.statistics["median"])
    if "redraw" in source:
        return sprite_scores(made, held, SpriteConfig.of(source))
    return {}


def marks(name: str) -> tuple[str, str]:
    """The lines in the README that a world's scores stand between."""
    return f"<!-- scores {name} -->\n", f"<!-- /scores {name} -->"


def scores_of(report: dict, ceiling: float) -> dict:
    """What the provenance keeps of a demo's report: ratios, and means over the first frames."""
    kept = {
        name: {str(h): round(float(np.mean(values[:h])), 2) for h in HORIZONS if h <= len(values)}
        for name, values in report.items()
        if name.startswith("psnr_")
    }
    ratios = {name: report[name] for name in RATIOS}
    return {"clips": report["clips"], "psnr_tokenizer": ceiling, **kept, **ratios}


def table(name: str, scores: dict) -> str:
    """The scores as the README shows them."""
    rows = [
        ("forward", "psnr_forward", "copy the last frame", "psnr_copy_last"),
        ("backward", "psnr_backward", "copy the first frame", "psnr_copy_first"),
        ("infill (gap of 16)", "psnr_infill", "copy the nearest frame", "psnr_copy_nearest"),
    ]
    lines = [
        f"`{name}` on its {scores['clips']} held-out clips: {KNOWN} frames known, the true actions given.",
        "Mean PSNR over the first n frames in dB, at most 50 a frame; the tokenizer alone reaches "
        f"{scores['psnr_tokenizer']:.1f}.",
        "",
        "| frames | " + " | ".join(str(h) for h in HORIZONS) + " |",
        "|---|" + "---|" * len(HORIZONS),
    ]
    for title, mine, other, baseline in rows:
        for label, key in ((f"**{title}**", mine), (other, baseline)):
            cells = [f"{scores[key][str(h)]:.1f}" if str(h) in scores[key] else "" for h in HORIZONS]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for key, label in (("ball", "ball within 3 pixels"), ("sprites", "sprites within 1 pixel, true shape")):
        for verb in ("forward", "backward"):
            if rates := scores.get(f"{key}_{verb}"):
                cells = [f"{100 * rates[str(h)]:.0f} %" for h in HORIZONS]
                lines.append(f"| {label}, {verb} | " + " | ".join(cells) + " |")
    ratios = ", ".join(f"{r} {scores[f'{r}_ratio']:.2f}" for r in ("seam", "jerk", "motion"))
    lines += [
        "",
        f"Loops of {NEW} frames, one candidate each and no sweeps, means against real play (1 is alike): "
        f"{ratios}.",
        f"The largest step anywhere in a loop is {scores['peak_ratio']:.1f} of its median steps, "
        f"in real play {scores['peak_ratio_real']:.1f}.",
        "",
    ]
    return "\n".join(lines)


def rescore(name: str) -> dict:
    """Score a bundled world as it stands, and write its scores beside it and into the README."""
    folder, readme, (start, end) = bundled_worlds()[name], ROOT / "README.md", marks(name)
    config, params, statistics, provenance = load_world(folder)
    world, held = worldsim.load(name), clips(name)
    made = play(world, held, world.dials(steps=8), note=print)
    scores = scores_of(score(made, held), tokenizer_psnr(world, held))
    scores |= game_scores(provenance["data"].get("source") or {}, world, made, held)
    store = {"config": config, "params": params, "statistics": statistics, "dtype": "bfloat16"}
    save_world(folder, provenance=provenance | {"scores": scores}, **store)
    text = readme.read_text("utf-8")
    before, after = text.index(start) + len(start), text.index(end)
    readme.write_text(text[:before] + table(name, scores) + text[after:], "utf-8")
    return scores


def main() -> None:
    """Bundle, score and write the README's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, nargs="?", help="without it a bundled world is scored anew")
    parser.add_argument("--data", help="what it was trained on, to take clips from")
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    if args.workdir is None:
        print(json.dumps(rescore(args.name), indent=1))
        return
    if args.data is None:
        parser.error("a workdir is bundled with clips of its --data DIR")
    readme, (start, end) = ROOT / "README.md", marks(args.name)
    if any(mark not in readme.read_text("utf-8") for mark in (start, end)):
        raise SystemExit(f"{readme} has no place for the scores: write {start}{end} where they belong.")
    config, params, statistics, provenance = load_world(args.workdir / "world")
    folder = ROOT / "worldsim" / "worlds" / args.name
    store = {"config": config, "params": params, "statistics": statistics, "dtype": "bfloat16"}
    save_world(folder, provenance=provenance, **store)
    arrays = held_out(args.data, config)
    np.savez_compressed(folder / "clips.npz", **arrays)
    for stage in provenance["steps"]:
        shutil.copy(args.workdir / stage / "metrics.jsonl", folder / f"{stage}.jsonl")
    hashes = [Episode(*pair).hash() for pair in zip(arrays["frames"], arrays["actions"], strict=True)]
    provenance |= {"clips": {"records": arrays["records"].tolist(), "sha256": hashes}}
    save_world(folder, provenance=provenance, **store)
    scores = rescore(args.name)
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > LIMIT:
        raise SystemExit(
            f"{folder}: {size / 2**20:.1f} MiB; a bundled world stays under {LIMIT / 2**20:.0f}."
        )
    print(json.dumps(scores, indent=1))
    print(f"{folder}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
