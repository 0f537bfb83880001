"""The loader: an endless, shuffled, indexable row of training batches.

Position is the step number and nothing else. All clip starts of all records are numbered

    record 0 (5 frames)      record 1 (4 frames)          clips of 3 frames
    starts 0 1 2             starts 3 4                    5 clips in an epoch

and a pass over the data is a pseudo-random permutation of those numbers, another one each epoch, so
that every clip is equally likely. Place q of the global row is row ``q % batch`` of step
``q // batch``; a process takes its rows of each batch. Nothing depends on threads, and resuming
needs no state.

Where several clips are packed into a row, row q draws a fixed number of them and takes what fits: records
shorter than a row count as one clip each, the last clip taken is cut, and what is left is padding.

    row of 8 frames      a a a | b b b b | . or     a a a | c c c c c       c: 5 of the clip's 8 frames
    segments             0 0 0   1 1 1 1  -1        0 0 0   1 1 1 1 1
"""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from worldsim.data.source import Source

Batch = dict[str, np.ndarray]
"""Arrays ``[batch, frames, ...]`` by key."""

ENDLESS = 2**62
"""Length that indexable readers are told where there is no end."""

MEANINGFUL = 2
"""Frames of the shortest clip that is packed into a row: the second has something before it."""


def permute(place: int, count: int, *, seed: int, rounds: int = 6) -> int:
    """Where a place of an endless row points in ``[0, count)``, a new permutation every ``count`` places.

    A balanced Feistel network over the next even power of two, walked until it lands inside (Black
    and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): no table, any size, any place in O(1).
    """
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    epoch, value = divmod(place, count)
    key = _mix(seed + _mix(epoch))
    while True:
        left, right = value >> half, value & mask
        for turn in range(rounds):
            left, right = right, left ^ (_mix(key + (turn << 32) + right) & mask)
        value = (left << half) | right
        if value < count:
            return value


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


