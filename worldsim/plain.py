"""Configs as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Rebuild a config from :func:`to_dict`'s values; unknown or missing keys are named.

    Raises:
      ValueError: keys that ``kind`` does not have, or that are missing, all at once.
    """
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown keys {wrong}"] if (wrong := sorted(set(values) - names)) else []
    problems += [f"no {missing}"] if (missing := sorted(names - set(values))) else []
    if problems:
        raise ValueError(f"{kind.__name__}: {', '.join(problems)}; it has {sorted(names)}.")

    def build(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            return from_dict(hint, value)  # type: ignore[arg-type]
        if get_origin(hint) is tuple:
            return tuple(build(get_args(hint)[0], item) for item in value)
        return value

    return kind(**{name: build(hints[name], value) for name, value in values.items()})
