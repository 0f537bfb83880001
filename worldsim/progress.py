"""A counter on stderr for long jobs without a log of their own."""

from __future__ import annotations

import sys


class Counter:
    """One line that changes on a terminal, a line per tenth elsewhere.

    Args:
      what: is being done, such as ``recording``.
    """

    def __init__(self, what: str):
        self.what = what
        self._last = ""

    def __call__(self, part: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` things of a part, such as a split, are done."""
        terminal = sys.stderr.isatty()
        tenth = f"{part} {10 * done // max(1, total)}"
        if terminal or tenth != self._last:
            end = "\n" if done >= total or not terminal else ""
            start = "\r" if terminal else ""
            sys.stderr.write(f"{start}{self.what} {part}: {done}/{total}{end}")
            sys.stderr.flush()
        self._last = tenth
