"""What a world remembers: the recall world's questions answered by the true past, by their distance.

    python scripts/recall.py runs/recall/world --data data/recall

Prints a table in Markdown. Every answer of the held-out episodes is read off with nothing but the frames
before it in view: its codes are all masked, and the likeliest colour counts.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import worldsim
from worldsim.data.recall import ANSWER, COLORS
from worldsim.data.source import open_source
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.models.dynamics import Chunks
from worldsim.ops.attention import KNOWN, QUERY

BINS = (2, 4, 8, 16, 32, 64, 128, 192, 256)
"""Least distances of the rows of the table, in frames."""


@partial(jax.jit, static_argnames="graph")
def likeliest(graph: nnx.GraphDef, params: nnx.State, codes: jax.Array, asked: jax.Array) -> jax.Array:
    """The likeliest code at the bottom right of each asked frame ``[b q]``, given all frames before it."""
    model = nnx.merge(graph, params)
    times = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape[:2])

    def stream(codes: jax.Array, times: jax.Array, kind: int) -> Chunks:
        ids = jnp.stack([jnp.zeros_like(times), times, jnp.full_like(times, kind)], -1)
        return Chunks(codes, times.astype(jnp.float32), ids, jnp.zeros(times.shape))

    hidden = jnp.full((*asked.shape, *codes.shape[2:]), model.mask)
    logits = model.two_stream(stream(codes, times, KNOWN), stream(hidden, asked, QUERY))
    return logits[:, :, -1, -1].argmax(-1)


def read_colors(codes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """What colour each code stands for: the one that it is most often of; -1 where it is of none."""
    count = np.zeros((int(codes.max()) + 1, len(COLORS)), int)
    np.add.at(count, (codes, colors), 1)
    return np.where(count.any(1), count.argmax(1), -1)


def answers(
    world: World, path: str, *, split: str = "test", batch: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each answer of a split, in frames, and whether the world's colour is the true one."""
    if world.config.tokenizer.frames_per_chunk != 1:
        raise ValueError("recall: answers are single frames; train the world with frames_per_chunk=1.")
    keys = ("frames", "event", "color", "cue_time")
    source = open_source(path, split, keys=keys)
    records = [source[index] for index in range(len(source))]
    codes = np.concatenate(
        [tokenize(*world.tokenizer, record["frames"][None], frames_per_chunk=1) for record in records]
    ).astype(np.int32)
    asked = np.stack([np.flatnonzero(record["event"] == ANSWER) for record in records]).astype(np.int32)
    take = lambda name: np.stack([r[name][at] for r, at in zip(records, asked, strict=True)])
    colors, cues = take("color"), take("cue_time")
    meant = read_colors(np.take_along_axis(codes[:, :, -1, -1], asked, axis=1), colors)
    drawn = [
        likeliest(*world.dynamics, codes[i : i + batch], asked[i : i + batch])
        for i in range(0, len(codes), batch)
    ]
    found = np.concatenate([np.asarray(part) for part in drawn])
    known = np.where(found < len(meant), meant[np.minimum(found, len(meant) - 1)], -1)
    return (asked - cues).ravel(), (known == colors).ravel()


def table(distances: np.ndarray, right: np.ndarray, *, trained: int) -> str:
    """Accuracy by distance in Markdown; ``trained`` is the longest distance that training shows."""
    lines = ["| distance, frames | answers | right, % |", "|---|---|---|"]
    ends = (*BINS[1:], int(distances.max()) + 1)
    for low, high in zip(BINS, ends, strict=True):
        here = (distances >= low) & (distances < high)
        if here.any():
            name = f"{low}-{high - 1}" + (" (not trained)" if low > trained else "")
            lines.append(f"| {name} | {here.sum()} | {100 * right[here].mean():.1f} |")
    within = distances <= trained
    lines.append(f"| **all up to {trained}** | {within.sum()} | {100 * right[within].mean():.1f} |")
    return "\n".join([*lines, "", f"Guessing among {len(COLORS)} colours: {100 / len(COLORS):.1f} %."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("world", help="folder of a world trained by configs/recall.py")
    parser.add_argument("--data", default="data/recall")
    args = parser.parse_args()
    world = worldsim.load(args.world)
    distances, right = answers(world, args.data)
    print(table(distances, right, trained=world.config.dynamics.context))


if __name__ == "__main__":
    main()
