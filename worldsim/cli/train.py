"""The verb that trains a world, from the shell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from worldsim.cli.options import FLAT, Processes, load_config, positional, tell
from worldsim.config import TrainConfig


def train_verb(args: Sequence[str] = ()) -> Callable[..., None]:
    """The verb ``train``, with the defaults of the config file that the arguments name."""
    pairs = zip(("", *args), args, strict=False)
    words = [word for before, word in pairs if not word.startswith("-") and not before.startswith("--")]
    defaults = load_config(words[0]) if words else TrainConfig()

    def train(
        config: Annotated[Path, *positional("CONFIG", "A Python file with get_config(); it is executed.")],
        workdir: Path,
        overrides: Annotated[TrainConfig, FLAT] = defaults,
        stage: Literal["tokenizer", "refine", "dynamics", "all"] = "all",
        mesh: str = "",
        attention: Literal["ring", "allgather"] = "ring",
        several: Annotated[Processes, FLAT] = Processes(),
    ) -> None:
        """Train a world, or go on training it; every field of the config can be overridden.

        Example: worldsim train configs/pong.py --workdir runs/pong --tokenizer.steps 2000

        Args:
          workdir: for checkpoints, logs, samples and, at the end, the world.
          stage: which to train; refine and dynamics need a trained tokenizer in the workdir.
          mesh: devices by axis, such as data=2,fsdp=2,context=2,tensor=1; -1 takes what is left.
          attention: over sequences that axis context spreads: keys passed round, or all brought to all.
        """
        from worldsim.parallel.mesh import make_mesh, parse_mesh
        from worldsim.train.run import train as run

        if not words or Path(words[0]) != config:
            raise ValueError(f"{config}: give the config right after the word train.")
        lead = several.join()
        place = make_mesh(parse_mesh(mesh)) if mesh else None
        folder = run(overrides, workdir, stage=stage, mesh=place, strategy=attention)
        if lead:
            tell(folder)

    return train
