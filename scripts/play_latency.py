"""How long from a key to the picture that it led to, and how many frames a second, in a real browser.

    python scripts/play_latency.py pong --seconds 60

Starts ``worldsim play``, opens its page in a headless Chromium and holds one key after another. A delay runs
from the key event to the animation frame after the canvas has got the first frame made under its action.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

KEYS = ("ArrowUp", "ArrowDown")


def measure(address: str, browser: str, seconds: float) -> dict:
    """Delays in milliseconds and frames a second over so many seconds."""
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto(address)
        page.wait_for_selector("#screen.made", timeout=120_000)
        page.wait_for_timeout(3000)
        seen = lambda: page.evaluate("() => ({ frames: measured.frames, delays: [...measured.delays] })")
        before, began, turn = seen(), time.monotonic(), 0
        while time.monotonic() < began + seconds:
            page.keyboard.down(KEYS[turn % 2])
            page.wait_for_timeout(370)
            page.keyboard.up(KEYS[turn % 2])
            page.wait_for_timeout(230)
            turn += 1
        after, took = seen(), time.monotonic() - began
    delays = sorted(after["delays"][len(before["delays"]) :])
    return {
        "seconds": round(took, 1),
        "keys": len(delays),
        "key_to_picture_ms_median": round(statistics.median(delays), 1),
        "key_to_picture_ms_p95": round(delays[int(0.95 * (len(delays) - 1))], 1),
        "fps": round((after["frames"] - before["frames"]) / took, 2),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Start, measure, stop, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    args = parser.parse_args()
    if not args.browser:
        raise SystemExit("No Chromium on this machine; name one with --browser PATH.")
    command = [sys.executable, "-m", "worldsim.cli", "play", args.world, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            print(json.dumps(measure(server.stdout.readline().strip(), args.browser, args.seconds)))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
