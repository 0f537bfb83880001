"""Another ring attention to measure against: the package ``ringattention`` (extra: bench)."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

MISSING = "ringattention is not installed: pip install 'worldsim[bench]'"

BLOCKS = ((128, 256), (256, 256), (256, 512), (512, 512), (512, 1024))
"""Queries and keys per block that are tried."""


def ringattention() -> tuple[Callable[..., Any] | None, str]:
    """Its attention in plain JAX, or None and why it can't be had.

    It reads its platform from ``jax.lib.xla_bridge``, which JAX no longer has: there is one while it is
    imported.
    """
    import jax
    import jax.extend.backend

    shim = not hasattr(jax.lib, "xla_bridge")
    if shim:
        jax.lib.xla_bridge = types.SimpleNamespace(get_backend=jax.extend.backend.get_backend)  # type: ignore
    try:
        return importlib.import_module("ringattention").ringattention_jax, ""
    except ModuleNotFoundError as error:
        missing = error.name == "ringattention"
        return None, MISSING if missing else f"ringattention can't be imported: {error}"
    except (ImportError, AttributeError) as error:
        return None, f"ringattention can't be imported with jax {jax.__version__}: {error}"
    finally:
        if shim:
            del jax.lib.xla_bridge  # type: ignore[attr-defined]


def attend(q: Any, k: Any, v: Any, *, theirs: Callable[..., Any], blocks: tuple[int, int]) -> Any:
    """Its causal attention over contiguous shards on the mesh axis ``context``; blocks divide the shards."""
    import jax
    from jax.sharding import PartitionSpec

    options = {
        "causal_block_size": 1,
        "query_chunk_size": blocks[0],
        "key_chunk_size": blocks[1],
        "deterministic": True,
        "dropout_rng": None,
        "attn_pdrop": 0.0,
        "dtype": q.dtype,
        "policy": jax.checkpoint_policies.nothing_saveable,
        "precision": None,
        "prevent_cse": False,
    }
    tokens = PartitionSpec(None, "context", None, None)
    shards = jax.shard_map(
        lambda q, k, v: theirs(q, k, v, None, None, None, "context", True, options),
        in_specs=(tokens,) * 3,
        out_specs=tokens,
        check_vma=False,
    )
    return shards(q, k, v)
