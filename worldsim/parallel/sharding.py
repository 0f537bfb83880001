"""Sharding as two tables: path pattern to logical axes, logical axes to mesh axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from worldsim.plain import nearest

Rules = Sequence[tuple[str, tuple[str | None, ...]]]

PARAM_RULES: Rules = (
    # Tokenizer: convolutions and projections; the outgoing channels are split.
    (r"(encoder|decoder)/(stem|out|(downs|ups)/\d+)/kernel", (None, "mlp")),
    (r"(encoder|decoder)/(stem|out|(downs|ups)/\d+)/bias", ("mlp",)),
    (r"(encoder|decoder)/stages/\d+/\d+/mix/kernel", (None, None, None)),
    (r"(encoder|decoder)/stages/\d+/\d+/up/kernel", (None, "mlp")),
    (r"(encoder|decoder)/stages/\d+/\d+/up/bias", ("mlp",)),
    (r"(encoder|decoder)/stages/\d+/\d+/down/kernel", ("mlp", None)),
    (r"(encoder|decoder)/stages/\d+/\d+/down/bias", (None,)),
    (r"quantizer/project_(in|out)/kernel", (None, None)),
    (r"quantizer/project_(in|out)/bias", (None,)),
    (r"quantizer/codebook", (None, None)),
    (r"quantizer/usage", (None,)),
    # Dynamics: embeddings, layers, head.
    (r"codes", (None, "embed")),
    (r"space|stream|noise", (None, "embed")),
    (r"(action|conditions/\w+)/table", (None, "embed")),
    (r"(action|conditions/\w+)/null", ("embed",)),
    (r"transformer/layers/\d+/around/conv/kernel", (None, None, "embed")),
    (r"transformer/layers/\d+/attention/(query|key|value)/kernel", ("embed", "heads")),
    (r"transformer/layers/\d+/attention/(query|key)/bias", ("heads",)),
    (r"transformer/layers/\d+/attention/out/kernel", ("heads", "embed")),
    (r"transformer/layers/\d+/mlp/up/kernel", ("embed", "mlp")),
    (r"transformer/layers/\d+/mlp/down/kernel", ("mlp", "embed")),
    (r"outcomes/up/kernel", ("embed", None)),
    (r"outcomes/up/bias", (None,)),
    (r"outcomes/down/(rewards|ends)/kernel", (None, None)),
    (r"outcomes/down/(rewards|ends)/bias", (None,)),
    # What codes look like, beside the dynamics while it trains.
    (r"looks/vectors", (None, None)),
    (r"looks/(up|down)/kernel", (None, None)),
    (r"looks/(up|down|told)/bias", (None,)),
    (r"looks/told/kernel", ("embed", None)),
    (r"head/kernel", ("embed", None)),
    (r"head/bias", (None,)),
    # Refinement head.
    (r"scale|spread|null", (None,)),
    (r"grid", (None, None, "embed")),
    (r"(codes|noisy|level/\d+|blocks/\d+/modulate)/kernel", (None, "embed")),
    (r"(codes|noisy|level/\d+|blocks/\d+/modulate)/bias", ("embed",)),
    (r"look/mix/kernel", (None, None, None)),
    (r"(look|blocks/\d+)/up/kernel", (None, "mlp")),
    (r"(look|blocks/\d+)/up/bias", ("mlp",)),
    (r"(look|blocks/\d+)/down/kernel", ("mlp", None)),
    (r"(look|blocks/\d+)/down/bias", (None,)),
    (r"blocks/\d+/(read|around|out)/kernel", ("embed", None)),
    (r"blocks/\d+/bias", (None, None)),
    (r"out/kernel", ("embed", None)),
    (r"out/bias", (None,)),
    # Norms of all.
    (r"(.*/)?(\w+_)?norm/scale", (None,)),
)
"""Whole parameter path to one logical axis per dimension; every parameter matches exactly one row."""

LOGICAL_TO_MESH: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("context",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""What each logical axis is split over."""


CONSTANTS = ("ns_coeffs",)
"""Small arrays of optimizers that are the same everywhere: Muon keeps its polynomial beside its moments."""


