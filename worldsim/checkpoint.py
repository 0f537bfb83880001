"""World folders: a world saved with all that rebuilds it, and found by path or name."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from worldsim.config import WorldConfig
from worldsim.parallel.sharding import by_path
from worldsim.plain import from_dict, to_dict

FORMAT = 1
"""Of the world folder; raised when older readers could not read it."""

_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I32": np.int32,
    "I64": np.int64,
    "U32": np.uint32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def nested(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """Leaves by path as nested dicts; parts that are numbers become the integers of a list."""
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, name = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "World folders keep their weights in the safetensors format; pip install safetensors."
        ) from error
    return safetensors


def save_world(
    folder: str | Path,
    *,
    config: WorldConfig,
    params: Mapping[str, Any],
    statistics: Mapping[str, np.ndarray],
    provenance: Mapping[str, Any],
    dtype: str = "float32",
) -> Path:
    """Write a world as one folder that :func:`load_world` rebuilds with nothing else given.

    Args:
      folder: made if needed; the four files of an older world in it are replaced.
      config: of the models.
      params: by part, such as ``tokenizer`` and ``dynamics``.
      statistics: of the data, arrays by name.
      provenance: JSON values: data, hashes, steps, scores; ``weights_sha256`` of the file is added.
      dtype: of the floating-point weights in the file, ``float32`` or ``bfloat16``. The tokenizer's are
        float32 all the same: rounded ones would give other codes than the dynamics was trained on.

    Returns:
      The folder.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"save_world: dtype {dtype!r}; use 'float32' or 'bfloat16'.")
    library = _safetensors()
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    weights = {}
    for path, leaf in by_path(dict(params)).items():
        array = np.asarray(leaf)
        kind = np.dtype(np.float32) if path.startswith("tokenizer/") else stored
        floating = jax.numpy.issubdtype(array.dtype, np.floating)
        weights[path] = np.array(array.astype(kind) if floating else array, order="C")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blob = library.numpy.save(weights)
    _write(folder / "weights.safetensors", blob)
    provenance = {**provenance, "weights_sha256": hashlib.sha256(blob).hexdigest()}
    part = folder / "statistics.npz.part"
    with part.open("wb") as file:
        np.savez_compressed(file, **statistics)  # type: ignore[arg-type]
    part.replace(folder / "statistics.npz")
    _write(folder / "provenance.json", _json(provenance))
    _write(folder / "config.json", _json({"format": FORMAT, "world": to_dict(config)}))
    return folder


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=False) + "\n").encode()


def load_world(
    folder: str | Path,
) -> tuple[WorldConfig, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_world` wrote.

    Returns:
      The config, the parameters as nested dicts of NumPy arrays (floating-point ones as float32),
      the data's statistics and the provenance.

    Raises:
      FileNotFoundError: files that a world has and the folder has not.
      ValueError: a folder of a newer format, damaged files, or weights of another world than the rest.
    """
    folder = Path(folder)
    names = ("config.json", "weights.safetensors", "statistics.npz", "provenance.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no world: it lacks {missing}; a world folder has {list(names)}."
        )
    with _whole(folder / "config.json") as path:
        stored = json.loads(path.read_text())
        form = stored.get("format")
    if form != FORMAT:
        raise ValueError(f"{folder} has format {form!r} and this version reads {FORMAT}; update worldsim.")
    with _whole(folder / "provenance.json") as path:
        provenance = json.loads(path.read_text())
        told = provenance.get("weights_sha256")
    with _whole(folder / "weights.safetensors") as path:
        blob = path.read_bytes()
        tensors = read_tensors(blob)
    if told is not None and told != hashlib.sha256(blob).hexdigest():
        raise ValueError(
            f"{folder} holds weights that its provenance.json does not know: a world that was half written "
            "over another. Write it anew (`worldsim train` exports what it has trained)."
        )
    weights = {}
    for path, array in sorted(tensors.items()):
        floating = jax.numpy.issubdtype(array.dtype, np.floating)
        weights[path] = array.astype(np.float32) if floating else array
    with _whole(folder / "statistics.npz") as path, np.load(path, allow_pickle=False) as arrays:
        statistics = dict(arrays)
    with _whole(folder / "config.json"):
        config = from_dict(WorldConfig, stored["world"])
    return config, nested(weights), statistics, provenance


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """What a damaged file makes its readers raise, as an error that names it."""
    damage = zipfile.BadZipFile, json.JSONDecodeError, EOFError, KeyError, TypeError, AttributeError
    try:
        yield path
    except (_safetensors().SafetensorError, *damage) as error:
        raise ValueError(f"{path} is damaged or not what its name says ({error!r}).") from error


def read_tensors(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, those of bfloat16 too."""
    return {
        name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
        for name, view in _safetensors().deserialize(blob)
    }


def bundled_worlds() -> dict[str, Path]:
    """The worlds that come with the package, by name."""
    root = Path(str(importlib.resources.files("worldsim") / "worlds"))
    if not root.is_dir():
        return {}
    return {path.name: path for path in sorted(root.iterdir()) if (path / "config.json").is_file()}


def resolve_world(path_or_name: str | Path) -> Path:
    """The folder of a world, given as a path or as a bundled world's name.

    Raises:
      FileNotFoundError: neither; the bundled names are listed.
    """
    folder = Path(path_or_name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    bundled = bundled_worlds()
    if str(path_or_name) in bundled:
        return bundled[str(path_or_name)]
    why = "has no config.json" if folder.exists() else "is no folder"
    raise FileNotFoundError(
        f"No world {str(path_or_name)!r}: it {why}; give a world's folder or a bundled name: "
        f"{', '.join(bundled) or 'none is bundled'}."
    )
