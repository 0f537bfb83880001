"""What every test runs under: JAX on the CPU, and shapes checked at each call of the package."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8"
)  # for what spreads over devices

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test or process compiles, the others read
    folder = tempfile.mkdtemp(prefix="worldsim-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

if importlib.util.find_spec("beartype"):
    from jaxtyping import install_import_hook

    # All but the types themselves: a Clip refuses what it can't hold in its own words, which are tested.
    parts = [path.stem for path in Path(__file__).parent.parent.joinpath("worldsim").iterdir()]
    checked = [f"worldsim.{part}" for part in sorted(parts) if part not in ("__init__", "types")]
    install_import_hook(checked, "typecheck.check")


FIRST = (
    *("test_notebooks", "test_end_to_end", "test_law_mesh", "test_train_loop", "test_law_sprites_model"),
    *("test_law_packing", "test_demo", "test_law_refine", "test_law_generate", "test_law_shares"),
)
"""The files that take longest: whichever process takes one last would work on alone."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files; within a file the order stays."""
    place = {name: at for at, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(FIRST)))


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
