"""One training step: loss, gradients, update, moving average; compiled once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from worldsim.parallel import sharding
from worldsim.parallel.placement import batch_sharding
from worldsim.train.optim import schedule, update_ema
from worldsim.train.state import Params, Stage, TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Params, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def init_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step: parameters from one half of the key, steps from the other."""
    params_key, steps_key = jax.random.split(key)
    params = stage.init(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=steps_key,
    )


def state_shardings(mesh: Mesh, shapes: TrainState) -> TrainState:
    """One sharding per array of the state: parameters, average and moments alike, scalars everywhere."""
    whole = sharding.replicated(mesh)
    params = sharding.param_shardings(mesh, shapes.params)
    return TrainState(
        step=whole,
        params=params,
        ema=params,
        opt_state=sharding.like_params(mesh, shapes.opt_state, shapes.params),
        key=whole,
    )


def make_step(
    stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh, *, shardings: TrainState
) -> Step:
    """The compiled step ``(state, frozen, batch) -> (state, metrics)``; it consumes the state.

    The random stream is ``fold_in(state.key, state.step)``. Metrics are the stage's own with ``loss``,
    ``grad_norm`` (before clipping) and ``learning_rate``.
    """
    rate = schedule(stage.config.optim, stage.config.steps)
    rows = batch_sharding(mesh, stage.config.batch, sequence=stage.sequence)

    def step(state: TrainState, frozen: Params, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grad = jax.value_and_grad(stage.loss, has_aux=True)
        (loss, metrics), grads = grad(state.params, frozen, batch, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if stage.after is not None:
            params = stage.after(state.params, params, batch, key, state.step)
        ema = update_ema(stage.config.optim, state.ema, params, step=state.step)
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads))),
            "learning_rate": rate(state.step),
        }
        return TrainState(state.step + 1, params, ema, opt_state, state.key), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, sharding.replicated(mesh), rows),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
