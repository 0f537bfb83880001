"""The ``worldsim`` command: make data, train, run worlds and look at all three, from the shell."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from worldsim.cli.bench import bench
from worldsim.cli.data import data, import_folder, info, make_ale, make_doom, make_recall, make_sprites
from worldsim.cli.inspect import inspect, with_seconds
from worldsim.cli.options import note
from worldsim.cli.play import play
from worldsim.cli.rollout import rollout
from worldsim.cli.train import train_verb
from worldsim.cli.verbs import animate, demo, evaluate, extend, infill, loop, reconstruct

VERBS = {
    "data": data, "train": train_verb(), "extend": extend, "rollout": rollout, "infill": infill, "loop": loop,
    "animate": animate, "reconstruct": reconstruct, "play": play, "demo": demo, "evaluate": evaluate,
    "inspect": inspect, "bench": bench,
}  # fmt: skip
MAKERS = {"ale": make_ale, "doom": make_doom, "sprites": make_sprites, "recall": make_recall}
DATA = {"import": import_folder, "info": info}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; mistakes end it with one clear line on stderr and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:2] == ["data", "make"]:
            tyro.extras.subcommand_cli_from_dict(dict(MAKERS), prog="worldsim data make", args=args[2:])
        elif args[:1] == ["data"] and args[1:2] and args[1] in DATA:
            tyro.extras.subcommand_cli_from_dict(dict(DATA), prog="worldsim data", args=args[1:])
        else:
            args = with_seconds(args) if args[:1] == ["inspect"] else args
            verbs = VERBS | ({"train": train_verb(args[1:])} if args[:1] == ["train"] else {})
            tyro.extras.subcommand_cli_from_dict(dict(verbs), prog="worldsim", args=args)
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        note(f"worldsim: {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        note("worldsim: stopped")
        raise SystemExit(130) from None
