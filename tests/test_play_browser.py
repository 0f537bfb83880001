"""The page of ``worldsim play`` in a real browser, with the bundled world of Pong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from worldsim.data.video import read_video, write_video
from worldsim.evaluate.pong import paddle
from worldsim.types import Clip
from worldsim.worlds import clips

browsers = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium"),
]
SECOND = 1000
SHOWN = """() => {
  const box = (of) => document.querySelector(of).getBoundingClientRect();
  const one = box("#strip .present"), strip = box("#strip");
  return one.left >= strip.left - 1 && one.right <= strip.right + 1;
}"""
BADLY = """async (bad) => {
  const socket = new WebSocket(`ws://${location.host}/play`);
  const told = [];
  await new Promise((done) => { socket.onmessage = done; });
  await new Promise((done) => {
    socket.onmessage = ({ data }) => { told.push(JSON.parse(data)); done(); };
    socket.onclose = ({ code }) => { told.push({ type: "closed", code }); done(); };
    socket.send(bad === "bytes" ? new Uint8Array([0, 1, 255]) : bad === "large" ? "x".repeat(100000) : bad);
  });
  socket.close();
  return told[0];
}"""


def start(port=0):
    """A server as the command starts it, once its page is there; and the page's address."""
    command = [sys.executable, "-m", "worldsim.cli", "play", "pong", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), process.poll()
    return process, address


@pytest.fixture(scope="module")
def server():
    process, address = start()
    yield address
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def browser():
    with browsers.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser, server):
    with browser.new_context() as context:
        one = context.new_page()
        problems = []
        one.on("pageerror", lambda error: problems.append(str(error)))
        one.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        one.goto(server)
        playing(one)
        one.problems = problems
        yield one
        assert not problems


def playing(page):
    """Wait until the world runs and generated frames are seen."""
    page.wait_for_selector("#screen.made", timeout=60 * SECOND)


def screen(page):
    """The canvas ``[h w 3]``."""
    flat = page.evaluate(
        "() => { const c = document.getElementById('screen');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
    )
    return np.array(flat, np.uint8).reshape(64, 64, 4)[..., :3]


def present(page):
    """The number of the frame that is shown."""
    return int(page.inner_text("#position").split()[0])


def row(page):
    """Of the own paddle."""
    return float(paddle(screen(page)[None], "own")[0])


def settle(page, key, seconds=2.5):
    page.keyboard.down(key)
    page.wait_for_timeout(seconds * SECOND)
    page.keyboard.up(key)


def test_keys_move_the_paddle(page):
    settle(page, "ArrowUp")
    high = row(page)
    settle(page, "KeyS", 1.2)
    low = row(page)
    assert low > high + 5, "down is further down the screen than up"
    settle(page, "KeyW", 2.5)
    assert row(page) < low - 5
    box = page.locator("#actions button", has_text="left").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.wait_for_timeout(1.2 * SECOND)
    page.mouse.up()
    assert row(page) > high + 3, "actions can be clicked"


def test_time_runs_back_and_branches_are_returned_to(page):
    page.wait_for_timeout(SECOND)
    page.click("#branch")
    page.wait_for_selector("#branches button")
    page.locator("#screen").focus()
    page.keyboard.down("Backspace")
    page.wait_for_function(
        "() => parseInt(document.getElementById('position').textContent) < -2", timeout=90_000
    )
    page.keyboard.up("Backspace")
    page.wait_for_function("() => document.getElementById('badge').textContent === 'paused'")
    then, first = present(page), screen(page)
    assert page.evaluate(SHOWN), "the present is seen in the strip"
    assert then < 0 and page.locator("#strip canvas.known").count() > 0
    page.wait_for_timeout(0.5 * SECOND)
    assert present(page) == then, "it stands still while it is paused"
    page.click("#step")
    page.wait_for_function(f"() => parseInt(document.getElementById('position').textContent) === {then + 1}")
    assert not np.array_equal(screen(page), first)
    page.wait_for_function("() => document.querySelectorAll('#branches button').length === 2")
    page.locator("#branches button").first.click()
    page.wait_for_function("() => parseInt(document.getElementById('position').textContent) > 15")


def wait_for(page, badge):
    page.wait_for_function(
        f"() => document.getElementById('badge').textContent === '{badge}'", timeout=120 * SECOND
    )


