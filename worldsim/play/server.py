"""The server behind the page: sockets, limits, and the one thread that runs the world.

Each socket is a session of its own and each session a task of its own; what touches JAX waits its turn in one
thread, a step at a time, so that several sessions go on side by side. Nobody else's page may talk to it: the
host that is asked for and the origin that asks must be those that it was started on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from worldsim.data.video import write_video
from worldsim.generate.extend import World
from worldsim.play import keys, messages
from worldsim.play.connection import POLICY, Connection
from worldsim.play.messages import MessageError
from worldsim.play.session import Dials, Session
from worldsim.play.uploads import read_upload
from worldsim.types import Clip

T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine to itself."""

HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")
"""A host and perhaps a port, and nothing else."""

TOO_MANY = 1013
"""Code that a socket is closed with: try again later."""

ROUNDS = 4
"""How often a saved loop goes round."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server allows.

    Attributes:
      sessions: at once.
      idle: seconds without a message until a session ends.
      messages: per second, from one page.
      uploads: clips that are kept, and ``upload`` bytes of each.
      upload: see there.
      patience: seconds that an upload may take to come.
    """

    sessions: int = 8
    idle: float = 600.0
    messages: int = 120
    uploads: int = 8
    upload: int = 16 * 2**20
    patience: float = 60.0


