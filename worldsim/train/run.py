"""A whole run: data to stages in turn to a world's folder."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
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
from worldsim.ops import blocks
from worldsim.parallel.agreement import check_alike, meet
from worldsim.parallel.distributed import is_lead
from worldsim.parallel.mesh import training_mesh
from worldsim.plain import from_dict, to_dict
from worldsim.progress import Counter
from worldsim.train.checkpoints import differences, load_checkpoint, read_record
from worldsim.train.checks import check_conditions, check_data, check_mesh
from worldsim.train.codes import encode_source, params_hash
from worldsim.train.looks import code_vectors, fold_looks
from worldsim.train.loop import end_if_asked, termination, train_stage
from worldsim.train.metrics import PLAN_FILE
from worldsim.train.samples import dynamics_samples, refine_samples, tokenizer_samples
from worldsim.train.stages import dynamics_stage, refine_stage, tokenizer_stage
from worldsim.train.state import Stage

StageName = Literal["tokenizer", "refine", "dynamics", "all"]


def train(
    config: TrainConfig,
    workdir: str | Path,
    *,
    stage: StageName = "all",
    mesh: Mesh | None = None,
    strategy: str = "ring",
) -> Path:
    """Train a world, or go on training it, and export it; all processes of a run call this.

    SIGTERM to any of them, whenever it comes, has all save what they train and end with status 143. Encoding,
    which can't be saved halfway, is finished first; a run that is exporting its world ends as if not asked.

    Args:
      config: of the run.
      workdir: holds checkpoints, logs, samples and, at the end, ``world/``; all processes see it.
      stage: ``tokenizer``, then ``refine`` and ``dynamics`` in any order (each needs a trained tokenizer in
        ``workdir``; a world without refinement is a world too), or ``all``.
      mesh: of devices; None is one device.
      strategy: ``ring`` or ``allgather``: how the dynamics attends where the mesh spreads chunks over
        ``context``.

    Returns:
      The folder that was written last: the world's or, as long as it has no dynamics, the stage's.

    Raises:
      FileNotFoundError: no data, or no tokenizer to train the others on.
      ValueError: data that doesn't fit the config, or a config that doesn't fit the mesh.
    """
    workdir, mesh = Path(workdir), training_mesh(mesh)
    with termination() as asked:
        asks = {"config": to_dict(config), "stage": stage, "attention": strategy}
        check_alike({**asks, blocks.VARIABLE: os.environ.get(blocks.VARIABLE) or "jax"}, what="Training")
        info = read_info(config.data.path)
        stages = ("tokenizer", "refine", "dynamics") if stage == "all" else (stage,)
        check_data(config, info, stages)
        check_mesh(config, mesh, stages)
        _write_plan(config, workdir, stage)
        run = {"seed": config.seed, "config": config, "mesh": mesh}
        if stage in ("tokenizer", "all"):
            train_stage(_tokenizer(config, info, mesh), workdir, **run)
        if stage == "tokenizer":
            return workdir / "tokenizer"
        steps, tokenizer = load_stage("tokenizer", config, workdir)
        _check_tokenizer(workdir, params_hash(tokenizer))
        if stage in ("refine", "all"):
            train_stage(_refine(config, tokenizer, mesh), workdir, **run)
        if stage in ("dynamics", "all"):
            parts = _dynamics(config, info, workdir, tokenizer, mesh=mesh, strategy=strategy)
            end_if_asked(asked, mesh)  # while frames were encoded
            for part in parts:
                train_stage(part, workdir, **run)
        whole = _stands_at(workdir, "dynamics") >= config.dynamics.steps
        end_if_asked(asked, mesh)  # in the last vote of a stage
        if whole and is_lead():
            trained = {"tokenizer": (steps, tokenizer)}
            for name in ("dynamics", "refine"):
                if _stands_at(workdir, name) >= getattr(config, name).steps:
                    trained[name] = load_stage(name, config, workdir)
            export_world(
                config,
                info,
                workdir,
                steps={name: part[0] for name, part in trained.items()},
                params={name: part[1] for name, part in trained.items()},
            )
        meet("the world is written")
        return workdir / "world" if whole else workdir / stage


def _write_plan(config: TrainConfig, workdir: Path, stage: StageName) -> None:
    """Leave in the workdir what is to be trained, for those who look at the run from outside."""
    if not is_lead():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / f"{PLAN_FILE}.part"
    part.write_text(json.dumps({"stage": stage, "config": to_dict(config)}, indent=1) + "\n", "utf-8")
    part.replace(workdir / PLAN_FILE)


def _tokenizer(config: TrainConfig, info: DataInfo, mesh: Mesh | None) -> Stage:
    path = config.data.path
    if info.median is None:
        raise ValueError(f"{path} stores no median frame, which the tokenizer's loss needs; make it anew.")
    source = open_source(path, config.data.split, keys=("frames",))
    samples = tokenizer_samples(config, open_source(path, config.data.eval_split, keys=("frames",)))
    return tokenizer_stage(config, source, info.median, mesh=mesh, samples=samples)


def _refine(config: TrainConfig, tokenizer: Any, mesh: Mesh | None) -> Stage:
    path = config.data.path
    source = open_source(path, config.data.split, keys=("frames",))
    held_out = open_source(path, config.data.eval_split, keys=("frames",))
    stage = refine_stage(config, source, tokenizer, mesh=mesh, samples=refine_samples(config, held_out))
    return dataclasses.replace(stage, tokenizer=params_hash(tokenizer))


def _dynamics(
    config: TrainConfig, info: DataInfo, workdir: Path, tokenizer: Any, *, mesh: Mesh | None, strategy: str
) -> list[Stage]:
    """The phases of its training that are not yet done; the last one always."""
    path, split = config.data.path, config.data.split
    keys = ("frames",) + ("actions",) * (config.world.dynamics.action.kind != "none")
    keys += tuple(f"condition_{c.name}" for c in config.world.dynamics.conditions)
    keys += config.world.dynamics.outcomes
    source = open_source(path, split, keys=keys, cache=0)
    count = partial(Counter("encoding"), split) if is_lead() else None
    of = "".join(info.splits[split].hashes) if split in info.splits else ""
    file = workdir / "codes" / f"{split}.npz"
    codes = encode_source(source, config.world, tokenizer, file, of=of, progress=count)
    check_conditions(config, codes)
    held_out = open_source(path, config.data.eval_split, keys=keys)
    parts, how = [], {"mesh": mesh, "strategy": strategy}
    vectors = code_vectors(config.world, tokenizer) if config.looks else None
    for end, part in config.phases:
        samples = dynamics_samples(part, held_out, tokenizer)
        stage = dynamics_stage(part, codes, vectors=vectors, samples=samples, **how)
        parts.append(dataclasses.replace(stage, until=end, tokenizer=params_hash(tokenizer)))
    stands = _stands_at(workdir, "dynamics")
    return [part for part in parts if part.end > stands] or parts[-1:]


def _stands_at(workdir: Path, name: str) -> int:
    """The last checkpoint of a stage; 0 if there is none."""
    folder = workdir / name / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=0)


def _check_tokenizer(workdir: Path, tokenizer: str) -> None:
    """Whether what is there of the other stages was trained on this tokenizer, given by its hash.

    Raises:
      ValueError: it was trained on another one.
    """
    records = {name: read_record(workdir / name / "checkpoints") for name in ("refine", "dynamics")}
    other = [name for name, had in records.items() if had and had.get("tokenizer", "") not in ("", tokenizer)]
    if other:
        raise ValueError(
            f"{' and '.join(other)} in {workdir} {'was' if len(other) == 1 else 'were'} trained on another "
            "tokenizer than the one that stands there now; delete "
            f"{' and '.join(str(workdir / name) for name in other)} to train anew."
        )


def load_stage(name: str, config: TrainConfig, workdir: Path) -> tuple[int, Any]:
    """The steps and the averaged weights of a stage of the workdir.

    Raises:
      FileNotFoundError: it was not trained.
      ValueError: it is another than the config's, or not finished.
    """
    step, state, record = load_checkpoint(workdir / name / "checkpoints")
    now = getattr(config.world, name)
    stored = from_dict(type(now), record["config"]["world"][name])  # what is newer than it has its default
    differ = differences(to_dict(stored), to_dict(now))
    if differ:
        raise ValueError(
            f"The {name} in {workdir} is another than the config's; train it anew in another workdir, or "
            "change the config back:\n" + "\n".join(differ.values())
        )
    if step < getattr(config, name).steps:
        raise ValueError(
            f"The {name} in {workdir} stands at step {step} of {getattr(config, name).steps}; finish it with "
            f"--stage {name}, or accept it as it is with --{name}.steps {step}."
        )
    if name == "dynamics":
        return step, fold_looks(state["ema"], config.world)
    return step, fill_params(name, config.world, state["ema"])


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
