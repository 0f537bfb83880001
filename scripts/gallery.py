"""Draw the README's gallery: what each bundled world makes of its held-out clips, as small animations.

    python scripts/gallery.py

Writes ``notebooks/gallery/WORLD_{forward,backward,loop}.gif``: truth above, the world
below; loops three rounds.
"""

import argparse
from pathlib import Path

import worldsim
from worldsim.checkpoint import bundled_worlds
from worldsim.data.video import write_video
from worldsim.demo import mosaic, play
from worldsim.worlds import clips

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "notebooks" / "gallery"
CLIPS = 4
MOST = 2**20
"""Bytes of an animation above which it is drawn smaller."""


def draw(name: str, out: Path = OUT, *, count: int = CLIPS) -> list[Path]:
    """The animations of one bundled world."""
    world, held = worldsim.load(name), clips(name)[:count]
    made = play(world, held, world.dials(steps=8), note=print)
    paths = []
    for verb in ("forward", "backward", "loop"):
        frames = [one.clip.frames for one in made[verb]]
        truth = None if verb == "loop" else [clip.frames[: len(frames[0])] for clip in held]
        video = mosaic(frames, truth, rounds=3 if verb == "loop" else 1)
        for scale in range(max(1, 600 // video.shape[2]), 0, -1):
            path = write_video(out / f"{name}_{verb}.gif", video, fps=world.config.fps, scale=scale)
            if path.stat().st_size <= MOST:
                break
        paths.append(path)
    return paths


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", default=None, help="bundled worlds; all by default")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.worlds or bundled_worlds():
        for path in draw(name):
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