def saved(page, path):
    """The video that the page's link gives."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return download.value.suggested_filename, read_video(path)


def test_a_loop_is_closed_and_saved_and_the_timeline_too(page, tmp_path):
    page.wait_for_timeout(SECOND)
    page.click("#loop")
    wait_for(page, "loop")
    seen = set()
    for _ in range(40):
        seen.add(screen(page).tobytes())
        page.wait_for_timeout(60)
    assert 8 < len(seen) <= 32, "a loop of 32 frames plays, over and over"
    name, clip = saved(page, tmp_path / "loop.mp4")
    assert name == "pong-loop.mp4" and len(clip) == 4 * 32
    page.keyboard.press("ArrowUp")
    wait_for(page, "playing")
    name, clip = saved(page, tmp_path / "play.mp4")
    assert name == "pong.mp4" and len(clip) >= 17 and clip.frames.shape[1] % 64 == 0
    page.click("#loop")
    wait_for(page, "loop")
    page.locator("#actions button").first.click()
    wait_for(page, "playing")


def hears_keys(page):
    """Space pauses and goes on, wherever the focus was."""
    page.keyboard.press("Space")
    wait_for(page, "paused")
    page.keyboard.press("Space")
    wait_for(page, "playing")


def test_keys_work_after_the_slider_of_the_speed(page):
    box = page.locator("#pace").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert int(page.input_value("#pace")) > 20
    hears_keys(page)


def test_an_own_picture_is_begun_with(page, tmp_path):
    path = write_video(tmp_path / "mine.png", Clip(clips("pong")[0].frames[:1]), scale=1)
    page.locator("#file").focus()
    page.set_input_files("#file", path)
    page.wait_for_function("() => document.getElementById('clip').selectedOptions[0].text === 'mine.png'")
    wait_for(page, "playing")
    page.wait_for_function("() => parseInt(document.getElementById('position').textContent) < 15")
    hears_keys(page)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#file").focus()
    with page.expect_response("**/clip?*") as answer:
        page.set_input_files("#file", tmp_path / "broken.png")
    assert answer.value.status == 400
    page.wait_for_function('() => document.getElementById("message").textContent.startsWith("it can\'t be")')
    hears_keys(page)
    assert page.problems and "400" in page.problems.pop()


@pytest.mark.parametrize("bad", ["{", '{"type": "act", "heard": "x"}', "bytes", "large"])
def test_a_page_plays_on_whatever_another_socket_says(page, bad):
    told = page.evaluate(BADLY, bad)
    assert told["type"] == ("closed" if bad == "large" else "error") and told.get("code", 1009) == 1009
    before = present(page)
    page.wait_for_timeout(1.5 * SECOND)
    assert present(page) > before
    hears_keys(page)


def test_two_tabs_and_a_reload_have_worlds_of_their_own(browser, page, server):
    with browser.new_context() as context:
        other = context.new_page()
        other.goto(server)
        playing(other)
        other.click("#pause")
        other.wait_for_function("() => document.getElementById('badge').textContent === 'paused'")
        other.wait_for_timeout(0.5 * SECOND)
        still, before = present(other), present(page)
        page.wait_for_timeout(1.5 * SECOND)
        assert present(other) == still and present(page) > before
        other.reload()
        playing(other)
        assert present(other) < present(page)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_page_comes_back_when_its_server_does(browser):
    process, address = start()
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        playing(page)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        page.wait_for_selector("body.off", timeout=20 * SECOND)
        assert "trying again" in page.inner_text("#message")
        process, _ = start(int(address.rsplit(":", 1)[1]))
        page.wait_for_selector("body:not(.off)", timeout=60 * SECOND)
        page.wait_for_function(
            "() => document.getElementById('badge').textContent === 'playing'", timeout=60 * SECOND
        )
        before = present(page)
        page.wait_for_timeout(2 * SECOND)
        assert present(page) > before
    process.terminate()
    assert process.wait(20) is not None


def test_it_listens_to_this_machine_alone(server):
    port = int(server.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), 2).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 2)


def test_delays_are_told_from_the_pixels_that_the_page_paints():
    command = [sys.executable, "-m", "scripts.play_latency", "pong", "--seconds", "6", "--browser", CHROMIUM]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 6 <= told["seconds"] < 8 and told["fps"] > 1
    assert 5 <= told["key_to_picture_keys"] <= 11, "a key every 0.6 seconds"
    assert 1 < told["key_to_picture_ms_median"] <= told["key_to_picture_ms_p95"]
    assert told["key_to_paddle_keys"] >= 3, "the paddle goes where keys send it"
