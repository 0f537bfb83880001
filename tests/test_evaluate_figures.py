"""Figures of an evaluation: what each must be on cases that can be worked out by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate import bands, curves, features, neighbours, pictures
from worldsim.evaluate.held_out import HeldOut
from worldsim.evaluate.nats import _apart, nats
from worldsim.evaluate.play import Answer, copies, play
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.generate.requests import extend_request
from worldsim.models.dynamics import Chunks
from worldsim.parallel import shares
from worldsim.parallel.sharding import path_of


def held_of(clips, *, known=4, horizon=8, actions=True, seed=0):
    """Noise as held-out windows."""
    made = [tiny.make_clip(known + horizon, seed=seed + i) for i in range(clips)]
    frames = np.stack([clip.frames for clip in made])
    return HeldOut(
        frames=frames, actions=np.stack([clip.actions for clip in made]) if actions else None, truth={},
        others=frames[::-1], episodes=clips, train=frames, median=frames[0, 0], known=known,
        horizon=horizon, info=None,
    )  # fmt: skip


def without(world, *words):
    """The world with all dynamics parameters of these names at zero."""

    def zero(keys, leaf):
        return jnp.zeros_like(leaf) if any(word in path_of(keys) for word in words) else leaf

    params = jax.tree_util.tree_map_with_path(zero, world.dynamics[1])
    return World.make(world.config, {"tokenizer": world.tokenizer[1], "dynamics": params})


@pytest.fixture(scope="module")
def played(world):
    """Three windows answered twice in every verb, and the windows."""
    held = held_of(3)
    return play(world, held, world.dials(steps=2), samples=2, seed=0, note=lambda _: None), held


@pytest.mark.law
def test_a_band_holds_the_mean_and_shrinks_with_more_clips():
    rng = np.random.default_rng(0)
    widths = []
    for clips in (8, 128):
        rows = rng.normal(size=(clips, 5))
        rows[0, 0] = np.nan
        one = bands.band(rows)
        np.testing.assert_allclose(one["mean"], np.nanmean(rows, 0))
        assert np.all((one["low"] < one["mean"]) & (one["mean"] < one["high"]))
        widths.append(np.mean(one["high"] - one["low"]))
    assert 2.5 < widths[0] / widths[1] < 6.5  # the root of 16 is 4
    assert 0.9 * 2 * 1.645 < widths[1] * 128**0.5 < 1.1 * 2 * 1.645  # 90 % of a normal


def test_reports_are_strict_json():
    value = {1: np.float32(np.nan), "a": np.array([1.0, np.inf]), "b": (np.int64(2), None, np.bool_(True))}
    assert json.loads(json.dumps(bands.plain(value), allow_nan=False)) == {
        "1": None, "a": [1.0, None], "b": [2, None, True],
    }  # fmt: skip


@pytest.mark.law
def test_truth_and_copies_are_counted_from_the_known_end():
    frames = np.arange(2 * 12, dtype=np.uint8).reshape(2, 12)[..., None, None, None]
    flat = lambda pair: [rows[0].ravel().tolist() for rows in pair]
    assert flat(copies(frames, 4, 3, 1)) == [[4, 5, 6], [3, 3, 3]]
    assert flat(copies(frames, 7, 8, -1)) == [[7, 6, 5, 4, 3, 2, 1, 0], [8] * 8]
    assert flat(copies(frames, 4, 4, 1, gap=True)) == [[4, 5, 6, 7], [3, 3, 8, 8]]
    truth, copy = copies(frames, 7, 8, -1)
    answer = Answer(truth[None], truth, copy, first=7, step=-1)
    assert answer.of(np.arange(24).reshape(2, 12))[1].tolist() == [19, 18, 17, 16, 15, 14, 13, 12]


@pytest.mark.law
def test_answers_are_those_of_the_verbs(world, played):
    answers, held = played[0].answers, played[1]
    assert set(answers) == {"forward", "backward", "infill_4"}
    same = lambda a, b: np.testing.assert_allclose(a.astype(int), b, atol=1)  # a batch rounds otherwise
    clip, keys = (
        held.clip(1),
        jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1), 3),
    )
    made = world.extend(clip[:4], 8, actions=clip.actions[4:], steps=2, key=keys[1])
    same(answers["forward"].frames[1, 1], made.clip.frames[4:])
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0), 3)
    made = world.extend(clip[8:], 8, direction="backward", actions=clip.actions[:8], steps=2, key=keys[1])
    same(answers["backward"].frames[0, 1][::-1], made.clip.frames[:8])
    np.testing.assert_array_equal(answers["backward"].truth[1][0], clip.frames[7])
    np.testing.assert_array_equal(answers["infill_4"].copy[1, 3], clip.frames[8])


@pytest.mark.law
def test_sinks_are_of_what_goes_on(world, played):
    """Of four chunks seen two stay in view, while eight are made in a window of six."""
    held = played[1]
    asked = {"samples": 1, "seed": 0, "note": lambda _: None}
    kept = play(world, held, world.dials(steps=2), sinks=2, **asked).answers
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), 3)
    clip = held.clip(1)
    made = world.extend(clip[:4], 8, actions=clip.actions[4:], steps=2, key=keys[1], sinks=2)
    np.testing.assert_allclose(kept["forward"].frames[0, 1].astype(int), made.clip.frames[4:], atol=1)
    assert (kept["forward"].frames[0] != played[0].answers["forward"].frames[0]).any()
    assert (kept["backward"].frames[0] != played[0].answers["backward"].frames[0]).any()
    np.testing.assert_array_equal(kept["infill_4"].frames[0], played[0].answers["infill_4"].frames[0])


@pytest.mark.law
def test_actions_are_worth_nothing_to_a_world_that_ignores_them(world, played):
    real, held = played
    gain = curves.action_gain(real.answers["forward"], real.steered)
    assert max(abs(one["mean"]) for one in gain.values()) > 0
    deaf = without(world, "action/")
    same = play(deaf, held, world.dials(steps=2), samples=1, seed=0, note=lambda _: None)
    np.testing.assert_array_equal(same.steered, same.answers["forward"].frames[0])
    for one in curves.action_gain(same.answers["forward"], same.steered).values():
        assert one["mean"] == one["at"]["mean"] == 0


@pytest.mark.law
def test_a_window_has_the_same_answers_and_nats_in_any_share(world, played, monkeypatch):
    """Two processes, one of which does its only window twice, against one."""
    whole, held = played
    plain = dataclasses.replace(world, refine=None)
    draw = pictures.renderers(plain)["q"]
    want = [draw(held.frames), nats(plain, held, "backward")]

    def in_shares(count, work):
        parts = [shares._rows(count, processes=2, index=i) for i in range(2)]
        return np.concatenate([work(rows) for rows, _ in parts])[parts[0][1]]

    for name in ("play", "nats", "pictures"):
        monkeypatch.setattr(f"worldsim.evaluate.{name}.in_shares", in_shares)
    again = play(world, held, world.dials(steps=2), samples=2, seed=0, note=lambda _: None)
    np.testing.assert_array_equal(again.loops, whole.loops)
    np.testing.assert_array_equal(again.steered, whole.steered)
    for name, answer in whole.answers.items():
        np.testing.assert_array_equal(again.answers[name].frames, answer.frames)
    np.testing.assert_array_equal(pictures.renderers(plain)["q"](held.frames), want[0])
    told = nats(plain, held, "backward")
    assert told.pop("past") == want[1].pop("past") and told == pytest.approx(want[1], rel=1e-5)


def test_curves_keep_the_best_sample_and_the_copy_apart():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 12, 16, 16, 3), dtype=np.uint8)
    truth, copy = copies(frames, 4, 6, 1)
    answer = Answer(np.stack([np.roll(truth, 1, axis=2), truth]), truth, copy, 4)
    out = curves.curve(answer)
    np.testing.assert_allclose(out["psnr"]["best"], 50)  # the cap
    np.testing.assert_allclose(out["ssim"]["best"], 1, atol=1e-5)
    rows = curves.psnr_rows(answer.frames[0], truth)
    np.testing.assert_allclose(out["psnr"]["mean"], (50 + rows.mean(0)) / 2)
    error = np.square(copy.astype(float) - truth).mean((2, 3, 4))
    np.testing.assert_allclose(out["psnr"]["copy"], (10 * np.log10(255**2 / error)).mean(0))


@pytest.mark.law
def test_the_codes_apart_from_the_pushed_sprite_are_those_that_it_can_not_reach():
    """Cells of two pixels; from x 10 and y 20 it is at most 4 pixels away within two steps, and 5 wide."""
    config, state = SpriteConfig(), np.zeros((1, 3, 2, 6), np.int32)
    state[0, :, 0, :2] = [[10, 20], [0, 27], [30, 30]]  # the last frame makes no whole chunk
    apart = _apart(state, config, 16, 2)[0]
    assert apart.shape == (1, 16, 16)
    there = np.zeros((16, 16), bool)
    there[8:15, 3:10] = True  # rows of pixels 16 to 28, columns 6 to 18
    there[11:16, 0:5] = True  # rows 23 to 31, columns 0 to 8
    np.testing.assert_array_equal(~apart[0], there)


@pytest.mark.law
@pytest.mark.parametrize(
    ("kind", "direction"), [("world", "forward"), ("world", "backward"), ("pair_world", "backward")]
)
def test_nats_are_those_of_one_code_after_another(kind, direction, request):
    """Against the training forward, one masked chunk and one code at a time."""
    world = request.getfixturevalue(kind)
    f, held = world.config.tokenizer.frames_per_chunk, held_of(2, known=8, horizon=8)
    told = nats(world, held, direction, seed=3)
    chunks = min(world.config.dynamics.context + 1, 16 // f)
    model = tiny.model("dynamics", world.config, seed=f - 1)
    codes = tokenize(*world.tokenizer, held.frames[:, : chunks * f], frames_per_chunk=f)
    order = np.arange(chunks)[:: 1 if direction == "forward" else -1]
    codes, actions = codes[:, order], held.actions[:, : chunks * f].reshape(2, chunks, f)[:, order]
    ranks = np.random.default_rng(3).permuted(np.broadcast_to(np.arange(4), (2, chunks - 1, 4)), axis=-1)

    def part(rows, stream, shown):
        ids = tiny.chunk_ids(0, rows[None] + np.zeros((2, 1), int), stream)
        times = jnp.broadcast_to(jnp.asarray(order[rows] * f, jnp.float32), (2, len(rows)))
        return Chunks(
            jnp.asarray(shown), times, ids, jnp.zeros((2, len(rows))), jnp.asarray(actions[:, rows])
        )

    two_stream, total = jax.jit(lambda known, query: model.two_stream(known, query)), np.zeros(2)
    asked = np.arange(1, chunks)
    for i in range(4):
        flat = codes[:, asked].reshape(2, -1, 4)
        shown = np.where(ranks < i, flat, model.mask).reshape(2, -1, 2, 2)
        logits = two_stream(part(np.arange(chunks), 0, codes), part(asked, 1, shown))
        logs = np.asarray(jax.nn.log_softmax(logits)).reshape(2, len(asked), 4, -1)
        at = ranks == i
        total -= [sum(logs[b][at[b]][c, v] for c, v in enumerate(flat[b][at[b]])) for b in range(2)]
    assert told["mean"] == pytest.approx(np.mean(total) / len(asked) / f, rel=1e-3)
    assert told["frames"] == 2 * len(asked) * f and told["past"] == [f, (chunks - 1) * f]


@pytest.mark.law
def test_a_world_that_knows_nothing_pays_for_every_code(world):
    told = nats(without(world, "head"), held_of(2), "forward")
    assert told["mean"] == pytest.approx(4 * np.log(9), rel=1e-5)
    assert told["low"] == pytest.approx(told["high"])


@pytest.mark.law
def test_frechet_distance_of_a_set_to_itself_is_zero_and_grows_with_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * np.arange(1, 7)
    assert features.frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert features.frechet(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)
    assert features.frechet(x, 3 * x) == pytest.approx(
        np.square(2 * x.mean(0)).sum() + 4 * features.spread(x), rel=1e-6
    )
    far = [features.frechet(x, x + s * rng.normal(size=x.shape)) for s in (0.5, 1, 2, 4)]
    assert far == sorted(far) and far[0] > 0


@pytest.mark.law
def test_features_see_frozen_and_shuffled_clips():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (48, 6, 4, 3), dtype=np.uint8)
    field = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)
    moving = np.stack([field[:, 2 * t : 2 * t + 32] for t in range(8)], axis=1)
    frozen, shuffled = np.repeat(moving[:, :1], 8, axis=1), moving[:, rng.permutation(8)]
    network = features.make_network(3)
    real = network(features.pieces(moving[::2]))[0]
    floor, *far = (
        features.frechet(network(features.pieces(rows[1::2]))[0], real) for rows in (moving, frozen, shuffled)
    )
    assert min(far) > 2 * floor
    again = features.make_network(3)(features.pieces(moving[::2]))[0]
    np.testing.assert_array_equal(real, again)
    assert features.paired_distance(network, moving[:, :4], moving[:, :4]) == 0


def test_stretches_of_the_horizon_have_a_floor():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (3, 20, 16, 16, 3), dtype=np.uint8)
    out = features.bucketed(truth, truth, truth)
    assert list(out) == ["1-8", "9-16", "17-20"]
    assert all(one["made"] == one["floor"] for one in out.values())
    still = features.bucketed(np.repeat(truth[:, :1], 20, 1), truth, truth)
    assert all(one["made"] > one["floor"] for one in still.values())


@pytest.mark.law
@pytest.mark.parametrize("block", [1, 10, 512])
def test_what_was_in_the_training_set_is_found_there(monkeypatch, block):
    """Records of several lengths, in blocks of several; the copies come from the last one."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.integers(0, 256, (*shape, 16, 16, 3), dtype=np.uint8)
    truth, train = noise(4, 8), [noise(8), noise(2), noise(9), noise(3), noise(8)]
    copied = neighbours.neighbour_table(np.stack([train[-1]] * 4), truth, train)
    assert copied["frames"]["made"] == copied["clips"]["made"] == 0 < copied["clips"]["truth"]
    assert copied["compared"] == 30
    honest = neighbours.neighbour_table(truth, truth, train)
    assert honest["frames"]["ratio"] == honest["clips"]["ratio"] == 1
    for length in (1, 4):  # and none that begins in one record and ends in the next
        clips = [one[i : i + length] for one in train for i in range(len(one) - length + 1)]
        every = np.stack(
            [np.square(truth[:, :length].astype(float) - clip).mean((1, 2, 3, 4)) for clip in clips]
        )
        np.testing.assert_allclose(
            neighbours.nearest(truth[:, :length], train), np.sqrt(every.min(0)), rtol=1e-5
        )


