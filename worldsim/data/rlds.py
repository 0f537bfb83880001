"""RLDS folders (as Open X-Embodiment has them) rewrapped into the project's own records, without TensorFlow.

An RLDS record is an episode of ``steps``. A step's action and reward belong to the transition that
follows its observation; here they stand beside the frame that they lead to.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.config import ActionConfig
from worldsim.data.actions import aligned
from worldsim.data.builders import Progress, check_out, dataset_name, write_dataset
from worldsim.data.decode import Look
from worldsim.data.episode import Episode
from worldsim.data.examples import Example, RecordFiles, decode_image, is_image, prepared_splits
from worldsim.data.info import DataInfo, find_dataset
from worldsim.data.video import resize_clip
from worldsim.types import Clip, Frames

STEPS, VIEW, ACTION = "steps/", "steps/observation/", "steps/action"
VIEWS = ("image", "rgb", "image_0", "agentview_rgb")


def is_rlds(folder: str | Path) -> bool:
    """Whether a folder is a prepared RLDS set: one with a feature ``steps``."""
    try:
        features = find_dataset(folder) / "features.json"
    except FileNotFoundError:
        return False
    return features.exists() and '"steps"' in features.read_text()


def import_rlds(
    folder: str | Path,
    out: str | Path,
    *,
    look: Look = Look(),
    view: str | None = None,
    test_share: float = 0.1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Rewrap an RLDS folder. Of a set with one split a share is held out; else its own splits stay.

    Args:
      folder: with ``dataset_info.json`` and record files, or the folder above its versions.
      out: folder of the TFDS dataset to make, or an ``.npz`` file.
      look: size of the frames; ``fps`` is told with them and not changed, since steps carry no time.
      view: observation to take, such as ``image``; by default one that is called so, else the only one.
      test_share: of the episodes.

    Raises:
      FileNotFoundError: no prepared set there.
      FileExistsError: ``out`` is there and ``overwrite`` is False.
      ValueError: no such view, or several to choose from (they are named), a test share that is none, or a
        damaged record.
    """
    if not 0 <= test_share < 1:
        raise ValueError(f"import_rlds: test_share {test_share} must lie in [0, 1).")
    source = find_dataset(folder)
    check_out(Path(out), overwrite)
    splits = {split: RecordFiles(paths) for split, paths in prepared_splits(source).items()}
    splits = {split: files for split, files in splits.items() if len(files)}
    if not splits:
        raise ValueError(f"{source} holds no episodes.")
    first = next(iter(splits.values()))
    example = first.example(0)
    view = pick_view(example, view, source)
    rows = step_actions(example)
    largest = 0
    if rows is not None and rows.ndim == 1:
        every = (step_actions(files.example(i)) for files in splits.values() for i in range(len(files)))
        largest = max(int(found.max(initial=0)) for found in every if found is not None)
    action = ActionConfig() if rows is None else (
        ActionConfig("discrete", largest + 1) if rows.ndim == 1 else ActionConfig("continuous", rows.shape[1])
    )  # fmt: skip
    names = sorted(name for name in example if name.startswith(ACTION))
    info = DataInfo(
        name=dataset_name(Path(out).stem), kind="rlds", height=look.height, width=look.width, channels=3,
        fps=look.fps or 10.0, action=action, keys=(), splits={}, mean=(), std=(),
        source={**dataclasses.asdict(look), "set": source.parent.name, "view": view, "actions": names},
    )  # fmt: skip
    held = divide(splits, test_share)
    return write_dataset(
        out,
        {name: _episodes(splits, picks, view, look) for name, picks in held.items()},
        info,
        overwrite=overwrite,
        progress=progress,
    )


Picks = list[tuple[str, int]]
"""Episodes by split and number."""


def divide(splits: dict[str, Any], test_share: float) -> dict[str, Picks]:
    """Which episodes go where; of a single split an even share is held out, one episode at least."""
    if len(splits) > 1:
        return {name: [(name, i) for i in range(len(files))] for name, files in splits.items()}
    ((name, files),) = splits.items()
    count = len(files)
    test = [i for i in range(count) if int((i + 1) * test_share) > int(i * test_share)]
    test = test or ([count - 1] if count > 1 else [])
    train = sorted(set(range(count)) - set(test))
    return {"train": [(name, i) for i in train]} | ({"test": [(name, i) for i in test]} if test else {})


def pick_view(example: Example, view: str | None, folder: Path) -> str:
    """The observation that is taken as the picture."""
    views = sorted(
        name.removeprefix(VIEW)
        for name, values in example.items()
        if name.startswith(VIEW) and isinstance(values, list) and values and is_image(values[0])
    )
    if view is None:
        view = next((name for name in VIEWS if name in views), views[0] if len(views) == 1 else None)
    if view not in views:
        wrong = f"; {view!r} is not one of them" if view else ""
        raise ValueError(
            f"{folder} has the views {', '.join(views) or 'none'}{wrong}. Choose one with view (--view)."
        )
    return view


def step_actions(example: Example) -> np.ndarray | None:
    """Actions as stored: integers ``[t]``, or floats ``[t a]``, parts side by side in the order of names."""
    names = sorted(name for name in example if name == ACTION or name.startswith(ACTION + "/"))
    parts = [np.asarray(example[name]) for name in names if not isinstance(example[name], list)]
    count = _step_count(example)
    parts = [part.reshape(count, -1) for part in parts if part.size and part.size % count == 0]
    if not parts:
        return None
    if len(parts) == 1 and parts[0].dtype.kind == "i" and parts[0].shape[1] == 1:
        return parts[0][:, 0].astype(np.int32)
    return np.concatenate(parts, axis=1).astype(np.float32)


def _step_count(example: Example) -> int:
    lists = [values for name, values in example.items() if name.startswith(VIEW) and isinstance(values, list)]
    return max((len(values) for values in lists), default=1)


def to_episode(example: Example, view: str, look: Look) -> Episode:
    """An RLDS episode as one of the project's, actions and rewards shifted to the frame they lead to."""
    images = example[VIEW + view]
    frames = np.concatenate([_small(decode_image(bytes(data)), look) for data in images])
    rows = step_actions(example)
    extra = {}
    rewards = example.get(STEPS + "reward")
    if isinstance(rewards, np.ndarray) and len(rewards) == len(frames):
        extra["rewards"] = np.concatenate([[0], rewards[:-1]]).astype(np.float32)
    ends = example.get(STEPS + "is_terminal")
    if isinstance(ends, np.ndarray) and len(ends) == len(frames):
        extra["ends"] = ends.astype(bool)
    actions = None if rows is None else aligned(rows, follow=True)
    return Episode(frames, actions, extra, policy="recorded")


def _small(frame: np.ndarray, look: Look) -> Frames:
    rgb = np.broadcast_to(frame, (*frame.shape[:2], 3))
    return resize_clip(Clip(np.ascontiguousarray(rgb[None])), look.height, look.width, how=look.fit).frames


def _episodes(
    splits: dict[str, RecordFiles], picks: Sequence[tuple[str, int]], view: str, look: Look
) -> Iterator[Episode]:
    for split, group in itertools.groupby(picks, key=lambda pick: pick[0]):
        for _, index in group:
            yield to_episode(splits[split].example(index), view, look)
