"""The ``worldsim`` command: make data, train, and run worlds from the shell."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldsim.config import TrainConfig
from worldsim.options import (
    FLAT,
    INPUT,
    WORLD,
    Making,
    Output,
    Sampling,
    load_config,
    positional,
    read_actions,
    read_input,
)
from worldsim.progress import Counter


def note(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def _begin(world: str, output: Output) -> tuple[float, Any]:
    """The time and the loaded world, once it is sure that the result can be written."""
    import worldsim
    from worldsim.data.video import check_writable

    check_writable(output.out)
    began = time.monotonic()
    note(f"loading {world}")
    model = worldsim.load(world)
    return began, dataclasses.replace(model, progress=partial(Counter("making"), "chunks"))


def _finish(clip: Any, output: Output, began: float, scores: dict[str, Any]) -> None:
    """Write the clip; name it, or all of what is known of it, on stdout."""
    from worldsim.data.video import write_video

    path = write_video(output.out, clip)
    seconds = round(time.monotonic() - began, 2)
    if output.json:
        known = {name: None if value in (inf, -inf) else value for name, value in scores.items()}
        line = {"out": str(path), "frames": len(clip), "seconds": seconds, **known}
        print(json.dumps(line, allow_nan=False))
    else:
        print(path)


def extend(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 32,
    direction: Literal["forward", "backward"] = "forward",
    actions: str | None = None,
) -> None:
    """Continue a clip after its end, or before its beginning.

    Example: worldsim extend pong pong:0 --out after.mp4 --frames 32

    Args:
      frames: how many to make.
      direction: forward or backward in time.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    began, model = _begin(world, output)
    clip = read_input(input, model, resize=output.resize)
    rows = read_actions(actions, model)
    made = model.extend(clip, frames, direction=direction, actions=rows, **sampling.options())
    _finish(made.clip, output, began, {"new": frames, "direction": direction})


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
    began, model = _begin(world, output)
    first, second = (read_input(text, model, resize=output.resize) for text in (before, after))
    made = model.infill(first, second, frames, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames})


