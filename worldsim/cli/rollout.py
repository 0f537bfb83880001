"""The verb for rollouts of any length, from the shell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from worldsim.cli.options import (
    FLAT,
    INPUT,
    WORLD,
    Output,
    Sampling,
    note,
    positional,
    read_actions,
    read_input,
    tell,
)
from worldsim.cli.verbs import begin
from worldsim.progress import Counter


def rollout(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 1000,
    actions: str | None = None,
    sinks: int = 0,
    resume: bool = False,
) -> None:
    """Continue a clip for any number of frames, in constant memory; the video is written as it comes.

    Ctrl-C leaves a video that can be played, and beside it where the rollout stood. The same command with
    --resume goes on from there, to the same frames as if it had never stopped.

    Example: worldsim rollout pong pong:0 --out long.mp4 --frames 10000 --actions random

    Args:
      frames: how many to make in all.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop; or ``random``, which
        draws each by the seed.
      sinks: first chunks seen that stay in view for good.
      resume: go on with --out, which is an .mp4 or .webm.
    """
    from worldsim.data.movie import MovieWriter, check_endless
    from worldsim.generate.options import DIALS
    from worldsim.generate.standing import load_standing, save_standing

    out = output.out
    stood = out.with_name(f"{out.name}.rollout")
    check_endless(out)
    _check_alone(out)
    began, model = begin(world, output)
    told = _actions(actions, model, sampling.seed)
    asked = {
        "input": input, "actions": _print_of(actions), **dataclasses.asdict(sampling), "sinks": sinks,
        "weights": model.provenance.get("weights_sha256"), "fit": output.how,
    }  # fmt: skip
    asked["revisions"] = int(model.dials(**{name: asked[name] for name in DIALS}).revisions)
    clip = read_input(input, model, resize=output.how)
    start: Any = clip
    if resume:
        start, before = load_standing(stood, model)
        later = ("stabilize", "guidance", "doubt", "leads", "revisions")  # older commands did not write them
        before = {name: DIALS[name] for name in later} | {"sinks": 0, "revisions": 0} | before
        other = {
            name: (before.get(name), value) for name, value in asked.items() if before.get(name) != value
        }
        if other:
            raise ValueError(
                f"rollout: --resume, but {stood} was left by a command with other options: "
                + ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in other.items())
            )
        _check_movie(out, stood, len(clip) + start.made)
    elif out.exists() and stood.exists():
        raise ValueError(f"rollout: {stood} is left of a rollout that was stopped; --resume, or remove it.")
    sinks = 0 if resume else sinks  # the state that is gone on from has them
    stream = model.rollout(start, frames, actions=told, sinks=sinks, **sampling.options())
    size, rate = clip.frames.shape[1:3], clip.fps or model.config.fps or 15.0
    tell_how_far = partial(Counter("making", ahead=True), "frames")
    with MovieWriter(out, size, fps=rate, append=resume) as movie, _interruption() as stop:
        if not resume:
            movie.add(clip.frames)
        made = stream.made
        tell_how_far(made, frames)
        for piece in stream:
            movie.add(piece.frames)
            tell_how_far(stream.made, frames)
            if stop:
                break
        standing = stream.standing() if stream.made < frames else None
    if standing:
        save_standing(stood, standing, asked=asked)
        note(f"\nstopped at {stream.made} of {frames} frames; the same command with --resume goes on")
        raise SystemExit(130)
    stood.unlink(missing_ok=True)
    seconds = round(time.monotonic() - began, 2)
    line = {"out": str(out), "new": frames, "made": frames - made, "seconds": seconds}
    tell(json.dumps(line) if output.json else out)


def _check_alone(out: Path) -> None:
    """Refuse to be one of several processes that would write the same file.

    Raises:
      ValueError: who started them, and what to do.
    """
    from worldsim.parallel.distributed import launcher

    if (found := launcher(os.environ)) in ("Slurm", "Open MPI"):
        raise ValueError(
            f"rollout: {found} started this as one of several processes, which would all write {out}; start "
            "it once, or share out a folder of clips by worldsim extend."
        )


def _check_movie(out: Path, stood: Path, frames: int) -> None:
    """Refuse a movie that is not as long as what was left beside it says.

    They part where a rollout breaks off after its movie was joined and before its standing was saved.

    Raises:
      ValueError: with both numbers.
    """
    from worldsim.data.movie import count_frames

    if not out.is_file():
        return  # which is refused where it is opened
    has = count_frames(out)
    if has != frames:
        raise ValueError(
            f"rollout: --resume, but {out} has {has} frames and {stood} was left at {frames}; bring the "
            f"movie back to its first {frames} frames, or remove both and begin anew."
        )


def _actions(text: str | None, world: Any, seed: int) -> Any:
    """What a stream is told: an array, a function, or nothing."""
    if text != "random":
        return read_actions(text, world)
    import numpy as np

    action = world.config.dynamics.action
    if action.kind != "discrete":
        raise ValueError(f"--actions random: the world takes {action.kind} actions; give an .npy file.")
    return lambda frame: np.random.default_rng((seed % 2**32, frame)).integers(action.size)


def _print_of(actions: str | None) -> str | None:
    """The actions' text, or the hash of their file: whether they are the same as before."""
    if actions is None or not actions.endswith(".npy"):
        return actions
    return hashlib.sha256(Path(actions).read_bytes()).hexdigest()


@contextmanager
def _interruption() -> Iterator[list[bool]]:
    """A list that the first Ctrl-C (or SIGTERM) puts something into; the second one breaks off."""
    asked: list[bool] = []

    def stop(*_: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        note("\nstopping after this piece; once more to break off")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
