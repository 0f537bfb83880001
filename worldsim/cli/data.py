"""The verbs that make, import and show datasets, from the shell."""

from __future__ import annotations

import dataclasses
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

from worldsim.cli.options import FLAT, Making, note, positional, tell
from worldsim.progress import Counter


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
    tell(folder)


def make_doom(
    scenario: str = "health_gathering",
    out: Path | None = None,
    frames: int = 100_000,
    test_frames: int = 10_000,
    size: int = 64,
    hud: bool = False,
    making: Annotated[Making, FLAT] = Making(),
) -> None:
    """Play a scenario of Doom and record it, with positions and visible objects (extra: doom).

    Example: worldsim data make doom --scenario health_gathering --out data/doom

    Args:
      scenario: any for one player that ViZDoom carries.
      out: folder of the dataset; data/doom_SCENARIO by default.
      frames: of the training split.
      test_frames: of the held-out split, played with other seeds and another mix of policies.
      size: height and width of a frame.
      hud: draw the status bar.
    """
    from worldsim.data import doom, make

    folder = out or Path("data") / f"doom_{scenario}"
    make.make_doom(
        folder, config=doom.DoomConfig(scenario, size, hud=hud), frames=frames, test_frames=test_frames,
        seed=making.seed, overwrite=making.overwrite, progress=Counter("recording"),
    )  # fmt: skip
    tell(folder)


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
    tell(out)


