"""The one training loop: shapes first, restore, iterate, log, save, sample."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from worldsim.config import TrainConfig
from worldsim.parallel import sharding
from worldsim.parallel.agreement import (
    any_process,
    check_alike,
    check_shared,
    compile_together,
    from_lead,
    gather,
    stop_requests,
)
from worldsim.parallel.distributed import is_lead
from worldsim.parallel.mesh import make_mesh, training_mesh
from worldsim.parallel.placement import place_batch
from worldsim.train.checkpoints import (
    check_record,
    checkpoint_config,
    make_record,
    open_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from worldsim.train.metrics import MetricsLog
from worldsim.train.optim import make_optimizer
from worldsim.train.state import Batch, Params, Stage, TrainState
from worldsim.train.step import Step, init_state, make_step, state_shardings

_heard: ContextVar[threading.Event | None] = ContextVar("heard", default=None)


class NonFiniteError(RuntimeError):
    """The loss or its gradient became infinite or not a number."""


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A dispatched step whose metrics have not been read."""

    step: int
    metrics: dict[str, jax.Array]
    batch: Batch


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same through a run of one stage."""

    stage: Stage
    folder: Path
    mesh: Mesh
    asked: threading.Event
    manager: Any
    record: dict[str, Any]
    log: MetricsLog
    began: float


def train_stage(
    stage: Stage, workdir: str | Path, *, seed: int, config: TrainConfig, mesh: Mesh | None = None
) -> TrainState:
    """Train a stage to its last step, from where ``workdir`` stands.

    Writes ``WORKDIR/STAGE/{checkpoints,metrics.jsonl,tensorboard,samples}``. A run that was killed at
    any moment goes on from its last checkpoint and repeats, bit for bit, what it would have done; one
    that is complete is only read. SIGTERM saves and ends the process with status 143; of several processes,
    all of which call this with a workdir that they share, one that gets it ends all, also if it came before
    this began, within a :func:`termination` around it.

    Args:
      stage: what to train.
      workdir: of the run.
      seed: of the parameters and of every random number in the steps.
      config: the run's, stored with every checkpoint; going on with another one is refused.
      mesh: of devices; None is one device.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteError: with the step, a file with its batch and the last good checkpoint.
      ValueError: a workdir of another config, seed or frozen parameters; every difference is named.
    """
    mesh = training_mesh(mesh)
    folder = Path(workdir).absolute() / stage.name
    how = {"frozen": stage.frozen, "tokenizer": stage.tokenizer}
    record = make_record(stage.name, seed=seed, config=config, **how)
    sizes = {"mesh": dict(mesh.shape), "workdir": str(folder)}
    check_alike({**record, **sizes}, what=f"Stage {stage.name!r}")
    check_shared(folder)
    with termination() as asked:
        manager = open_checkpoints(folder / "checkpoints")
        try:
            with jax.set_mesh(mesh):
                state = _train(
                    stage, folder, seed=seed, mesh=mesh, manager=manager, record=record, asked=asked
                )
        finally:
            manager.wait_until_finished()
            manager.close()
        end_if_asked(asked, mesh)  # while the last checkpoint was written
    return state


def _train(
    stage: Stage,
    folder: Path,
    *,
    seed: int,
    mesh: Mesh,
    manager: Any,
    record: dict[str, Any],
    asked: threading.Event,
) -> TrainState:
    """From the last checkpoint, or from the seed, to the last step."""
    optimizer = make_optimizer(stage.config.optim, stage.config.steps)
    init = partial(init_state, stage, optimizer)
    shapes = jax.eval_shape(init, jax.random.key(seed))
    shardings = state_shardings(mesh, shapes)
    last = int(from_lead(np.int32(-1 if manager.latest_step() is None else manager.latest_step())))
    if last < 0:
        key = jax.random.key(seed)
        state = compile_together(jax.jit(init, out_shardings=shardings), key)(key)
    else:
        check_record(checkpoint_config(manager, last), record, folder=folder)
        state = restore_checkpoint(manager, last, _with_shardings(shapes, shardings))
    start, total = int(state.step), stage.config.steps
    if start >= stage.end:
        return state
    log = MetricsLog(folder, name=stage.name, total=total, start=start, active=is_lead())
    try:
        if start:
            log.note(f"going on from step {start}")
        run = _Run(stage, folder, mesh, asked, manager, record, log, time.monotonic())
        return _iterate(run, state, make_step(stage, optimizer, mesh, shardings=shardings))
    finally:
        log.close()


def _iterate(run: _Run, state: TrainState, step: Step) -> TrainState:
    """Steps from the state's to the last; metrics are read when the next step is on its way."""
    stage, config = run.stage, run.stage.config
    frozen = jax.device_put(stage.frozen, sharding.replicated(run.mesh))
    start, pending = int(state.step), None
    batches, stops = stage.batches(start), stop_requests(run.asked, run.mesh)
    try:
        for done in range(start + 1, stage.end + 1):
            batch = _next(batches, stage=stage, done=done)
            placed = place_batch(run.mesh, batch, config.batch, sequence=stage.sequence)
            if done == start + 1:
                step = compile_together(step, state, frozen, placed)
            state, metrics = step(state, frozen, placed)
            if pending is not None:
                _settle(run, pending)
            pending = _Pending(done, metrics, batch)
            if _due(done, config.sample_every) and stage.samples is not None:
                _settle(run, pending)
                pending = None
                _sample(run, state, frozen, step=done)
            stop = next(stops)
            if stop or done == stage.end or _due(done, config.save_every):
                if pending is not None:
                    _settle(run, pending)
                    pending = None
                save_checkpoint(run.manager, done, state, config=run.record)
            if stop:
                run.log.note(f"stopped by SIGTERM after step {done}, saved; run it again to go on")
                raise SystemExit(128 + signal.SIGTERM)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next(batches: Iterator[Batch], *, stage: Stage, done: int) -> Batch:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"Stage {stage.name!r}: the data ended before step {done} of {stage.config.steps}; batches must "
            "go on for ever (repeat the data)."
        ) from None


