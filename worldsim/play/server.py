"""The server behind the page: sockets, limits, and the one thread that runs the world.

Each socket is a session of its own and each session a task of its own; what touches JAX waits its turn in one
thread, a step at a time, so that several sessions go on side by side. Nobody else's page may talk to it: the
host that is asked for and the origin that asks must be those that it was started on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from worldsim.data.video import read_video, resize_clip, write_video
from worldsim.generate.extend import World
from worldsim.play import keys, messages
from worldsim.play.connection import POLICY, Connection
from worldsim.play.messages import MessageError
from worldsim.play.session import Dials, Session
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
TOO_MANY = 1013
"""Code that a socket is closed with: try again later."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server allows.

    Attributes:
      sessions: at once.
      idle: seconds without a message until a session ends.
      messages: per second, from one page.
      uploads: clips that are kept, and ``upload`` bytes of each.
      upload: see there.
    """

    sessions: int = 8
    idle: float = 600.0
    messages: int = 120
    uploads: int = 8
    upload: int = 16 * 2**20


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
        hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]"),
        limits: Limits = Limits(),
    ) -> None:
        """Take a world and the clips to begin with.

        Raises:
          ValueError: no clips.
        """
        if not clips:
            raise ValueError("play: no clips to begin with; give some.")
        self.world, self.clips, self.name, self.hosts, self.limits = world, list(clips), name, hosts, limits
        self._thread = ThreadPoolExecutor(1, "world")
        self.sessions: dict[str, Session | None] = {}
        self._uploads: OrderedDict[str, Clip] = OrderedDict()
        pages = [Route(f"/{path.name}", self._page) for path in sorted(PAGE.iterdir())]
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
        if host.rsplit(":", 1)[0] not in self.hosts and host not in self.hosts:
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc == host

    async def _page(self, request: Request) -> Response:
        if not self.allowed(request.headers):
            return PlainTextResponse("not for you", 403)
        path = PAGE / (request.url.path.strip("/") or "index.html")
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)

    async def _upload(self, request: Request) -> Response:
        """A clip or a picture to begin with; answers with its token."""
        if not self.allowed(request.headers) or request.headers.get("origin") is None:
            return PlainTextResponse("not for you", 403)
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self.limits.upload:
                return PlainTextResponse(f"more than {self.limits.upload >> 20} MiB", 413)
        suffix = Path(request.query_params.get("name", "")).suffix.lower()
        try:
            clip = await self.run(self._decode, bytes(data), suffix)
        except (ValueError, OSError) as error:
            return PlainTextResponse(str(error).replace(tempfile.gettempdir(), ""), 400)
        token = secrets.token_urlsafe(12)
        self._uploads[token] = clip
        while len(self._uploads) > self.limits.uploads:
            self._uploads.popitem(last=False)
        return PlainTextResponse(token)

    def _decode(self, data: bytes, suffix: str) -> Clip:
        tokenizer = self.world.config.tokenizer
        with tempfile.TemporaryDirectory(prefix="worldsim-play-") as folder:
            path = Path(folder) / f"clip{suffix}"
            path.write_bytes(data)
            clip = read_video(path)
        small = resize_clip(clip[-256:], tokenizer.height, tokenizer.width, how="pad")
        f = tokenizer.frames_per_chunk
        return small[len(small) % f :] if len(small) >= f else Clip(np.repeat(small.frames[:1], f, axis=0))

    async def _save(self, request: Request) -> Response:
        """The timeline of a session as an mp4."""
        session = self.sessions.get(request.path_params["session"])
        if not self.allowed(request.headers) or session is None:
            return PlainTextResponse("no such session", 404)
        data = await self.run(self._movie, session)
        told = {**HEADERS, "Content-Disposition": f'attachment; filename="{self.name}.mp4"'}
        return Response(data, media_type="video/mp4", headers=told)

    @staticmethod
    def _movie(session: Session) -> bytes:
        with tempfile.TemporaryDirectory(prefix="worldsim-play-") as folder:
            return Path(write_video(Path(folder) / "play.mp4", session.clip())).read_bytes()

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
