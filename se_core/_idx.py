"""IDX files of 28 x 28 digits in a folder: found under any of their spellings, verified, unpacked and parsed."""

import gzip
import hashlib
import logging
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from se_core.errors import InvalidTypeError, InvalidValueError, SmoothEncoderError

_log = logging.getLogger(__name__)

_PREFIX = {"train": "train", "test": "t10k"}
_NAMES = tuple(f"{prefix}-{kind}-ubyte" for prefix in _PREFIX.values() for kind in ("images-idx3", "labels-idx1"))
_GZIP = b"\x1f\x8b"  # an IDX file starts with two zeros, so its first bytes tell, whatever its name


class DataError(SmoothEncoderError):
    """A data file is missing, damaged or not what it should be. The message names the file and the remedy."""


class Record(NamedTuple):
    """The SHA-256 that the files of a folder must have, by name, and what to do about one that has another."""

    sha256: Mapping[str, str]
    remedy: str


class Digits(NamedTuple):
    """One split: pixels (N, 28, 28) uint8, labels (N,) int64, and the SHA-256 of the two unpacked files in a row."""

    pixels: Tensor
    labels: Tensor
    sha256: str


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The argument `name` as a path, its ~ expanded."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidTypeError(f"{name} must be a path, not {value!r}; pass a str or a pathlib.Path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise InvalidValueError(f"{name} {value}: {error} Write the folder out in full") from error


def spelled(folder: Path, name: str) -> list[Path]:
    """The files of `folder` that bear the name of an IDX file: as MNIST spells it or with a dot, either gzipped."""
    dotted = name.replace("-idx", ".idx")
    return [path for n in (name, f"{name}.gz", dotted, f"{dotted}.gz") if (path := folder / n).is_file()]


def holds_idx(folder: Path) -> bool:
    return any(spelled(folder, name) for name in _NAMES)


def locate(source: Path) -> Path:
    """The folder that holds the IDX files of `source`: the folder itself, or its MNIST/raw, but never one of two."""
    raw = source / "MNIST" / "raw"
    places = [folder for folder in (source, raw) if holds_idx(folder)]
    if len(places) == 2:
        raise DataError(
            f"source {source}: IDX files are both in {source} itself and in {raw}, which may be other data; pass "
            f"{raw} as the source to read those, or move the ones of {source} to a folder of their own and pass that"
        )
    _mention_emnist(source, found_others=bool(places))
    if not places:
        raise DataError(
            f"{source}: expected IDX files such as {_NAMES[0]} or {_NAMES[0]}.gz, here or in MNIST/raw, found none; "
            "run `se-core data` to obtain MNIST, or name the folder that holds the four IDX files; the source "
            "'bundled' needs neither"
        )
    return places[0]


def _mention_emnist(source: Path, found_others: bool) -> None:
    """EMNIST has names of its own, and nothing in the files tells that rows and columns are exchanged."""
    for folder in (source, source / "EMNIST" / "raw", source / "MNIST" / "raw"):
        if emnist := min(folder.glob("emnist-*"), default=None):
            break
    else:
        return
    advice = (
        "EMNIST stores its images transposed, under names of its own: exchange the rows and columns of each image "
        f"and write the files to a folder of their own, as {', '.join(_NAMES)}, with labels 0 to 9"
    )
    if not found_others:
        raise DataError(f"{emnist}: this is a file of EMNIST. {advice}")
    _log.warning("%s is a file of EMNIST; if those read from %s are its copies, mind: %s", emnist, source, advice)


def read_split(folder: Path, split: str, record: Record | None) -> Digits:
    """The digits of one split. Files are verified where there is a record, and always checked for their format."""
    images_path, images = _read(folder, f"{_PREFIX[split]}-images-idx3-ubyte", record)
    labels_path, labels = _read(folder, f"{_PREFIX[split]}-labels-idx1-ubyte", record)
    pixels = _parse(images_path, images, dimensions=3)
    digits = _parse(labels_path, labels, dimensions=1)
    if pixels.shape[1:] != (28, 28):
        size = " x ".join(map(str, pixels.shape[1:]))
        raise DataError(f"{images_path}: expected images of 28 x 28 pixels, found {size}; crop or resize them first")
    if len(digits) != len(pixels):
        raise DataError(
            f"{labels_path}: expected one label for each of the {len(pixels)} images of {images_path.name}, "
            f"found {len(digits)}; take both files from the same source"
        )
    if digits.max() > 9:
        row = int(digits.argmax())
        raise DataError(f"{labels_path}: expected labels 0 to 9, found {digits[row]} at row {row}; correct the label")
    content = hashlib.sha256(images)
    content.update(labels)
    return Digits(pixels, digits.long(), content.hexdigest())


def _read(folder: Path, name: str, record: Record | None) -> tuple[Path, bytes]:
    """The path and the unpacked bytes of an IDX file; of several spellings, which must not differ, the first."""
    paths = spelled(folder, name)
    expected = [n for n in (name, f"{name}.gz") if record is None or n in record.sha256]
    if not paths or (record and not any(path.name in expected for path in paths)):
        raise DataError(
            f"{folder}: expected the file {' or '.join(expected)}, found none; "
            "run `se-core data` to obtain MNIST, or name the folder that holds the four IDX files"
        )
    contents = [unpacked(path, record) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if content != contents[0]:
            raise DataError(
                f"{paths[0]}: {path.name} stands for the same file and holds something else; "
                "remove the one you do not mean, or move it to another folder"
            )
    return paths[0], contents[0]


def unpacked(path: Path, record: Record | None = None) -> bytes:
    """What an IDX file holds, decompressed, once the file has the SHA-256 of the record."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check its permissions") from error
    if record and (expected := record.sha256.get(path.name)):
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise DataError(f"{path}: expected SHA-256 {expected}, found {found}; {record.remedy}")
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, found damage ({error}); copy it again") from error


def _parse(path: Path, content: bytes, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes: magic number, sizes (both big-endian 32-bit), then exactly the data."""
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: expected a header of {header} bytes, found {len(content)}; copy the file again")
    magic, *shape = np.frombuffer(content, ">u4", 1 + dimensions).tolist()
    expected_magic = 0x0800 + dimensions  # 0x08 is IDX for "unsigned byte"
    if magic != expected_magic:
        raise DataError(
            f"{path}: expected the magic number {expected_magic} (unsigned bytes, {dimensions} dimensions), "
            f"found {magic}; this is not the IDX file that its name promises, take the one that is"
        )
    if 0 in shape:
        raise DataError(f"{path}: expected at least one entry, found the sizes {shape}; copy the file again")
    size = header + math.prod(shape)
    if len(content) != size:
        fault = "truncated" if len(content) < size else "followed by foreign bytes"
        raise DataError(
            f"{path}: expected {size} bytes for the sizes {shape}, found {len(content)}; it is {fault}, copy it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
