"""A training looked at again and again, until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldsim.inspect import pages
from worldsim.inspect.findings import Findings
from worldsim.inspect.runs import read_run, run_findings


def watch(
    folder: str | Path,
    seconds: float,
    *,
    show: Callable[[Findings], Any],
    out: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Findings:
    """Show a run every so many seconds until all that it trains is trained.

    Args:
      folder: the workdir; it need not be there yet.
      seconds: between two looks.
      show: is given each look.
      out: a page that is rewritten with each look, and loads itself anew until the run or Ctrl-C ends it.
      sleep: what waits.

    Returns:
      The last look.

    Raises:
      ValueError: no time between two looks.
    """
    if not seconds > 0:
        raise ValueError(
            f"inspect: --watch {seconds:g}; look every second or less often, such as --watch 10."
        )
    last = None
    while True:
        run = read_run(folder)
        found = run_findings(run)
        if out is not None and found.facts != last:
            pages.write(out, found, refresh=None if run.done else seconds)
        last = found.facts
        show(found)
        if run.done:
            return found
        try:
            sleep(seconds)
        except KeyboardInterrupt:
            if out is not None:
                pages.write(out, found)
            raise
