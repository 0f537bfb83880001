"""The scripts that compare configs and draw the gallery: what they vary, what they print, that they run."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import ablate, drift, gallery
from worldsim.cli.options import load_config
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig

PONG = load_config("configs/pong.py")


@pytest.mark.parametrize("ablation", sorted(ablate.VARIANTS))
def test_variants_differ_only_in_what_they_say(ablation):
    steps = {"tokenizer": 7, "dynamics": 5}
    found = {
        title: ablate.variant(PONG, changes, steps=steps)
        for title, changes in ablate.variants(ablation, PONG).items()
    }
    assert len(found) >= 2
    assert len({repr(config) for config in found.values()}) == len(found)
    for config in found.values():
        assert (config.tokenizer.steps, config.dynamics.steps) == (7, 5)
        same = dataclasses.replace(
            config,
            tokenizer_loss=PONG.tokenizer_loss,
            world=dataclasses.replace(config.world, tokenizer=PONG.world.tokenizer, refine=PONG.world.refine),
        )
        assert same == ablate.variant(PONG, {}, steps=steps)


def test_each_term_of_the_loss_in_use_is_left_out_once():
    titles = set(ablate.variants("losses", PONG))
    assert {"without rarity", "without haar", "without charbonnier"} <= titles
    plain = dataclasses.replace(PONG.tokenizer_loss, ms_ssim=0.0)
    assert titles - set(ablate.variants("losses", dataclasses.replace(PONG, tokenizer_loss=plain))) == {
        "without ms_ssim"
    }


def test_the_table_leaves_open_what_a_row_lacks():
    rows = {"VQ": {"PSNR": 40.126, "ball": 97.0}, "FSQ": {"PSNR": 38.0}}
    assert ablate.table(rows).splitlines() == [
        "| | PSNR | ball |",
        "|---|---|---|",
        "| VQ | 40.13 | 97.00 |",
        "| FSQ | 38.00 |  |",
    ]


@pytest.mark.slow
def test_an_ablation_trains_judges_and_keeps_its_figures(tmp_path, monkeypatch, capsys):
    make_sprites(tmp_path / "s.npz", config=SpriteConfig(size=32), episodes=4, test_episodes=4, length=40)
    command = f"ablate quantizer configs/sprites.py --data {tmp_path / 's.npz'} --workdir {tmp_path}"
    monkeypatch.setattr(
        sys, "argv", f"{command} --tokenizer-steps 3 --dynamics-steps 6 --refine-steps 2".split()
    )
    ablate.main()
    first = (tmp_path / "sprites" / "quantizer.json").read_text()
    rows = json.loads(first)
    assert set(rows) == {"VQ", "FSQ"}
    for row in rows.values():
        assert row["nats a frame, forward"] > 10 and row["PSNR of z"] > 5
        assert 0 < row["codes in use, % of the codebook"] <= 100
    assert "| FSQ | " in capsys.readouterr().out
    trained = tmp_path / "sprites" / "quantizer" / "VQ"
    command = f"ablate heads {tmp_path / 'config.py'} --data {tmp_path / 's.npz'} --workdir {tmp_path}"
    text = Path("configs/sprites.py").read_text().replace("steps=1500", "steps=3")
    (tmp_path / "config.py").write_text(text)
    monkeypatch.setattr(sys, "argv", f"{command} --tokenizer {trained} --refine-steps 2".split())
    ablate.main()
    rows = json.loads((tmp_path / "config" / "heads.json").read_text())
    assert {"q", "z", "regression, regression", "diffusion, 4 steps", "per token, 1 step"} <= set(rows)
    assert rows["q"]["PSNR"] == pytest.approx(json.loads(first)["VQ"]["PSNR of q"], abs=0.5)
    assert "sharpness closed, %" in rows["regression, regression"] and set(rows["z"]) == {"PSNR", "flicker"}


@pytest.mark.slow
def test_the_gallery_moves(tmp_path):
    paths = gallery.draw("pong", tmp_path, count=1)
    assert [path.name for path in paths] == [f"pong_{verb}.gif" for verb in ("forward", "backward", "loop")]
    assert all(path.read_bytes()[:3] == b"GIF" for path in paths)


def test_delays_run_from_a_key_to_the_first_changed_picture_under_it():
    play_latency = pytest.importorskip("scripts.play_latency", reason="playwright drives the browser")

    def picture(time, heard, row):
        frame = np.full((64, 64, 3), (144, 72, 17), np.uint8)
        frame[row : row + 4, 55:57] = (92, 186, 92)  # the own paddle
        return {"time": time, "heard": heard, "frame": frame}

    pressed = [
        {"key": "ArrowUp", "number": 1, "time": 100.0},
        {"key": "ArrowDown", "number": 2, "time": 200.0},
    ]
    pictures = [
        picture(90, 0, 30), picture(120, 0, 29), picture(150, 1, 29), picture(180, 1, 28),
        picture(230, 2, 27), picture(260, 2, 30),
    ]  # fmt: skip
    assert play_latency.delays(pressed, pictures) == [80.0, 30.0], "the picture at 150 is as the one before"
    assert play_latency.delays(pressed[:1], pictures[:3]) == []
    assert play_latency.paddle_delays(pressed, pictures) == [20.0, 60.0]


def test_ways_to_run_a_world_are_read():
    assert drift.parse("plain") == {}
    assert drift.parse("guidance=0.5,sinks=2,steps=4") == {"guidance": 0.5, "sinks": 2, "steps": 4}
    for wrong in ("", "speed=3", "sinks"):
        with pytest.raises(ValueError, match="give plain"):
            drift.parse(wrong)
    assert drift.around([0.0] * 8 + [1.0] * 8, 16) == 1 and drift.around([2.0, 2.0], 2) == 2


@pytest.mark.slow
def test_drift_is_measured_in_every_way(tmp_path, capsys):
    sizes = ["--frames", "20", "--clips", "2", "--workdir", str(tmp_path)]
    drift.main(["sprites", "--ways", "plain", "guidance=0.5,sinks=1", *sizes])
    rows = json.loads((tmp_path / "drift.json").read_text())
    assert set(rows) == {"sprites, plain", "sprites, guidance=0.5,sinks=1"}
    for row in rows.values():
        assert 0 < row["survival"] <= 20 and 0 <= row["there, last"] <= 1 and row["pushed 16"] < 10
    assert "| sprites, plain | " in capsys.readouterr().out
