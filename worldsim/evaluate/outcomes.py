"""Rewards and ends that the world tells of true frames, beside those that the data has."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.evaluate.held_out import HeldOut
from worldsim.generate import requests
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.models.dynamics import Chunks
from worldsim.ops import twohot
from worldsim.parallel.shares import in_shares

SURE = 0.5
"""Chance of an end from which one is told, and how near a told reward is that counts as right."""


@partial(jax.jit, static_argnames=("graph", "frames"))
def _told(
    graph: nnx.GraphDef,
    params: nnx.State,
    codes: Int[Array, "b p h w"],
    actions: Array | None,
    *,
    frames: int,
) -> dict[str, Float[Array, "b p v"]]:
    """Logits of the outcomes of true chunks, each given those before it."""
    model = nnx.merge(graph, params)
    order = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape[:2])
    ids = jnp.stack([jnp.zeros_like(order), order, jnp.zeros_like(order)], -1)
    times = (order * frames).astype(jnp.float32)
    known = Chunks(codes.astype(jnp.int32), times, ids, jnp.zeros(order.shape), actions)
    return model.enter_and_tell(known, None)[1]


def outcomes(world: World, held: HeldOut) -> dict[str, Any] | None:
    """How well rewards and ends are told from true frames.

    Windows are cut into pieces of as many chunks as the context holds; each chunk is given those before it in
    its piece, and the first of each is not judged. The windows are spread over all processes.

    Returns:
      Per outcome of the world that the data has: ``nats`` a chunk; ``base``, the nats of one who knows only
      how often which value comes; ``there``, chunks that have a reward or an end, and ``chunks`` of all;
      ``found``, the share of those there that are told (a reward to within ``SURE``, an end with more chance
      than it), and ``false``, the share of the others that something is told of. None where there is nothing
      to tell.
    """
    config, f = world.config, world.config.tokenizer.frames_per_chunk
    names = [name for name in config.dynamics.outcomes if name in held.outcomes]
    total = held.frames.shape[1] // f
    size = min(config.dynamics.context, total)
    if not names or size < 2:
        return None
    cut = lambda rows: rows[:, : total // size * size].reshape(-1, size, *rows.shape[2:])

    def work(windows: np.ndarray) -> dict[str, np.ndarray]:
        codes = tokenize(*world.tokenizer, held.frames[windows, : total * f], frames_per_chunk=f)
        clips = [held.clip(i)[: total * f] for i in windows.tolist()]
        rows = [requests.by_chunk(clip.actions, total, config) for clip in clips]
        actions = None if rows[0] is None else cut(np.stack(rows))  # type: ignore[arg-type]
        told: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, piece in enumerate(cut(codes)):  # one at a time, since all pairs of a piece's tokens are held
            here = None if actions is None else jnp.asarray(actions[i : i + 1])
            found = _told(*world.dynamics, jnp.asarray(piece[None]), here, frames=f)
            for name in names:
                told[name].append(np.asarray(found[name][0, 1:], np.float32))
        return {name: np.stack(rows).reshape(len(windows), -1, *rows[0].shape) for name, rows in told.items()}

    told = in_shares(len(held), work)
    truth = {name: _by_chunk(name, held.outcomes[name][:, : total * f], f) for name in names}
    judged = {name: cut(rows)[:, 1:].reshape(-1) for name, rows in truth.items()}
    flat = {name: rows.reshape(-1, rows.shape[-1]) for name, rows in told.items()}
    return {name: JUDGES[name](flat[name], judged[name]) for name in names}


def _by_chunk(name: str, rows: np.ndarray, frames: int) -> np.ndarray:
    """What frames ``[n t]`` say of their chunks, as training has it: rewards summed, ends anywhere."""
    parts = rows.reshape(len(rows), -1, frames)
    return np.asarray(parts.any(-1) if name == "ends" else parts.sum(-1, dtype=np.float32))


def judge_rewards(logits: Float[np.ndarray, "n v"], truth: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Of chunks' rewards; see :func:`outcomes`. A sure and right answer pays no nats."""
    weights = np.asarray(twohot.two_hot(jnp.asarray(truth)), float)
    least = -(weights * np.log(np.maximum(weights, 1e-12))).sum(-1).mean()
    usual = np.log(np.maximum(weights.mean(0), 1e-12))
    told, there = np.asarray(twohot.mean(jnp.asarray(logits))), truth != 0
    return _counted(np.abs(told - truth) < SURE, np.abs(told) >= SURE, there) | {
        "nats": float(twohot.cross_entropy(jnp.asarray(logits), jnp.asarray(truth)).mean() - least),
        "base": float(-(weights * usual).sum(-1).mean() - least),
    }


def judge_ends(logits: Float[np.ndarray, "n 1"], truth: np.ndarray) -> dict[str, Any]:
    """Of chunks' ends; see :func:`outcomes`."""
    sign, share = np.where(truth, 1.0, -1.0), float(truth.mean())
    told = 1 / (1 + np.exp(-logits[:, 0].astype(float))) > SURE
    bits = [p * np.log(p) for p in (share, 1 - share) if p > 0]
    return _counted(told, told, truth.astype(bool)) | {
        "nats": float(np.logaddexp(0, -sign * logits[:, 0]).mean()),
        "base": float(-sum(bits)),
    }


JUDGES = {"rewards": judge_rewards, "ends": judge_ends}
"""By outcome."""


def _counted(right: np.ndarray, told: np.ndarray, there: np.ndarray) -> dict[str, Any]:
    share = lambda rows: float(rows.mean()) if len(rows) else None
    return {
        "chunks": len(there), "there": int(there.sum()),
        "found": share(right[there]), "false": share(told[~there]),
    }  # fmt: skip