def _settle(run: _Run, pending: _Pending) -> None:
    """Read a step's metrics: stop if they are not finite, log them if it is time."""
    metrics, step, config = pending.metrics, pending.step, run.stage.config
    watched = {name: float(x) for name, x in jax.device_get(_pick(metrics, "loss", "grad_norm")).items()}
    if not all(np.isfinite(list(watched.values()))):
        _stop(run, pending, watched)
    if _due(step, config.log_every) or step == config.steps:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        run.log.write(step, {"loss": watched["loss"], **values}, seconds=time.monotonic() - run.began)
    else:
        run.log.advance(step)


def _pick(values: dict[str, jax.Array], *names: str) -> dict[str, jax.Array]:
    return {name: values[name] for name in names}


def _stop(run: _Run, pending: _Pending, watched: dict[str, float]) -> None:
    run.manager.wait_until_finished()
    part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = run.folder / f"bad_batch_{pending.step}{part}.npz"
    np.savez(path, **pending.batch)  # type: ignore[arg-type]
    good = run.manager.latest_step()
    back = f"{run.folder / 'checkpoints' / str(good)}" if good is not None else "none was saved yet"
    raise NonFiniteError(
        f"Stage {run.stage.name!r}, step {pending.step}: loss {watched['loss']}, gradient norm "
        f"{watched['grad_norm']}. Its batch: {path}. Last good checkpoint: {back}. Look at the batch, then "
        "lower optim.learning_rate or optim.clip in a new workdir; the same run would end here again."
    )


def _sample(run: _Run, state: TrainState, frozen: Params, *, step: int) -> None:
    """Samples of the averaged weights; of several processes the first draws them, on a device of its own."""
    if run.stage.samples is None:
        return
    ema, place = state.ema, run.mesh
    if jax.process_count() > 1:
        ema, frozen, place = gather(ema), run.stage.frozen, make_mesh(devices=jax.local_devices())
    if is_lead():
        folder = run.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        with jax.set_mesh(place):
            run.stage.samples(ema, frozen, step, folder)


@contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, where this thread may listen to signals.

    Inside another one it is that one's event: what came between two stages is heeded in the next.
    """
    outer = _heard.get()
    if outer is not None:
        yield outer
        return
    asked = threading.Event()
    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set()) if listens else None
    token = _heard.set(asked)
    try:
        yield asked
    finally:
        _heard.reset(token)
        if listens:
            signal.signal(signal.SIGTERM, before)


def end_if_asked(asked: threading.Event, mesh: Mesh) -> None:
    """End with status 143 if any process was asked to; all of them call this at the same place.

    Raises:
      SystemExit: in all of them.
    """
    if bool(any_process(asked.is_set(), mesh)):
        raise SystemExit(128 + signal.SIGTERM)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )
