"""worldsim: learn a world from video and run it, in every direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldsim.generate.extend import Generated, World
    from worldsim.generate.simulate import Simulator, SimulatorState
    from worldsim.types import Clip

__all__ = ["Clip", "Generated", "Simulator", "SimulatorState", "World", "load"]
__version__ = "0.1.0"


def load(path_or_name: Any) -> World:
    """Rebuild a world from its folder or a bundled name; see :meth:`World.load`."""
    from worldsim.generate.extend import World

    return World.load(path_or_name)


def __getattr__(name: str) -> Any:
    """Names that need JAX are imported when they are first used."""
    if name in ("Generated", "World"):
        from worldsim.generate import extend

        return getattr(extend, name)
    if name in ("Simulator", "SimulatorState"):
        from worldsim.generate import simulate

        return getattr(simulate, name)
    if name == "Clip":
        from worldsim.types import Clip

        return Clip
    raise AttributeError(f"module 'worldsim' has no attribute {name!r}; it has {', '.join(__all__)}")
