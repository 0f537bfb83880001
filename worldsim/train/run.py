"""A whole run: data to stages in turn to a world's folder."""

from __future__ import annotations

import dataclasses
import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from worldsim.checkpoint import save_world
from worldsim.config import TrainConfig
from worldsim.data.info import DataInfo
from worldsim.data.source import open_source, read_info
from worldsim.models.world import fill_params
from worldsim.plain import to_dict
from worldsim.progress import Counter
from worldsim.train.checkpoints import differences, load_checkpoint
from worldsim.train.codes import encode_source
from worldsim.train.loop import train_stage
from worldsim.train.samples import dynamics_samples, tokenizer_samples
from worldsim.train.stages import dynamics_stage, tokenizer_stage

StageName = Literal["tokenizer", "dynamics", "all"]


def check_data(config: TrainConfig, info: DataInfo) -> None:
    """Whether the data is what the world is made for.

    Raises:
      ValueError: every size or action that differs, with what to change.
    """
    tokenizer, action = config.world.tokenizer, config.world.dynamics.action
    problems = [
        f"{name}: the data has {have}, the config {want}"
        for name, have, want in (
            ("height", info.height, tokenizer.height),
            ("width", info.width, tokenizer.width),
            ("channels", info.channels, tokenizer.channels),
            ("action kind", info.action.kind, action.kind),
            ("action size", info.action.size, action.size),
            ("action names", info.action.names or action.names, action.names or info.action.names),
        )
        if have != want and not (action.kind == "none" and name.startswith("action"))
    ]
    if problems:
        raise ValueError(
            f"The data at {config.data.path} does not fit config {config.name!r}; "
            "change the config or the data:\n" + "\n".join(problems)
        )


def train(
    config: TrainConfig, workdir: str | Path, *, stage: StageName = "all", mesh: Mesh | None = None
) -> Path:
    """Train a world, or go on training it, and export it.

    Args:
      config: of the run.
      workdir: holds checkpoints, logs, samples and, at the end, ``world/``.
      stage: ``tokenizer``, ``dynamics`` (needs a trained tokenizer in ``workdir``) or ``all``.
      mesh: of devices; None is one device.

    Returns:
      The folder that was written last: the world's, or the tokenizer's stage.

    Raises:
      FileNotFoundError: no data, or no tokenizer to train the dynamics on.
      ValueError: data that doesn't fit the config.
    """
    workdir = Path(workdir)
    info = read_info(config.data.path)
    check_data(config, info)
    path, split = config.data.path, config.data.split
    run = {"seed": config.seed, "config": config, "mesh": mesh}
    if stage in ("tokenizer", "all"):
        if info.median is None:
            raise ValueError(
                f"{path} stores no median frame, which the tokenizer's loss needs; make it anew."
            )
        source = open_source(path, split, keys=("frames",))
        samples = tokenizer_samples(config, open_source(path, config.data.eval_split, keys=("frames",)))
        train_stage(tokenizer_stage(config, source, info.median, samples=samples), workdir, **run)
    if stage == "tokenizer":
        return workdir / "tokenizer"
    steps, tokenizer = _tokenizer_params(config, workdir)
    keys = ("frames",) + ("actions",) * (config.world.dynamics.action.kind != "none")
    keys += tuple(f"condition_{c.name}" for c in config.world.dynamics.conditions)
    source = open_source(path, split, keys=keys, cache=0)
    count = partial(Counter("encoding"), split)
    stored = workdir / "codes" / f"{split}.npz"
    codes = encode_source(source, config.world, tokenizer, stored, progress=count)
    held_out = open_source(path, config.data.eval_split, keys=keys)
    samples = dynamics_samples(config, held_out, tokenizer)
    state = train_stage(dynamics_stage(config, codes, samples=samples), workdir, **run)
    if jax.process_index() == 0:
        stages = {"tokenizer": steps, "dynamics": int(state.step)}
        params = {"tokenizer": tokenizer, "dynamics": state.ema}
        export_world(config, info, workdir, steps=stages, params=params)
    return workdir / "world"


def _tokenizer_params(config: TrainConfig, workdir: Path) -> tuple[int, Any]:
    """The steps and the averaged weights of the workdir's tokenizer."""
    step, state, record = load_checkpoint(workdir / "tokenizer" / "checkpoints")
    differ = differences(record["config"]["world"]["tokenizer"], to_dict(config.world.tokenizer))
    if differ:
        raise ValueError(
            f"The tokenizer in {workdir} is another than the config's; train it anew in another workdir, or "
            "change the config back:\n" + "\n".join(differ.values())
        )
    if step < config.tokenizer.steps:
        raise ValueError(
            f"The tokenizer in {workdir} stands at step {step} of {config.tokenizer.steps}; finish it with "
            f"--stage tokenizer, or accept it as it is with --tokenizer.steps {step}."
        )
    return step, fill_params("tokenizer", config.world, state["ema"])


def export_world(
    config: TrainConfig, info: DataInfo, workdir: Path, *, steps: dict[str, int], params: dict[str, Any]
) -> Path:
    """Write ``workdir/world`` from averaged weights, with the data's statistics and the provenance."""
    provenance = {
        "name": config.name,
        "made": datetime.date.today().isoformat(),
        "data": {
            "name": info.name,
            "kind": info.kind,
            "source": info.source,
            "splits": {name: dataclasses.asdict(split) for name, split in info.splits.items()},
        },
        "train": to_dict(config),
        "steps": steps,
        "parameters": {
            name: int(sum(np.size(leaf) for leaf in jax.tree.leaves(part))) for name, part in params.items()
        },
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "scores": {},
    }
    statistics = {} if info.median is None else {"median": info.median}
    statistics |= {"mean": np.asarray(info.mean), "std": np.asarray(info.std)}
    return save_world(
        workdir / "world",
        config=config.world,
        params=params,
        statistics=statistics,
        provenance=provenance,
        dtype="bfloat16",
    )
