"""What every test runs under: JAX on the CPU, and shapes checked at each call of the package."""

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported

if importlib.util.find_spec("beartype"):
    from jaxtyping import install_import_hook

    install_import_hook("worldsim", "beartype.beartype")