@pytest.mark.law
def test_pictures_are_drawn_from_codes_and_from_latents(world):
    clip = tiny.make_clip(20)
    table, drawn = pictures.picture_table(pictures.renderers(world), clip.frames[None])
    np.testing.assert_array_equal(drawn["q"][0], world.reconstruct(clip).frames)
    assert list(table) == ["q", "1 step", "2 steps", "4 steps", "8 steps", "z"] and table["z"]["flicker"] == 1
    plain = dataclasses.replace(world, refine=None)
    assert list(pictures.renderers(plain)) == ["q", "z"]
    assert (drawn["4 steps"] != drawn["q"]).any()
    rows = {"q": {"sharpness": 0.2}, "4 steps": {"sharpness": 0.5}, "z": {"sharpness": 0.6}}
    assert pictures.shares_closed(rows) == {"4 steps": {"sharpness": pytest.approx(0.75)}}
    same, _ = pictures.picture_table({"z": lambda frames: frames}, clip.frames[None])
    assert same["z"]["psnr"] == 50 and same["z"]["features"] == 0
    assert same["z"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert same["z"]["sharpness"] == pytest.approx(1)
    smooth = lambda frames: (frames // 2 + np.roll(frames, 1, 2) // 2).astype(np.uint8)
    ways = {"smooth": smooth, "z": lambda frames: frames}
    one = pictures.picture_table(ways, clip.frames[None])[0]["smooth"]
    assert one["sharpness"] < 0.8 and one["flicker"] < 0.8 and one["features"] > 0.1


def test_requests_of_wrong_actions_keep_the_frames(world, played):
    """Only the new actions differ from those of the forward answer."""
    held, clip = played[1], played[1].clip(0)
    request = extend_request(clip[:4], 8, world.config, actions=clip.actions[4:])
    assert request.actions[:4].ravel().tolist() == clip.actions[:4].tolist()
    assert played[0].steered.shape == held.frames[:, 4:].shape
