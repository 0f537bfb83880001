"""The report of an evaluation, beside the world that it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldsim.inspect.findings import Curves, Section, Table

_MARKS = (1, 4, 8, 16, 32, 64)


def read_report(path: str | Path) -> dict[str, Any]:
    """The report in a folder that ``worldsim evaluate`` wrote, or in its JSON file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a file that is no report.
    """
    file = Path(path).expanduser()
    file = file / "report.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(
            f"inspect: no report at {file}; --report takes the folder that worldsim evaluate wrote, or its "
            "report.json."
        )
    try:
        report = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"inspect: {file} is no JSON ({error}).") from error
    missing = [name for name in ("curves", "nats", "pictures", "clips") if name not in report]
    if missing:
        raise ValueError(
            f"inspect: {file} has no {', '.join(missing)}, so worldsim evaluate did not write it."
        )
    return report


def report_section(report: dict[str, Any]) -> Section:
    """Its scores over horizon as a table and as curves, and what the world pays for the truth."""
    from worldsim.evaluate.plots import score_panels

    ceiling = report["pictures"].get("q", {}).get("psnr")
    rows, panels = [], []
    for name, scores in report["curves"].items():
        for label, key in (("", "mean"), (", copy", "copy")):
            values = scores["psnr"][key]
            cells = [sum(values[:h]) / h if h <= len(values) else "" for h in _MARKS]
            rows.append([f"{name.replace('_', ', gap of ')}{label}", *cells])
        panels += score_panels(name, {"psnr": scores["psnr"]}, ceiling)
    single: list[list[Any]] = [
        [f"nats a frame, {way}", one["mean"]] for way, one in report["nats"].items() if isinstance(one, dict)
    ]
    single += [["PSNR of the tokenizer alone, dB", ceiling]] if ceiling is not None else []
    gains = report.get("actions") or {}
    single += [[f"true against wrong actions, {h} frames, dB", one["mean"]] for h, one in gains.items()]
    note = (
        f"{report['world']} on {report['data']}: {report['clips']} held-out windows, {report['known']} "
        "frames known. PSNR in dB, mean of the first so many frames. All else is in its report.html."
    )
    tables = [Table(("PSNR of frames 1 to", *map(str, _MARKS)), rows), Table(("", ""), single)]
    return Section("Evaluation", [*tables, Curves(panels, "evaluation")], note)