def make_recall(
    out: Path = Path("data/recall"),
    pairs: int = 24,
    episodes: int = 2000,
    test_episodes: int = 100,
    length: int = 288,
    shortest: int = 12,
    making: Annotated[Making, FLAT] = Making(),
) -> None:
    """Make the toy world of recall: colours shown once and asked for later, with truth in every frame.

    Example: worldsim data make recall --out data/recall --length 288

    Args:
      out: folder of the dataset.
      pairs: colours shown and asked for in an episode of full length.
      episodes: in the training split.
      test_episodes: in the held-out split.
      length: frames of an episode; in each, a colour shown at its beginning is asked for at its end.
      shortest: frames of the shortest episodes in the training split; an eighth of them is of full length.
    """
    from worldsim.data import make
    from worldsim.data.recall import RecallConfig

    make.make_recall(
        out, config=RecallConfig(length, pairs, shortest), episodes=episodes, test_episodes=test_episodes,
        seed=making.seed, overwrite=making.overwrite, progress=Counter("making"),
    )  # fmt: skip
    tell(out)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How frames are brought to one size and rate.

    Attributes:
      size: height and width in pixels.
      height: in pixels, where it is not the width.
      width: in pixels, where it is not the height.
      fit: crop the overhang from both sides, or pad with black.
      fps: frames per second, by the recordings' timestamps; every frame as it is where this is left out.
    """

    size: int = 64
    height: int | None = None
    width: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Taking:
    """What is taken, and what is held out.

    Attributes:
      actions: take NAME.actions.npy or .csv beside a recording: a row a frame, integers or floats.
      actions_follow: they are stored with the frame that they follow, not with the one they lead to.
      test_share: share of the files, or of an RLDS set's episodes, that is held out.
      view: of an RLDS folder, the observation to take.
      overwrite: forget what is in the dataset and import all anew.
    """

    actions: bool = True
    actions_follow: bool = False
    test_share: float = 0.1
    view: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Running:
    """Who does the work.

    Attributes:
      beam_runner: of Apache Beam, whose workers read, decode and encode the files (extra: beam).
      beam_options: of Beam's pipelines, each NAME=VALUE or NAME, without dashes.
    """

    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


def import_folder(
    folder: Annotated[Path, *positional("FOLDER", "Holds .mp4 .webm .mov .gif files, or an RLDS set.")],
    shape: Annotated[Shape, FLAT] = Shape(),
    taking: Annotated[Taking, FLAT] = Taking(),
    running: Annotated[Running, FLAT] = Running(),
    out: Path | None = None,
) -> None:
    """Import a folder of recordings; a second time, what is new in it. An RLDS folder is rewrapped.

    Example: worldsim data import recordings --out data/mine --fps 15

    Args:
      out: folder of the dataset; data/FOLDER by default.
    """
    from worldsim.data.beam import BeamConfig
    from worldsim.data.decode import Look
    from worldsim.data.importing import import_recordings
    from worldsim.data.rlds import import_rlds, is_rlds
    from worldsim.data.spool import ImportConfig

    if running.beam_options and running.beam_runner is None:
        raise ValueError("--beam-options go with --beam-runner NAME, such as --beam-runner DirectRunner.")
    beam = None if running.beam_runner is None else BeamConfig(running.beam_runner, running.beam_options)
    out = out or Path("data") / folder.resolve().name
    look = Look(shape.height or shape.size, shape.width or shape.size, shape.fit, shape.fps)
    if is_rlds(folder):
        given = {"--beam-runner": beam is not None, "--no-actions": not taking.actions,
                 "--actions-follow": taking.actions_follow}  # fmt: skip
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise ValueError(
                f"{folder} is an RLDS folder, which is rewrapped as it is, its actions included; leave "
                f"{', '.join(wrong)} out."
            )
        import_rlds(folder, out, look=look, view=taking.view, test_share=taking.test_share,
                    overwrite=taking.overwrite, progress=Counter("rewrapping"))  # fmt: skip
    else:
        if taking.view is not None:
            raise ValueError(f"{folder} is no RLDS folder, and recordings have one view; leave --view out.")
        config = ImportConfig(look, taking.actions, taking.actions_follow, taking.test_share)
        done = import_recordings(
            folder, out, config=config, overwrite=taking.overwrite, progress=Counter("importing"), beam=beam
        )
        note(_told(done))
    tell(out)


def _told(done: Any) -> str:
    """What an import did, line by line."""
    from worldsim.data.importing import reasons

    info = done.info
    counts = [f"{split} {s.episodes} ({s.frames} frames)" for split, s in info.splits.items()]
    lines = [f"{len(done.new)} new, {len(done.skipped)} skipped; the dataset holds {', '.join(counts)}"]
    rates = sorted({round(file.fps, 2) for file in info.files if not file.reason})
    if len(rates) > 1 and info.source["options"]["fps"] is None:
        told = ", ".join(f"{rate:g}" for rate in rates)
        lines.append(f"files of {told} frames a second stand side by side; --fps brings them to one rate")
    if "test" not in info.splits:
        lines.append("one file alone is not held out: train with --data.eval-split train, or add another")
    if done.gone:
        lines.append(f"no longer in the folder, kept in the dataset: {', '.join(done.gone)}")
    early = [f"  {file.name}: {file.missing} frames missing at its end" for file in done.new if file.missing]
    if early:
        lines.append("taken, though they end before their container says:\n" + "\n".join(early))
    if done.skipped:
        lines.append("skipped:\n" + reasons(done.skipped))
    return "\n".join(lines)


def info(
    path: Annotated[str, *positional("DATA", "A dataset's folder, an .npz file, or tfds:NAME.")],
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Tell what a dataset holds: counts, sizes, actions, policies, skipped files; and draw a sheet of it.

    Example: worldsim data info data/pong --out sheet.png

    Args:
      out: a .png with rows of frames from every split.
      json: print it as JSON on stdout.
    """
    from worldsim.data.overview import describe, draw, lines
    from worldsim.data.video import check_writable

    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: the sheet is a .png.")
    known = describe(path)
    if out is not None:
        check_writable(out)
        draw(path, out)
        known["sheet"] = str(out)
    tell(dumps(known) if json else "\n".join(lines(known)))


def data() -> None:
    """Make, import and look at datasets: ``worldsim data make | import | info``.

    Example: worldsim data make ale --game pong --out data/pong
    """
    raise ValueError(
        "worldsim data: say what to do: worldsim data make ale | doom | sprites | recall, worldsim data "
        "import, or worldsim data info (each has --help)."
    )
