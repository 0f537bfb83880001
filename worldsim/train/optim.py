"""The optimizer: AdamW, its schedule, clipping, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from worldsim.config import OptimConfig


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
            return optax.join_schedules([ramp, optax.cosine_decay_schedule(peak, steps - warmup)], [warmup])
        case "wsd":
            fall = min(max(1, round(config.decay * steps)), steps - warmup)
            stable = optax.constant_schedule(peak)
            return optax.join_schedules(
                [ramp, stable, optax.linear_schedule(peak, 0.0, fall)], [warmup, steps - fall]
            )
    raise ValueError(f"OptimConfig.schedule is {config.schedule!r}; use 'wsd' or 'cosine'.")


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; only matrices decay, not biases and norms.

    AdamW: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
    """

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
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
