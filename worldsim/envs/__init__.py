"""Gymnasium environments that a world simulates (extra ``gym``), one for every bundled world.

    import gymnasium, worldsim.envs

    env = gymnasium.make("worldsim/Pong-v0")

To import this package is to register them, as Gymnasium's conventions have it (``gymnasium.register_envs``).
"""

from __future__ import annotations

import gymnasium

from worldsim.checkpoint import bundled_worlds

for _name in bundled_worlds():
    gymnasium.register(
        f"worldsim/{_name.capitalize()}-v0",
        entry_point="worldsim.envs.world:WorldEnv",
        vector_entry_point="worldsim.envs.world:WorldVectorEnv",
        kwargs={"world": _name},
    )
