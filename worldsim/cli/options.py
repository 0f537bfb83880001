"""What the verbs of the command line share: inputs, outputs, sampling, and config files."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Literal

import tyro

from worldsim.config import TrainConfig

FLAT = tyro.conf.arg(name="")
WORLD = "A world's folder, or the name of a bundled one."
INPUT = "A .mp4 .gif .webm .npz or picture file, or NAME:I for clip I bundled with world NAME."


def note(text: str) -> None:
    """Progress goes to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def tell(result: object) -> None:
    """What a verb made goes to stdout, a line each."""
    sys.stdout.write(f"{result}\n")
    sys.stdout.flush()


def positional(name: str, text: str) -> tuple[Any, Any]:
    """A positional argument with its name and its help."""
    return tyro.conf.Positional, tyro.conf.arg(metavar=name, help=text)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How chunks are drawn.

    Attributes:
      steps: masked passes per chunk at most; more is slower and better.
      temperature: 0 takes the likeliest codes and ignores the seed.
      refine_steps: of the refinement head, which draws the detail; 0 leaves it out, 4 where there is one.
      stabilize: noise that chunks which were made are said to have to those after them.
      guidance: how far to go away from what the nearest two chunks alone would say; takes twice the passes.
      doubt: nats of doubt up to which a pass draws codes together, so that fewer passes do; 0 takes all.
      leads: first passes that draw the one least certain code each, fewer than --steps; with 2, what is
        rare in a world, such as a sprite's turn, comes more often.
      revisions: last of --steps, each of which draws half of a chunk's codes anew given the others, so that
        what does not fit together is mended; where nobody says otherwise half of them, an even number (4 of
        8, none of 3), and none with --doubt.
      seed: of all randomness.
    """

    steps: int = 8
    temperature: float = 1.0
    refine_steps: int | None = None
    stabilize: float = 0.0
    guidance: float = 0.0
    doubt: float = 0.0
    leads: int = 0
    revisions: int | None = None
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """As the verbs of a world take them."""
        import jax

        dials = dataclasses.asdict(self)
        seed = dials.pop("seed")
        return {**dials, "key": jax.random.key(seed)}


@dataclasses.dataclass(frozen=True)
class Output:
    """What becomes of the result.

    Attributes:
      out: .mp4 .gif .webm to look at, .png for a contact sheet, .npz for frames and actions as they are (of a
        rollout .mp4 or .webm).
      resize: bring frames of another size to the world's, as ``fit`` says (never stretched).
      fit: pad with black, or crop the overhang: crop for worlds of recordings imported so.
      json: print what was made, with scores, as JSON on stdout.
    """

    out: Path
    resize: bool = False
    fit: Literal["pad", "crop"] = "pad"
    json: bool = False

    @property
    def how(self) -> Literal["pad", "crop"] | None:
        """How inputs are resized, or None."""
        return self.fit if self.resize else None


@dataclasses.dataclass(frozen=True)
class Judging:
    """How much an evaluation looks at.

    Attributes:
      clips: held-out windows; more take longer and narrow the bands.
      horizon: frames to make in each direction; beside the truth less where episodes are short.
      samples: answers to each question.
      sinks: first chunks seen that stay in view of what goes on, however far.
      split: of the data, that nobody trained on; by default the one that the world's training held out.
    """

    clips: int = 12
    horizon: int = 64
    samples: int = 2
    sinks: int = 0
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Making:
    """How a dataset is made.

    Attributes:
      seed: of everything.
      overwrite: replace what is in the folder.
    """

    seed: int = 0
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Processes:
    """Of which processes this is one; Slurm, Open MPI 4, Cloud TPU and indexed jobs of Kubernetes need
    none of it.

    Attributes:
      coordinator: host:port of process 0, which every process can reach.
      processes: how many there are; 1 works alone, whatever launched it.
      process: which of them this is, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def join(self) -> bool:
        """Join the others, if there are any; whether this one leads, and so says what is said once."""
        import jax

        from worldsim.parallel import distributed

        distributed.start(self.coordinator, processes=self.processes, index=self.process)
        lead = distributed.is_lead()
        if lead and jax.process_count() > 1:
            note(f"worldsim: {jax.process_count()} processes, {jax.device_count()} devices")
        return lead


