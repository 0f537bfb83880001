"""Work given to Apache Beam: functions over many items, and records encoded and written through TFDS.

Workers and the machine that starts them share a file system: items are read from it, and results lie on it
until they are collected. No item or result is sent through a pipeline, whose description has to stay small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.builders import Part
from worldsim.data.info import FileInfo
from worldsim.data.recordings import Found
from worldsim.data.spool import Spool
from worldsim.data.stores import VERSION, features_of, load_tfds, record_of


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """Who does the work.

    Attributes:
      runner: ``DirectRunner``, ``DataflowRunner``, ``FlinkRunner``, ``SparkRunner``, or any that Beam knows.
      options: pipeline options as Beam documents them, ``name=value`` or ``name``, each with or without
        leading dashes.
    """

    runner: str
    options: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """The options as Beam parses them.

        Raises:
          ValueError: an option without a name, or one that names a runner; all are told.
        """
        plain = [option.strip().lstrip("-") for option in self.options]
        wrong = [option for option, text in zip(self.options, plain, strict=True)
                 if not text.split("=")[0].isidentifier()]  # fmt: skip
        if wrong:
            raise ValueError(f"Beam options {wrong}: give name=value or name, such as project=my-project.")
        if any(text.split("=")[0] == "runner" for text in plain):
            raise ValueError("Beam options: give the runner by --beam-runner, not among the options.")
        return [f"--{text}" for text in plain]


@dataclasses.dataclass(frozen=True)
class Placed:
    """A decoded recording with its place in a split.

    Attributes:
      spool: its frames and actions.
      episode: its number in the split.
      record: the number of its first record among those that are written together.
      parts: how it is cut into records.
    """

    spool: Spool
    episode: int
    record: int
    parts: tuple[Part, ...]


def load_beam() -> Any:
    """The ``apache_beam`` module.

    Raises:
      ModuleNotFoundError: it is not installed; the extra is named.
    """
    try:
        return importlib.import_module("apache_beam")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"A Beam runner needs apache-beam ({error}); install it with: pip install 'worldsim[beam]'"
        ) from error


class Workers:
    """Beam's workers under one config.

    Args:
      config: runner and options.
      folder: made for what is under way, and removed by :meth:`clean`; every worker has to see it.
      seen: what every worker has to see besides.

    Raises:
      ModuleNotFoundError: apache-beam, or what the runner needs of it, is not installed.
      ValueError: no such runner, or options that Beam does not take.
    """

    def __init__(self, config: BeamConfig, folder: Path, seen: Path) -> None:
        self._beam, self._config = load_beam(), config
        self._folder, self._seen = folder, seen
        self._check()

    def _options(self) -> Any:
        module = importlib.import_module("apache_beam.options.pipeline_options")
        return module.PipelineOptions(flags=self._config.flags())

    def _check(self) -> None:
        """Refuse before anything is read what would fail, or be left out, when the work begins."""
        runner, options = self._config.runner, self._options()
        try:
            known = options.get_all_options()
            pipeline = self._beam.Pipeline(runner=runner, options=options)
        except (ValueError, TypeError, AttributeError, SystemExit) as error:
            told = "Beam's own message stands above" if isinstance(error, SystemExit) else str(error)
            raise ValueError(
                f"Beam runner {runner!r} with the options {list(self._config.options)}: "
                + " ".join(told.splitlines())
            ) from error
        except ImportError as error:
            raise ModuleNotFoundError(f"Beam runner {runner!r}: {error}", name=error.name) from error
        portable = importlib.import_module("apache_beam.runners.portability.portable_runner")
        if not isinstance(pipeline.runner, portable.PortableRunner):  # those ask a server what it knows
            unknown = sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))
            if unknown:
                raise ValueError(f"Beam options {', '.join(unknown)}: Beam does not know them.")

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """What a function of a module returns for each item, computed by the workers.

        Items and results travel as JSON (:func:`_text`); an item may be computed more than once.

        Raises:
          RuntimeError: a worker failed, or its results can't be seen here.
        """
        if not items:
            return []
        folder = self._task(items)
        with self._told():
            pipeline = self._beam.Pipeline(runner=self._config.runner, options=self._options())
            numbers = pipeline | self._beam.Create(range(len(items)))
            _ = numbers | self._beam.Map(_do, function=function, folder=folder, seen=self._seen)
            pipeline.run().wait_until_finish()
        files = [folder / f"{number}.json" for number in range(len(items))]
        lost = sum(not file.exists() for file in files)
        if lost:
            raise RuntimeError(
                f"Beam runner {self._config.runner!r} ended without {lost} of {len(items)} results. {_SHARED}"
            )
        return [_value(file.read_text()) for file in files]

    def write(self, name: str, splits: Mapping[str, Sequence[Placed]]) -> Path:
        """Write the records of decoded recordings as a TFDS dataset, in their order; return its folder.

        Raises:
          RuntimeError: a worker failed.
        """
        tfds, beam = load_tfds(), self._beam

        adhoc = tfds.dataset_builders.AdhocBuilder

        class Recordings(adhoc, skip_registration=True):  # pyright: ignore
            """TFDS's own builder for this asks TensorFlow first what each split is."""

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                del dl_manager
                return dict(self._split_datasets)

        first = next(iter(splits.values()))[0].spool
        transforms = {
            split: beam.Create(range(len(placed)))
            | beam.FlatMap(_records, folder=self._task(placed), seen=self._seen)
            for split, placed in splits.items()
        }
        with self._told():
            builder = Recordings(
                name=name, version=VERSION, features=features_of(tfds, next(first.episodes())),
                split_datasets=transforms, data_dir=str(self._folder / "tfds"), file_format="array_record",
                disable_shuffling=True,
            )  # fmt: skip
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    beam_runner=self._config.runner, beam_options=self._options(), try_download_gcs=False
                )
            )
        return Path(builder.data_dir)

    def home(self) -> Path:
        """A folder for what workers decode."""
        folder = self._folder / "decoded"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _task(self, items: Sequence[Any]) -> Path:
        """A new folder that holds the items and waits for their results."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        (folder / "items.json").write_text(_text(list(items)))
        return folder

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Beam's exceptions, of many kinds, as one that says where they are from; stdout is for results."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            raise RuntimeError(f"Beam runner {self._config.runner!r} failed: {error}") from error

    def clean(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)


_SHARED = (
    "Recordings and dataset have to lie on a file system that every worker has under the same path, such as "
    "NFS or a mounted bucket; a worker that runs in a container (environment_type DOCKER) needs it mounted."
)


_KINDS = {kind.__name__: kind for kind in (FileInfo, Found, Part, Placed, Spool)}
"""What items and results may hold beside plain values, paths and arrays."""


def _text(value: Any) -> str:
    """An item or a result as JSON, with the kind of each object in it."""

    def tagged(x: Any) -> dict[str, Any]:
        if isinstance(x, Path):
            return {"kind": "path", "path": str(x)}
        if isinstance(x, np.ndarray):
            return {"kind": "array", "dtype": x.dtype.name, "shape": x.shape, "values": x.ravel().tolist()}
        if type(x) in _KINDS.values():
            fields = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
            return {"kind": type(x).__name__, "fields": fields}
        raise TypeError(f"{type(x).__name__} can't go to Beam's workers; {sorted(_KINDS)} can.")

    return json.dumps(value, default=tagged)


def _value(text: str) -> Any:
    """The value of :func:`_text`; lists come back as tuples."""

    def frozen(x: Any) -> Any:
        return tuple(map(frozen, x)) if isinstance(x, list) else x

    def made(x: dict[str, Any]) -> Any:
        match x.pop("kind", None):
            case "path":
                return Path(x["path"])
            case "array":
                return np.array(x["values"], x["dtype"]).reshape(x["shape"])
            case str(kind):
                return _KINDS[kind](**{name: frozen(value) for name, value in x["fields"].items()})
        return x

    return frozen(json.loads(text, object_hook=made))


@functools.lru_cache(maxsize=4)
def _items(folder: Path) -> tuple[Any, ...]:
    return _value((folder / "items.json").read_text())


def _item(number: int, folder: Path, seen: Path) -> Any:
    hidden = [str(path) for path in (folder, seen) if not path.is_dir()]
    if hidden:
        raise FileNotFoundError(f"A worker can't see {' or '.join(hidden)}. {_SHARED}")
    return _items(folder)[number]


def _do(number: int, *, function: Callable[[Any], Any], folder: Path, seen: Path) -> None:
    """In a worker: compute one result, which appears as a whole or not at all."""
    result = function(_item(number, folder, seen))
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "w") as file:
        file.write(_text(result))
    Path(name).replace(folder / f"{number}.json")


def _records(number: int, *, folder: Path, seen: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """In a worker: the records of one recording, each with its number, by which TFDS sorts them."""
    placed: Placed = _item(number, folder, seen)
    record = placed.record
    for episode, part in zip(placed.spool.episodes(), placed.parts, strict=True):
        for start, stop in part.spans:
            yield record, record_of(episode, placed.episode, start, stop)
            record += 1
