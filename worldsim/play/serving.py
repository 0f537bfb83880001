"""A play server from its first line to its last."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable, Sequence

from worldsim.generate.extend import World
from worldsim.play.session import Dials, Session
from worldsim.types import Clip

MISSING = "play needs starlette, uvicorn and websockets ({}): pip install 'worldsim[play]'"


def warm(world: World, clip: Clip) -> None:
    """Compile what playing needs, before anyone waits for it."""
    session = Session(world, clip, Dials())
    session.step()
    session.keep_loop([session.draw_loop()])
    while session.span[0] == 0:
        session.back()
    session.step()


def listen(host: str, port: int) -> socket.socket:
    """Take the port, before a world is loaded for it.

    Raises:
      ModuleNotFoundError: the extra ``play`` is missing.
      OSError: the port is taken.
      ValueError: no host.
    """
    try:
        import uvicorn  # noqa: F401

        import worldsim.play.server  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING.format(error)) from error
    if not host:
        raise ValueError("play: no host; give 127.0.0.1, or 0.0.0.0 to let everyone in.")
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


async def serve(
    world: World,
    clips: Sequence[Clip],
    *,
    name: str,
    host: str,
    listening: socket.socket,
    browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C.

    Args:
      host: that was asked for, and that pages may ask for.
      listening: from :func:`listen`.
      browser: open the page.
      say: is told the page's address once there is something to see there.
    """
    import uvicorn

    from worldsim.play.server import LOOPBACK, Play

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    anywhere = shown in ("0.0.0.0", "[::]")
    hosts = () if anywhere else LOOPBACK if shown in LOOPBACK else (shown.lower(), *LOOPBACK)
    play = Play(world, clips, name=name, hosts=hosts)
    await play.run(warm, world, play.clips[0])
    settings = uvicorn.Config(
        play.app, log_level="warning", ws_max_size=65536, ws="websockets-sansio", timeout_graceful_shutdown=2
    )
    say(address)
    if browser:
        webbrowser.open(address)
    await uvicorn.Server(settings).serve([listening])
