"""What a run can't do is said before it begins: data of another kind, and what a mesh can't part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from worldsim.config import TrainConfig
from worldsim.data.info import DataInfo
from worldsim.models.world import split_module
from worldsim.parallel.placement import batch_sharding, stripes
from worldsim.parallel.sharding import param_shardings
from worldsim.plain import nearest


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