def read_input(text: str, world: Any, *, resize: Literal["pad", "crop"] | None) -> Any:
    """A clip from a file or, as ``NAME:I``, from those bundled with a world; resized in that way, if any.

    Colours of a file become grey for a world that is grey, and the other way round.
    """
    from worldsim.checkpoint import bundled_worlds
    from worldsim.data.video import read_video, resize_clip, with_channels
    from worldsim.worlds import clips

    name, _, index = text.partition(":")
    if name in bundled_worlds() and index.isdigit():
        found = clips(name)
        if int(index) >= len(found):
            raise ValueError(
                f"{text}: {name} has {len(found)} clips; take {name}:0 to {name}:{len(found) - 1}."
            )
        clip = found[int(index)]
    else:
        clip = with_channels(read_video(text), world.config.tokenizer.channels)
    tokenizer = world.config.tokenizer
    return resize_clip(clip, tokenizer.height, tokenizer.width, how=resize) if resize else clip


def clips_in(folder: Path, out: Path) -> list[tuple[Path, Path]]:
    """The clips of a folder by name, and for each where its result goes: ``{}`` in ``out`` is its name.

    Raises:
      ValueError: no clips; no ``{}``; results that would overwrite each other or a clip.
    """
    from worldsim.data.video import READABLE

    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READABLE]
    if not files:
        raise ValueError(f"{folder}: a folder without clips; it takes {' '.join(READABLE)} files.")
    if "{}" not in str(out):
        raise ValueError(
            f"--out {out}: {folder} has {len(files)} clips; put {{}} where the name of each is to stand, "
            "such as made/{}.mp4."
        )
    made = [Path(str(out).replace("{}", path.stem)) for path in files]
    seen = [path.resolve() for path in (*files, *made)]
    if twice := sorted({str(path) for path in made if seen.count(path.resolve()) > 1}):
        raise ValueError(f"--out {out}: {', '.join(twice)} would overwrite a clip or another result.")
    return list(zip(files, made, strict=True))


def read_actions(text: str | None, world: Any) -> Any:
    """Actions from an ``.npy`` file, or written out: ``right,right,noop`` or ``2,2,0``.

    Raises:
      ValueError: a name that the world doesn't have; its names are listed.
    """
    import numpy as np

    if text is None:
        return None
    if text.endswith(".npy"):
        try:
            return np.atleast_1d(np.load(text, allow_pickle=False))
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"--actions {text}: can't be read as one plain array ({error}).") from error
    names, rows = world.config.dynamics.action.names, []
    for word in (part.strip() for part in text.split(",")):
        if re.fullmatch(r"-?[0-9]+", word) and abs(int(word)) < 2**31:
            rows.append(int(word))
        elif word in names:
            rows.append(names.index(word))
        else:
            raise ValueError(
                f"--actions: no action {word!r}; the world has {', '.join(names) or 'numbers only'}."
            )
    return np.asarray(rows, np.int32)


def _meant(error: str) -> str:
    """The field that was likely meant, where a config was given an unknown one."""
    import worldsim.config as configs

    wrong = re.search(r"unexpected keyword argument '(\w+)'", error)
    kinds = [kind for kind in vars(configs).values() if dataclasses.is_dataclass(kind)]
    names = sorted({field.name for kind in kinds for field in dataclasses.fields(kind)})
    close = difflib.get_close_matches(wrong[1], names, n=1) if wrong else []
    return f"; did you mean {close[0]!r}?" if close else ""


def load_config(path: str | Path) -> TrainConfig:
    """Execute a config file and call its ``get_config``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: whatever it raises, with its line; or it has no ``get_config`` that returns a TrainConfig.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(
            f"No config {path}; give a Python file with get_config(), such as configs/pong.py."
        )
    spec = importlib.util.spec_from_file_location(f"worldsim_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        config = module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:
        steps = traceback.extract_tb(error.__traceback__)
        lines, said = [step.lineno for step in steps if step.filename == spec.origin], str(error)  # type: ignore[union-attr]
        if isinstance(error, SyntaxError) and error.filename == spec.origin:  # type: ignore[union-attr]
            lines, said = [error.lineno], error.msg
        elif not isinstance(error, (TypeError, ValueError)):  # the words of a KeyError are the key alone
            said = f"{type(error).__name__}: {said}"
        where = f"{path}:{lines[-1]}" if lines else path
        raise ValueError(f"{where}: {said.rstrip('.')}{_meant(said) or '.'}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"{path}: get_config() must return a worldsim.config.TrainConfig; got {type(config).__name__}."
        )
    return config
