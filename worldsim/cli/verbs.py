"""The verbs that run a world, from the shell."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from worldsim.cli.options import (
    FLAT,
    INPUT,
    WORLD,
    Judging,
    Output,
    Processes,
    Sampling,
    clips_in,
    note,
    positional,
    read_actions,
    read_input,
    tell,
)
from worldsim.progress import Counter


def begin(world: str, output: Output, *, say: Callable[[str], None] = note) -> tuple[float, Any]:
    """The time and the loaded world, once it is sure that the result can be written."""
    import worldsim
    from worldsim.data.video import check_writable

    check_writable(output.out)
    began = time.monotonic()
    say(f"loading {world}")
    model = worldsim.load(world)
    return began, dataclasses.replace(model, progress=partial(Counter("making"), "chunks"))


def _score(name: str, *frames: Any, digits: int = 4, **how: Any) -> float | None:
    """The mean of a score of :mod:`worldsim.ops.scores`; None where frames are too few or small."""
    import numpy as np

    from worldsim.ops import scores

    try:
        return round(float(np.mean(getattr(scores, name)(*frames, **how))), digits)
    except ValueError:
        return None


def _finish(clip: Any, output: Output, began: float, scores: dict[str, Any]) -> None:
    """Write the clip; name it, or all of what is known of it, on stdout."""
    from worldsim.data.video import write_video

    path = write_video(output.out, clip)
    seconds = round(time.monotonic() - began, 2)
    if output.json:
        known = {name: None if value in (inf, -inf) else value for name, value in scores.items()}
        line = {"out": str(path), "frames": len(clip), "seconds": seconds, **known}
        tell(json.dumps(line, allow_nan=False))
    else:
        tell(path)


@dataclasses.dataclass(frozen=True)
class Way:
    """Where frames are made, and in which order.

    Attributes:
      direction: forward or backward in time.
      keyframes: make a frame in so many first, as far as --frames goes, then what lies between.
      sinks: first chunks seen that stay in view for good.
    """

    direction: Literal["forward", "backward"] = "forward"
    keyframes: int | None = None
    sinks: int = 0


def extend(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", f"{INPUT[:-1]}, or a folder of such files.")],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    several: Annotated[Processes, FLAT],
    way: Annotated[Way, FLAT],
    frames: int = 32,
    actions: str | None = None,
) -> None:
    """Continue a clip after its end, or before its beginning; of a folder every clip, to --out 'made/{}.mp4'.

    Several processes share the clips of a folder. Each clip has a seed of its own, whoever takes it.

    Example: worldsim extend pong pong:0 --out after.mp4 --frames 32

    Args:
      frames: how many to make.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    asked = {"frames": frames, **dataclasses.asdict(way)}
    if Path(input).is_dir():
        return _extend_each(world, input, output, sampling, several, {**asked, "actions": actions})
    if several.processes not in (None, 1):
        raise ValueError(
            f"extend: {input} is one clip, for one process; give several a folder, or leave out --processes."
        )
    began, model = begin(world, output)
    clip = read_input(input, model, resize=output.how)
    made = model.extend(clip, **asked, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames, "direction": way.direction})


def _extend_each(
    world: str, folder: str, output: Output, sampling: Sampling, several: Processes, asked: dict[str, Any]
) -> None:
    """Every clip of a folder continued by one of the processes."""
    import jax

    from worldsim.parallel.agreement import check_alike, meet
    from worldsim.parallel.shares import share

    lead = several.join()
    files = clips_in(Path(folder), output.out)
    told = [file.name for file, _ in files], dataclasses.asdict(sampling), asked
    check_alike(dict(zip(("clips", "sampling", "options"), told, strict=True)), what="extend")
    began, model = begin(
        world, dataclasses.replace(output, out=files[0][1]), say=note if lead else lambda _: None
    )
    model = model if lead else dataclasses.replace(model, progress=None)
    options, actions = sampling.options(), read_actions(asked["actions"], model)
    for number in share(len(files)):
        file, out = files[number]
        clip = read_input(str(file), model, resize=output.how)
        key = jax.random.fold_in(options["key"], number)
        made = model.extend(clip, **{**asked, **options, "actions": actions, "key": key})
        scores = {"new": asked["frames"], "direction": asked["direction"]}
        _finish(made.clip, dataclasses.replace(output, out=out), began, scores)
        began = time.monotonic()
    meet("all clips are written")