def path_of(keys: Sequence[Any]) -> str:
    """A tree path as ``layers/3/mlp/up/kernel``; the value inside a Variable adds nothing."""
    parts = []
    for key in keys:
        if isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value":
            continue
        for name in ("key", "name", "idx"):
            if hasattr(key, name):
                parts.append(str(getattr(key, name)))
                break
    return "/".join(parts)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def logical_axes(path: str, shape: Sequence[int], *, rules: Rules = PARAM_RULES) -> tuple[str | None, ...]:
    """The logical axes of one parameter.

    Raises:
      ValueError: no rule or more than one matches, or the rule has another number of dimensions.
    """
    found = [(pattern, axes) for pattern, axes in rules if re.fullmatch(pattern, path)]
    if len(found) != 1:
        which = ", ".join(repr(pattern) for pattern, _ in found) or "none"
        raise ValueError(
            f"{path} {list(shape)} matches {len(found)} sharding rules ({which}); it must match exactly one: "
            "edit PARAM_RULES in worldsim/parallel/sharding.py."
        )
    pattern, axes = found[0]
    if len(axes) != len(shape):
        raise ValueError(
            f"{path} {list(shape)} has {len(shape)} dimensions and its sharding rule {pattern!r} has "
            f"{len(axes)}: {axes}."
        )
    return axes


def _spec(path: str, shape: Sequence[int], *, mesh: Mesh | AbstractMesh, rules: Rules) -> PartitionSpec:
    entries = []
    for i, axis in enumerate(logical_axes(path, shape, rules=rules)):
        names = tuple(name for name in LOGICAL_TO_MESH[axis] if mesh.shape[name] > 1) if axis else ()
        ways = int(np.prod([mesh.shape[name] for name in names], dtype=int))
        if shape[i] % ways:
            raise ValueError(
                f"{path} {list(shape)}: dimension {i} ({axis}) does not divide by {ways}, the size of mesh "
                f"axes {list(names)}; {nearest(shape[i], ways)}."
            )
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def param_shardings(mesh: Mesh | AbstractMesh, shapes: Any, *, rules: Rules = PARAM_RULES) -> Any:
    """One sharding per parameter, as a tree of the parameters' structure.

    Args:
      mesh: where they will live.
      shapes: the parameters, or what ``jax.eval_shape`` says of them.
      rules: the table.

    Raises:
      ValueError: all parameters that match no rule or several, or that don't divide, at once.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    specs, problems = [], []
    for keys, leaf in flat:
        try:
            specs.append(NamedSharding(mesh, _spec(path_of(keys), leaf.shape, mesh=mesh, rules=rules)))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} parameters can't be laid out:\n" + "\n".join(problems))
    return jax.tree_util.tree_unflatten(tree, specs)


def like_params(mesh: Mesh | AbstractMesh, shapes: Any, params: Any, *, rules: Rules = PARAM_RULES) -> Any:
    """Shardings for a tree that holds copies of the parameters, such as Adam's moments.

    A leaf whose path ends in a parameter's path and has its shape lies as that parameter does;
    scalars and :data:`CONSTANTS` lie on every device.

    Raises:
      ValueError: leaves that are neither, all at once.
    """
    known = {path: leaf.shape for path, leaf in by_path(params).items()}
    specs = by_path(param_shardings(mesh, params, rules=rules))
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    found, problems = [], []
    for keys, leaf in flat:
        parts = path_of(keys).split("/")
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        match = next((tail for tail in tails if known.get(tail) == leaf.shape), None)
        if match is None and leaf.ndim and parts[-1] not in CONSTANTS:
            problems.append(f"{'/'.join(parts)} {list(leaf.shape)}")
        found.append(specs[match] if match is not None else replicated(mesh))
    if problems:
        raise ValueError(
            "These arrays of the optimizer are no scalars and mirror no parameter, so that no rule says "
            "how to lay them out:\n" + "\n".join(problems)
        )
    return jax.tree_util.tree_unflatten(tree, found)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
