"""A counter on stderr for long jobs without a log of their own."""

from __future__ import annotations

import sys
import time


class Counter:
    """One line that changes on a terminal, a line per tenth elsewhere.

    Args:
      what: is being done, such as ``recording``.
      ahead: also say how long the rest will take, as fast as it went since the first call.
    """

    def __init__(self, what: str, *, ahead: bool = False):
        self.what, self.ahead = what, ahead
        self._last = ""
        self._began: tuple[float, int] | None = None

    def __call__(self, part: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` things of a part, such as a split, are done."""
        terminal = sys.stderr.isatty()
        tenth = f"{part} {10 * done // max(1, total)}"
        if terminal or tenth != self._last:
            end = "\n" if done >= total or not terminal else ""
            start = "\r" if terminal else ""
            sys.stderr.write(f"{start}{self.what} {part}: {done}/{total}{self._rest(done, total)}{end}")
            sys.stderr.flush()
        self._last = tenth

    def _rest(self, done: int, total: int) -> str:
        """How long the rest will take, where that is asked for and known."""
        now = time.monotonic()
        if not self.ahead or self._began is None or done <= self._began[1]:
            self._began = self._began or (now, done)
            return ""
        seconds = (now - self._began[0]) / (done - self._began[1]) * (total - done)
        minutes, hours = seconds / 60, seconds / 3600
        left = (
            f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
        )
        return f", {left} left "
