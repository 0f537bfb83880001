"""The device mesh and what its devices compute in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "context", "tensor")
"""Mesh axes, outermost first: rows of the batch, shards of the weights, time, heads and widths."""


def _sizes(axes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Axis sizes in the order of :data:`AXES`, with a single -1 filled in."""
    unknown = sorted(set(axes) - set(AXES))
    wrong = {name: size for name, size in axes.items() if size == 0 or size < -1}
    if unknown or wrong:
        raise ValueError(
            f"make_mesh: unknown axes {unknown}, impossible sizes {wrong}; the axes are {list(AXES)}, "
            "each of a size of at least 1, or -1 for what is left."
        )
    sizes = {name: axes.get(name, 1) for name in AXES}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"make_mesh: {free} are all -1; at most one axis can take what is left.")
    if free:
        fixed = -math.prod(sizes.values())
        if devices % fixed:
            raise ValueError(
                f"make_mesh: {devices} devices don't divide by {fixed}, the product of the axes given "
                f"({dict(axes)}); change a size."
            )
        sizes[free[0]] = devices // fixed
    return tuple(sizes.values())


def parse_mesh(text: str) -> dict[str, int]:
    """Axis sizes from ``data=2,fsdp=2,context=2``; an empty text is one device.

    Raises:
      ValueError: what is not ``AXIS=NUMBER``, or an axis that is given twice.
    """
    axes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, size = part.partition("=")
        if not equals or not size.lstrip("-").isdigit() or name in axes:
            raise ValueError(
                f"mesh {text!r}: {part!r} is no AXIS=NUMBER or is there twice; axes: {list(AXES)}."
            )
        axes[name] = int(size)
    return axes


def make_mesh(axes: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over ``data fsdp context tensor``, the compiler choosing layouts (Auto axes).

    Args:
      axes: sizes by name; those left out are 1, and one may be -1 for all devices that are left.
        None is one device.
      devices: which ``jax.Device`` to use; None takes the first of all.

    Raises:
      ValueError: unknown axes, or more devices asked for than there are.
    """
    found = list(jax.devices() if devices is None else devices)
    shape = _sizes(axes or {}, len(found))
    need = math.prod(shape)
    if need > len(found):
        raise ValueError(
            f"make_mesh: {dict(axes or {})} needs {need} devices and there are {len(found)}; make an axis "
            "smaller or give -1 for what is left."
        )
    if need == 1:
        return Mesh(np.array(found[:1]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=found[:need])


def training_mesh(mesh: Mesh | None) -> Mesh:
    """The mesh to train on: the one given, or one device.

    Raises:
      ValueError: processes that would have no device in it, and nothing to do but to wait.
    """
    mesh = make_mesh() if mesh is None else mesh
    idle = sorted(set(range(jax.process_count())) - {device.process_index for device in mesh.devices.flat})
    if idle:
        sizes = {name: size for name, size in mesh.shape.items() if size > 1}
        raise ValueError(
            f"A mesh of {sizes or 'one device'} leaves processes {idle} of {jax.process_count()} without a "
            f"device; spread it over all {jax.device_count()}, such as by --mesh data=-1."
        )
    return mesh


def compute_dtype() -> np.dtype:
    """What the models compute in: bfloat16 where the devices are made for it, else float32."""
    return jnp.dtype(jnp.bfloat16 if jax.default_backend() in ("gpu", "cuda", "rocm", "tpu") else jnp.float32)
