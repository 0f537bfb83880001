"""What every test runs under: JAX on the CPU, and shapes checked at each call of the package."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8"
)  # for what spreads over devices

if importlib.util.find_spec("beartype"):
    from jaxtyping import install_import_hook

    # All but the types themselves: a Clip refuses what it can't hold in its own words, which are tested.
    parts = [path.stem for path in Path(__file__).parent.parent.joinpath("worldsim").iterdir()]
    checked = [f"worldsim.{part}" for part in sorted(parts) if part not in ("__init__", "types")]
    install_import_hook(checked, "typecheck.check")


@pytest.fixture(scope="session")
def world():
    """A world of chunks of one frame with three actions; it keeps six chunks, two of them for good."""
    import tiny

    return tiny.make_world(tiny.config())


@pytest.fixture(scope="session")
def pair_world():
    """A world of chunks of two frames with three actions."""
    import tiny

    return tiny.make_world(tiny.config(frames_per_chunk=2), seed=1)
