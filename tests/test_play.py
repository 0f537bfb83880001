"""Playing a world: keys, messages, a session's timeline, and the server's limits."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
import tiny

from worldsim.config import TokenizerConfig
from worldsim.data.video import write_video
from worldsim.play import keys, messages, session, uploads
from worldsim.play.serving import listen
from worldsim.play.session import Dials, Session
from worldsim.play.uploads import read_upload
from worldsim.types import Clip

pytest.importorskip("starlette", reason="extra play")
pytest.importorskip("uvicorn", reason="extra play")
client = pytest.importorskip("websockets.sync.client", reason="extra play")

PONG = ("noop", "fire", "right", "left", "rightfire", "leftfire")


def test_keys_come_from_the_names_of_actions():
    held = keys.held_for(PONG)
    assert held == [[], ["fire"], ["right"], ["left"], ["fire", "right"], ["fire", "left"]]
    assert keys.aliases(PONG) == {"up": "right", "down": "left"} and keys.idle(PONG, 6) == 0
    doom = ("noop", "move_forward", "turn_left", "move_forward+turn_left")
    assert keys.held_for(doom) == [[], ["up"], ["left"], ["left", "up"]] and keys.aliases(doom) == {}
    assert keys.held_for(("0", "1")) == [[], []] and keys.idle(("0", "1"), 2) == 0
    assert keys.idle(("left", "none"), 2) == 1


def test_keys_come_from_whole_words():
    assert keys.held_for(("pause", "bright", "update", "misfire")) == [[], [], [], []]
    held = [["fire"], ["right", "up"], ["left"], ["right"], ["down"]]
    assert keys.held_for(("use", "upright", "turnLeft", "moveright", "MOVE_BACKWARD")) == held


def test_frames_travel_as_they_are():
    frame = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    sent = messages.frame_bytes(frame, kind=messages.PASSED, known=True, heard=7, position=-3)
    assert messages.HEAD.size == 14 and len(sent) == 14 + frame.size
    assert messages.HEAD.unpack(sent[:14]) == (messages.PASSED, 1, 6, 4, 7, -3)
    np.testing.assert_array_equal(np.frombuffer(sent[14:], np.uint8).reshape(frame.shape), frame)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("[1]", "no type"),
        ('{"type": "fly"}', "no type"),
        ('{"type": ["act"]}', "no type"),
        ('{"type": "act"}', "heard is no number"),
        ('{"type": "act", "heard": true}', "heard is no number"),
        ('{"type": "act", "heard": NaN}', "no JSON"),
        ('{"type": "act", "heard": 1' + 400 * "0" + "}", "not between"),
        ('{"type": "pace", "fps": 1e9}', "not between"),
        ('{"type": "mode", "mode": "stop"}', "mode 'stop'"),
        ('{"type": "dials", "dials": {"steps": 0}}', "not between"),
        ('{"type": "dials", "dials": {"speed": 1}}', "dials are"),
        ('{"type": "dials", "dials": 3}', "dials are"),
        ("[" * 4000, "no JSON"),
        (" " * 5000, "at most 4096"),
    ],
)
def test_messages_that_mean_nothing_are_refused(text, why):
    with pytest.raises(messages.MessageError, match=why):
        messages.read(text)


@pytest.fixture(scope="module")
def world():
    return tiny.make_world(tiny.config())


@pytest.fixture
def stay(world):
    return Session(world, tiny.make_clip(6), Dials(steps=1))


def shown(moments):
    return [(one.position, one.known) for one in moments]


def test_a_session_steps_like_the_simulator(stay):
    simulator = stay._simulator
    state = simulator.reset(tiny.make_clip(6), stay._key)
    for action in (1, 2, 0):
        state, frames = simulator.step(state, np.array([action]))
        (made,) = stay.step(action)
        np.testing.assert_array_equal(made.frame, np.asarray(frames)[0, 0])
    assert shown(stay.moments[-4:]) == [(5, True), (6, False), (7, False), (8, False)]
    assert stay.span == (0, 8, 8) and [one.action for one in stay.moments[-3:]] == [1, 2, 0]


def test_going_back_walks_over_what_is_there_and_then_makes_what_came_before(stay):
    stay.step(1)
    passed = [stay.back()[0] for _ in range(6)]
    assert shown(passed) == [(5, True), (4, True), (3, True), (2, True), (1, True), (0, True)]
    made = [stay.back()[0] for _ in range(6)]
    assert shown(made) == [(-i, False) for i in range(1, 7)]
    assert stay.span == (-8, -6, 6)
    assert len({one.frame.tobytes() for one in made}) > 1
    whole = stay.world.extend(
        tiny.make_clip(6), 4, direction="backward", steps=1, refine_steps=None,
        key=jax.random.fold_in(stay._key, 0),
    )  # fmt: skip
    np.testing.assert_array_equal(made[0].frame, whole.clip.frames[3])


def test_going_on_from_the_past_leaves_a_branch(stay):
    for action in (1, 1, 2):
        stay.step(action)
    end = stay.present
    stay.back(), stay.back()
    assert stay.present.position == 6
    (other,) = stay.step(2)
    assert other.position == 7 and stay.span == (0, 7, 7)
    assert list(stay.branches) == [1] and stay.branches[1].last is end
    stay.go(1)
    assert stay.present is end and stay.span == (0, 8, 8)
    (onward,) = stay.step(0)
    twin = Session(stay.world, tiny.make_clip(6), stay.dials)
    for action in (1, 1, 2):
        twin.step(action)
    np.testing.assert_array_equal(onward.frame, twin.step(0)[0].frame)
    with pytest.raises(ValueError, match=r"no branch 9; there are \[1, 2\]"):
        stay.go(9)


def test_a_session_keeps_so_much_and_no_more(stay, monkeypatch):
    monkeypatch.setattr(session, "MOST", 10)
    monkeypatch.setattr(session, "STATES", 3)
    monkeypatch.setattr(session, "BRANCHES", 2)
    stay.start(tiny.make_clip(6))
    for _ in range(8):
        stay.step(1)
        stay.branch()
    assert stay.span == (4, 13, 13) and len(stay.moments) == 10
    assert sorted(stay._states) == [11, 12, 13] and list(stay.branches) == [7, 8]
    while stay.span[0] > 2:
        stay.back()
    assert stay.span == (0, 3, 9)
    stay.step(0)
    assert stay.span == (0, 4, 4)


def test_a_large_world_keeps_fewer_frames_and_states(stay, monkeypatch):
    per = sum(leaf.nbytes for leaf in jax.tree.leaves(stay._states[5]))
    monkeypatch.setattr(session, "MEMORY", 4 * 2 * per)
    most = 4 * per // (16 * 16 * 3) // (session.BRANCHES + 1)
    stay.start(tiny.make_clip(6))
    for _ in range(most + 3):
        stay.step(1)
        stay.branch()
    assert len(stay.moments) == max(10, most) and len(stay._states) == 2
    last = max(stay.branches)
    assert [number for number, one in stay.branches.items() if one.state is not None] == [last - 1, last]
    stay.go(min(stay.branches))
    assert len(stay.step(1)) == 1, "without its state it goes on from its frames"


def test_however_little_fits_what_came_before_does(stay, monkeypatch):
    monkeypatch.setattr(session, "MEMORY", 1)
    for given in (6, 1):
        stay.start(tiny.make_clip(given))
        for _ in range(given + 9):
            stay.back()
        assert stay.span[0] == -12 and stay.span[1] == -10


def test_another_seed_gives_another_future_from_the_same_place(stay):
    (first,) = stay.step(1)
    stay.back()
    (again,) = stay.step(1)
    np.testing.assert_array_equal(again.frame, first.frame)
    stay.back()
    stay.turn(Dials(steps=1, seed=99))
    assert not np.array_equal(stay.step(1)[0].frame, first.frame)


def test_what_came_before_follows_from_the_timeline_as_it_is(stay):
    for _ in range(8):
        stay.back()
    (new,) = stay.step(2)
    assert stay.span == (-4, -2, -2) and stay._before is None and new.position == -2
    while stay.span[0] == -4:
        stay.back()
    assert stay.span == (-8, -5, -2)


def test_dials_that_the_world_refuses_leave_the_old_ones(stay):
    with pytest.raises(ValueError, match="steps"):
        stay.turn(Dials(steps=0))
    with pytest.raises(ValueError, match="steps"):
        stay.start(tiny.make_clip(6), Dials(steps=0))
    assert stay.dials.steps == 1 and len(stay.step(1)) == 1


@contextlib.contextmanager
def serving(world, **limits):
    """A server of its own; its address."""
    import uvicorn

    from worldsim.play.server import Limits, Play

    play = Play(world, [tiny.make_clip(6), tiny.make_clip(6)], limits=Limits(**limits))
    server = uvicorn.Server(
        uvicorn.Config(play.app, port=0, log_level="error", ws_max_size=65536, ws="websockets-sansio")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address(world):
    with serving(world) as at:
        yield at


@contextlib.contextmanager
def page(address, **more):
    """A page that has begun, and what it was greeted with."""
    with client.connect(f"ws://{address}/play", origin=f"http://{address}", **more) as socket:
        hello = json.loads(socket.recv(60))
        say(socket, type="start", clip=0, dials={"steps": 1, "seed": 3})
        hear(socket, "span")
        yield socket, hello


def say(socket, **told):
    socket.send(json.dumps(told))


def hear(socket, kind):
    """The next message of a type, and the heads of all frames before it."""
    heads = []
    while True:
        got = socket.recv(60)
        if isinstance(got, bytes):
            heads.append(messages.HEAD.unpack(got[:14]))
        elif json.loads(got)["type"] == kind:
            return json.loads(got), heads


def test_a_page_steps_goes_back_and_branches(address):
    with page(address) as (socket, hello):
        assert hello["names"] == ["noop", "left", "right"] and hello["held"] == [[], ["left"], ["right"]]
        say(socket, type="act", action=2, heard=5)
        say(socket, type="step")
        span, heads = hear(socket, "span")
        assert heads == [(messages.FRAME, 0, 16, 16, 5, 6)] and span["present"] == 6
        say(socket, type="branch")
        span, heads = hear(socket, "span")
        assert heads == [(messages.BRANCH, 0, 16, 16, 0, 1)] and span["branches"] == [1]
        say(socket, type="mode", mode="back")
        for _ in range(50):
            span, heads = hear(socket, "span")
            if span["present"] <= -2:
                break
        assert span["first"] <= -2 and heads[-1][1] == 0
        say(socket, type="mode", mode="pause")
        hear(socket, "mode")
        say(socket, type="go", number=1)
        assert hear(socket, "span")[0]["present"] == 6
        say(socket, type="loop", frames=8)
        say(socket, type="loop", frames=8)
        assert "being made already" in hear(socket, "error")[0]["text"]
        loop, heads = hear(socket, "loop")
        assert [head[5] for head in heads if head[0] == messages.LOOPED] == list(range(8)) and loop[
            "frames"
        ] == 8


def test_a_running_world_keeps_the_pace_and_hears_actions(address):
    with page(address) as (socket, _):
        say(socket, type="pace", fps=30)
        say(socket, type="mode", mode="play")
        for number in (1, 2, 3):
            say(socket, type="act", action=number % 3, heard=number)
            while True:
                _, heads = hear(socket, "span")
                if heads and heads[-1][4] == number:
                    break
        began, count = time.monotonic(), 0
        while time.monotonic() < began + 1:
            count += len(hear(socket, "span")[1])
        assert count <= 33


def test_what_is_malformed_harms_nobody(address):
    with page(address) as (one, _), page(address) as (other, _):
        for bad in ("{", '{"type": "act", "action": 99, "heard": 1}', b"\x00\x01"):
            one.send(bad)
            assert hear(one, "error")[0]["text"]
        say(one, type="go", number=44)
        assert "no branch 44" in hear(one, "error")[0]["text"]
        say(one, type="start", clip=9)
        assert "clip is not" in hear(one, "error")[0]["text"]
        say(other, type="step")
        assert hear(other, "span")[0]["present"] == 6
        one.send("x" * 70_000)
        with pytest.raises(Exception, match="1009|too big|closed"):
            while True:
                one.recv(30)
        say(other, type="step")
        assert hear(other, "span")[0]["present"] == 7


def test_too_many_messages_and_pages_are_refused(world):
    with serving(world, sessions=1, messages=20) as address, page(address) as (socket, _):
        with client.connect(f"ws://{address}/play") as second, pytest.raises(Exception, match="too many"):
            second.recv(30)
        with pytest.raises(Exception, match="too many messages"):
            for _ in range(200):
                say(socket, type="act", action=0, heard=1)
            while True:
                socket.recv(30)


def test_a_silent_page_is_let_go(world):
    with serving(world, idle=0.2) as address, client.connect(f"ws://{address}/play") as socket:
        hear(socket, "hello")
        with pytest.raises(Exception, match="idle"):
            socket.recv(30)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "http://[x"},
        {"Origin": "null"},
        {"Host": "elsewhere.example"},
        {"Host": "127.0.0.1:80/../../x"},
    ],
)
def test_other_pages_are_refused(address, headers):
    request = urllib.request.Request(f"http://{address}/", headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.putrequest("GET", "/play", skip_host=True)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    secret = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for name, value in ({"Host": address} | upgrade | secret | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


def get(url, **more):
    with urllib.request.urlopen(urllib.request.Request(url, **more)) as answer:
        return answer.read(), answer.headers


def test_the_page_needs_nothing_from_elsewhere(address):
    for name, kind in (("", "text/html"), ("play.js", "text/javascript"), ("play.css", "text/css")):
        text, headers = get(f"http://{address}/{name}")
        assert headers["Content-Type"].startswith(kind)
        assert b"http://" not in text and b"https://" not in text
        assert "default-src 'self'" in headers["Content-Security-Policy"]
    for name in ("server.py", "..%2fserver.py", "page/play.js"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"http://{address}/{name}")


def test_a_timeline_is_saved_and_an_own_clip_is_begun_with(address, tmp_path):
    from worldsim.data.video import read_video, write_video

    with page(address) as (socket, hello):
        say(socket, type="step")
        hear(socket, "span")
        data, headers = get(f"http://{address}/save/{hello['session']}")
        assert headers["Content-Type"] == "video/mp4" and "world.mp4" in headers["Content-Disposition"]
        (tmp_path / "saved.mp4").write_bytes(data)
        assert len(read_video(tmp_path / "saved.mp4")) == 7
        loop = f"http://{address}/save/{hello['session']}?what=loop"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(loop)
        say(socket, type="loop", frames=8)
        hear(socket, "loop")
        data, headers = get(loop)
        assert "world-loop.mp4" in headers["Content-Disposition"]
        (tmp_path / "loop.mp4").write_bytes(data)
        assert len(read_video(tmp_path / "loop.mp4")) == 4 * 8
        mine = Clip(np.full((3, 20, 24, 3), 99, np.uint8))
        write_video(tmp_path / "mine.png", mine[:1], scale=1)
        picture, own = (tmp_path / "mine.png").read_bytes(), {"Origin": f"http://{address}"}
        here = f"http://{address}/clip?session={hello['session']}&name="
        token, _ = get(f"{here}mine.png", data=picture, headers=own)
        say(socket, type="start", clip=token.decode(), dials={"steps": 1})
        assert hear(socket, "span")[0]["present"] == 0
        say(socket, type="start", clip="gone")
        assert "is gone" in hear(socket, "error")[0]["text"]
        for name, body in (("mine.exe", picture), ("mine.npz", picture), ("mine.png", b"x"), ("a.mp4", b"")):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                get(f"{here}{name}", data=body, headers=own)
        for url, more in ((f"{here}mine.png", {}), (f"http://{address}/clip?name=mine.png", own)):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                get(url, data=picture, headers=more)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"http://{address}/save/{hello['session']}")


@pytest.mark.parametrize(
    ("name", "plain", "coded"),
    [
        ("pong", "pong", "pong"),
        ("runs/my world/", "my_world", "my%20world"),
        ('a"b\r\nc', "a_b__c", "a%22b%0D%0Ac"),
        ("Wörld", "W_rld", "W%C3%B6rld"),
        ("/", "world", "world"),
    ],
)
def test_a_saved_file_is_named_after_any_world(name, plain, coded):
    from worldsim.play.server import attachment

    told = f"attachment; filename=\"{plain}.mp4\"; filename*=UTF-8''{coded}.mp4"
    assert attachment(name, ".mp4") == told and told.isascii()


def test_the_page_offers_the_files_that_are_taken():
    from worldsim.play.server import PAGE

    assert f'accept="{",".join(uploads.KINDS)}"' in (PAGE / "index.html").read_text()


def test_reading_an_upload_ends(world, monkeypatch, tmp_path):
    from worldsim.data.video import write_video

    film = write_video(tmp_path / "film.mp4", Clip(np.zeros((9, 32, 32, 3), np.uint8), fps=10.0)).read_bytes()
    assert len(read_upload(film, ".mp4", world.config.tokenizer)) == 9
    monkeypatch.setattr(uploads, "SECONDS", -1.0)
    with pytest.raises(ValueError, match="takes more than -1 seconds"):
        read_upload(film, ".mp4", world.config.tokenizer)


def test_an_upload_that_does_not_come_is_not_waited_for(world):
    with serving(world, patience=0.2) as address, page(address) as (_, hello):
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.putrequest("POST", f"/clip?session={hello['session']}&name=a.mp4")
        for name, value in {"Origin": f"http://{address}", "Content-Length": "9"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"abc")
        assert connection.getresponse().status == 408
        connection.close()


def test_a_taken_port_is_told_before_a_world_is_loaded():
    from worldsim.cli.play import play

    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        play("no/such/world", port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="no host"):
        listen("", 0)


def test_a_world_of_ones_own_begins_with_held_out_data(world, monkeypatch):
    import worldsim
    from worldsim.cli import play as verb
    from worldsim.inspect import played
    from worldsim.play import serving as whole

    begun = []

    async def serve(model, clips, **more):
        begun.append((model, clips, more["name"]))

    monkeypatch.setattr(worldsim, "load", lambda _: world)
    monkeypatch.setattr(whole, "serve", serve)
    with pytest.raises(ValueError, match="give --input CLIP"):
        verb("own", port=0)
    clip = tiny.make_clip(6)
    monkeypatch.setattr(played, "held_out_clip", lambda _: (clip, "data, test record 0"))
    verb("own", port=0)
    assert begun == [(world, [clip], "own")]


def test_returning_to_a_branch_leaves_the_timeline_as_another(stay):
    stay.step(1)
    stay.branch()
    for _ in range(3):
        stay.step(2)
    end = stay.present
    stay.go(1)
    assert stay.span == (0, 6, 6) and stay.branches[2].last is end
    stay.go(2)
    assert stay.present is end and sorted(stay.branches) == [1, 2]


def test_the_branch_that_is_returned_to_is_kept(stay, monkeypatch):
    monkeypatch.setattr(session, "BRANCHES", 2)
    for _ in range(2):
        stay.step(1)
        stay.branch()
    stay.step(2)
    stay.go(1)
    assert sorted(stay.branches) == [1, 3]


def test_a_clip_that_is_refused_leaves_all_as_it_was(stay):
    stay.step(1)
    stay.branch()
    with pytest.raises(ValueError, match="channels"):
        stay.start(Clip(np.zeros((3, 16, 16, 1), np.uint8)), Dials(steps=2, seed=5))
    assert stay.dials == Dials(steps=1)
    assert sorted(stay.branches) == [1] and stay.span == (0, 6, 6)


def test_what_is_made_anew_is_gone_on_from_as_it_is_shown(stay, monkeypatch):
    monkeypatch.setattr(session, "_room", lambda *_, **__: (8, 24))
    stay.start(tiny.make_clip(6))
    for _ in range(8):
        stay.step(1)
    first = stay.span[0]
    while stay.span[1] > first - 1:
        stay.back()
    assert not [at for at in stay._states if at <= stay.span[1]]


def test_chunks_of_two_frames_go_back_beyond_a_branch_of_one(pair_world):
    stay = Session(pair_world, tiny.make_clip(4), Dials(steps=1))
    for _ in range(3):
        stay.back()
    stay.branch()
    stay.go(1)
    stay.back()
    assert stay.span[1] == -1


def test_an_upload_comes_in_the_channels_of_the_world(tmp_path):
    write_video(tmp_path / "one.png", np.full((1, 16, 16, 3), 90, np.uint8))
    clip = read_upload((tmp_path / "one.png").read_bytes(), ".png", TokenizerConfig(16, 16, 1))
    assert clip.frames.shape == (1, 16, 16, 1) and abs(int(clip.frames[0, 0, 0, 0]) - 90) < 2
