"""Record files that TFDS prepared elsewhere, read without TensorFlow: TFRecord or ArrayRecord, and Examples.

A TFRecord file is a row of records, each framed by its length and two checksums::

    length (8 bytes) | crc of length (4) | payload (length) | crc of payload (4)

A payload is a ``tf.train.Example``: named lists of bytes, floats or integers. An image is one entry of a list
of bytes, PNG or JPEG; a sequence of vectors is one flat list of floats.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from worldsim.data.stores import load_tfds

Example = dict[str, list[bytes] | np.ndarray]
"""Lists of bytes, float32 ``[n]`` or int64 ``[n]`` by name."""

_FRAME, _AFTER = 12, 4


def prepared_splits(folder: Path) -> dict[str, list[Path]]:
    """The record files of each split of a prepared TFDS folder, in order.

    Raises:
      FileNotFoundError: no ``dataset_info.json``, or no record files beside it.
      ValueError: files of a format other than TFRecord and ArrayRecord.
    """
    try:
        told = json.loads((folder / "dataset_info.json").read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} is no prepared dataset: there is no dataset_info.json.") from error
    kind = told.get("fileFormat", "tfrecord")
    if kind not in ("tfrecord", "array_record"):
        raise ValueError(f"{folder} holds {kind} files; worldsim reads tfrecord and array_record.")
    found = {}
    for split in (entry["name"] for entry in told.get("splits", ())):
        pattern = re.compile(rf"-{re.escape(split)}\.{kind}-(\d{{5}})-of-(\d{{5}})$")
        paths = sorted(path for path in folder.iterdir() if pattern.search(path.name))
        total = max((int(pattern.search(path.name)[2]) for path in paths), default=1)  # type: ignore[index]
        if len(paths) != total:
            raise FileNotFoundError(
                f"{folder}: split {split!r} has {len(paths)} of {total} {kind} files; copy it again."
            )
        found[split] = paths
    return found


class RecordFiles:
    """The records of some files by number, as bytes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._array, self._paths = None, list(paths)
        if paths and ".array_record-" in paths[0].name:
            module = importlib.import_module("array_record.python.array_record_data_source")
            self._array = module.ArrayRecordDataSource([str(path) for path in paths])
            self._count = len(self._array)
            return
        self._offsets = [record_offsets(path) for path in paths]
        self._ends = np.cumsum([len(offsets) for offsets in self._offsets])
        self._count = int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        if self._array is not None:
            return self._array[int(index)]
        file, place = self._place(index)
        start, length = self._offsets[file][place].tolist()
        with self._paths[file].open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def _place(self, index: int) -> tuple[int, int]:
        """Which TFRecord file holds a record, and its number there."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (int(self._ends[file - 1]) if file else 0)

    def example(self, index: int) -> Example:
        """The named lists of a record.

        Raises:
          ValueError: it is damaged; its file (its folder where that is ArrayRecord) and number are named.
        """
        raw = self[index]
        try:
            return parse_example(raw)
        except ValueError as error:
            home, place = self._paths[0].parent, index
            if self._array is None:
                file, place = self._place(index)
                home = self._paths[file]
            raise ValueError(f"{home}: record {place} is damaged ({error}); copy it again.") from error


def record_offsets(path: Path) -> Int[np.ndarray, "n 2"]:
    """Start and length of each payload of a TFRecord file, found by hopping from frame to frame.

    Raises:
      ValueError: the framing is damaged or the file is cut off; the place is named.
    """
    offsets, place, size = [], 0, path.stat().st_size
    with path.open("rb") as stream:
        while place < size:
            stream.seek(place)
            head = stream.read(_FRAME)
            length, crc = struct.unpack("<QI", head) if len(head) == _FRAME else (size, 0)
            if crc != masked_crc(head[:8]) or place + _FRAME + length + _AFTER > size:
                raise ValueError(
                    f"{path}: no whole record at byte {place} of {size}; it is damaged or cut off. Copy it "
                    "again."
                )
            offsets.append((place + _FRAME, length))
            place += _FRAME + length + _AFTER
    return np.array(offsets, np.int64).reshape(-1, 2)


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and offset."""
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(raw: bytes) -> Example:
    """The named lists of a serialized ``tf.train.Example``.

    Raises:
      ValueError: it is none.
    """
    load_tfds()
    module = importlib.import_module("tensorflow_datasets.proto").tf_example_pb2
    message = importlib.import_module("google.protobuf.message")
    try:
        features = module.Example.FromString(raw).features
    except message.DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    parsed: Example = {}
    for name, feature in features.feature.items():
        match feature.WhichOneof("kind"):
            case "bytes_list":
                parsed[name] = list(feature.bytes_list.value)
            case "float_list":
                parsed[name] = np.array(feature.float_list.value, np.float32)
            case "int64_list":
                parsed[name] = np.array(feature.int64_list.value, np.int64)
    return parsed


def is_image(data: bytes) -> bool:
    """Whether bytes begin as a PNG or a JPEG does."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def decode_image(data: bytes) -> UInt8[np.ndarray, "h w c"]:
    """A PNG or JPEG as pixels, grey (one channel) or RGB.

    Raises:
      ValueError: it is damaged.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"A record holds a damaged picture ({error}); copy its files again.") from error
    return pixels.reshape(*pixels.shape[:2], -1)
