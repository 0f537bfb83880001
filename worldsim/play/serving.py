"""A play server from its first line to its last."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable, Sequence

from worldsim.generate.extend import World
from worldsim.play.session import Dials, Session
from worldsim.types import Clip

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MISSING = "play needs starlette, uvicorn and websockets ({}): pip install 'worldsim[play]'"


def warm(world: World, clip: Clip) -> None:
    """Compile what playing needs, before anyone waits for it."""
    session = Session(world, clip, Dials())
    session.step(session.present.action)
    session.back()
    session.step(session.present.action)


async def serve(
    world: World,
    clips: Sequence[Clip],
    *,
    name: str,
    host: str,
    port: int,
    browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C.

    Args:
      browser: open the page.
      say: is told the page's address once there is something to see there.

    Raises:
      ModuleNotFoundError: the extra ``play`` is missing.
      OSError: the port is taken.
    """
    try:
        import uvicorn

        from worldsim.play.server import Play
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING.format(error)) from error
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    hosts = LOOPBACK if shown in LOOPBACK else (shown, *LOOPBACK)
    play = Play(world, clips, name=name, hosts=hosts)
    await play.run(warm, world, clips[0])
    settings = uvicorn.Config(
        play.app, log_level="warning", ws_max_size=65536, ws="websockets-sansio", timeout_graceful_shutdown=2
    )
    say(address)
    if browser:
        webbrowser.open(address)
    await uvicorn.Server(settings).serve([listening])
