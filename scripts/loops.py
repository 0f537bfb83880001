"""Measure loops: how often they hold on sprites, how well they close on held-out clips, what effort buys.

    python -m scripts.loops toy --workdir out/toy             a sprite's true places as codes, trained first
    python -m scripts.loops sprites --world runs/sprites/world  a world of sprite videos, its frames read back
    python -m scripts.loops clips --world pong --data data/pong --frames 32

All candidates are drawn and swept once; every row of a table is read from this one trace, so that rows differ
by what they name alone. ``first``: one is kept before the sweeps; ``last``: all are swept, then one is kept.

On sprites ``seam`` is the share of loops in which some velocity leads over the seam, ``smooth`` in which no
velocity changes at the seam, ``loop`` in which some velocity leads over every step; ``auc`` tells how well
the mean surprise, or the least likely chunk's, parts lengths after which the sprites come back from others.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

import worldsim
from scripts import toy_sprites
from worldsim import plan as plans
from worldsim.checkpoint import bundled_worlds
from worldsim.data import sprites
from worldsim.data.source import open_source
from worldsim.data.sprites import SpriteConfig
from worldsim.generate import requests, rollout
from worldsim.generate.extend import World
from worldsim.generate.loop import (
    all_nats,
    block_size,
    branches,
    sweep,
    sweep_groups,
    time_order,
    within_window,
)
from worldsim.generate.render import render, tokenize
from worldsim.generate.ring import Looker, Ring
from worldsim.ops.faults import loop_faults
from worldsim.ops.scores import loop_ratios
from worldsim.plan import Plan
from worldsim.types import Clip
from worldsim.worlds import clips

OPENING, STEPS = 4, 8
TOY_LENGTHS = (16, 32, 11, 13, 20, 22)
"""A sprite that keeps its velocity is back after 16 and 32 frames; after the others none is."""
SPRITE_LENGTHS = (54, 27, 32, 40)
"""The same of the default sprite world: after 54, of two axes at full speed after 27, else not."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """Loops of b clips with n candidates after s = 0, 1, ... sweeps.

    Attributes:
      codes: ``[s b n N h w]`` in the order of time.
      nats: ``[s b n N]``, how surprising each chunk is given all others.
    """

    codes: np.ndarray
    nats: np.ndarray

    def kept(self, candidates: int, sweeps: int, choose: str = "last") -> tuple[np.ndarray, np.ndarray]:
        """Codes ``[b N h w]`` and nats ``[b N]`` of the loops that this effort keeps."""
        worst = self.nats[sweeps if choose == "last" else 0, :, :candidates].max(-1)
        best, b = worst.argmin(1), np.arange(self.codes.shape[1])
        return self.codes[sweeps, b, best], self.nats[sweeps, b, best]


def onward(opening: int, total: int, *, frames_per_chunk: int = 1) -> Plan:
    """A loop's plan without turns: from the opening on, up to the anchor."""
    start = np.arange(opening)
    known, new = np.concatenate([total + start, start]), np.arange(opening, total)
    return plans.make_plan(known, new, frames_per_chunk=frames_per_chunk, pinned=opening)


def trace(
    world: World,
    opening: np.ndarray,
    actions: np.ndarray | None,
    plan: Plan,
    *,
    effort: tuple[int, int],
    seed: int,
) -> Trace:
    """Draw and sweep loops that open with codes ``[b o h w]``, led to by actions ``[b o f ...]``."""
    n, sweeps = effort
    b, o = opening.shape[:2]
    order, groups = time_order(plan), sweep_groups(plan)
    total = len(order)
    dials = within_window(world.dials(steps=STEPS), world.config)
    keys = branches(jax.random.split(jax.random.key(seed), b), n).reshape(-1)
    repeat = lambda a: np.repeat(a, n, axis=0)
    blank = np.zeros((b * n, total - o, *opening.shape[2:]), np.int32)
    codes = np.concatenate([repeat(opening), repeat(opening), blank], axis=1)
    rows = ring_actions = None
    if actions is not None:
        null = requests.by_chunk(None, total - o, world.config)
        ring_actions = np.concatenate([repeat(actions), np.repeat(null[None], b * n, axis=0)], axis=1)
        rows = np.concatenate([repeat(actions), ring_actions], axis=1)  # those to generate are all null
    state = rollout.start(*world.dynamics, keys=keys)
    _, codes = rollout.run(world.dynamics, state, plan, codes=codes, dials=dials, actions=rows)
    ring = Ring(codes[:, order], ring_actions)
    looker = Looker(world.dynamics, world.config, block=block_size(b * n * max(map(len, groups))))
    found = []
    for number in range(sweeps + 1):
        if number:
            ring = sweep(looker, ring, groups, keys=keys, number=number, dials=dials)
        found.append((ring.codes, all_nats(looker, ring, steps=dials.passes)))
    shape = lambda a: a.reshape(b, n, *a.shape[1:])
    return Trace(np.stack([shape(c) for c, _ in found]), np.stack([shape(s) for _, s in found]))


