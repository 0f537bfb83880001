"""The ``worldsim`` command: make data, train, and run worlds from the shell."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldsim.config import TrainConfig

_FLAT = tyro.conf.arg(name="")
_WORLD = "A world's folder, or the name of a bundled one."
_INPUT = "A .mp4 .gif .webm .npz or picture file, or NAME:I for clip I bundled with world NAME."


def _positional(text: str) -> tuple[Any, Any]:
    """A positional argument with its help."""
    return tyro.conf.Positional, tyro.conf.arg(help=text)


def note(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How chunks are drawn.

    Attributes:
      steps: masked passes per chunk; more is slower and better.
      temperature: 0 takes the likeliest codes and ignores the seed.
      seed: of all randomness.
    """

    steps: int = 8
    temperature: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """As the verbs of a world take them."""
        import jax

        return {"steps": self.steps, "temperature": self.temperature, "key": jax.random.key(self.seed)}


@dataclasses.dataclass(frozen=True)
class Output:
    """What becomes of the result.

    Attributes:
      out: .mp4 .gif .webm to look at, .png for a contact sheet, .npz for frames and actions as they are.
      resize: bring frames of another size to the world's (padded, not stretched).
      json: print what was made, with scores, as JSON on stdout.
    """

    out: Path
    resize: bool = False
    json: bool = False


def read_input(text: str, world: Any, *, resize: bool) -> Any:
    """A clip from a file or, as ``NAME:I``, from those bundled with a world."""
    from worldsim.checkpoint import bundled_worlds
    from worldsim.data.video import read_video, resize_clip
    from worldsim.worlds import clips

    name, _, index = text.partition(":")
    if name in bundled_worlds() and index.isdigit():
        found = clips(name)
        if int(index) >= len(found):
            raise ValueError(f"{text}: {name} has {len(found)} clips; take {name}:0 to {name}:{len(found) - 1}.")
        clip = found[int(index)]
    else:
        clip = read_video(text)
    tokenizer = world.config.tokenizer
    return resize_clip(clip, tokenizer.height, tokenizer.width) if resize else clip


def read_actions(text: str | None, world: Any) -> Any:
    """Actions from an ``.npy`` file, or written out: ``right,right,noop`` or ``2,2,0``.

    Raises:
      ValueError: a name that the world doesn't have; its names are listed.
    """
    import numpy as np

    if text is None:
        return None
    if text.endswith(".npy"):
        return np.load(text, allow_pickle=False)
    names, rows = world.config.dynamics.action.names, []
    for word in (part.strip() for part in text.split(",")):
        if word.lstrip("-").isdigit():
            rows.append(int(word))
        elif word in names:
            rows.append(names.index(word))
        else:
            raise ValueError(f"--actions: no action {word!r}; the world has {', '.join(names) or 'numbers only'}.")
    return np.asarray(rows, np.int32)


def _finish(clip: Any, output: Output, began: float, scores: dict[str, Any]) -> None:
    """Write the clip; name it, or all of what is known of it, on stdout."""
    from worldsim.data.video import write_video

    path = write_video(output.out, clip)
    seconds = round(time.monotonic() - began, 2)
    if output.json:
        print(json.dumps({"out": str(path), "frames": len(clip), "seconds": seconds, **scores}))
    else:
        print(path)


