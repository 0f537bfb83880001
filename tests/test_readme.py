"""README: the tree, the commands, the links and the snippets are those of the code."""

import ast
import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import movies
import numpy as np
import pytest
from PIL import Image

from scripts import readme_tree
from worldsim import cli
from worldsim.data.video import read_video

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [
    line
    for language, code in BLOCKS
    if language == "bash"
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
COMMANDS = [shlex.split(line, comments=True) for line in SHELL if line.startswith("worldsim ")]


@pytest.mark.law
def test_the_tree_is_that_of_the_package():
    assert readme_tree.refreshed(TEXT) == TEXT, "run: make tree"


@pytest.mark.law
def test_a_changed_caption_is_seen():
    caption = readme_tree.caption(ROOT / "worldsim/types.py")
    changed = TEXT.replace(caption, "Something else")
    assert changed != TEXT and readme_tree.refreshed(changed) != changed


def test_every_verb_is_shown():
    shown = {command[1] for command in COMMANDS}
    assert shown >= set(cli.VERBS)


@pytest.mark.law
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_exist_with_their_options(command, monkeypatch):
    words = command[1:4] if command[1] == "data" else command[1:2]
    words += [word for word in command[2:3] if command[1] == "train" and (ROOT / word).is_file()]
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert not end.value.code, out.getvalue()
    for option in (word.split("=")[0] for word in command if word.startswith("--")):
        assert re.search(rf"{option}(?![\w.-])", out.getvalue()), (
            f"{option} is not in the help of {' '.join(words)}"
        )


def test_launch_lines_have_options_that_exist(monkeypatch):
    """Those for several machines: in scripts, in other shells' quotes, and in a manifest."""
    launches = [
        match
        for language, code in BLOCKS
        if language in ("sh", "yaml")
        for match in re.findall(r"worldsim train ([^'#\n]+(?:\n +--[^\n#]+)*)", code.replace("\\\n", ""))
    ]
    assert len(launches) == 4
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        cli.main(["train", "configs/pong.py", "--help"])
    for launch in launches:
        assert launch.startswith("configs/pong.py --workdir ")
        for option in re.findall(r"--[\w.-]+", launch):
            assert re.search(rf"{option}(?![\w.-])", out.getvalue()), option


def test_launch_lines_without_a_mesh_have_options_that_exist():
    text = "".join(code.replace("\\\n", "") for language, code in BLOCKS if language == "sh")
    launches = re.findall(r"worldsim (evaluate|extend) ([^#\n]+)", text)
    assert [verb for verb, _ in launches] == ["evaluate", "evaluate", "extend"]
    for verb, launch in launches:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        for option in re.findall(r"--[\w.-]+", launch):
            assert re.search(rf"{option}(?![\w.-])", out.getvalue()), option


def test_the_manifest_names_the_first_pod():
    yaml = pytest.importorskip("yaml")
    (code,) = (code for language, code in BLOCKS if language == "yaml")
    service, job = yaml.safe_load_all(code)
    pod = job["spec"]["template"]["spec"]
    host = re.search(r"--coordinator (\S+):\d+", pod["containers"][0]["args"][0])[1]
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--processes {job['spec']['completions']} " in pod["containers"][0]["args"][0]
    assert job["spec"]["parallelism"] == job["spec"]["completions"]


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in {word for line in SHELL for word in re.findall(r"^make ([\w-]+)", line)}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT):
        assert (ROOT / link.split("#")[0]).exists(), link
    for config in re.findall(r"configs/\w+\.py", TEXT):
        assert (ROOT / config).exists(), config


@pytest.mark.parametrize("code", PYTHON)
def test_snippets_compile(code):
    assert ast.parse(code).body


def test_examples_in_the_help_are_whole_commands(monkeypatch):
    """Every ``Example:`` is parsed by its own verb, all options given; the verbs themselves do nothing."""
    called = []
    monkeypatch.chdir(ROOT)
    for table in (cli.VERBS, cli.MAKERS, cli.DATA):
        for name, verb in list(table.items()):
            if name == "train":
                continue
            quiet = functools.wraps(verb)(lambda name=name, **_: called.append(name))
            monkeypatch.setitem(table, name, quiet)
    monkeypatch.setattr("worldsim.train.run.train", lambda *_, **__: called.append("train"))
    verbs = {**cli.VERBS, **cli.MAKERS, **cli.DATA}
    train = cli.train_verb(["configs/pong.py"])
    for name, verb in verbs.items():
        text = (train if name == "train" else verb).__doc__
        for example in re.findall(r"Example: worldsim (.*)", text):
            called.clear()
            cli.main(shlex.split(example))
            assert called == ["ale" if name == "data" else name]


@pytest.mark.slow
def test_the_way_from_recording_to_video(tmp_path, monkeypatch):
    """The commands that make data and train on it, as they stand but with less of everything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for seed in range(2):
        movies.record(tmp_path / f"recordings/{seed}.mp4", movies.dot(60, seed=seed), fps=30)
    few = {
        ("data", "make", "ale"): ["--frames", "300", "--test-frames", "300"],
        ("data", "make", "doom"): ["--frames", "40", "--test-frames", "40"],
        ("data", "make", "sprites"): ["--episodes", "16", "--test-episodes", "2"],
        ("data", "make", "recall"): ["--episodes", "16", "--test-episodes", "2"],
        ("evaluate",): ["--clips", "2", "--horizon", "8", "--samples", "1", "--steps", "1"],
        ("train",): [
            *("--tokenizer.steps", "3", "--tokenizer.batch", "2", "--tokenizer.sample-every", "0"),
            *("--refine.steps", "3", "--refine.batch", "2", "--refine.sample-every", "0"),
            *("--dynamics.steps", "3", "--dynamics.batch", "2", "--dynamics.sample-every", "0"),
        ],
    }
    way = [c[1:] for c in COMMANDS if c[1] in ("data", "train") or "runs/pong/world" in c]
    assert len(way) == 12
    for command in way:
        less = next((extra for start, extra in few.items() if tuple(command[: len(start)]) == start), [])
        cli.main([*command, *less])
    assert len(read_video("after.mp4")) > 32


@pytest.mark.slow
def test_snippets_and_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), names)
    Image.fromarray(np.zeros((48, 80, 3), np.uint8)).save("picture.jpg")
    for command in COMMANDS:
        if command[2] == "pong" and command[1] != "play":  # the page is there until it is stopped
            capsys.readouterr()
            cli.main(command[1:])
            told = capsys.readouterr().out
            assert Path(command[command.index("--out") + 1]).stat().st_size if "--out" in command else told


def test_no_place_of_one_machine_or_registry_is_named():
    files = [ROOT / name for name in ("README.md", "requirements.txt", "requirements-dev.txt", "Makefile")]
    for path in files:
        text = path.read_text("utf-8")
        for word in ("file:" + "//", "--index-url", "--find-links", "/root/", "/opt/"):
            assert word not in text, f"{path.name} names {word}"
    assert not re.search(r"https?://", "".join(path.read_text("utf-8") for path in files[1:3]))
