"""Laws of the world folder: what is saved comes back, what does not fit is named."""

from __future__ import annotations

import hashlib
import json
import re
import sys

import ml_dtypes
import numpy as np
import pytest
import tiny

import worldsim
from worldsim import checkpoint
from worldsim.checkpoint import load_world, resolve_world, save_world
from worldsim.config import ActionConfig, DynamicsConfig, TokenizerConfig, WorldConfig
from worldsim.models.world import check_params

CONFIG = WorldConfig(
    tokenizer=TokenizerConfig(height=32, width=32, widths=(8, 16)),
    dynamics=DynamicsConfig(width=32, heads=2, action=ActionConfig("discrete", 3, ("stay", "up", "down"))),
    fps=12.5,
)


def some_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tokenizer": {"stem": {"kernel": rng.normal(size=(3, 5)).astype(np.float32)}},
        "dynamics": {
            "layers": {
                0: {"scale": rng.normal(size=(4,)).astype(np.float32)},
                1: {"scale": rng.normal(size=(4,)).astype(np.float32)},
            },
            "table": np.asfortranarray(rng.normal(size=(2, 3)).astype(np.float32)),
            "count": np.arange(3, dtype=np.int32),
            "gain": np.float32(0.3).reshape(()),
        },
    }


def save(folder, **changes):
    values = {
        "config": CONFIG,
        "params": some_params(),
        "statistics": {"median": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)},
        "provenance": {"steps": 7, "hashes": ["ab"]},
        **changes,
    }
    return save_world(folder, **values)


@pytest.mark.law
def test_world_round_trips_exactly(tmp_path):
    config, params, statistics, provenance = load_world(save(tmp_path / "w"))
    assert config == CONFIG
    assert provenance.pop("weights_sha256")
    assert provenance == {"steps": 7, "hashes": ["ab"]}
    np.testing.assert_array_equal(statistics["median"], np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    want, have = checkpoint.by_path(some_params()), checkpoint.by_path(params)
    assert want.keys() == have.keys()
    for path in want:
        np.testing.assert_array_equal(want[path], have[path], err_msg=path)
        assert want[path].dtype == have[path].dtype and want[path].shape == have[path].shape
    assert set(params["dynamics"]["layers"]) == {0, 1}
    check_params(params, some_params())


@pytest.mark.law
def test_bfloat16_world_is_half_the_size_and_rounded_once(tmp_path):
    big = {"a": {"kernel": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}}
    whole, half = save(tmp_path / "w", params=big), save(tmp_path / "h", params=big, dtype="bfloat16")
    stored = [(folder / "weights.safetensors").stat().st_size for folder in (whole, half)]
    assert stored[1] < 0.55 * stored[0]
    params = load_world(half)[1]
    want = big["a"]["kernel"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(params["a"]["kernel"], want)
    assert params["a"]["kernel"].dtype == np.float32
    again = load_world(save(tmp_path / "again", params=params, dtype="bfloat16"))[1]
    np.testing.assert_array_equal(again["a"]["kernel"], want)
    assert load_world(save(tmp_path / "int", dtype="bfloat16"))[1]["dynamics"]["count"].dtype == np.int32


def test_saving_again_replaces_and_leaves_no_parts(tmp_path):
    save(tmp_path, params=some_params(1))
    save(tmp_path)
    np.testing.assert_array_equal(
        load_world(tmp_path)[1]["dynamics"]["table"], some_params()["dynamics"]["table"]
    )
    names = ["config.json", "provenance.json", "statistics.npz", "weights.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.law
def test_every_parameter_that_does_not_fit_is_named_at_once():
    params = some_params()
    template = some_params()
    del params["tokenizer"]["stem"]["kernel"]
    params["dynamics"]["odd"] = np.zeros((2,))
    params["dynamics"]["table"] = np.zeros((3, 3))
    with pytest.raises(ValueError) as error:
        check_params(params, template)
    message = str(error.value)
    assert "missing: tokenizer/stem/kernel [3, 5]" in message
    assert "unexpected: dynamics/odd [2]" in message
    assert "shape: dynamics/table is [3, 3] and should be [2, 3]" in message
    check_params(some_params(), template)


@pytest.mark.law
@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        ("dynamics", "mlp", 128, r"shape: .*mlp"),
        ("dynamics", "layers", 1, "unexpected: "),
        ("dynamics", "layers", 3, "missing: "),
        ("tokenizer", "levels", [4, 4], "shape: "),
        ("dynamics", "width", None, "DynamicsConfig: no .'width'.; it has"),
    ],
)
def test_weights_of_another_config_are_refused_when_loaded(tmp_path, part, field, value, told):
    folder = tiny.make_world(tiny.config()).save(tmp_path / "world")
    stored = json.loads((folder / "config.json").read_text())
    stored["world"][part][field] = value
    if value is None:
        del stored["world"][part][field]
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=told):
        worldsim.load(folder)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("weights.safetensors", b"12"),
        ("statistics.npz", b"PK\x03\x04"),
        ("config.json", b"[]"),
        ("config.json", b'{"format": 1}'),
        ("provenance.json", b"{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, cut):
    save(tmp_path)
    (tmp_path / name).write_bytes(cut)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name} is damaged")):
        load_world(tmp_path)


def test_weights_that_were_half_replaced_are_refused(tmp_path):
    save(tmp_path / "old")
    save(tmp_path / "new", params=some_params(seed=1))
    (tmp_path / "new" / "weights.safetensors").replace(tmp_path / "old" / "weights.safetensors")
    with pytest.raises(ValueError, match="half written over another"):
        load_world(tmp_path / "old")


def test_provenance_tells_the_hash_of_the_weights(tmp_path):
    folder = tiny.make_world(tiny.config()).save(tmp_path / "world", dtype="bfloat16")
    told = json.loads((folder / "provenance.json").read_text())["weights_sha256"]
    assert told == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_folders_that_are_no_world_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks .'config.json', 'weights.safetensors'"):
        load_world(tmp_path)
    save(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "format": 99}))
    with pytest.raises(ValueError, match="format 99 and this version reads 1"):
        load_world(tmp_path)
    with pytest.raises(ValueError, match="use 'float32' or 'bfloat16'"):
        save(tmp_path, dtype="float16")


def test_missing_safetensors_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save(tmp_path)


def test_worlds_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    save(tmp_path / "mine")
    assert resolve_world(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setattr(checkpoint, "bundled_worlds", lambda: {"pong": tmp_path / "mine"})
    monkeypatch.chdir(tmp_path)
    assert resolve_world("pong") == tmp_path / "mine"
    with pytest.raises(FileNotFoundError, match=r"No world 'ping': it is no folder; .*: pong"):
        resolve_world("ping")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        resolve_world(tmp_path / "empty")


def test_bundled_worlds_are_world_folders():
    assert {"doom", "pong", "sprites"} <= set(checkpoint.bundled_worlds())
    for folder in checkpoint.bundled_worlds().values():
        assert load_world(folder)[3]["weights_sha256"]
