"""Pong's state read from frames, ball and both paddles, beside what the emulator's RAM says.

Places are (row, column) in pixels of the small frame, as :mod:`worldsim.data.ale` makes it from a screen of
210x160. The reader knows colours and columns, never RAM; on true frames it is itself checked against RAM.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from worldsim.data.ale import PONG_BALL_X, PONG_BALL_Y, PONG_PLAYER_Y
from worldsim.evaluate.bands import around, band, nanmean, upto
from worldsim.evaluate.play import Answer

PONG_ENEMY_Y = 50
SCREEN, FIELD = (210, 160), (34, 194)
"""Rows and columns of the emulator's screen; its rows between the two walls."""

BALL, PADDLE = (4, 2), 16
"""Height and width of the ball, height of a paddle, in rows and columns of the screen."""

WITHIN = 3.0
"""Pixels within which a ball is where it should be."""

HORIZONS = (4, 8, 16, 32, 64)

FLIGHTS = ("straight", "returned", "served")
"""What became of the ball since the known end: it flies on (off walls too), a paddle turned it round, or it
was out of play."""

Side = Literal["own", "enemy"]
_COLOURS = {"own": (92, 186, 92), "enemy": (213, 130, 74)}
_COLUMNS = {"own": (140, 144), "enemy": (16, 20)}
_CELLS = {"own": (PONG_PLAYER_Y, 14), "enemy": (PONG_ENEMY_Y, 15)}
"""Per paddle its RAM cell, and by how much that lies below the paddle's top row on the screen."""


