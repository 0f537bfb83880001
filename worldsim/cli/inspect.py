"""The verb that shows a world, a dataset or a training, from the shell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from worldsim.cli.options import FLAT, note, positional, read_input, tell

EVERY = "10"
"""Seconds between two looks, where ``--watch`` stands alone."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a world is asked to make.

    Attributes:
      input: a clip: a file, or a bundled one such as pong:0; by default that, or one of the held-out data.
      frames: how many to make of it, beside the true ones.
      direction: of time, of what is made and of what attention reads.
      steps: masked passes per chunk.
      seed: of all randomness.
      play: run the world; --no-play looks at its files only.
    """

    input: str | None = None
    frames: int = 12
    direction: Literal["forward", "backward"] = "forward"
    steps: int = 8
    seed: int = 0
    play: bool = True


@dataclasses.dataclass(frozen=True)
class Attending:
    """Whose attention is drawn.

    Attributes:
      token: ROW,COLUMN in the grid of tokens; by default where the picture changes most.
      frame: of the clip, that is predicted; by default the first with a whole context before it.
      layer: from 0; the mean over all by default.
      head: from 0; the mean over all by default.
    """

    token: str | None = None
    frame: int | None = None
    layer: int | None = None
    head: int | None = None

    def place(self) -> tuple[int, int] | None:
        """Row and column.

        Raises:
          ValueError: something else.
        """
        if self.token is None:
            return None
        parts = [part.strip() for part in self.token.split(",")]
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"inspect: --token {self.token}; give ROW,COLUMN from 0, such as --token 2,1.")
        return int(parts[0]), int(parts[1])


def with_seconds(args: Sequence[str]) -> list[str]:
    """The arguments with a number behind a ``--watch`` that stands alone."""
    out = list(args)
    for at in range(len(out) - 1, -1, -1):
        following = out[at + 1] if at + 1 < len(out) else ""
        if out[at] == "--watch" and not following.replace(".", "", 1).lstrip("-").isdecimal():
            out.insert(at + 1, EVERY)
    return out


def inspect(
    what: Annotated[
        str,
        *positional(
            "WORLD|DATA|RUN",
            "A world's folder or bundled name; a dataset's folder, .npz or tfds:NAME; a training's workdir.",
        ),
    ],
    asking: Annotated[Asking, FLAT] = Asking(),
    attending: Annotated[Attending, FLAT] = Attending(),
    report: Path | None = None,
    out: Path | None = None,
    json: bool = False,
    watch: float | None = None,
) -> None:
    """Show a world, a dataset or a training: sizes, scores, curves, frames, attention; here and as a page.

    Example: worldsim inspect pong --out pong.html --token 2,1

    Args:
      report: of a world: the folder that worldsim evaluate wrote, or its report.json.
      out: an .html page with all of it and its pictures, which needs nothing else.
      json: print the figures as JSON on stdout instead.
      watch: of a training: look again every so many seconds (10 where none are given), until it ends.
    """
    from json import dumps

    from worldsim.inspect import pages
    from worldsim.inspect.kinds import kind_of

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: the page is an .html.")
    try:
        kind = kind_of(what)
    except FileNotFoundError:
        if watch is None or Path(what).exists():
            raise
        kind = "run"  # one that is yet to begin
    _check(kind, what, asking, attending, report=report, watch=watch)
    if watch is not None:
        return _watch(what, watch, out, json)
    if kind == "world":
        found = _world(what, asking, attending, report=report, seen=out is not None or json or _colors())
    elif kind == "data":
        from worldsim.inspect.datasets import data_findings

        found = data_findings(what)
    else:
        from worldsim.inspect.runs import read_run, run_findings

        found = run_findings(read_run(what))
    if out is not None:
        pages.write(out, found)
    if json:
        tell(dumps(found.facts | ({"page": str(out)} if out else {}), allow_nan=False))
    else:
        _print(found)
        if out is not None:
            tell(out)


def _check(
    kind: str, what: str, asking: Asking, attending: Attending, *, report: Path | None, watch: float | None
) -> None:
    """Refuse options of another kind of thing than what is given.

    Raises:
      ValueError: with the options.
    """
    it = f"{what} is a {'dataset' if kind == 'data' else 'training' if kind == 'run' else kind}"
    if watch is not None and kind != "run":
        raise ValueError(f"inspect: --watch is for a training, and {it}.")
    given = [
        f"--{field.name}" if getattr(options, field.name) is not False else f"--no-{field.name}"
        for options in (asking, attending)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    ] + ["--report"] * (report is not None)
    if given and kind != "world":
        raise ValueError(f"inspect: {', '.join(given)}: for worlds, and {it}.")


def _world(what: str, asking: Asking, attending: Attending, *, report: Path | None, seen: bool) -> Any:
    """A world, run on a clip where there is one and what comes of it can be seen."""
    from worldsim.checkpoint import resolve_world
    from worldsim.inspect.reports import read_report, report_section
    from worldsim.inspect.worlds import world_findings

    told = None if report is None else report_section(read_report(report))
    place = attending.place()
    made = ([], {})
    if asking.play and (seen or attending != Attending()):
        made = _played(what, asking, attending, place)
    return world_findings(resolve_world(what), name=what, made=made, report=told)


def _played(what: str, asking: Asking, attending: Attending, place: tuple[int, int] | None) -> Any:
    """What a world makes of a clip: the given one, a bundled one, or one that it was not trained on."""
    import worldsim
    from worldsim.checkpoint import bundled_worlds, resolve_world
    from worldsim.inspect.played import Question, held_out_clip, played

    bundled = bundled_worlds().get(what) == resolve_world(what)
    source = asking.input or (f"{what}:0" if bundled else None)
    model = worldsim.load(what)
    if source is None and (found := held_out_clip(model.provenance)) is not None:
        clip, source = found
    elif source is not None:
        clip = read_input(source, model, resize="pad")
    else:
        note(f"{what}: no clip comes with it; give --input CLIP to see what it makes")
        return [], {}
    note(f"running {what} on {source}")
    ways = {name: getattr(asking, name) for name in ("frames", "direction", "steps", "seed")}
    looks = {name: getattr(attending, name) for name in ("frame", "layer", "head")}
    return played(model, clip, Question(**ways, **looks, token=place), source=source)


def _console() -> Any:
    import sys

    from rich.console import Console

    wide = None if sys.stdout.isatty() else 130
    return Console(file=sys.stdout, width=wide, highlight=False)


def _colors() -> bool:
    console = _console()
    return console.is_terminal and console.color_system in ("256", "truecolor")


def _print(found: Any) -> None:
    """The findings on stdout; frames only where there are colours."""
    from worldsim.inspect.terminal import render

    console = _console()
    console.print(render(found, width=console.width, color=_colors()))


def _watch(what: str, seconds: float, out: Path | None, json: bool) -> None:
    """Looks at a training, one over the other on a terminal, line after line elsewhere."""
    from json import dumps

    from worldsim.inspect.terminal import render
    from worldsim.inspect.watch import watch

    if json or not _console().is_terminal:
        watch(what, seconds, show=lambda found: tell(dumps(found.facts) if json else found.lead), out=out)
        return
    from rich.live import Live

    console = _console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        show = lambda found: live.update(render(found, width=console.width, color=False), refresh=True)
        watch(what, seconds, show=show, out=out)
