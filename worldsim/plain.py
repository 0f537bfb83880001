"""Configs as plain JSON values, and back; and whether their numbers are in range."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def added(absent: Any) -> Any:
    """A field that older stored configs may lack: this is what they meant, and the default."""
    return dataclasses.field(default=absent, metadata={"absent": absent})


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Rebuild a config from :func:`to_dict`'s values; unknown or missing keys are named.

    Raises:
      ValueError: keys that ``kind`` does not have, or that are missing and were not :func:`added` since, all
        at once.
    """
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    values = {f.name: f.metadata["absent"] for f in fields if "absent" in f.metadata} | values
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


def freeze(config: Any) -> None:
    """Lists that a config was given become tuples, so that it can be hashed and compared."""
    for field in dataclasses.fields(config):
        if isinstance(value := getattr(config, field.name), list):
            object.__setattr__(config, field.name, tuple(value))


def check_ranges(config: Any, **intervals: tuple[str, ...]) -> None:
    """Refuse numbers outside their interval; called as ``check_ranges(self, **{"[0, 1)": ("ema", "b1")})``.

    Raises:
      ValueError: every field that is out of range, at once.
    """
    problems = []
    for interval, names in intervals.items():
        low, high = (float(end) for end in interval[1:-1].split(","))
        for name in names:
            value = getattr(config, name)
            above = value >= low if interval[0] == "[" else value > low
            below = value <= high if interval[-1] == "]" else value < high
            if not (above and below):
                problems.append(f"{name} {value} must lie in {interval}")
    if problems:
        raise ValueError(f"{type(config).__name__}: {', '.join(problems)}.")


def nearest(count: int, divisor: int) -> str:
    """The multiples of ``divisor`` next to a number, in words."""
    below = count // divisor * divisor
    return f"{below} or {below + divisor} do" if below else f"{divisor} does"
