"""The demo: its files, the fields of its report, and what it says where a loop has no ratio."""

import json

import numpy as np
import pytest

from worldsim import demo
from worldsim.checkpoint import bundled_worlds
from worldsim.data.video import read_video
from worldsim.worlds import clips

LISTS = {
    **dict.fromkeys(("psnr_forward", "psnr_backward", "psnr_copy_last", "psnr_copy_first"), 32),
    **dict.fromkeys(("psnr_infill", "psnr_copy_nearest"), 16),
}
RATIOS = ("seam_ratio", "jerk_ratio", "peak_ratio", "motion_ratio")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo in one pass a chunk, and its folder."""
    out = tmp_path_factory.mktemp("demo")
    return demo.run_demo(out, steps=1), out


def test_the_report_and_the_files_are_there(made):
    report, out = made
    assert json.loads((out / "report.json").read_text()) == report
    for name, length in LISTS.items():
        assert len(report[name]) == length
        assert all(0 < value <= 50 for value in report[name]), name
    for name in RATIOS:
        finite = [value for value in report[f"{name}_each"] if value is not None]
        assert len(finite) == report[f"{name}_clips"]
        assert report[name] == pytest.approx(np.mean(finite), abs=1e-4)
    assert report["clips"] == 8
    assert report["seconds"] > 0
    for verb, frames in {"forward": 48, "backward": 48, "infill": 48, "loop": 96}.items():
        assert len(read_video(out / f"{verb}.mp4")) == frames
    sheet = read_video(out / "contact_sheet.png").frames[0]
    assert sheet.shape[0] > 10 * 64  # truth and four verbs, of two clips


def test_the_baselines_are_those_of_the_clips(made):
    truth = [clip.frames.astype(float) for clip in clips("pong")]

    def db(a, b):
        return min(50.0, 10 * np.log10(255**2 / max(1e-12, np.mean((a - b) ** 2))))

    for i in (0, 7, 31):
        last = np.mean([db(t[15], t[16 + i]) for t in truth])
        first = np.mean([db(t[32], t[31 - i]) for t in truth])
        assert made[0]["psnr_copy_last"][i] == pytest.approx(last, abs=2e-3)
        assert made[0]["psnr_copy_first"][i] == pytest.approx(first, abs=2e-3)


def test_the_summary_says_how_many_loops_have_a_ratio(made):
    report = made[0] | {"seam_ratio": None, "seam_ratio_clips": 0, "jerk_ratio": 1.5, "jerk_ratio_clips": 7}
    assert "seam none (of 0 loops), jerk 1.50 (of 7 loops), peak" in demo.summary(report)


@pytest.mark.parametrize("name", bundled_worlds())
def test_the_readme_shows_the_scores_that_came_with_a_world(name):
    import worldsim
    from scripts.bundle import ROOT, marks, table

    text, (start, end) = (ROOT / "README.md").read_text("utf-8"), marks(name)
    shown = text[text.index(start) + len(start) : text.index(end)]
    assert shown == table(name, worldsim.load(name).provenance["scores"])