def free_moves(config: SpriteConfig) -> np.ndarray:
    """``[place next]``: the velocity after moving from place to next along an axis; 0 where nothing leads."""
    out = np.zeros((config.span + 1, config.span + 1), int)
    for place in range(config.span + 1):
        for velocity in (*range(-config.speed, 0), *range(1, config.speed + 1)):
            if (place == 0 and velocity < 0) or (place == config.span and velocity > 0):
                continue
            goal, turned = sprites.reflect(np.array([place]), np.array([velocity]), config.span)
            out[place, goal[0]] = turned[0]
    return out


def judge(places: np.ndarray, config: SpriteConfig) -> tuple[np.ndarray, np.ndarray]:
    """What a sprite world would say of the free sprites' places in loops ``[b N k 2]``.

    Returns:
      ``[b N]``, whether some velocity leads from each frame to the next; and ``[b N k]``, whether each sprite
      goes on from each frame with the velocity by which it came there.
    """
    goal = np.roll(places, -1, axis=1)
    leaving = free_moves(config)[places, goal]
    coming = np.roll(leaving, 1, axis=1)
    kept = (sprites.reflect(places, coming, config.span)[0] == goal) & (coming != 0)
    return (leaving != 0).all((2, 3)), kept.all(-1)


def suits(opening: np.ndarray, total: int, config: SpriteConfig) -> np.ndarray:
    """``[b]``: whether every free sprite of an opening ``[b o k 2]`` is where it was after ``total`` frames,
    along both axes, if it keeps its velocity."""
    velocity = np.abs(free_moves(config)[opening[:, -2], opening[:, -1]])
    return (velocity * total % (2 * config.span) == 0).all((1, 2))


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that one of the good has a lower score than one of the bad."""
    good, bad = np.asarray(good)[:, None], np.asarray(bad)[None]
    return float(((good < bad) + 0.5 * (good == bad)).mean())


def efforts(candidates: int, sweeps: int) -> Iterator[tuple[int, int, str]]:
    """Rows of the tables."""
    for n in dict.fromkeys((1, candidates)):
        for s in range(sweeps + 1):
            for choose in ("first", "last") if n > 1 and s else ("last",):
                yield n, s, choose


def read_places(frames: np.ndarray, kinds: np.ndarray, config: SpriteConfig) -> np.ndarray:
    """Where in frames ``[t h w 3]`` sprites of these kinds (shape, color) ``[k 2]`` fit best: ``[t k 2]``."""
    side, n = config.side, config.span + 1
    windows = np.lib.stride_tricks.sliding_window_view(frames.astype(np.float32), (side, side), axis=(1, 2))
    out = []
    for shape, color in kinds:
        pixels = windows[..., sprites.stencil(int(shape), side)]
        error = np.abs(pixels - sprites.COLORS[color][:, None]).sum((-2, -1)).reshape(len(frames), -1)
        y, x = np.divmod(error.argmin(1), n)
        out.append(np.stack([x, y], -1))
    return np.stack(out, 1)


@dataclasses.dataclass(frozen=True)
class Bed:
    """Sprites to make loops of.

    Attributes:
      world, config: the world and what its sprites do.
      codes: ``[b o h w]``, openings.
      actions: ``[b o 1]`` or None.
      opening: free sprites' places in them ``[b o k 2]``.
      motion: mean step of a free sprite along an axis, in real play.
      places: from codes of loops ``[b N h w]`` to free sprites' places ``[b N k 2]``.
    """

    world: World
    config: SpriteConfig
    codes: np.ndarray
    actions: np.ndarray | None
    opening: np.ndarray
    motion: float
    places: Callable[[np.ndarray], np.ndarray]


def toy_bed(world: World, count: int, *, seed: int = 7) -> Bed:
    """Held-out openings of the true-places world."""
    places = toy_sprites.true_places(count, 32, seed=seed)
    opening, motion = places[:, :OPENING], float(np.abs(np.diff(places, axis=1)).mean())
    codes = opening.astype(np.int32)
    return Bed(world, toy_sprites.TOY, codes, None, opening, motion, lambda codes: codes)


def drawn(world: World, codes: np.ndarray) -> np.ndarray:
    """Frames of loops from their codes ``[b p h w]`` alone, each chunk beside its neighbours all round."""
    times = np.arange(codes.shape[1], dtype=np.float32) * world.config.tokenizer.frames_per_chunk
    keys = jax.random.split(jax.random.key(0), len(codes))
    return render(world.renderer, codes, times, keys, refine_steps=0, window="cyclic")


def video_bed(world: World, config: SpriteConfig, clips: int, *, seed: int = 7) -> Bed:
    """Openings of new episodes through the tokenizer; places are read back from decoded frames."""
    played = list(sprites.episodes(config, count=clips, length=32, seed=1000 + seed))
    states = np.stack([episode.extra["state"] for episode in played])
    frames = np.stack([episode.frames[:OPENING] for episode in played])
    actions = np.stack([episode.actions[:OPENING] for episode in played])[..., None]
    actions[:, 0] = -1
    kinds = states[:, 0, 1:, 4:]

    def places(codes: np.ndarray) -> np.ndarray:
        seen = drawn(world, codes)
        return np.stack([read_places(f, k, config) for f, k in zip(seen, kinds, strict=True)])

    free = states[:, :, 1:, :2]
    motion = float(np.abs(np.diff(free, axis=1)).mean())
    codes = tokenize(*world.tokenizer, frames, frames_per_chunk=1)
    return Bed(world, config, codes, actions, free[:, :OPENING], motion, places)


def sprite_rows(bed: Bed, total: int, *, effort: tuple[int, int], turns: bool = True) -> list[dict]:
    """A row for each effort: loops of ``total`` frames from the bed's openings."""
    plan = (plans.loop if turns else onward)(OPENING, total)
    traced = trace(bed.world, bed.codes, bed.actions, plan, effort=effort, seed=7)
    fit, rows = suits(bed.opening, total, bed.config), []
    for n, s, choose in efforts(*effort):
        codes, nats = traced.kept(n, s, choose)
        places = bed.places(codes)
        legal, kept = judge(places, bed.config)
        rows.append({
            "frames": total, "turns": turns, "candidates": n, "sweeps": s, "kept": choose,
            "suits": fit.mean(), "seam": legal[:, -1].mean(),
            "smooth": (kept[:, -1] & kept[:, 0]).all(-1).mean(), "loop": legal.all(1).mean(),
            "redraws": 1 - kept.mean(), "motion": np.abs(np.diff(places, axis=1)).mean() / bed.motion,
            "worst": np.median(nats.max(1)),
            "worst_each": nats.max(1).tolist(), "mean_each": nats.mean(1).tolist(),
            "suits_each": fit.tolist(), "loop_each": legal.all(1).tolist(),
            "nats_each": nats.round(3).tolist(), "kept_each": kept.all(-1).tolist(),
        })  # fmt: skip
    return rows


