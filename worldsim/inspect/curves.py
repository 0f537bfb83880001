"""Learning curves: the metrics of a stage as panels, the most telling first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldsim.evaluate.plots import OTHER, WORLD, Line, Panel

ORDER = ("loss", "psnr", "accuracy", "codes_used", "left", "nats_per_code", "grad_norm", "learning_rate")
"""Metrics that come first, where a stage has them."""

WORDS = {
    "psnr": "PSNR of the batch",
    "accuracy": "codes guessed right",
    "codes_used": "codebook in use",
    "left": "detail left out",
    "nats_per_code": "nats a code",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
UNITS = {"psnr": "dB", "accuracy": "share", "codes_used": "share", "left": "share", "nats_per_code": "nats"}

CAPTION = "By step: the running mean, and on a page single steps in grey."

_LOG = ("loss", "grad_norm", "nats_per_code")
_SMOOTH, _LEAST = 25, 60
"""How many parts of a curve the running mean averages over, and from how many lines on it is drawn."""


def panels(lines: Sequence[dict[str, Any]]) -> list[Panel]:
    """The metrics in :data:`ORDER` of a stage over its steps; ``lines`` are those of a ``metrics.jsonl``."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if name not in ("step", "seconds", "weighted")]
    shown = [name for name in ORDER if name in names]
    out = []
    for name in shown:
        at = np.array([line["step"] for line in lines if name in line], float)
        values = np.array([np.nan if line[name] is None else line[name] for line in lines if name in line])
        if name == "nats_per_code" and _same(values, lines):
            continue
        finite = values[np.isfinite(values)]
        log = name in _LOG and finite.size > 0 and bool((finite > 0).all())
        drawn = _lines(at, values, even=name == "learning_rate")
        title = WORDS.get(name, name.replace("_", " "))
        out.append(Panel(title, UNITS.get(name, ""), drawn, axis="step", log=log))
    return out


def _same(values: np.ndarray, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether a metric is the loss itself."""
    loss = np.array([line.get("loss") or np.nan for line in lines], float)
    return len(loss) == len(values) and np.array_equal(loss, values, equal_nan=True)


def _lines(at: np.ndarray, values: np.ndarray, *, even: bool) -> list[Line]:
    """The values, and where they are many and uneven a running mean over them."""
    if even or len(values) < _LEAST:
        return [Line("", values, at=at, color=WORLD)]
    width = max(2, len(values) // _SMOOTH)
    window = np.convolve(np.nan_to_num(values), np.ones(width), "valid")
    count = np.convolve(np.isfinite(values).astype(float), np.ones(width), "valid")
    mean = np.divide(window, count, out=np.full_like(window, np.nan), where=count > 0)
    first = (width - 1) // 2
    return [
        Line("", values, at=at, color=OTHER, style=":"),
        Line("", mean, at=at[first : first + len(mean)], color=WORLD),
    ]