class Clips:
    """All clips of ``frames`` frames of a source, in shuffled order without end; one process's share.

    Attributes:
      count: clips per epoch.
      skipped: records too short to be used.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int,
        batch: int,
        seed: int,
        rows: Sequence[int],
        segments: int = 1,
    ) -> None:
        lengths = np.asarray(source.lengths)
        starts = np.maximum(lengths - frames + 1, lengths >= _least(frames, segments))
        self._ends = np.cumsum(starts)
        self._source, self._frames, self._seed = source, frames, seed
        self._batch, self._rows = batch, tuple(rows)
        self._segments = segments
        self.count = int(starts.sum())
        self.skipped = int((starts == 0).sum())

    def __len__(self) -> int:
        return ENDLESS

    def locate(self, place: int) -> tuple[int, int]:
        """Record and first frame of the clip at a place of the global row of clips."""
        clip = permute(place, self.count, seed=self._seed)
        record = int(np.searchsorted(self._ends, clip, side="right"))
        return record, clip - (int(self._ends[record - 1]) if record else 0)

    def __getitem__(self, index: int) -> Batch:
        step, row = divmod(int(index), len(self._rows))
        place = step * self._batch + self._rows[row]
        if self._segments > 1:
            return self._packed(place)
        record, start = self.locate(place)
        stop = start + self._frames
        return {name: rows[start:stop] for name, rows in self._source[record].items()}

    def _packed(self, row: int) -> Batch:
        """Clips end to end, with ``segments [t]``: the number of the clip that each frame is of, or -1."""
        parts: list[Batch] = []
        left = self._frames
        for place in range(row * self._segments, (row + 1) * self._segments):
            record, start = self.locate(place)
            length = min(int(self._source.lengths[record]) - start, self._frames)
            taken = min(length, left)
            if taken < MEANINGFUL:
                break
            start += _mix(self._seed + _mix(place)) % (length - taken + 1)
            rows = {name: a[start : start + taken] for name, a in self._source[record].items()}
            parts.append(rows | {"segments": np.full(taken, len(parts), np.int32)})
            left -= taken
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {
            name: np.concatenate([a, np.full((left, *a.shape[1:]), -(name == "segments"), a.dtype)])
            for name, a in joined.items()
        }


def _least(frames: int, segments: int) -> int:
    """Frames of the shortest record that is used."""
    return frames if segments == 1 else MEANINGFUL


class Loader:
    """Batches of clips by step number.

    ``loader[step]`` and the step-th item of :meth:`iterate` are equal; so are the global batches of
    any number of processes.

    Attributes:
      epoch: steps in one pass over the clips, a fraction as a rule; of packed rows those that take the
        most segments, fewer than it is where rows are full before.
      skipped: records that were shorter than a clip.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int,
        batch: int,
        seed: int,
        rows: Sequence[int] | None = None,
        threads: int = 2,
        segments: int = 1,
    ) -> None:
        """Number the clips of ``source``.

        Args:
          frames: of a clip, or of a row of several.
          batch: rows per step, over all processes.
          rows: numbers of those that this process reads of each batch; None reads all.
          threads: that read ahead; 0 reads when asked.
          segments: most clips that are packed into a row; with more than 1, batches have
            ``segments [b t]``, the number in its row of the clip that each frame is of, -1 for padding.

        Raises:
          ValueError: no record is long enough, or rows that a batch does not have.
        """
        least = _least(frames, segments)
        if segments < 1 or frames < least:
            raise ValueError(
                f"Loader: {segments} segments in rows of {frames} frames; take 1, or more in rows of at "
                f"least {MEANINGFUL} frames."
            )
        if batch < 1 or frames < 1 or threads < 0:
            raise ValueError(
                f"Loader: frames {frames}, batch {batch}, threads {threads}; frames and batch start at 1, "
                "threads at 0."
            )
        rows = range(batch) if rows is None else rows
        if len(rows) == 0 or min(rows) < 0 or max(rows) >= batch:
            raise ValueError(
                f"Loader: rows {list(rows)} of a batch of {batch}; take some of 0 to {batch - 1}."
            )
        lengths = np.asarray(source.lengths)
        if not np.any(lengths >= least):
            longest = lengths.max(initial=0)
            raise ValueError(
                f"Loader: no record has {least} frames; there are {len(lengths)}, the longest has "
                f"{longest}. Ask for clips of at most {longest} frames, pack shorter ones (mix.segments) or "
                "store longer records."
            )
        self.local = len(rows)
        self._threads = threads
        self._clips = Clips(source, frames=frames, batch=batch, seed=seed, rows=rows, segments=segments)
        self.epoch = self._clips.count / (batch * segments)
        self.skipped = self._clips.skipped

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"Loader: step {step}; steps count from 0 and have no end.")
        return stack([self._clips[step * self.local + row] for row in range(self.local)])

    def iterate(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches from step ``start`` on, read ahead by Grain, or by plain threads where it is missing.

        Close the iterator (or let it be collected) to stop the threads.
        """
        if self._threads == 0:
            return self._iterate_plainly(start)
        if importlib.util.find_spec("grain") is not None:
            return self._iterate_grain(start)
        return self._iterate_threads(start)

    def _iterate_plainly(self, start: int) -> Generator[Batch, None, None]:
        step = start
        while True:
            yield self[step]
            step += 1

    def _iterate_grain(self, start: int) -> Generator[Batch, None, None]:
        import grain

        rows = grain.MapDataset.source(self._clips)[start * self.local :]
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=4 * self.local)
        yield from rows.to_iter_dataset(options).batch(self.local, batch_fn=stack)

    def _iterate_threads(self, start: int) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        ahead: collections.deque[Future[Batch]] = collections.deque()
        step = start
        try:
            while True:
                while len(ahead) < 2 * self._threads:
                    ahead.append(pool.submit(self.__getitem__, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def stack(rows: Sequence[Batch]) -> Batch:
    """Clips of equal length as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
