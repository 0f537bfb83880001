"""Rewards and ends that the world tells of true frames, beside those that the data has."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.generate import requests
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.models.dynamics import Chunks
from worldsim.ops import twohot
from worldsim.parallel.shares import in_shares
from worldsim.train.codes import chunk_rows


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


def outcomes(world: World, pieces: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """How well rewards and ends are told from true frames, each chunk given those before it in its piece.

    The first chunk of each piece is not judged. The pieces are spread over all processes.

    Args:
      world: that tells.
      pieces: of :class:`worldsim.evaluate.held_out.HeldOut`.

    Returns:
      Per outcome of the world that the data has: ``nats`` a chunk; ``base``, the nats of one who knows only
      how often which value comes; ``there``, chunks that have a reward or an end, and ``chunks`` of all;
      ``found``, the share of those there that are told, and ``false``, the share of the others that something
      is told of (None of none). A reward is told where the number that is expected is off by less than half
      of it, and falsely from half of the smallest there is; an end with more than an even chance. None where
      there is nothing to tell.
    """
    config, f = world.config, world.config.tokenizer.frames_per_chunk
    names = [name for name in config.dynamics.outcomes if name in pieces]
    if not names:
        return None
    count = pieces["frames"].shape[1] // f

    def work(rows: np.ndarray) -> dict[str, np.ndarray]:
        codes = tokenize(*world.tokenizer, pieces["frames"][rows], frames_per_chunk=f)
        told: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for row, piece in zip(
            rows.tolist(), codes, strict=True
        ):  # one by one: all its tokens' pairs are held
            given = pieces["actions"][row] if "actions" in pieces else None
            led = requests.by_chunk(given, count, config)
            led = None if led is None else jnp.asarray(led[None])
            found = _told(*world.dynamics, jnp.asarray(piece[None]), led, frames=f)
            for name in names:
                told[name].append(np.asarray(found[name][0, 1:], np.float32))
        return {name: np.stack(rows) for name, rows in told.items()}

    told = in_shares(len(pieces["frames"]), work)
    out = {}
    for name in names:
        truth = [chunk_rows(name, rows.reshape(count, f))[1:] for rows in pieces[name]]
        out[name] = JUDGES[name](told[name].reshape(-1, told[name].shape[-1]), np.concatenate(truth))
    return out


def judge_rewards(logits: Float[np.ndarray, "n v"], truth: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Of chunks' rewards; see :func:`outcomes`. A sure and right answer pays no nats."""
    weights = np.asarray(twohot.two_hot(jnp.asarray(truth)), float)
    least = -(weights * np.log(np.maximum(weights, 1e-12))).sum(-1).mean()
    usual = np.log(np.maximum(weights.mean(0), 1e-12))
    told, there = np.asarray(twohot.mean(jnp.asarray(logits))), truth != 0
    smallest = np.abs(truth[there]).min() if there.any() else 1.0
    right = np.abs(told - truth) < 0.5 * np.abs(truth)
    return _counted(right, np.abs(told) >= 0.5 * smallest, there) | {
        "nats": float(twohot.cross_entropy(jnp.asarray(logits), jnp.asarray(truth)).mean() - least),
        "base": float(-(weights * usual).sum(-1).mean() - least),
    }


def judge_ends(logits: Float[np.ndarray, "n 1"], truth: np.ndarray) -> dict[str, Any]:
    """Of chunks' ends; see :func:`outcomes`."""
    sign, share = np.where(truth, 1.0, -1.0), float(truth.mean())
    told = 1 / (1 + np.exp(-logits[:, 0].astype(float))) > 0.5
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
