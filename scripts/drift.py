"""What holds long rollouts of sprites together: worlds, and ways to run them, side by side.

    python -m scripts.drift sprites runs/resampled/world --frames 256
    python -m scripts.drift sprites --ways plain stabilize=0.1 sinks=2 guidance=0.5,stabilize=0.1

Every world continues the same new episodes under the same random actions in every way, frame by frame, and is
compared with what the sprites truly did. Prints a table in Markdown: ``survival``, frames until the first one
that no world of sprites could have (median); ``pushed``, pixels that the pushed sprite is off at some frames;
``there``, sprites seen in the first and last quarter, ``redrawn``, velocities drawn anew over those of the
truth, and ``frechet``, of own features from real play in units of its spread, in the same.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import worldsim
from worldsim.data.builders import RecordConfig
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate.bands import around
from worldsim.evaluate.drift import drift, play_far
from worldsim.evaluate.features import PIECE
from worldsim.evaluate.held_out import KNOWN, HeldOut, load_held_out
from worldsim.evaluate.play import Answer
from worldsim.evaluate.sprite_laws import over_horizon
from worldsim.generate.extend import World

AT = (16, 64, 256)
NAMES = {
    "steps": int,
    "temperature": float,
    "stabilize": float,
    "guidance": float,
    "doubt": float,
    "leads": int,
    "revisions": int,
    "sinks": int,
}
WAYS = ("plain", "stabilize=0.1", "stabilize=0.3", "guidance=0.5", "guidance=1", "sinks=2")


def parse(way: str) -> dict[str, float]:
    """Options of a way such as ``guidance=0.5,sinks=2``; ``plain`` has none.

    Raises:
      ValueError: something else.
    """
    if way == "plain":
        return {}
    parts = [part.partition("=") for part in way.split(",")]
    if any(name not in NAMES or not value for name, _, value in parts):
        raise ValueError(
            f"{way!r}; give plain, or some of {', '.join(NAMES)}, such as stabilize=0.1,sinks=2."
        )
    return {name: NAMES[name](value) for name, _, value in parts}


def measure(world: World, held: HeldOut, way: str, *, frames: int, seed: int = 0) -> dict:
    """A row of the table."""
    how = parse(way)
    sinks = int(how.pop("sinks", 0))
    dials = world.dials(refine_steps=0, **how)
    made = play_far(world, held, dials, frames=frames, seed=seed, note=lambda _: None, sinks=sinks)
    truth = held.frames[:, held.known : held.known + frames]
    far = drift(made, held)
    first, last = far["first_quarter"], far["last_quarter"]
    answer = Answer(made[None], truth, truth, held.known)
    config = SpriteConfig.of(held.info.source)
    state = over_horizon(answer, held.truth["state"], held.actions, config)
    row = {"survival": far["survival"], "legal": state["made"]["legal"], "redrawn": state["redraw_ratio"]}
    for at in (at for at in AT if at <= frames):
        row[f"pushed {at}"] = around(state["pushed_error"]["mean"], at, width=8)
    for name in ("there", "frechet", "motion"):
        row |= {f"{name}, first": first[name], f"{name}, last": last[name]}
    return row | {"alive": far["alive"]}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows in Markdown."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    show = lambda value: "" if value is None else f"{value:.2f}"
    lines += [f"| {title} | " + " | ".join(show(row[n]) for n in names) + " |" for title, row in rows.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="+", help="folders or bundled names")
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--workdir", type=Path, default=Path("out/drift"))
    args = parser.parse_args(argv)
    if args.frames < PIECE * 4:
        parser.error(f"--frames {args.frames}: quarters are judged, so give at least {PIECE * 4}.")
    data = args.workdir / f"{args.frames}x{args.clips}"
    if not data.exists():  # of whole records, since what is left over at the end may be dropped
        size = RecordConfig().size
        length = -(-(KNOWN + args.frames) // size) * size
        sizes = {"episodes": 16, "test_episodes": 2 * args.clips, "length": length}
        make_sprites(data, config=SpriteConfig(), seed=77, **sizes)
    rows: dict[str, dict[str, float]] = {}
    for name in args.worlds:
        world = worldsim.load(name)
        held = load_held_out(data, world.config, clips=args.clips, horizon=args.frames)
        for way in args.ways:
            rows[f"{name}, {way}"] = measure(world, held, way, frames=min(args.frames, held.horizon))
            (args.workdir / "drift.json").write_text(json.dumps(rows, indent=1) + "\n")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