def _field(size: int) -> slice:
    """The rows of a frame that show some of the field."""
    return slice(FIELD[0] * size // SCREEN[0], FIELD[1] * size // SCREEN[0])


def ball(
    frames: UInt8[np.ndarray, "t h w 3"], median: UInt8[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "t 2"]:
    """Row and column of the ball, NaN where there is none.

    It is the mean of the field's bright pixels that are not so in the median frame.
    """
    field = _field(frames.shape[1])
    found = np.full((len(frames), 2), np.nan)
    odd = np.abs(frames[:, field].astype(int) - median[field]).max(-1) > 60
    for i, bright in enumerate(odd & (frames[:, field].min(-1) > 140)):
        if bright.any():
            found[i] = np.argwhere(bright).mean(0) + np.array((field.start, 0))
    return found


def paddle(frames: UInt8[np.ndarray, "t h w 3"], side: Side) -> Float[np.ndarray, "t"]:
    """Middle row of what is seen of a paddle, NaN where nothing is.

    Its rows are those of its columns nearer to its colour than to that of the field.
    """
    field, width = _field(frames.shape[1]), frames.shape[2]
    left, right = (edge * width / SCREEN[1] for edge in _COLUMNS[side])
    strip = frames[:, field, int(left) : int(np.ceil(right))].astype(int)
    colour, ground = np.array(_COLOURS[side]), np.array((144, 72, 17))
    near = np.square(strip - colour).sum(-1) < np.square(strip - ground).sum(-1)
    seen = (near & (np.abs(strip - colour).max(-1) < 70)).any(-1)
    rows = np.arange(field.start, field.stop)
    return np.where(seen.any(1), (seen * rows).sum(1) / np.maximum(1, seen.sum(1)), np.nan)


def _middle(top: np.ndarray, height: int, size: int) -> np.ndarray:
    """Middle row, in pixels of the frame, of what shows in the field of a thing on the screen."""
    low, high = np.clip(top, *FIELD), np.clip(top + height, *FIELD)
    rows = (low + high) / 2 * size / SCREEN[0] - 0.5
    return np.where(high > low, rows, np.nan)


def ball_truth(ram: UInt8[np.ndarray, "*t 128"], size: int) -> Float[np.ndarray, "*t 2"]:
    """Row and column of the ball, NaN where none is in play or a wall hides some of it."""
    x, y = (ram[..., cell].astype(float) for cell in (PONG_BALL_X, PONG_BALL_Y))
    row = _middle(y - 14, BALL[0], size)
    column = (x - 49 + BALL[1] / 2) * size / SCREEN[1] - 0.5
    there = (x > 0) & (y - 14 >= FIELD[0]) & (y - 14 + BALL[0] <= FIELD[1])
    return np.where(there[..., None], np.stack([row, column], -1), np.nan)


def paddle_truth(ram: UInt8[np.ndarray, "*t 128"], side: Side, size: int) -> Float[np.ndarray, "*t"]:
    """Middle row of what shows of a paddle, NaN where it is wholly behind a wall."""
    cell, above = _CELLS[side]
    return _middle(ram[..., cell].astype(float) - above, PADDLE, size)


def ball_match(
    read: Float[np.ndarray, "*t 2"], truth: Float[np.ndarray, "*t 2"]
) -> tuple[Float[np.ndarray, "*t"], Float[np.ndarray, "*t"]]:
    """Per frame with a ball: 1 where it is found within ``WITHIN`` pixels, else 0; and the error where any
    is found. Both NaN where there is no ball."""
    error = np.linalg.norm(read - truth, axis=-1)
    there = np.isfinite(truth[..., 0])
    return np.where(there, (error <= WITHIN).astype(float), np.nan), error


def flights(ram: UInt8[np.ndarray, "n t 128"]) -> Int[np.ndarray, "n t"]:
    """Per frame the index in ``FLIGHTS`` of what became of the ball since the first two frames::

    column   20  23  26  23  20   .   .  40
              0   0   0   1   1   2   2   2
    """
    x = ram[..., PONG_BALL_X].astype(int)
    way = np.sign(np.diff(x, axis=1, prepend=2 * x[:, :1] - x[:, 1:2]))
    turned = np.logical_or.accumulate(way != way[:, 1:2], axis=1)
    out = np.logical_or.accumulate(ram[..., PONG_BALL_Y] == 0, axis=1)
    return np.where(out, 2, turned.astype(int))


def check_reader(
    frames: UInt8[np.ndarray, "n t h w 3"],
    ram: UInt8[np.ndarray, "n t 128"],
    median: UInt8[np.ndarray, "h w 3"],
) -> dict[str, float]:
    """The reader against RAM on real frames.

    Returns:
      ``ball_recall`` (within ``WITHIN`` pixels), ``ball_false`` (share of frames without a ball in which one
      is read), ``ball_error``, ``own_error``, ``enemy_error`` (mean pixels) and the paddles' recall.
    """
    flat, size = frames.reshape(-1, *frames.shape[2:]), frames.shape[2]
    cells = ram.reshape(-1, 128)
    read, truth = ball(flat, median), ball_truth(cells, size)
    hit, error = ball_match(read, truth)
    out = {
        "ball_recall": float(nanmean(hit)),
        "ball_error": float(nanmean(error)),
        "ball_false": float(nanmean(np.isfinite(read[:, 0])[cells[:, PONG_BALL_Y] == 0])),
    }
    for side in ("own", "enemy"):
        mine, real = paddle(flat, side), paddle_truth(cells, side, size)
        out[f"{side}_error"] = float(nanmean(np.abs(mine - real)))
        out[f"{side}_recall"] = float(np.isfinite(mine[np.isfinite(real)]).mean())
    return out


def over_horizon(
    answer: Answer, ram: UInt8[np.ndarray, "n t 128"], median: UInt8[np.ndarray, "h w 3"], *, seed: int = 0
) -> dict[str, Any]:
    """Paddle errors and the ball over the frames of an answer, against RAM.

    Returns:
      ``own_error`` and ``enemy_error`` (pixels, of paddles that are seen), ``own_recall`` and
      ``enemy_recall`` (share of true paddles that are), ``ball_recall`` (share of true
      balls found within ``WITHIN`` pixels) and ``ball_error`` (pixels, where any is found), each a curve with
      its band over clips; ``ball_seen`` and ``ball_seen_truth``, shares of frames with a ball; and per
      horizon the paddles' errors at it (mean of its last four frames), and up to it their recall and the
      ball's recall and error. ``flights``: the last again, after each of ``FLIGHTS`` that occurs.
    """
    size, cells = answer.truth.shape[2], answer.of(ram)
    samples = [[ball(clip, median) for clip in row] for row in answer.frames]
    truth = ball_truth(cells, size)
    hit, error = (
        nanmean(np.stack(part), 0)
        for part in zip(*(ball_match(np.stack(s), truth) for s in samples), strict=True)
    )
    rows = {"ball_recall": hit, "ball_error": error}
    for side in ("own", "enemy"):
        real = paddle_truth(cells, side, size)
        mine = np.stack([[paddle(clip, side) for clip in row] for row in answer.frames])
        rows[f"{side}_error"] = nanmean(np.abs(mine - real), 0)
        there = np.where(np.isfinite(real), np.isfinite(mine).astype(float), np.nan)
        rows[f"{side}_recall"] = nanmean(there, 0)
    out: dict[str, Any] = {name: band(values, seed=seed) for name, values in rows.items()}
    out["ball_seen"] = float(np.isfinite(np.asarray(samples)[..., 0]).mean())
    out["ball_seen_truth"] = float(np.isfinite(truth[..., 0]).mean())
    ends = answer.first + answer.step * np.arange(-2, hit.shape[1])
    kinds = flights(ram[:, ends])[:, 2:]
    for h in (h for h in HORIZONS if h <= hit.shape[1]):
        out[str(h)] = {
            "own_error": around(out["own_error"]["mean"], h),
            "enemy_error": around(out["enemy_error"]["mean"], h),
            "own_recall": upto(out["own_recall"]["mean"], h),
            "enemy_recall": upto(out["enemy_recall"]["mean"], h),
            "ball_recall": upto(out["ball_recall"]["mean"], h),
            "ball_error": upto(out["ball_error"]["mean"], h),
        }
    out["flights"] = {str(h): _by_flight(hit[:, :h], kinds[:, :h]) for h in HORIZONS if h <= hit.shape[1]}
    return out


def _by_flight(hit: Float[np.ndarray, "n h"], kinds: Int[np.ndarray, "n h"]) -> dict[str, dict[str, float]]:
    """Recall of the ball, and its frames, after each of ``FLIGHTS`` that occurs."""
    found = {name: hit[(kinds == i) & np.isfinite(hit)] for i, name in enumerate(FLIGHTS)}
    return {
        name: {"ball_recall": float(rows.mean()), "frames": len(rows)}
        for name, rows in found.items()
        if len(rows)
    }


def stages(
    made: dict[str, Any], seen: Float[np.ndarray, "n t 2"], ram: UInt8[np.ndarray, "n t 128"], size: int
) -> dict[str, float]:
    """Which stage loses the ball: the share of true balls that each leaves, and what each takes away.

    Args:
      made: of :func:`over_horizon`, forward.
      seen: balls read from real frames drawn from their codes alone.
    """
    codes = float(nanmean(ball_match(seen, ball_truth(ram, size))[0]))
    left = {str(h): made[str(h)]["ball_recall"] for h in (16, 64) if str(h) in made}
    lost = {f"dynamics_loses_{h}": codes - recall for h, recall in left.items()}
    return {"codes_recall": codes, "tokenizer_loses": 1.0 - codes, **lost}
