"""The checkpoints of a training run, written by Orbax in the background."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldsim.checkpoint import nested
from worldsim.config import TrainConfig
from worldsim.models.world import check_params
from worldsim.parallel.sharding import by_path, path_of
from worldsim.plain import to_dict

FREE = ("steps", "log_every", "save_every", "sample_every", "remat")
"""Fields of a stage's config that may change when a run goes on."""

FROZEN = ("frozen", "tokenizer")
"""Hashes of what a stage is trained on."""

UNUSED = {
    "tokenizer": ("dynamics.", "refine.", "refine_loss.", "mix.", "world.dynamics.", "world.refine."),
    "dynamics": ("tokenizer.", "tokenizer_loss.", "refine.", "refine_loss.", "world.refine."),
    "refine": ("tokenizer.", "tokenizer_loss.", "dynamics.", "mix.", "world.dynamics."),
}
"""Parts of the config that a stage does not read."""


def _plain(tree: Any, *, leaf: Callable[[Any], Any]) -> dict[str, Any]:
    """A tree as nested dicts with string keys: what Orbax stores whatever the tree was made of."""
    plain: dict[str, Any] = {}
    for path, value in by_path(tree).items():
        *parents, name = path.split("/")
        node = plain
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf(value)
    return plain


def _is_key(value: Any) -> bool:
    return jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


def open_checkpoints(folder: str | Path, *, keep: int = 2, alone: bool = False) -> Any:
    """The checkpoints of a stage, an Orbax ``CheckpointManager``; close it when done.

    Args:
      folder: which all processes see.
      keep: how many of the last ones.
      alone: to read in this process whatever the others do; else all of them call this, and every method.
    """
    import orbax.checkpoint as ocp

    options: dict[str, Any] = {"max_to_keep": keep, "enable_async_checkpointing": True}
    if alone:
        index = jax.process_index()
        processes = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process {index} alone"
        )
        options = {"create": False, "multiprocessing_options": processes}
    return ocp.CheckpointManager(
        Path(folder).absolute(),
        options=ocp.CheckpointManagerOptions(**options),
        item_handlers={"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()},
    )


def save_checkpoint(manager: Any, step: int, state: Any, *, config: Mapping[str, Any]) -> None:
    """Start writing a state and the JSON that goes with it; the arrays may be donated at once."""
    import orbax.checkpoint as ocp

    plain = _plain(state, leaf=lambda x: jax.random.key_data(x) if _is_key(x) else x)
    items = {"state": ocp.args.StandardSave(plain), "config": ocp.args.JsonSave(dict(config))}
    manager.save(step, args=ocp.args.Composite(**items))


def checkpoint_config(manager: Any, step: int) -> dict[str, Any]:
    """The JSON that was saved with a checkpoint."""
    import orbax.checkpoint as ocp

    return manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]


