"""What a run can't do is said before it begins: data of another kind, and what a mesh can't part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from worldsim.config import TrainConfig
from worldsim.data.info import DataInfo
from worldsim.data.source import Source
from worldsim.models.world import split_module
from worldsim.parallel.placement import batch_sharding, stripes
from worldsim.parallel.sharding import param_shardings
from worldsim.plain import nearest


def check_data(config: TrainConfig, info: DataInfo, stages: Sequence[str]) -> None:
    """Whether the data is what the world is made for, and enough for the stages that are to be trained.

    Raises:
      ValueError: every size or action that differs, arrays that are lacking and clips that are longer than
        all records, with what to change.
    """
    tokenizer, dynamics = config.world.tokenizer, config.world.dynamics
    action = dynamics.action
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
    if "dynamics" in stages and info.keys:
        wanted = {f"condition_{one.name}" for one in dynamics.conditions} | set(dynamics.outcomes)
        problems += [f"arrays: the data has no {name}" for name in sorted(wanted - set(info.keys))]
    split = info.splits.get(config.data.split)
    longest = max(split.lengths, default=None) if split is not None else None
    problems += [
        f"{where}: clips of {frames} frames, and the longest record has {longest}"
        for where, frames in _clips(config, stages).items()
        if longest is not None and frames > longest
    ]
    if problems:
        raise ValueError(
            f"The data at {config.data.path} does not fit config {config.name!r}; "
            "change the config or the data:\n" + "\n".join(problems)
        )


def _clips(config: TrainConfig, stages: Sequence[str]) -> dict[str, int]:
    """The frames of the clips that stages are trained on, by the name of the field that says so."""
    wants = {f"{name}.frames": getattr(config, name).frames for name in stages if name != "dynamics"}
    if "dynamics" not in stages or config.mix.segments > 1:  # which takes clips of any length
        return wants
    for number, phase in enumerate(config.curriculum):
        wants[f"curriculum.{number}.frames"] = phase.frames
    return wants | {"dynamics.frames": config.dynamics.frames}


def check_conditions(config: TrainConfig, records: Source) -> None:
    """Whether the conditions of encoded records are such as the world takes.

    Raises:
      ValueError: classes beyond the config's, or vectors of another length.
    """
    for one in config.world.dynamics.conditions:
        rows = [records[i][f"condition_{one.name}"] for i in range(len(records))]
        if one.kind == "vector" and (sizes := {row.shape[-1] for row in rows} - {one.size}):
            raise ValueError(
                f"condition {one.name!r}: the data has vectors of {sorted(sizes)} numbers, the config of "
                f"{one.size}."
            )
        if one.kind == "class" and (top := max(int(row.max()) for row in rows)) >= one.size:
            raise ValueError(
                f"condition {one.name!r}: the data has class {top}, and the config {one.size} classes; set "
                f"its size to {top + 1}."
            )


def check_mesh(config: TrainConfig, mesh: Mesh | AbstractMesh, stages: Sequence[str]) -> None:
    """Whether a mesh can part the batches, sequences, heads and parameters of stages, in all their phases.

    Raises:
      ValueError: everything that does not divide, with the nearest numbers that do.
    """
    problems: list[str] = []

    def attempt(part: Callable[..., Any], *args: Any, where: str) -> None:
        try:
            part(*args)
        except ValueError as error:
            problems.append(f"{where}: {error}")

    for stage in stages:
        attempt(param_shardings, mesh, split_module(stage, config.world)[1], where=stage)  # type: ignore[arg-type]
        if stage != "dynamics":
            attempt(batch_sharding, mesh, getattr(config, stage).batch, where=f"{stage}.batch")
    if "dynamics" in stages:
        heads, ways = config.world.dynamics.heads, mesh.shape.get("tensor", 1)
        if heads % ways:
            problems.append(
                f"world.dynamics.heads: {heads} don't divide over the {ways} devices of mesh axis 'tensor'; "
                f"{nearest(heads, ways)}."
            )
        size = mesh.shape.get("context", 1)
        for number, (_, phase) in enumerate(config.phases):
            of = f"curriculum[{number}]" if number < len(config.curriculum) else "the last phase"
            attempt(batch_sharding, mesh, phase.dynamics.batch, where=f"{of}, batch of the dynamics")
            attempt(stripes, phase.mix.chunks, size, where=f"{of}, chunks of the mix")
            attempt(stripes, phase.mix.queries, size, where=f"{of}, queries of the mix")
    if problems:
        raise ValueError(
            f"Config {config.name!r} does not fit a mesh of "
            f"{ {name: size for name, size in mesh.shape.items() if size > 1} }:\n" + "\n".join(problems)
        )