def extend(
    world: Annotated[str, *_positional(_WORLD)],
    input: Annotated[str, *_positional(_INPUT)],
    output: Annotated[Output, _FLAT],
    sampling: Annotated[Sampling, _FLAT],
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
    import worldsim

    began, model = time.monotonic(), worldsim.load(world)
    clip = read_input(input, model, resize=output.resize)
    rows = read_actions(actions, model)
    made = model.extend(clip, frames, direction=direction, actions=rows, **sampling.options())
    _finish(made.clip, output, began, {"new": frames, "direction": direction})


def infill(
    world: Annotated[str, *_positional(_WORLD)],
    before: Annotated[str, *_positional(_INPUT)],
    after: Annotated[str, *_positional(_INPUT)],
    output: Annotated[Output, _FLAT],
    sampling: Annotated[Sampling, _FLAT],
    frames: int = 16,
    actions: str | None = None,
) -> None:
    """Make the frames between two clips.

    Example: worldsim infill pong start.npz end.npz --out between.mp4 --frames 16

    Args:
      frames: how many to make.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    import worldsim

    began, model = time.monotonic(), worldsim.load(world)
    first, second = (read_input(text, model, resize=output.resize) for text in (before, after))
    made = model.infill(first, second, frames, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames})


def loop(
    world: Annotated[str, *_positional(_WORLD)],
    input: Annotated[str, *_positional(_INPUT)],
    output: Annotated[Output, _FLAT],
    sampling: Annotated[Sampling, _FLAT],
    frames: int = 32,
) -> None:
    """Make a clip whose end meets its beginning, opening with the input's first frames.

    Example: worldsim loop pong pong:0 --out loop.gif --frames 32

    Args:
      frames: of the whole loop.
    """
    import worldsim
    from worldsim.ops.scores import jerk_ratio, motion_ratio, seam_ratio

    began, model = time.monotonic(), worldsim.load(world)
    clip = read_input(input, model, resize=output.resize)
    made = model.loop(clip, frames, **sampling.options()).clip
    scores = {"seam_ratio": seam_ratio(made.frames), "jerk_ratio": jerk_ratio(made.frames)}
    if len(clip) > 1:
        scores["motion_ratio"] = motion_ratio(made.frames, [clip.frames])
    _finish(made, output, began, {name: round(value, 4) for name, value in scores.items()})


def animate(
    world: Annotated[str, *_positional(_WORLD)],
    image: Annotated[str, *_positional(_INPUT)],
    output: Annotated[Output, _FLAT],
    sampling: Annotated[Sampling, _FLAT],
    frames: int = 32,
    actions: str | None = None,
) -> None:
    """Bring a single picture to life.

    Example: worldsim animate pong picture.png --out moving.mp4 --frames 32 --resize

    Args:
      frames: how many to make.
      actions: one per new frame: an .npy file, or written out, such as right,right,noop.
    """
    import worldsim

    began, model = time.monotonic(), worldsim.load(world)
    clip = read_input(image, model, resize=output.resize)
    made = model.animate(clip, frames, actions=read_actions(actions, model), **sampling.options())
    _finish(made.clip, output, began, {"new": frames})


def reconstruct(
    world: Annotated[str, *_positional(_WORLD)],
    input: Annotated[str, *_positional(_INPUT)],
    output: Annotated[Output, _FLAT],
) -> None:
    """A clip through the tokenizer and back: how well the world sees.

    Example: worldsim reconstruct pong pong:0 --out seen.mp4 --json
    """
    import worldsim
    from worldsim.ops.scores import PSNR_CAP, psnr, ssim

    began, model = time.monotonic(), worldsim.load(world)
    clip = read_input(input, model, resize=output.resize)
    seen = model.reconstruct(clip)
    scores = {
        "psnr": round(float(psnr(seen.frames, clip.frames, cap=PSNR_CAP).mean()), 3),
        "ssim": round(float(ssim(seen.frames, clip.frames).mean()), 4),
    }
    _finish(seen, output, began, scores)


def demo(
    sampling: Annotated[Sampling, _FLAT],
    out: Path = Path("out/demo"),
    world: str = "pong",
) -> None:
    """Eight held-out clips continued, preceded, filled and closed; videos, a sheet and a report.

    Example: worldsim demo --out out/demo

    Args:
      out: folder for forward.mp4 backward.mp4 infill.mp4 loop.mp4 contact_sheet.png report.json.
      world: a bundled world.
    """
    from worldsim.demo import run_demo

    report = run_demo(
        out, world=world, steps=sampling.steps, temperature=sampling.temperature, seed=sampling.seed, note=note
    )
    note(_summary(report))
    print(out / "report.json")


def _summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [f"{'frames ahead':<18}{'forward':>9}{'copy last':>11}{'backward':>10}{'copy first':>12}   (PSNR, dB)"]
    names = ("psnr_forward", "psnr_copy_last", "psnr_backward", "psnr_copy_first")
    for horizon in (4, 8, 16, 32):
        values = [sum(report[name][:horizon]) / horizon for name in names]
        lines.append(f"mean of 1 to {horizon:<6}" + "".join(f"{v:>{w}.2f}" for v, w in zip(values, (9, 11, 10, 12), strict=True)))
    ratios = (f"{name} {report[f'{name}_ratio']:.2f}" for name in ("seam", "jerk", "motion"))
    return "\n".join([*lines, f"loops: {', '.join(ratios)};  {report['seconds']:.0f} s"])


def make_ale(
    game: str = "pong",
    out: Path | None = None,
    frames: int = 100_000,
    test_frames: int = 10_000,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Play an Atari game and record it (extra: atari).

    Example: worldsim data make ale --game pong --out data/pong

    Args:
      game: any that ale-py carries, in snake case.
      out: folder of the dataset; data/GAME by default.
      frames: of the training split.
      test_frames: of the held-out split, played with other seeds and another mix of policies.
      seed: of everything.
      overwrite: replace what is in the folder.
    """
    from worldsim.data import ale, make

    folder = out or Path("data") / game
    make.make_ale(
        folder, config=ale.AleConfig(game=game), frames=frames, test_frames=test_frames, seed=seed,
        overwrite=overwrite, progress=_progress("recording"),
    )  # fmt: skip
    print(folder)


def _progress(what: str) -> Callable[..., None]:
    """A counter on stderr: one line that changes on a terminal, a line per tenth elsewhere."""
    last = [-1]

    def tell(split: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if sys.stderr.isatty():
            print(f"\r{what} {split}: {done}/{total}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif tenth != last[0]:
            note(f"{what} {split}: {done}/{total}")
        last[0] = tenth

    return tell


def train(
    config: Annotated[Path, *_positional("A Python file with get_config(); it is executed.")],
    workdir: Path,
    overrides: Annotated[TrainConfig, _FLAT],
    stage: Literal["tokenizer", "dynamics", "all"] = "all",
) -> None:
    """Train a world, or go on training it; every field of the config can be overridden.

    Example: worldsim train configs/pong.py --workdir runs/pong --tokenizer.steps 2000

    Args:
      workdir: for checkpoints, logs, samples and, at the end, the world.
      stage: which to train; dynamics needs a trained tokenizer in the workdir.
    """
    from worldsim.train.run import train as run

    del config
    print(run(overrides, workdir, stage=stage))


def make_sprites(
    out: Path = Path("data/sprites"),
    size: int = 32,
    sprites: int = 2,
    falling: bool = False,
    episodes: int = 1000,
    test_episodes: int = 100,
    length: int = 64,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make the toy world of sprites, with its true state in every frame.

    Example: worldsim data make sprites --out data/sprites --size 32

    Args:
      out: folder of the dataset.
      size: height and width of a frame, 32 or 64.
      sprites: 1 to 3; the actions push the first.
      falling: gravity and an inelastic floor, so that time has a direction.
      episodes: in the training split.
      test_episodes: in the held-out split.
      length: frames per episode.
      seed: of everything.
      overwrite: replace what is in the folder.
    """
    from worldsim.data import make
    from worldsim.data.sprites import SpriteConfig

    make.make_sprites(
        out, config=SpriteConfig(size=size, sprites=sprites, falling=falling), episodes=episodes,
        test_episodes=test_episodes, length=length, seed=seed, overwrite=overwrite, progress=_progress("making"),
    )  # fmt: skip
    print(out)


def data() -> None:
    """Make datasets: ``worldsim data make ale`` or ``worldsim data make sprites``.

    Example: worldsim data make ale --game pong --out data/pong
    """
    raise ValueError("worldsim data: say what to make: worldsim data make ale | sprites (each has --help).")


VERBS = {
    "data": data, "train": train, "extend": extend, "infill": infill, "loop": loop, "animate": animate,
    "reconstruct": reconstruct, "demo": demo,
}  # fmt: skip
MAKERS = {"ale": make_ale, "sprites": make_sprites}


def load_config(path: str | Path) -> TrainConfig:
    """Execute a config file and call its ``get_config``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no ``get_config`` that returns a TrainConfig.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No config {path}; give a Python file with get_config(), such as configs/pong.py.")
    spec = importlib.util.spec_from_file_location(f"worldsim_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path}: get_config() must return a worldsim.config.TrainConfig; got {type(config).__name__}.")
    return config


def _train_with(args: Sequence[str]) -> Callable[..., None]:
    """The train verb with the defaults of the config file that the arguments name."""
    path = next((word for word in args if word.endswith(".py")), None)
    defaults = TrainConfig() if path is None else load_config(path)

    def command(
        config: Annotated[Path, *_positional("A Python file with get_config(); it is executed.")],
        workdir: Path,
        overrides: Annotated[TrainConfig, _FLAT] = defaults,
        stage: Literal["tokenizer", "dynamics", "all"] = "all",
    ) -> None:
        train(config, workdir, overrides, stage)

    command.__doc__ = train.__doc__
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; mistakes end it with one clear line on stderr and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:2] == ["data", "make"]:
            tyro.extras.subcommand_cli_from_dict(dict(MAKERS), prog="worldsim data make", args=args[2:])
        else:
            verbs = VERBS | ({"train": _train_with(args[1:])} if args[:1] == ["train"] else {})
            tyro.extras.subcommand_cli_from_dict(dict(verbs), prog="worldsim", args=args)
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        note(f"worldsim: {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        note("worldsim: stopped")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