def _restore(manager: Any, step: int, plain: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint by path, each as ``plain`` describes it."""
    import orbax.checkpoint as ocp

    items = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(plain)))
    return by_path(items["state"])


def restore_checkpoint(manager: Any, step: int, template: Any) -> Any:
    """The state of a checkpoint, in the structure and layout of a template.

    Args:
      manager: from :func:`open_checkpoints`.
      step: one of its steps.
      template: a tree of ``jax.ShapeDtypeStruct`` with shardings.

    Raises:
      ValueError: arrays that are missing, unexpected or of another shape, all at once.
    """

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    plain = _plain(template, leaf=abstract)
    check_params(manager.item_metadata(step)["state"], plain)
    found = _restore(manager, step, plain)

    def value(path: str, leaf: Any) -> jax.Array:
        if _is_key(leaf):
            return jax.random.wrap_key_data(found[path])
        return found[path]

    flat, tree = jax.tree_util.tree_flatten_with_path(template)
    return jax.tree_util.tree_unflatten(tree, [value(path_of(keys), leaf) for keys, leaf in flat])


def load_checkpoint(
    folder: str | Path, *, step: int | None = None
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """A checkpoint with no template given, on this host alone: what a world's parts are exported from.

    Args:
      folder: of the checkpoints of one stage: ``WORKDIR/STAGE/checkpoints``.
      step: which; None is the last.

    Returns:
      The step, the state as nested dicts of NumPy arrays (``params``, ``ema``, ...) and the JSON that
      was saved with it: ``config`` (of the run), ``seed``, ``stage``, ``frozen`` and ``tokenizer``.

    Raises:
      FileNotFoundError: no such checkpoint; those that exist are listed.
    """
    steps: list[int] = []
    if Path(folder).is_dir():
        with open_checkpoints(folder, alone=True) as manager:
            steps = sorted(manager.all_steps())
            chosen = step if step is not None else max(steps, default=None)
            if chosen in steps:
                shapes = dict(manager.item_metadata(chosen)["state"].items())
                plain = _plain(shapes, leaf=lambda x: np.empty(x.shape, x.dtype))
                arrays = {path: np.asarray(x) for path, x in _restore(manager, chosen, plain).items()}
                return chosen, nested(arrays), checkpoint_config(manager, chosen)
    wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise FileNotFoundError(f"{folder} has {wanted}; its steps are {steps}.")


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The JSON of the last checkpoint in a folder, read on this host alone; None where there is none."""
    if not Path(folder).is_dir():
        return None
    with open_checkpoints(folder, alone=True) as manager:
        last = manager.latest_step()
        return None if last is None else checkpoint_config(manager, last)


def make_record(
    stage: str, *, seed: int, frozen: Any, config: TrainConfig, tokenizer: str = ""
) -> dict[str, Any]:
    """What is saved beside a state: the stage, the seed, a hash of the frozen arrays, that of the tokenizer
    and the config."""
    hashed = hashlib.sha256()
    for path, leaf in by_path(frozen).items():
        array = np.asarray(leaf)
        hashed.update(f"{path} {array.dtype} {array.shape}".encode())
        hashed.update(array.tobytes())
    hashes = {"frozen": hashed.hexdigest(), "tokenizer": tokenizer}
    record = {"stage": stage, "seed": seed, **hashes, "config": to_dict(config)}
    return json.loads(json.dumps(record))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {k: v for name, sub in values.items() for k, v in _flat(sub, f"{prefix}{name}.").items()}
    return {prefix[:-1]: values}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The fields, as dotted names, that differ between a checkpoint and now as JSON, each in words."""
    old, new = (_flat(json.loads(json.dumps(values))) for values in (saved, now))
    return {
        name: f"{name}: {old.get(name, 'absent')} in the checkpoint, {new.get(name, 'absent')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _with_batches(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in which each phase of the curriculum names its batch, the stage's unless it has its own."""
    config = record["config"]
    if not config.get("curriculum"):
        return dict(record)
    own = lambda phase: phase.get("batch") or config["dynamics"]["batch"]
    phases = [{**phase, "batch": own(phase)} for phase in config["curriculum"]]
    return {**record, "config": {**config, "curriculum": phases}}


def check_record(saved: Mapping[str, Any], record: Mapping[str, Any], *, folder: Path) -> None:
    """Whether a checkpoint belongs to this run; fields that are newer than it have their defaults in it.

    Raises:
      ValueError: every field that differs and may not.
    """
    free = {f"config.{name}.{field}" for name in UNUSED for field in FREE}
    free |= {"config.name", "config.data.threads"}
    unused = tuple(f"config.{part}" for part in UNUSED.get(record["stage"], ()))
    unused += () if record["stage"] == "dynamics" else ("config.curriculum", "config.looks")
    defaults = {"config": json.loads(json.dumps(to_dict(TrainConfig()))), "tokenizer": record["tokenizer"]}
    record = _with_batches(record)
    saved = _flat(defaults) | _flat(_with_batches(saved))
    differ = [
        text
        for name, text in differences(saved, record).items()
        if name not in (*free, *FROZEN) and not name.startswith(unused)
    ]
    if any(saved[name] != record[name] for name in FROZEN):
        what = "the data's median frame" if record["stage"] == "tokenizer" else "the tokenizer, or the data,"
        differ.append(f"{what} has changed since; delete {folder} to train this stage anew")
    if differ:
        raise ValueError(
            f"{folder} was trained with other settings, and to go on would give neither run. Use those of "
            "the checkpoint or another workdir:\n" + "\n".join(differ)
        )