class Play:
    """A world that is played.

    Attributes:
      app: the ASGI application.
      sessions: by token; None where one has not begun.
    """

    def __init__(
        self,
        world: World,
        clips: Sequence[Clip],
        *,
        name: str = "world",
        hosts: Sequence[str] = LOOPBACK,
        limits: Limits = Limits(),
    ) -> None:
        """Take a world and the clips to begin with.

        Args:
          name: of the world, for the page.
          hosts: names that the server may be asked for by; none allows all of them.
          limits: of one server.

        Raises:
          ValueError: no clips.
        """
        if not clips:
            raise ValueError("play: no clips to begin with; give some.")
        self.world, self.name, self.hosts, self.limits = world, name, hosts, limits
        plain = world.config.dynamics.action.kind == "none"
        self.clips = [dataclasses.replace(clip, actions=None) if plain else clip for clip in clips]
        self._thread, self._reading = ThreadPoolExecutor(1, "world"), asyncio.Lock()
        self.sessions: dict[str, Session | None] = {}
        self._uploads: OrderedDict[str, Clip] = OrderedDict()
        self._files = {path.name: path for path in sorted(PAGE.iterdir()) if path.suffix in KINDS}
        pages = [Route(f"/{name}", self._page) for name in self._files]
        routes = [
            Route("/", self._page), *pages,
            Route("/clip", self._upload, methods=["POST"]),
            Route("/save/{session}", self._save),
            WebSocketRoute("/play", self._play),
        ]  # fmt: skip
        self.app = Starlette(routes=routes)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call something in the thread that touches JAX."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def allowed(self, headers: Any) -> bool:
        """Whether a request was meant for this server and comes from its own page."""
        host = headers.get("host", "")
        found = HOST.fullmatch(host)
        if found is None or (self.hosts and found[1].lower() not in self.hosts):
            return False
        origin = headers.get("origin")
        return origin is None or origin in (f"http://{host}", f"https://{host}")

    async def _page(self, request: Request) -> Response:
        if not self.allowed(request.headers):
            return PlainTextResponse("not for you", 403)
        path = self._files[request.scope["path"].strip("/") or "index.html"]
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)

    async def _upload(self, request: Request) -> Response:
        """A clip or a picture to begin with; answers with its token."""
        if not self.allowed(request.headers) or request.headers.get("origin") is None:
            return PlainTextResponse("not for you", 403)
        if request.query_params.get("session") not in self.sessions:
            return PlainTextResponse("no such session", 403)
        suffix = Path(request.query_params.get("name", "")).suffix.lower()
        try:
            async with self._reading:  # one body in memory at a time
                data = await asyncio.wait_for(self._body(request), self.limits.patience)
                clip = await asyncio.to_thread(read_upload, data, suffix, self.world.config.tokenizer)
        except TimeoutError:
            return PlainTextResponse(f"not here within {self.limits.patience:g} seconds", 408)
        except OverflowError as error:
            return PlainTextResponse(str(error), 413)
        except Exception as error:  # whatever a file that is not what it says makes a decoder do
            return PlainTextResponse(str(error), 400)
        token = secrets.token_urlsafe(12)
        self._uploads[token] = clip
        while len(self._uploads) > self.limits.uploads:
            self._uploads.popitem(last=False)
        return PlainTextResponse(token)

    async def _body(self, request: Request) -> bytes:
        """Raises OverflowError where there is too much of it."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self.limits.upload:
                raise OverflowError(f"more than {self.limits.upload >> 20} MiB")
        return bytes(data)

    async def _save(self, request: Request) -> Response:
        """The timeline of a session as an mp4, or its last loop a few times over."""
        session = self.sessions.get(request.path_params["session"])
        if not self.allowed(request.headers) or session is None:
            return PlainTextResponse("no such session", 404)
        looped = request.query_params.get("what") == "loop"
        if looped and session.looped is None:
            return PlainTextResponse("no loop yet", 404)
        clip = _rounds(session.looped.clip) if looped and session.looped else await self.run(session.clip)
        data = await asyncio.to_thread(self._movie, clip)
        name = f"{self.name}-loop" if looped else self.name
        told = {**HEADERS, "Content-Disposition": attachment(name, ".mp4")}
        return Response(data, media_type="video/mp4", headers=told)

    @staticmethod
    def _movie(clip: Clip) -> bytes:
        with tempfile.TemporaryDirectory(prefix="worldsim-play-") as folder:
            return Path(write_video(Path(folder) / "play.mp4", clip)).read_bytes()

    async def _play(self, socket: WebSocket) -> None:
        if not self.allowed(socket.headers):
            await socket.close(POLICY)
            return
        await socket.accept()
        if len(self.sessions) >= self.limits.sessions:
            await socket.close(TOO_MANY, "too many sessions; close another page")
            return
        token = secrets.token_urlsafe(12)
        self.sessions[token] = None  # its place, before it has begun
        try:
            await Connection(self, socket, token).serve()
        finally:
            del self.sessions[token]

    def hello(self, token: str) -> dict[str, Any]:
        """What the page has to know."""
        config = self.world.config
        action = config.dynamics.action
        names = list(action.names) or [str(i) for i in range(action.size)]
        discrete = action.kind == "discrete"
        return {
            "type": "hello", "session": token, "world": self.name, "clips": len(self.clips),
            "fps": config.fps, "height": config.tokenizer.height, "width": config.tokenizer.width,
            "kind": action.kind, "size": action.size, "names": names if discrete else [],
            "held": keys.held_for(names) if discrete else [],
            "aliases": keys.aliases(names) if discrete else {},
            "idle": keys.idle(names, action.size) if discrete else None,
            "dials": dataclasses.asdict(Dials()), "refines": self.world.refine is not None,
        }  # fmt: skip

    def begin(self, told: dict[str, Any], session: Session | None) -> Session:
        """The session that a page asks for, standing at the end of its clip.

        Raises:
          MessageError: a clip that is not there.
        """
        which, dials = told.get("clip", 0), Dials(**told.get("dials", {}))
        if isinstance(which, str):
            clip = self._uploads.get(which)
            if clip is None:
                raise MessageError("that clip is gone; send it again")
        else:
            clip = self.clips[int(messages.number(which, "clip", 0, len(self.clips) - 1))]
        if session is None:
            return Session(self.world, clip, dials)
        session.start(clip, dials)
        return session


def attachment(name: str, suffix: str) -> str:
    """A header that names a file after a world, whatever that is called: of a path its last part."""
    name = re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "world"
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"attachment; filename=\"{plain}{suffix}\"; filename*=UTF-8''{quote(name + suffix, safe='')}"


def _rounds(clip: Clip) -> Clip:
    return Clip(np.concatenate([clip.frames] * ROUNDS), fps=clip.fps)