def infill(
    world: Annotated[str, *positional("WORLD", WORLD)],
    before: Annotated[str, *positional("BEFORE", INPUT)],
    after: Annotated[str, *positional("AFTER", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 16,
    actions: str | None = None,
) -> None:
    """Make the frames between two clips.

    Example: worldsim infill pong pong:0 pong:1 --out between.mp4 --frames 16

    Args:
      frames: how many to make.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    began, model = begin(world, output)
    first, second = (read_input(text, model, resize=output.how) for text in (before, after))
    made = model.infill(first, second, frames, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames})


def loop(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 32,
    candidates: int = 4,
    sweeps: int = 2,
) -> None:
    """Make a clip whose end meets its beginning, opening with the input's first frames.

    Example: worldsim loop pong pong:0 --out loop.gif --frames 32

    Args:
      frames: of the whole loop.
      candidates: loops drawn, of which the one is kept whose least likely chunk is most likely.
      sweeps: how often each made chunk is then drawn again with all others in view.
    """
    began, model = begin(world, output)
    clip = read_input(input, model, resize=output.how)
    made = model.loop(clip, frames, candidates=candidates, sweeps=sweeps, **sampling.options())
    ratios = ("seam_ratio", "jerk_ratio", "peak_ratio")
    scores = {name: _score(name, made.clip.frames) for name in ratios}
    if why := made.closing.why():
        note(f"no good loop of {frames} frames: {why}")
    _finish(made.clip, output, began, scores | made.closing.report())


def animate(
    world: Annotated[str, *positional("WORLD", WORLD)],
    image: Annotated[str, *positional("IMAGE", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 32,
    actions: str | None = None,
) -> None:
    """Bring a single picture, or the first frame of a clip, to life.

    Example: worldsim animate pong pong:0 --out moving.mp4 --frames 32

    Args:
      frames: how many to make.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    began, model = begin(world, output)
    clip = read_input(image, model, resize=output.how)
    made = model.animate(clip[:1], frames, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames})


def reconstruct(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", INPUT)],
    output: Annotated[Output, FLAT],
) -> None:
    """A clip through the tokenizer and back: how well the world sees.

    Example: worldsim reconstruct pong pong:0 --out seen.mp4 --json
    """
    from worldsim.ops.scores import PSNR_CAP

    began, model = begin(world, output)
    clip = read_input(input, model, resize=output.how)
    seen = model.reconstruct(clip)
    scores = {
        "psnr": _score("psnr", seen.frames, clip.frames, digits=3, cap=PSNR_CAP),
        "ssim": _score("ssim", seen.frames, clip.frames),
    }
    _finish(seen, output, began, scores)


def demo(
    sampling: Annotated[Sampling, FLAT],
    out: Path = Path("out/demo"),
    world: str = "pong",
) -> None:
    """Eight held-out clips continued, preceded, filled and closed; videos, a sheet and a report.

    Example: worldsim demo --out out/demo

    Args:
      out: folder for forward.mp4 backward.mp4 infill.mp4 loop.mp4 contact_sheet.png report.json.
      world: a bundled world.
    """
    from worldsim.demo import run_demo, summary

    report = run_demo(out, world=world, note=note, **dataclasses.asdict(sampling))
    note(summary(report))
    tell(out / "report.json")


def evaluate(
    world: Annotated[str, *positional("WORLD", WORLD)],
    sampling: Annotated[Sampling, FLAT],
    judging: Annotated[Judging, FLAT],
    several: Annotated[Processes, FLAT],
    data: Path | None = None,
    out: Path = Path("out/evaluate"),
    regression: str | None = None,
) -> None:
    """Judge a world on held-out episodes: curves, likelihood, state, loops, as JSON, plots and one page.

    Example: worldsim evaluate pong --data data/pong --out out/evaluate

    Args:
      data: a dataset's folder or .npz; the one that the world was trained on by default.
      out: folder for report.json report.html contact_sheet.png and the plots.
      regression: a world with the same tokenizer and a regression head, to compare the refinement with.
    """
    import worldsim
    from worldsim.evaluate.run import Settings, summary
    from worldsim.evaluate.run import evaluate as run

    lead = several.join()
    say = note if lead else lambda _: None
    say(f"loading {world}")
    model = worldsim.load(world)
    settings = Settings(**dataclasses.asdict(judging), **dataclasses.asdict(sampling))
    trained_on = model.provenance.get("train", {}).get("data", {}).get("path")
    if data is None and not trained_on:
        raise ValueError("evaluate: the world doesn't say what it was trained on; give --data DIR.")
    mean = None if regression is None else worldsim.load(regression)
    options = {"settings": settings, "regression": mean, "name": Path(world).name, "note": say}
    report = run(model, data or trained_on, out, **options)
    say(summary(report))
    if lead:
        tell(out / "report.html")
