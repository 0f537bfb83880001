"""Train variants of a config through tokenizer and a fixed small dynamics at equal budget, and compare them.

    python scripts/ablate.py quantizer configs/pong.py --workdir runs/ablate
    python scripts/ablate.py losses configs/pong.py --workdir runs/ablate --tokenizer-steps 1500

Prints a table in Markdown; ``WORKDIR/CONFIG/ABLATION.json`` keeps every figure. A run that was cut goes on.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import worldsim
from worldsim.cli.options import load_config
from worldsim.config import TrainConfig
from worldsim.evaluate.run import Settings, evaluate
from worldsim.train.run import train

TERMS = ("charbonnier", "haar", "temporal", "ms_ssim", "rarity", "commitment", "continuous", "soft")
VARIANTS = {
    "quantizer": {
        "VQ": {"tokenizer": {"quantizer": "vq"}},
        "FSQ": {"tokenizer": {"quantizer": "fsq"}},
    },
    "losses": {"all terms": {}, "whole frames": {"tokenizer_loss": {"crop": 0}}}
    | {f"without {name}": {"tokenizer_loss": {name: 0.0}} for name in TERMS},
    "neighbours": {"seen": {}, "not seen": {"tokenizer": {"neighbours": False}}},
}
SMALL = {"width": 96, "layers": 2, "heads": 4, "mlp": 384}
"""The dynamics that all variants are judged by."""


def variant(config: TrainConfig, changes: dict, *, steps: dict[str, int]) -> TrainConfig:
    """The config with fields of its tokenizer and losses changed, the small dynamics, and few steps."""
    parts = {
        name: dataclasses.replace(getattr(config.world, name), **extra)
        for name, extra in (("tokenizer", changes.get("tokenizer", {})), ("dynamics", SMALL))
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
    for stage in ("tokenizer", "dynamics"):
        folder = train(config, workdir, stage=stage)
    settings = Settings(clips=12, horizon=16, samples=1)
    report = evaluate(worldsim.load(folder), config.data.path, workdir / "report", settings=settings)
    last = json.loads((workdir / "tokenizer" / "metrics.jsonl").read_text().splitlines()[-1])
    row = {
        "PSNR of q": report["pictures"]["q"]["psnr"],
        "PSNR of z": report["pictures"]["z"]["psnr"],
        "codes in use, % of the codebook": 100 * last["codes_used"],
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
    args = parser.parse_args()
    base = load_config(args.config)
    if args.data:
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, path=args.data))
    steps = {"tokenizer": args.tokenizer_steps, "dynamics": args.dynamics_steps}
    folder, rows = args.workdir / args.config.stem, {}
    for name, changes in variants(args.ablation, base).items():
        rows[name] = measure(
            variant(base, changes, steps=steps), folder / args.ablation / name.replace(" ", "-")
        )
        (folder / f"{args.ablation}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
