"""A world in short: its parts and their sizes, what it takes, its scores, and how it was trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from worldsim.config import WorldConfig
from worldsim.inspect.curves import CAPTION, panels
from worldsim.inspect.findings import Curves, Findings, Section, Table, size
from worldsim.inspect.kinds import STAGES
from worldsim.inspect.runs import config_rows
from worldsim.plain import from_dict
from worldsim.train.metrics import read_lines

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "U32": 4, "U8": 1, "BOOL": 1}
_HORIZONS = ("4", "8", "16", "32")


def world_findings(
    folder: Path,
    *,
    name: str,
    made: tuple[list[Section], dict[str, Any]] = ([], {}),
    report: Section | None = None,
) -> Findings:
    """What a world's folder says without running the world.

    Args:
      folder: of the world.
      name: to call it by.
      made: sections and facts of what came of running it; the first section opens the page.
      report: of an evaluation.

    Raises:
      ValueError: a config of another version, or weights that are no safetensors.
    """
    config = from_dict(WorldConfig, json.loads((folder / "config.json").read_text("utf-8"))["world"])
    provenance = json.loads((folder / "provenance.json").read_text("utf-8"))
    own = provenance.get("name", name)
    title = name if own == name else f"{own} ({name})"
    parts = read_parts(folder / "weights.safetensors")
    total = sum(part["parameters"] for part in parts.values())
    bulk = (folder / "weights.safetensors").stat().st_size
    logs = training_logs(folder)
    scores = _score_rows(provenance.get("scores", {}))
    sizes = Table(("part", "parameters", "bytes", "stored as", "steps"), _part_rows(parts, provenance))
    sections = [
        *made[0][:1],
        *([report] if report is not None else []),
        *([Section("Scores", scores, _scores_note(provenance))] if scores else []),
        Section("Parts", [sizes, Table(("", ""), _config_rows(config))]),
        *made[0][1:],
        Section("Where it comes from", [Table(("", ""), _origin_rows(provenance))]),
        *(
            Section(f"Training: {stage}", [Curves(panels(log), stage)], CAPTION)
            for stage, log in logs.items()
        ),
    ]
    t, action = config.tokenizer, config.dynamics.action
    count = f"{action.size} {action.kind}" if action.size else "no"
    frames = f"{t.height}x{t.width} frames at {config.fps:g} a second"
    lead = f"{frames}, {count} actions; {_count(total)} parameters in {size(bulk)}."
    facts = {
        "what": "world",
        "name": own,
        "folder": str(folder),
        "parameters": total,
        "bytes": bulk,
        "parts": parts,
        "config": dict(_config_rows(config)),
        "steps": provenance.get("steps", {}),
        "made": provenance.get("made"),
        "data": provenance.get("data", {}).get("name"),
        "scores": provenance.get("scores", {}),
        "codes_used_in_training": _last(logs, "codes_used"),
        **made[1],
    }
    return Findings(title, lead, facts, sections)


def read_parts(file: Path) -> dict[str, dict[str, Any]]:
    """Parameters, bytes and kinds of numbers of each part, from the head of a safetensors file.

    Raises:
      ValueError: it is none.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            head = json.loads(opened.read(min(length, 1 << 28)))
        except ValueError as error:
            raise ValueError(
                f"{file}: its head can't be read, so it is no safetensors file ({error})."
            ) from error
    parts: dict[str, dict[str, Any]] = {}
    for path, tensor in head.items():
        if path == "__metadata__":
            continue
        part = parts.setdefault(path.split("/")[0], {"parameters": 0, "bytes": 0, "stored": []})
        count = math.prod(tensor["shape"])
        part["parameters"] += count
        part["bytes"] += count * _BYTES.get(tensor["dtype"], 4)
        part["stored"] = sorted({*part["stored"], tensor["dtype"].lower()})
    return {name: parts[name] for name in (*STAGES, *sorted({*parts} - {*STAGES})) if name in parts}


