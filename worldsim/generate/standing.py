"""Where a stream stands, as a file: stopped today, gone on with tomorrow, to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldsim.checkpoint import read_tensors
from worldsim.generate import rollout
from worldsim.generate.extend import World
from worldsim.generate.rollout import RolloutState
from worldsim.generate.stream import Standing
from worldsim.models.cache import KVCache

NUMBERS = ("next_order", "ring", "pinned")
COUNTS = ("position", "waiting", "made", "direction", "fps")


def save_standing(path: str | Path, standing: Standing, *, asked: dict[str, Any] | None = None) -> Path:
    """Write where a stream stands.

    Args:
      path: of one file, written whole or not at all.
      standing: of the stream.
      asked: JSON values that whoever goes on has to know, such as the options.
    """
    from safetensors.numpy import save

    state, cache = standing.state, standing.state.cache
    arrays = {
        **{f"keys/{i}": a for i, a in enumerate(cache.keys)},
        **{f"values/{i}": a for i, a in enumerate(cache.values)},
        "times": cache.times,
        "ids": cache.ids,
        "random": jax.random.key_data(state.keys),
        "codes": standing.codes,
        **({} if standing.told is None else {"told": standing.told}),
    }
    known = {
        **{name: getattr(state, name) for name in NUMBERS},
        **{name: getattr(standing, name) for name in COUNTS},
        "random": str(jax.random.key_impl(state.keys)),
        "asked": asked or {},
    }
    known = json.dumps(known)
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    plain = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    part.write_bytes(save(plain, metadata={"worldsim": known}))
    part.replace(path)
    return path


def load_standing(path: str | Path, world: World) -> tuple[Standing, dict[str, Any]]:
    """Read what :func:`save_standing` wrote, and the values beside it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none, or one of another world.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; no rollout was stopped here.")
    blob = path.read_bytes()
    try:
        arrays = read_tensors(blob)
        size = int.from_bytes(blob[:8], "little")
        known = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["worldsim"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: is not where a rollout stood ({error!r}).") from error
    layers = sum(name.startswith("keys/") for name in arrays)
    want = rollout.start(*world.dynamics, keys=jax.random.key(0)[None]).cache
    have = KVCache(
        keys=tuple(jnp.asarray(arrays[f"keys/{i}"]) for i in range(layers)),
        values=tuple(jnp.asarray(arrays[f"values/{i}"]) for i in range(layers)),
        times=jnp.asarray(arrays["times"]),
        ids=jnp.asarray(arrays["ids"]),
    )
    if [(x.shape, x.dtype) for x in jax.tree.leaves(have)] != [
        (x.shape, x.dtype) for x in jax.tree.leaves(want)
    ]:
        raise ValueError(f"{path}: is where a rollout of another world stood; go on with that world.")
    keys = jax.random.wrap_key_data(jnp.asarray(arrays["random"]), impl=known["random"])
    state = RolloutState(have, keys, **{name: known[name] for name in NUMBERS})
    counts = {name: known[name] for name in COUNTS}
    return Standing(state, codes=arrays["codes"], told=arrays.get("told"), **counts), known["asked"]
