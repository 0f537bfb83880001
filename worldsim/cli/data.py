"""The verbs that make datasets, from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from worldsim.cli.options import FLAT, Making
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
    print(folder)


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
