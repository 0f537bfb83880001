"""How long from a key to the picture that it changed, and how many frames a second, in a real browser.

    python scripts/play_latency.py pong --seconds 60

Starts ``worldsim play``, opens its page in a headless Chromium and holds one key after another. Every picture
that the page paints is kept with its time, and so is every key event; delays are told from the pixels:

``key_to_picture``  to the first picture made under the key's action that differs from the one before it
``key_to_paddle``   on Pong: to the first picture in which the own paddle is a pixel or more the key's way

Times are those of the animation frame after the canvas has got the picture. What the game's paddle takes to
get going is in the second and not in the first: the emulator's own moves a frame after its key.
"""

import argparse
import base64
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from playwright.sync_api import sync_playwright

from worldsim.evaluate.pong import paddle

KEYS = {"ArrowUp": -1, "ArrowDown": 1}
"""Which way the own paddle's row goes."""

WATCH = """
globalThis.painted = []; globalThis.pressed = [];
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (image, ...at) {
  put.call(this, image, ...at);
  if (this.canvas.id !== "screen") return;
  const shape = [image.height, image.width], data = new Uint8Array(image.data);
  const one = { data, shape, heard: null, time: null };
  painted.push(one);
  queueMicrotask(() => { one.heard = globalThis.measured?.heard; });
  requestAnimationFrame(() => { one.time = performance.now(); });
};
addEventListener("keydown", (event) => {
  if (event.repeat) return;
  const one = { key: event.code, time: performance.now(), number: null };
  pressed.push(one);
  setTimeout(() => { one.number = globalThis.measured?.told; }); // once the page has heard it too
}, true);
"""
TOLD = """() => ({
  pressed,
  pictures: painted.filter((one) => one.time !== null).map(({ data, shape, heard, time }) => {
    let text = "";
    for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
    return { data: btoa(text), shape, heard, time };
  }),
})"""


def record(address: str, browser: str, seconds: float) -> tuple[list[dict], list[dict], float]:
    """Keys and pictures of so many seconds of play, as the page saw them, and how many seconds it was."""
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.add_init_script(WATCH)
        page.goto(address)
        page.wait_for_selector("#screen.made", timeout=120_000)
        page.wait_for_timeout(3000)
        page.evaluate("() => { painted.length = 0; pressed.length = 0; }")
        began, turn, keys = time.monotonic(), 0, list(KEYS)
        while time.monotonic() < began + seconds:
            page.keyboard.down(keys[turn % 2])
            page.wait_for_timeout(370)
            page.keyboard.up(keys[turn % 2])
            page.wait_for_timeout(230)
            turn += 1
        took = time.monotonic() - began
        page.wait_for_timeout(1000)
        told = page.evaluate(TOLD)
    for one in told["pictures"]:
        flat = np.frombuffer(base64.b64decode(one.pop("data")), np.uint8)
        one["frame"] = flat.reshape(*one.pop("shape"), 4)[..., :3]
    return told["pressed"], told["pictures"], took


def delays(pressed: Sequence[dict], pictures: Sequence[dict]) -> list[float]:
    """Milliseconds from each key to the first changed picture under its action, where there is one."""
    out = []
    for key in pressed:
        for before, after in itertools.pairwise(pictures):
            under = after["heard"] == key["number"] and after["time"] > key["time"]
            if under and (after["frame"] != before["frame"]).any():
                out.append(after["time"] - key["time"])
                break
    return out


def paddle_delays(pressed: Sequence[dict], pictures: Sequence[dict]) -> list[float]:
    """Milliseconds from each key until the own paddle has gone its way; at its end it does not."""
    rows, times = (
        paddle(np.stack([one["frame"] for one in pictures]), "own"),
        [one["time"] for one in pictures],
    )
    out = []
    for key, until in zip(pressed, [*pressed[1:], {"time": np.inf}], strict=True):
        there = [i for i, time in enumerate(times) if time <= key["time"]]
        later = [i for i, time in enumerate(times) if key["time"] < time <= until["time"]]
        if there and later:
            way = (rows[later] - rows[there[-1]]) * KEYS[key["key"]]
            moved = [times[i] for i, far in zip(later, way, strict=True) if far >= 1]
            if moved:
                out.append(moved[0] - key["time"])
    return out


def summary(name: str, found: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    if not found:
        return {f"{name}_keys": 0}
    ranked = sorted(found)
    return {
        f"{name}_keys": len(ranked),
        f"{name}_ms_median": round(statistics.median(ranked), 1),
        f"{name}_ms_p95": round(ranked[int(0.95 * (len(ranked) - 1))], 1),
    }


def measure(address: str, browser: str, seconds: float, *, pong: bool) -> dict:
    """The figures of so many seconds."""
    pressed, pictures, took = record(address, browser, seconds)
    during = [one for one in pictures if one["time"] <= pictures[0]["time"] + 1000 * took]
    out = {"seconds": round(took, 1), "fps": round(len(during) / took, 2)}
    out |= summary("key_to_picture", delays(pressed, pictures))
    if pong:
        out |= summary("key_to_paddle", paddle_delays(pressed, pictures))
    return out | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


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
            address = server.stdout.readline().strip()
            print(json.dumps(measure(address, args.browser, args.seconds, pong=args.world == "pong")))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
