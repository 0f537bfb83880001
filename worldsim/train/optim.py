"""The optimizer: AdamW, its schedule, clipping, and the moving average of the weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from worldsim.config import OptimConfig
from worldsim.parallel.sharding import path_of
from worldsim.train.state import Leaf, Params

HIDDEN = re.compile(r"transformer/layers/\d+/(attention|mlp)/\w+/kernel")
"""Paths of the matrices that Muon moves."""

FIXED = re.compile(r"looks/vectors")
"""Paths of what is kept beside the parameters and does not decay."""


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step.

    ```
    wsd      /‾‾‾‾‾‾‾‾\\         warm-up, stable, linear to 0 over the last `decay` share
    cosine   /‾‾-.._            warm-up, half a cosine to 0
    ```

    Both depend on ``steps``: training on with another number changes the steps not done yet.
    A warm-up longer than half the run is cut to half the run.

    Raises:
      ValueError: a schedule that does not exist.
    """
    peak = config.learning_rate
    warmup = min(config.warmup, max(1, steps // 2))
    ramp = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
    match config.schedule:
        case "cosine":
            return optax.join_schedules(
                [ramp, optax.cosine_decay_schedule(peak, max(1, steps - warmup))], [warmup]
            )
        case "wsd":
            fall = min(max(1, round(config.decay * steps)), steps - warmup)
            stable = optax.constant_schedule(peak)
            return optax.join_schedules(
                [ramp, stable, optax.linear_schedule(peak, 0.0, fall)], [warmup, steps - fall]
            )
    raise ValueError(f"OptimConfig.schedule is {config.schedule!r}; use 'wsd' or 'cosine'.")


def _hidden(params: Params) -> Params:
    """``muon`` for each matrix between hidden layers, ``adamw`` for embeddings, heads, norms and biases."""

    def label(keys: Any, x: Leaf) -> str:
        return "muon" if HIDDEN.search(path_of(keys)) and jnp.ndim(x) == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _plain_matrices(updates: Params) -> Params:
    """What Muon is told of each array: two dimensions, in and out."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)


def _to_adam_size(updates: Params, _: Params) -> Params:
    """Orthogonal matrices scaled to the root mean square that Adam's updates have, about 0.2."""
    return jax.tree.map(lambda x: 0.2 * max(x.shape) ** 0.5 * x, updates)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The config's optimizer after clipping by the global norm; only matrices decay, not biases and norms.

    AdamW: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101. Muon: Jordan,
    https://kellerjordan.github.io/posts/muon/; its updates are scaled to the size of AdamW's, so that one
    learning rate serves both (Liu et al., https://arxiv.org/abs/2502.16982).
    """

    def matrices(params: Params) -> Params:
        decays = lambda keys, x: jnp.ndim(x) >= 2 and not FIXED.fullmatch(path_of(keys))
        return jax.tree_util.tree_map_with_path(decays, params)

    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    if config.optimizer == "muon":
        muon = optax.chain(
            optax.contrib.scale_by_muon(beta=0.95, weight_dimension_numbers=_plain_matrices),
            optax.stateless(_to_adam_size),
        )
        adam = optax.partition({"muon": muon, "adamw": adam}, _hidden)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        adam,
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )


def ema_decay(config: OptimConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The average's decay after ``step`` steps: short at first, so that the start is forgotten."""
    step = step.astype(jnp.float32)
    return jnp.minimum(config.ema, (1 + step) / (10 + step))


def update_ema(config: OptimConfig, ema: Any, params: Any, *, step: Int[Array, ""]) -> Any:
    """The moving average with the new parameters in it."""
    decay = ema_decay(config, step)
    return jax.tree.map(lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old), ema, params)
