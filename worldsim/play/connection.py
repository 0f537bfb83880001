"""One page: it is listened to and played to at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from worldsim.play import messages
from worldsim.play.messages import MessageError
from worldsim.play.session import CANDIDATES, Dials, Moment, Session

if TYPE_CHECKING:
    from worldsim.play.server import Play

POLICY = 1008
"""Code that a socket is closed with: behave."""

STRIP = 64
"""Frames of a timeline that are sent at once."""


class Connection:
    """A socket, its session and the task that steps it."""

    def __init__(self, play: Play, socket: WebSocket, token: str) -> None:
        self._server, self._socket, self._token = play, socket, token
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue(64)
        self._session: Session | None = None
        self._branches: set[int] = set()
        self._closing = False  # whether a loop was asked for and is not there yet
        self._mode, self._action, self._heard, self._fps = "pause", None, 0, play.world.config.fps or 15.0
        self._times: deque[float] = deque(maxlen=play.limits.messages)

    async def serve(self) -> None:
        """Until the page leaves, is silent for too long, or misbehaves."""
        player = asyncio.create_task(self._keep_playing())
        try:
            await self._say(self._server.hello(self._token))
            await self._listen(player)
        except WebSocketDisconnect:
            pass
        finally:
            player.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await player

    async def _listen(self, player: asyncio.Task[None]) -> None:
        limits = self._server.limits
        while not player.done():
            try:
                event = await asyncio.wait_for(self._socket.receive(), limits.idle)
            except TimeoutError:
                await self._socket.close(POLICY, "idle for too long")
                return
            if event["type"] == "websocket.disconnect":
                return
            now = time.monotonic()
            if len(self._times) == limits.messages and now - self._times[0] < 1.0:
                await self._socket.close(POLICY, "too many messages")
                return
            self._times.append(now)
            try:
                if event.get("text") is None:
                    raise MessageError("bytes, where text is read")
                self._take(messages.read(event["text"]))
            except MessageError as error:
                await self._say({"type": "error", "text": str(error)})

    def _take(self, told: dict[str, Any]) -> None:
        """What can be done at once is; the rest waits for the step that is under way."""
        match told["type"]:
            case "act":
                self._action, self._heard = self._checked(told.get("action")), int(told["heard"])
            case "pace":
                self._fps = float(told["fps"])
            case kind:
                if kind == "loop" and self._closing:
                    raise MessageError("a loop is being made already")
                try:
                    self._orders.put_nowait(told)
                    self._closing = self._closing or kind == "loop"
                except asyncio.QueueFull:
                    raise MessageError("too many orders at once") from None

    def _checked(self, action: Any) -> Any:
        """An action of the world, or None.

        Raises:
          MessageError: it is none.
        """
        kind, size = (getattr(self._server.world.config.dynamics.action, name) for name in ("kind", "size"))
        if action is None or kind == "none":
            return None
        if kind == "discrete":
            return int(messages.number(action, "action", 0, size - 1))
        if not isinstance(action, list) or len(action) != size:
            raise MessageError(f"an action is a list of {size} numbers")
        return [messages.number(value, "action", -1e6, 1e6) for value in action]

    async def _keep_playing(self) -> None:
        """Orders first, then a step if the world is running, at the pace that was asked for."""
        while True:
            session = self._session
            if session is None or self._mode == "pause" or not self._orders.empty():
                await self._carry_out(await self._orders.get())
                continue
            began = asyncio.get_running_loop().time()
            count = await self._advance(session)
            rest = began + count / self._fps - asyncio.get_running_loop().time()
            with contextlib.suppress(TimeoutError):  # an order ends the wait
                await self._carry_out(await asyncio.wait_for(self._orders.get(), max(0.0, rest)))

    async def _advance(self, session: Session) -> int:
        """One step in the mode that is on; how many frames it showed."""
        heard = self._heard
        call = session.back if self._mode == "back" else partial(session.step, self._action)
        try:
            shown = await self._server.run(call)
        except Exception as error:
            self._mode = "pause"
            await self._say({"type": "error", "text": str(error)})
            await self._say({"type": "mode", "mode": self._mode})
            return 0
        heard = heard if self._mode == "play" else 0
        await self._show(session, shown, heard)
        return len(shown)

    async def _carry_out(self, told: dict[str, Any]) -> None:
        run, session = self._server.run, self._session
        try:
            if told["type"] == "start":
                self._session = await run(self._server.begin, told, session)
                self._branches = set()
                self._server.sessions[self._token] = self._session
                await self._strip(self._session)
                return
            if session is None:
                raise MessageError("nothing has been started")
            match told["type"]:
                case "mode":
                    self._mode = told["mode"]
                    await self._say({"type": "mode", "mode": self._mode})
                case "step":
                    heard = self._heard
                    await self._show(session, await run(session.step, self._action), heard)
                case "branch":
                    await run(session.branch)
                    await self._show(session, [], self._heard)
                case "go":
                    await run(session.go, int(told["number"]))
                    await self._strip(session)
                case "dials":
                    await run(session.turn, Dials(**{**dataclasses.asdict(session.dials), **told["dials"]}))
                case "loop":
                    await self._loop(session, int(told["frames"]))
        except WebSocketDisconnect:
            raise
        except Exception as error:  # what one order did wrong must not end the session
            self._mode = "pause"
            await self._say({"type": "error", "text": str(error), "of": told["type"]})
            await self._say({"type": "mode", "mode": self._mode})
        finally:
            self._closing = self._closing and told["type"] != "loop"

    async def _loop(self, session: Session, frames: int) -> None:
        """Draw by draw, so that other pages have their turn between."""
        self._mode = "pause"
        await self._say({"type": "mode", "mode": "loop"})
        run = self._server.run
        drawn = [await run(partial(session.draw_loop, frames, number=i)) for i in range(CANDIDATES)]
        loop = await run(session.keep_loop, drawn)
        for i, frame in enumerate(loop.clip.frames):
            await self._send(frame, kind=messages.LOOPED, position=i)
        await self._say({"type": "loop", "frames": len(loop.clip), "shown": loop.shown, "holds": loop.holds})

    async def _show(self, session: Session, moments: Sequence[Moment], heard: int) -> None:
        """Frames of the present, branches that the page has not seen, and where the present is."""
        for i, one in enumerate(moments):
            await asyncio.sleep(1 / self._fps if i else 0)  # frames of one chunk, each for its time
            await self._send(one.frame, known=one.known, heard=heard, position=one.position)
        for number in sorted(set(session.branches) - self._branches):
            await self._send(session.branches[number].last.frame, kind=messages.BRANCH, position=number)
        self._branches = set(session.branches)
        low, at, high = session.span
        span = {"first": low, "present": at, "last": high}
        await self._say({"type": "span", **span, "branches": sorted(session.branches)})

    async def _strip(self, session: Session) -> None:
        """The timeline anew: all but the last frame only for the strip."""
        moments = session.moments[-STRIP:]
        await self._say({"type": "anew"})
        for one in moments[:-1]:
            await self._send(one.frame, kind=messages.PASSED, known=one.known, position=one.position)
        await self._show(session, moments[-1:], 0)

    async def _send(self, frame: Any, **about: Any) -> None:
        await self._socket.send_bytes(messages.frame_bytes(frame, **about))

    async def _say(self, told: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps(told))
