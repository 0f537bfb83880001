"""Where a stream or a simulator stands, as a file: stopped today, gone on with tomorrow, to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from worldsim.checkpoint import read_tensors
from worldsim.generate import rollout
from worldsim.generate.extend import World
from worldsim.generate.rollout import RolloutState
from worldsim.generate.simulate import SimulatorState
from worldsim.generate.stream import Standing
from worldsim.models.cache import KVCache

NUMBERS = ("next_order", "ring", "pinned")
COUNTS = ("position", "waiting", "made", "direction", "fps")
PLACES = ("time", "order", "turn", "pinned")
DRAWN = ("codes", "latents", "rewards", "ends")


def save_standing(path: str | Path, standing: Standing, *, asked: dict[str, Any] | None = None) -> Path:
    """Write where a stream stands.

    Args:
      path: of one file, written whole or not at all.
      standing: of the stream.
      asked: JSON values that whoever goes on has to know, such as the options.
    """
    state = standing.state
    arrays = {"codes": standing.codes, **({} if standing.told is None else {"told": standing.told})}
    known = {
        **{name: getattr(state, name) for name in NUMBERS},
        **{name: getattr(standing, name) for name in COUNTS},
        "asked": asked or {},
    }
    return _write(Path(path), state.cache, state.keys, arrays, known)


def load_standing(path: str | Path, world: World) -> tuple[Standing, dict[str, Any]]:
    """Read what :func:`save_standing` wrote, and the values beside it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none, or one of a world of other sizes; which weights it is of ``asked`` may tell.
    """
    path = Path(path)
    cache, keys, arrays, known = _read(path, world, (*NUMBERS, *COUNTS, "asked"), what="a rollout")
    state = RolloutState(cache, keys, **{name: known[name] for name in NUMBERS})
    counts = {name: known[name] for name in COUNTS}
    return Standing(state, codes=arrays["codes"], told=arrays.get("told"), **counts), known["asked"]


def save_simulated(path: str | Path, state: SimulatorState, world: World) -> Path:
    """Write where simulated worlds stand, in one file, whole or not at all.

    Args:
      path: of the file; its folder is made.
      state: where they stand.
      world: that they are of; its weights' hash is written beside them, where it has one.
    """
    arrays = {name: getattr(state, name) for name in (*PLACES, *DRAWN) if getattr(state, name) is not None}
    weights = world.provenance.get("weights_sha256")
    return _write(Path(path), state.cache, state.keys, arrays, {"weights": weights})


def load_simulated(path: str | Path, world: World) -> SimulatorState:
    """Read what :func:`save_simulated` wrote; a step from it is a step from what was saved, bit for bit.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none, or one of another world.
    """
    path = Path(path)
    cache, keys, arrays, _ = _read(path, world, (), what="a simulator")
    missing = [name for name in (*PLACES, *DRAWN[:2], *world.config.dynamics.outcomes) if name not in arrays]
    if missing:
        raise ValueError(f"{path}: is not where a simulator stood (it has no {missing}).")
    found = {name: jnp.asarray(arrays[name]) for name in (*PLACES, *DRAWN) if name in arrays}
    return SimulatorState(cache=cache, keys=keys, **found)


def _write(path: Path, cache: KVCache, keys: Array, arrays: dict[str, Any], known: dict[str, Any]) -> Path:
    from safetensors.numpy import save

    arrays = {
        **{f"keys/{i}": a for i, a in enumerate(cache.keys)},
        **{f"values/{i}": a for i, a in enumerate(cache.values)},
        "times": cache.times,
        "ids": cache.ids,
        "random": jax.random.key_data(keys),
        **arrays,
    }
    text = json.dumps({**known, "random": str(jax.random.key_impl(keys))})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    plain = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    part.write_bytes(save(plain, metadata={"worldsim": text}))
    part.replace(path)
    return path


def _read(
    path: Path, world: World, names: tuple[str, ...], *, what: str
) -> tuple[KVCache, Array, dict[str, np.ndarray], dict[str, Any]]:
    """The cache, the keys, all arrays and the values of a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else, or one of another world.
    """
    from safetensors import SafetensorError

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; {what} never stood here.")
    blob = path.read_bytes()
    try:
        arrays = read_tensors(blob)
        size = int.from_bytes(blob[:8], "little")
        known = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["worldsim"])
        layers = sum(name.startswith("keys/") for name in arrays)
        have = KVCache(
            keys=tuple(jnp.asarray(arrays[f"keys/{i}"]) for i in range(layers)),
            values=tuple(jnp.asarray(arrays[f"values/{i}"]) for i in range(layers)),
            times=jnp.asarray(arrays["times"]),
            ids=jnp.asarray(arrays["ids"]),
        )
        keys = jax.random.wrap_key_data(jnp.asarray(arrays["random"]), impl=known["random"])
        weights = known.get("weights")
        known = {name: known[name] for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: is not where {what} stood ({error!r}).") from error
    want = rollout.start(*world.dynamics, keys=keys).cache
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(cache)] for cache in (have, want)]
    if shapes[0] != shapes[1] or weights not in (None, world.provenance.get("weights_sha256", weights)):
        raise ValueError(f"{path}: is where {what} of another world stood; go on with that world.")
    return have, keys, arrays, known