def part_lengths(rows: Sequence[dict], key: str) -> dict[tuple, float]:
    """Per effort, how well a score parts loops of suitable lengths from others (:func:`auc`)."""
    out = {}
    for name in dict.fromkeys((r["turns"], r["candidates"], r["sweeps"], r["kept"]) for r in rows):
        mine = [r for r in rows if (r["turns"], r["candidates"], r["sweeps"], r["kept"]) == name]
        pairs = [pair for r in mine for pair in zip(r["suits_each"], r[key], strict=True)]
        good, bad = ([score for fit, score in pairs if fit is want] for want in (True, False))
        if good and bad:
            out[name] = auc(good, bad)
    return out


def held_out(world: World, name: str, data: str | None, count: int) -> list[Clip]:
    """The clips bundled with a world, then pieces of 48 frames from the middle of held-out records."""
    found = clips(name)[:count] if name in bundled_worlds() else []
    if data and len(found) < count:
        source = open_source(data, "test", keys=("frames", "actions"))
        long = [i for i in range(len(source)) if source.lengths[i] >= 48]
        for i in np.linspace(0, len(long) - 1, count - len(found)).round().astype(int):
            record = source[long[i]]
            start = (len(record["frames"]) - 48) // 2
            rows = {key: array[start : start + 48] for key, array in record.items()}
            found.append(Clip(rows["frames"], rows.get("actions"), fps=world.config.fps))
    return found


