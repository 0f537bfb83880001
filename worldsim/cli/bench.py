"""The verb that measures the code on this machine, from the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from worldsim.cli.options import positional, tell


def bench(
    what: Annotated[
        Literal["ring", "blocks", "rollout", "train", "large", "loader", "start"],
        *positional(
            "WHAT",
            "ring: attention over many devices; blocks: on one, in all patterns; rollout: generated frames; "
            "train: a step of each stage; large: a world for GPUs, both ways; loader: batches from disk; "
            "start: from nothing to the first frame.",
        ),
    ],
    json: bool = False,
    quick: bool = False,
) -> None:
    """Measure the code beside other ways to the same result, in one run, as ratios.

    Example: worldsim bench ring --json

    Args:
      json: one JSON object on stdout instead of a table.
      quick: small sizes, to see that it runs; its figures say little.
    """
    from worldsim.bench.child import measure
    from worldsim.bench.rows import as_json, as_table

    found = measure(what, quick=quick)
    tell((as_json if json else as_table)(found["rows"], found["machine"]))
