"""Train variants of a config through all stages at equal budget, a fixed small dynamics, and compare them.

    python -m scripts.ablate quantizer configs/pong.py --workdir runs/ablate
    python -m scripts.ablate losses configs/pong.py --workdir runs/ablate --tokenizer-steps 1500
    python -m scripts.ablate heads configs/doom.py --tokenizer runs/doom --refine-steps 3000

``heads`` compares refinement heads alone, on a tokenizer that is trained already.

Prints a table in Markdown; ``WORKDIR/CONFIG/ABLATION.json`` keeps every figure. A run that was cut goes on.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import worldsim
from worldsim.cli.options import load_config
from worldsim.config import TrainConfig
from worldsim.evaluate.held_out import load_held_out
from worldsim.evaluate.pictures import Renderer, picture_table, renderers, shares_closed
from worldsim.evaluate.run import Settings, evaluate
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.models.world import split_module
from worldsim.train.run import load_stage, train

TERMS = ("charbonnier", "haar", "temporal", "ms_ssim", "rarity", "commitment", "continuous", "soft")
VARIANTS = {
    "quantizer": {
        "VQ": {"tokenizer": {"quantizer": "vq"}},
        "FSQ": {"tokenizer": {"quantizer": "fsq"}},
    },
    "losses": {"all terms": {}, "whole frames": {"tokenizer_loss": {"crop": 0}}}
    | {f"without {name}": {"tokenizer_loss": {name: 0.0}} for name in TERMS},
    "neighbours": {"seen": {}, "not seen": {"tokenizer": {"neighbours": False}}},
    "heads": {
        "diffusion": {},
        "per token": {"refine": {"radius": 0, "neighbours": False}},
        "regression": {"refine": {"kind": "regression"}},
    },
}
SMALL = {"width": 96, "layers": 2, "heads": 4, "mlp": 384}
"""The dynamics that all variants are judged by."""


def variant(config: TrainConfig, changes: dict, *, steps: dict[str, int]) -> TrainConfig:
    """The config with fields of its tokenizer and losses changed, the small dynamics, and few steps."""
    parts = {
        name: dataclasses.replace(getattr(config.world, name), **extra)
        for name, extra in (
            ("tokenizer", changes.get("tokenizer", {})),
            ("dynamics", SMALL),
            ("refine", changes.get("refine", {})),
        )
    }
    stages = {
        name: dataclasses.replace(getattr(config, name), steps=count, save_every=count, sample_every=0)
        for name, count in steps.items()
    }
    losses = dataclasses.replace(config.tokenizer_loss, **changes.get("tokenizer_loss", {}))
    world = dataclasses.replace(config.world, **parts)
    return dataclasses.replace(config, world=world, tokenizer_loss=losses, **stages)


def measure(config: TrainConfig, workdir: Path) -> dict[str, float]:
    """Train and judge one variant."""
    world = worldsim.load(train(config, workdir))
    settings = Settings(clips=12, horizon=16, samples=1)
    report = evaluate(world, config.data.path, workdir / "report", settings=settings)
    row = {
        "PSNR of q": report["pictures"]["q"]["psnr"],
        "PSNR of q, refined": report["pictures"]["4 steps"]["psnr"],
        "PSNR of z": report["pictures"]["z"]["psnr"],
        "codes in use, % of the codebook": 100 * codes_in_use(world, config.data.path),
        "nats a frame, forward": report["nats"]["forward"]["mean"],
    }
    row["PSNR over 16 frames"] = sum(report["curves"]["forward"]["psnr"]["mean"][:16]) / 16
    state = report["state"] or {}
    if report["game"] == "pong":
        row["ball from q, %"] = 100 * state["stages"]["codes_recall"]
        row["ball up to 16 frames, %"] = 100 * state["forward"]["16"]["ball_recall"]
    if report["game"] == "sprites":
        row["sprites right from q, %"] = 100 * state["reader"]["right_from_codes"]
    return row


def codes_in_use(world: World, data: str) -> float:
    """Share of the codebook that is found in 64 held-out windows of 16 frames."""
    frames = load_held_out(data, world.config, clips=64, horizon=16).frames
    f = world.config.tokenizer.frames_per_chunk
    codes = tokenize(*world.tokenizer, frames[:, : frames.shape[1] // f * f], frames_per_chunk=f)
    return len(np.unique(codes)) / world.config.tokenizer.codebook


def measure_heads(
    configs: Mapping[str, TrainConfig], workdir: Path, *, tokenizer: Path
) -> dict[str, dict[str, float]]:
    """Train heads on one trained tokenizer, in a workdir each, and judge what they draw of held-out clips."""
    ways: dict[str, Renderer] = {}
    for name, config in configs.items():
        folder = workdir / name.replace(" ", "-")
        shutil.copytree(tokenizer / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        train(config, folder, stage="refine")
        params = {part: load_stage(part, config, folder)[1] for part in ("tokenizer", "refine")}
        shapes = split_module("dynamics", config.world)[1]
        nobody = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        found = renderers(World.make(config.world, params | {"dynamics": nobody}))
        ways |= {way if way in ("q", "z") else f"{name}, {way}": draw for way, draw in found.items()}
    config = next(iter(configs.values()))
    held = load_held_out(config.data.path, config.world, clips=12, horizon=64)
    f = config.world.tokenizer.frames_per_chunk
    rows, _ = picture_table(ways, held.frames[:, : held.frames.shape[1] // f * f])
    closed = shares_closed(rows)
    return {
        name: {"PSNR": row["psnr"], "flicker": row["flicker"]}
        | {f"{score} closed, %": 100 * share for score, share in closed.get(name, {}).items()}
        for name, row in rows.items()
    }


def variants(ablation: str, config: TrainConfig) -> dict[str, dict]:
    """The changes by title; a term that the config does not use is not left out once more."""
    unused = {f"without {name}" for name in TERMS if not getattr(config.tokenizer_loss, name)}
    return {title: changes for title, changes in VARIANTS[ablation].items() if title not in unused}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows in Markdown."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, row in rows.items():
        cells = [f"{row[name]:.2f}" if name in row else "" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ablation", choices=sorted(VARIANTS))
    parser.add_argument("config", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--data", help="instead of the config's")
    parser.add_argument("--tokenizer-steps", type=int, default=2000)
    parser.add_argument("--dynamics-steps", type=int, default=800)
    parser.add_argument("--refine-steps", type=int, default=300)
    parser.add_argument("--tokenizer", type=Path, help="workdir of a trained tokenizer, for heads")
    args = parser.parse_args()
    base = load_config(args.config)
    if args.data:
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, path=args.data))
    steps = {"refine": args.refine_steps}
    if args.ablation != "heads":
        steps |= {"tokenizer": args.tokenizer_steps, "dynamics": args.dynamics_steps}
    elif args.tokenizer is None:
        parser.error("heads are trained on a trained tokenizer: --tokenizer WORKDIR")
    configs = {
        name: variant(base, changes, steps=steps) for name, changes in variants(args.ablation, base).items()
    }
    folder = args.workdir / args.config.stem
    if args.ablation == "heads":
        rows = measure_heads(configs, folder / "heads", tokenizer=args.tokenizer)
        finish(rows, folder / "heads.json")
        return
    rows = {}
    for name, config in configs.items():
        rows[name] = measure(config, folder / args.ablation / name.replace(" ", "-"))
        finish(rows, folder / f"{args.ablation}.json")


def finish(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Write what is known so far, and show it."""
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows), flush=True)


if __name__ == "__main__":
    main()