def training_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The logs of the stages that made a world: beside its weights, or in the workdir around it."""
    found = {}
    for stage in STAGES:
        for path in (folder / f"{stage}.jsonl", folder.parent / stage / "metrics.jsonl"):
            if path.is_file() and (lines := read_lines(path)):
                found.setdefault(stage, lines)
    return found


def _part_rows(parts: dict[str, dict[str, Any]], provenance: dict[str, Any]) -> list[list[Any]]:
    steps = provenance.get("steps", {})
    rows: list[list[Any]] = [
        [
            name,
            f"{part['parameters']:,}",
            size(part["bytes"]),
            ", ".join(part["stored"]),
            steps.get(name, "-"),
        ]
        for name, part in parts.items()
    ]
    total = [sum(part[key] for part in parts.values()) for key in ("parameters", "bytes")]
    return [*rows, ["all", f"{total[0]:,}", size(total[1]), " ", " "]]


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"


def _config_rows(config: WorldConfig) -> list[tuple[str, str]]:
    """The config in words."""
    t, d, r = config.tokenizer, config.dynamics, config.refine
    f, (rows, columns) = t.frames_per_chunk, t.grid
    codes, patch = rows * columns, d.patch**2
    bits = codes * math.log2(t.codebook)
    raw = 8 * f * t.height * t.width * t.channels
    names = f": {', '.join(d.action.names)}" if d.action.names else ""
    size_ = f", {d.action.size}" if d.action.size else ""
    chunk = (
        f"{f} frame{'s' * (f > 1)} as {rows}x{columns} codes of {t.codebook} ({t.quantizer}), "
        f"{bits / 8:.0f} bytes, {raw / bits:.0f} times less than raw"
    )
    stack = (
        f"{d.layers} layers of {d.heads} heads, width {d.width}, mlp {d.mlp}; "
        f"{codes // patch} tokens a chunk, {patch} code{'s' * (patch > 1)} each"
        f"{', 3x3 convolutions around tokens' * d.around}"
    )
    seen = f"{d.context} chunks, {d.context * f / config.fps:.1f} s; {d.pinned} of them may be pinned"
    widths = ", ".join(map(str, t.widths))
    told = [
        ("chunk", chunk),
        ("tokenizer", f"widths {widths}; {t.blocks} blocks each, {t.latent} latent channels"),
        ("dynamics", stack),
        ("sees", seen),
        ("actions", f"{d.action.kind}{size_}{names}"),
    ]
    if d.conditions:
        told.append(("conditions", ", ".join(f"{one.name} ({one.kind} {one.size})" for one in d.conditions)))
    return [
        *told,
        ("refinement", f"{r.kind}, {r.layers} layers of {r.heads} heads, width {r.width}, radius {r.radius}"),
    ]


def _origin_rows(provenance: dict[str, Any]) -> list[list[Any]]:
    """The provenance in short."""
    data, config = provenance.get("data", {}), provenance.get("train", {})
    splits = ", ".join(
        f"{name} {split.get('frames', '?')} frames" for name, split in data.get("splits", {}).items()
    )
    rows = [
        [
            "data",
            f"{data.get('name', 'unknown')} ({data.get('kind', 'unknown')}): {splits or 'no split is named'}",
        ]
    ]
    rows += [row for row in config_rows(config) if row[0] != "data"] if config else []
    device = f"{provenance.get('device', 'unknown')}, jax {provenance.get('jax', 'unknown')}"
    rows += [["made", f"{provenance.get('made', 'unknown')} on {device}"]]
    sha = provenance.get("weights_sha256", "")
    return rows + ([["weights", f"sha256 {sha[:16]}..."]] if sha else [])


def _score_rows(scores: dict[str, Any]) -> list[Table]:
    """The scores that a world carries: curves over horizons under one head, and single figures."""
    curves = {name: one for name, one in scores.items() if isinstance(one, dict)}
    rows = []
    for name, one in curves.items():
        percent = not name.startswith("psnr")
        cells = ["" if one.get(h) is None else one[h] for h in _HORIZONS]
        texts = [f"{100 * cell:.0f} %" if percent and cell != "" else cell for cell in cells]
        rows.append([_words(name), *texts])
    single = [
        [_words(name), one] for name, one in scores.items() if not isinstance(one, dict) and name != "clips"
    ]
    tables = [Table(("frames", *_HORIZONS), rows, 1)] if rows else []
    return tables + ([Table(("", ""), single)] if single else [])


def _words(name: str) -> str:
    return name.replace("psnr", "PSNR, dB:").replace("_", " ")


def _scores_note(provenance: dict[str, Any]) -> str:
    clips = provenance.get("scores", {}).get("clips")
    return (
        f"On its {clips} held-out clips; means over the first so many frames made."
        if clips
        else "As it carries them."
    )


def _last(logs: dict[str, list[dict[str, Any]]], name: str) -> float | None:
    """The mean of a metric over the last ten lines that have it."""
    values = [line[name] for lines in logs.values() for line in lines if line.get(name) is not None][-10:]
    return sum(values) / len(values) if values else None