def clip_rows(
    world: World, real: Sequence[Clip], total: int, *, effort: tuple[int, int], turns: bool = True
) -> list[dict]:
    """A row for each effort: loops of ``total`` frames from the first frames of clips, medians over clips."""
    asked = [requests.loop_request(clip[:16], total, world.config) for clip in real]
    opening = np.stack([request.frames for request in asked])
    f = world.config.tokenizer.frames_per_chunk
    codes = tokenize(*world.tokenizer, opening, frames_per_chunk=f)
    actions = None if asked[0].actions is None else np.stack([r.actions[: codes.shape[1]] for r in asked])
    plan = (plans.loop if turns else onward)(codes.shape[1], total // f, frames_per_chunk=f)
    traced, rows = trace(world, codes, actions, plan, effort=effort, seed=3), []
    for n, s, choose in efforts(*effort):
        kept, nats = traced.kept(n, s, choose)
        frames = drawn(world, kept)
        frames[:, : opening.shape[1]] = opening
        scores = loop_ratios(list(frames), [clip.frames for clip in real]) | {"worst": nats.max(1)}
        faults = sum(bool(loop_faults(x, [c.frames])) for x, c in zip(frames, real, strict=True))
        rows.append(
            {"frames": total, "turns": turns, "candidates": n, "sweeps": s, "kept": choose}
            | {name: float(np.median(values)) for name, values in scores.items()}
            | {"faults": faults, "clips": len(real)}
        )
    return rows


def table(rows: Sequence[dict]) -> str:
    """Rows as Markdown, without what is listed per loop."""
    names = [name for name in rows[0] if not name.endswith("_each")]
    show = lambda value: f"{value:.3f}" if isinstance(value, float) else str(value)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(show(row[name]) for name in names) + " |" for row in rows])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bed", choices=("toy", "sprites", "clips"))
    parser.add_argument("--world", default="pong", help="a folder or a bundled name")
    parser.add_argument("--workdir", type=Path, default=Path("out/toy"), help="where the toy is or will be")
    parser.add_argument("--data", help="held-out records, for clips")
    parser.add_argument("--frames", type=int, nargs="+", help="lengths; 16 and others, for clips 32")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--effort", type=int, nargs=2, default=(4, 2), help="candidates and sweeps")
    parser.add_argument("--onward", action="store_true", help="also generate from the opening onward alone")
    parser.add_argument("--json", type=Path, help="write all rows there")
    args = parser.parse_args(argv)
    effort, rows = tuple(args.effort), []
    if args.bed == "toy":
        folder = args.workdir / "world"
        world = worldsim.load(folder) if folder.is_dir() else toy_sprites.train_toy(args.workdir)
        bed, lengths = toy_bed(world, args.clips), args.frames or TOY_LENGTHS
    else:
        world = worldsim.load(args.world)
        if args.bed == "sprites":
            bed, lengths = video_bed(world, SpriteConfig(), args.clips), args.frames or SPRITE_LENGTHS
        else:
            real, lengths = held_out(world, args.world, args.data, args.clips), args.frames or (32,)
    for turns in (True, False) if args.onward else (True,):
        for total in lengths:
            if args.bed == "clips":
                rows += clip_rows(world, real, total, effort=effort, turns=turns)
            else:
                rows += sprite_rows(bed, total, effort=effort, turns=turns)
            print(table(rows), flush=True)
            if args.json:  # a length of 64 loops takes an hour and more
                args.json.write_text(json.dumps(rows, indent=1, default=float) + "\n")
    if args.bed != "clips":
        mean, worst = (part_lengths(rows, key) for key in ("mean_each", "worst_each"))
        for name in mean:
            said = f"turns {name[0]}, {name[1]} candidates, {name[2]} sweeps, kept {name[3]}"
            print(f"auc {mean[name]:.3f} of the mean, {worst[name]:.3f} of the worst chunk: {said}")


if __name__ == "__main__":
    main()
