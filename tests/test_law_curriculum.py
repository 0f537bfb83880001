"""Laws of a curriculum: phases follow one another in one stage, and stopping between them changes nothing."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
import tiny

from worldsim.cli.options import load_config
from worldsim.config import MixConfig, OptimConfig, PhaseConfig, StageConfig, TrainConfig, lengthen
from worldsim.data.arrays import ArraySource
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.generate.extend import World
from worldsim.models.dynamics import Dynamics
from worldsim.parallel.sharding import by_path
from worldsim.plain import from_dict, to_dict
from worldsim.train import run
from worldsim.train.loop import train_stage
from worldsim.train.metrics import read_lines
from worldsim.train.stages import dynamics_stage

pytestmark = pytest.mark.law

FIRST = PhaseConfig(share=0.5, chunks=4, queries=1, frames=6, batch=4, rope_base=100.0)
OPTIM = OptimConfig(learning_rate=1e-2, warmup=2)


def config(*, steps=6, curriculum=(FIRST,)):
    stage = StageConfig(
        steps=steps, batch=2, frames=8, optim=OPTIM, log_every=1, save_every=2, sample_every=0
    )
    world = tiny.config(context=7, rope_base=400.0)
    return TrainConfig(world=world, dynamics=stage, mix=MixConfig(chunks=8, queries=3), curriculum=curriculum)


def parts(config, *, seen=None, hook=None):
    """The stages of each phase on a few random codes; ``hook(step)`` is called before each batch."""
    rng = np.random.default_rng(0)
    arrays = {
        "codes": rng.integers(0, 9, (5, 12, 2, 2)).astype(np.uint16),
        "actions": rng.integers(0, 3, (5, 12, 1)).astype(np.int32),
    }
    out = []
    for end, part in config.phases:
        stage = dynamics_stage(part, ArraySource(arrays, keys=None))

        def batches(start, stage=stage):
            for step, batch in enumerate(stage.batches(start), start):
                if hook is not None:
                    hook(step)
                if seen is not None:
                    seen.append((step, *batch["codes"].shape[:2]))
                yield batch

        out.append(dataclasses.replace(stage, until=end, batches=batches))
    return out


def train(folder, **how):
    for stage in parts(config(), **how):
        state = train_stage(stage, folder, seed=3, config=config())
    return state


def leaves(state):
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return {path: np.asarray(leaf) for path, leaf in by_path(plain).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    seen = []
    return leaves(train(folder, seen=seen)), read_lines(folder / "dynamics" / "metrics.jsonl"), seen


def test_phases_follow_one_another_with_their_own_sequences(whole):
    state, lines, seen = whole
    assert int(state["step"]) == 6
    assert seen == [(0, 4, 4), (1, 4, 4), (2, 4, 4), (3, 2, 8), (4, 2, 8), (5, 2, 8)]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    rates = [line["learning_rate"] for line in lines]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)  # one warm-up, one decay


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_killed_in_any_phase_and_resumed_is_uninterrupted(whole, tmp_path, stop):
    class StoppedError(Exception):
        pass

    def hook(step):
        if step == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(tmp_path, hook=hook)
    seen = []
    state = leaves(train(tmp_path, seen=seen))
    for path, array in whole[0].items():
        np.testing.assert_array_equal(state[path], array, err_msg=path)
    assert seen[0][0] == {1: 0, 2: 2, 3: 3, 4: 4, 5: 4}[stop]  # the end of a phase is saved too
    lines = read_lines(tmp_path / "dynamics" / "metrics.jsonl")
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert drop(lines) == drop(whole[1])


@pytest.mark.parametrize("stop", [2, 5])
def test_sigterm_saves_in_the_phase_it_comes_in(whole, tmp_path, stop):
    def hook(step):
        if step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train(tmp_path, hook=hook)
    assert end.value.code == 143
    seen = []
    state = leaves(train(tmp_path, seen=seen))
    assert seen[0][0] == stop
    for path, array in whole[0].items():
        np.testing.assert_array_equal(state[path], array, err_msg=path)


def test_another_curriculum_is_refused_when_going_on(tmp_path):
    train(tmp_path)
    other = config(steps=7, curriculum=(dataclasses.replace(FIRST, rope_base=50.0),))
    with pytest.raises(ValueError, match="curriculum"):
        train_stage(parts(other)[-1], tmp_path, seed=3, config=other)


def test_short_sequences_know_a_suffix_of_half_their_chunks_at_most():
    whole = config(curriculum=(FIRST, dataclasses.replace(FIRST, share=0.2, chunks=6, queries=4)))
    whole = dataclasses.replace(
        whole, world=dataclasses.replace(whole.world, dynamics=tiny.config(context=7, pinned=3).dynamics)
    )
    assert [part.world.dynamics.pinned for _, part in whole.phases] == [2, 3, 3]


def test_each_phase_turns_with_its_own_base(monkeypatch):
    found = [part.world.dynamics for _, part in config().phases]
    assert [(d.rope_base, d.context) for d in found] == [(100.0, 3), (400.0, 7)]
    bases = []
    angles = Dynamics._angles
    monkeypatch.setattr(Dynamics, "_angles", lambda m, t: bases.append(m.config.rope_base) or angles(m, t))
    for stage in parts(config()):
        batch = next(stage.batches(0))
        jax.eval_shape(lambda p, b, s=stage: s.loss(p, None, b, jax.random.key(0), 0),
                       tiny.params("dynamics", config().world), batch)  # fmt: skip
    assert bases == [100.0, 400.0]


def test_a_config_with_a_curriculum_survives_being_stored():
    assert from_dict(TrainConfig, to_dict(config())) == config()


def test_lwm_lengthens_the_sequences_of_a_config():
    first = dataclasses.replace(
        config(steps=8370, curriculum=()),
        dynamics=StageConfig(steps=8370, batch=64, frames=10, optim=OPTIM),
    )
    long = lengthen(first)
    shown = [(end, part) for end, part in long.phases]
    assert [end for end, _ in shown] == [1200, 4200, 7200, 7920, 8370]
    assert [part.mix.chunks for _, part in shown] == [8, 32, 64, 128, 256]
    assert [part.mix.queries for _, part in shown] == [3, 12, 24, 48, 96]
    assert [part.dynamics.frames for _, part in shown] == [10, 40, 80, 160, 320]
    assert [part.dynamics.batch for _, part in shown] == [64, 16, 8, 4, 2]
    assert [part.world.dynamics.rope_base / 400 for _, part in shown] == [1, 10, 10, 25, 50]
    assert long.world.dynamics.context == 255
    assert {part.dynamics.steps for _, part in shown} == {8370}
    short = lengthen(first, phases=2)
    assert [end for end, _ in short.phases] == [round(8370 * 1200 / 4200), 8370]
    assert lengthen(first, phases=1) == first


def test_impossible_curricula_are_refused_when_built():
    with pytest.raises(ValueError, match="take 1.0000 of the steps; leave some"):
        config(curriculum=(FIRST, FIRST))
    with pytest.raises(ValueError, match="share 0.0 must lie in"):
        dataclasses.replace(FIRST, share=0.0)
    with pytest.raises(ValueError, match="curriculum, phase 1: .*frames 3 is less than mix.chunks 4"):
        config(curriculum=(dataclasses.replace(FIRST, share=0.1), dataclasses.replace(FIRST, frames=3)))
    with pytest.raises(ValueError, match="batch 0 must lie in"):
        dataclasses.replace(FIRST, batch=0)
    with pytest.raises(ValueError, match="6 phases in 6 steps; take from 1 to 5"):
        lengthen(config(curriculum=()), phases=6)


@pytest.mark.slow
def test_the_exported_world_is_that_of_the_last_phase(tmp_path, monkeypatch):
    """The whole command, stopped after the first phase and given again."""
    data = tmp_path / "s.npz"
    make_sprites(data, config=SpriteConfig(size=32), episodes=4, test_episodes=2, length=40)
    base = load_config("configs/sprites.py")
    stage = StageConfig(batch=2, log_every=1, save_every=0, sample_every=0)
    sprites = dataclasses.replace(
        base,
        world=dataclasses.replace(
            base.world, dynamics=dataclasses.replace(base.world.dynamics, width=24, layers=1, pinned=1)
        ),
        data=dataclasses.replace(base.data, path=str(data)),
        tokenizer=dataclasses.replace(stage, steps=2, frames=2),
        refine=dataclasses.replace(stage, steps=1, frames=2),
        dynamics=dataclasses.replace(stage, steps=4, frames=6),
        mix=MixConfig(chunks=4, queries=1),
        curriculum=(),
    )
    config = lengthen(sprites, phases=2)
    ends, trained = [], run.train_stage

    def stopping(stage, *args, **how):
        state = trained(stage, *args, **how)
        ends.append((stage.name, stage.end))
        if len(ends) == 2:
            raise KeyboardInterrupt
        return state

    monkeypatch.setattr(run, "train_stage", stopping)
    with pytest.raises(KeyboardInterrupt):
        run.train(config, tmp_path / "run", stage="tokenizer")
        run.train(config, tmp_path / "run", stage="dynamics")
    folder = run.train(config, tmp_path / "run", stage="dynamics")
    assert ends == [("tokenizer", 2), ("dynamics", 1), ("dynamics", 4)]
    world = World.load(folder)
    assert world.config.dynamics.rope_base == 10_000.0
    assert world.config.dynamics.context == 4 * (base.world.dynamics.context + 1) - 1
    assert len(world.provenance["train"]["curriculum"]) == 1


def test_a_phase_without_a_batch_has_the_stages():
    phase = dataclasses.replace(FIRST, batch=None)
    assert [part.dynamics.batch for _, part in config(curriculum=(phase,)).phases] == [2, 2]
    assert [part.dynamics.batch for _, part in config().phases] == [4, 2]