def loop(
    world: Annotated[str, *positional("WORLD", WORLD)],
    input: Annotated[str, *positional("INPUT", INPUT)],
    output: Annotated[Output, FLAT],
    sampling: Annotated[Sampling, FLAT],
    frames: int = 32,
) -> None:
    """Make a clip whose end meets its beginning, opening with the input's first frames.

    Example: worldsim loop pong pong:0 --out loop.gif --frames 32

    Args:
      frames: of the whole loop.
    """
    from worldsim.ops.scores import jerk_ratio, motion_ratio, peak_ratio, seam_ratio

    began, model = _begin(world, output)
    clip = read_input(input, model, resize=output.resize)
    made = model.loop(clip, frames, **sampling.options()).clip
    ratios = {"seam_ratio": seam_ratio, "jerk_ratio": jerk_ratio, "peak_ratio": peak_ratio}
    scores = {name: ratio(made.frames) for name, ratio in ratios.items()}
    if len(clip) > 1:
        scores["motion_ratio"] = motion_ratio(made.frames, [clip.frames])
    _finish(made, output, began, {name: round(value, 4) for name, value in scores.items()})


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
    began, model = _begin(world, output)
    clip = read_input(image, model, resize=output.resize)
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
    from worldsim.ops.scores import PSNR_CAP, psnr, ssim

    began, model = _begin(world, output)
    clip = read_input(input, model, resize=output.resize)
    seen = model.reconstruct(clip)
    scores = {
        "psnr": round(float(psnr(seen.frames, clip.frames, cap=PSNR_CAP).mean()), 3),
        "ssim": round(float(ssim(seen.frames, clip.frames).mean()), 4),
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

    report = run_demo(
        out,
        world=world,
        steps=sampling.steps,
        temperature=sampling.temperature,
        seed=sampling.seed,
        note=note,
    )
    note(summary(report))
    print(out / "report.json")


def make_ale(
    game: str = "pong",
    out: Path | None = None,
    frames: int = 100_000,
    test_frames: int = 10_000,
    making: Annotated[Making, FLAT] = Making(),
) -> None:
    """Play an Atari game and record it (extra: atari).

    Example: worldsim data make ale --game pong --out data/pong

    Args:
      game: any that ale-py carries, in snake case.
      out: folder of the dataset; data/GAME by default.
      frames: of the training split.
      test_frames: of the held-out split, played with other seeds and another mix of policies.
    """
    from worldsim.data import ale, make

    folder = out or Path("data") / game
    make.make_ale(
        folder, config=ale.AleConfig(game=game), frames=frames, test_frames=test_frames, seed=making.seed,
        overwrite=making.overwrite, progress=Counter("recording"),
    )  # fmt: skip
    print(folder)


def make_sprites(
    out: Path = Path("data/sprites"),
    size: Literal[32, 64] = 32,
    sprites: int = 2,
    falling: bool = False,
    episodes: int = 1000,
    test_episodes: int = 100,
    length: int = 64,
    making: Annotated[Making, FLAT] = Making(),
) -> None:
    """Make the toy world of sprites, with its true state in every frame.

    Example: worldsim data make sprites --out data/sprites --size 32

    Args:
      out: folder of the dataset.
      size: height and width of a frame.
      sprites: 1 to 3; the actions push the first.
      falling: gravity and an inelastic floor, so that time has a direction.
      episodes: in the training split.
      test_episodes: in the held-out split.
      length: frames per episode.
    """
    from worldsim.data import make
    from worldsim.data.sprites import SpriteConfig

    make.make_sprites(
        out, config=SpriteConfig(size=size, sprites=sprites, falling=falling), episodes=episodes,
        test_episodes=test_episodes, length=length, seed=making.seed, overwrite=making.overwrite,
        progress=Counter("making"),
    )  # fmt: skip
    print(out)


def data() -> None:
    """Make datasets: ``worldsim data make ale`` or ``worldsim data make sprites``.

    Example: worldsim data make ale --game pong --out data/pong
    """
    raise ValueError("worldsim data: say what to make: worldsim data make ale | sprites (each has --help).")


def train_verb(args: Sequence[str] = ()) -> Callable[..., None]:
    """The verb ``train``, with the defaults of the config file that the arguments name."""
    pairs = zip(("", *args), args, strict=False)
    words = [word for before, word in pairs if not word.startswith("-") and not before.startswith("--")]
    defaults = load_config(words[0]) if words else TrainConfig()

    def train(
        config: Annotated[Path, *positional("CONFIG", "A Python file with get_config(); it is executed.")],
        workdir: Path,
        overrides: Annotated[TrainConfig, FLAT] = defaults,
        stage: Literal["tokenizer", "dynamics", "all"] = "all",
    ) -> None:
        """Train a world, or go on training it; every field of the config can be overridden.

        Example: worldsim train configs/pong.py --workdir runs/pong --tokenizer.steps 2000

        Args:
          workdir: for checkpoints, logs, samples and, at the end, the world.
          stage: which to train; dynamics needs a trained tokenizer in the workdir.
        """
        from worldsim.parallel import distributed
        from worldsim.train.run import train as run

        distributed.start()
        if words[:1] != [str(config)]:
            raise ValueError(f"{config}: give the config right after the word train.")
        print(run(overrides, workdir, stage=stage))

    return train


VERBS = {
    "data": data, "train": train_verb(), "extend": extend, "infill": infill, "loop": loop, "animate": animate,
    "reconstruct": reconstruct, "demo": demo,
}  # fmt: skip
MAKERS = {"ale": make_ale, "sprites": make_sprites}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; mistakes end it with one clear line on stderr and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:2] == ["data", "make"]:
            tyro.extras.subcommand_cli_from_dict(dict(MAKERS), prog="worldsim data make", args=args[2:])
        else:
            verbs = VERBS | ({"train": train_verb(args[1:])} if args[:1] == ["train"] else {})
            tyro.extras.subcommand_cli_from_dict(dict(verbs), prog="worldsim", args=args)
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        note(f"worldsim: {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        note("worldsim: stopped")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
