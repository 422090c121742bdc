"""A folder of the user's own images, held as tensors: labels from sub-folders, splits from what each file holds."""

import functools
import hashlib
import logging
import math
import os
import sys
from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from se_core._idx import DataError, as_path
from se_core._indexing import check_index, item
from se_core.errors import InvalidValueError

_log = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder
SPLITS = ("test", "train", "validation")  # in the order of the shares below
# A sixth of all images, and of the others a sixth, as of the bundled digits: where each split begins, as a share of all
# SHA-256. What a file holds decides, so a file that is added or renamed moves no other, and copies stay together.
_BEGINS = (0, 6 / 36, 31 / 36, 1)
_NAMED = 10  # damaged files that a message names


@dataclass(frozen=True, eq=False)
class FolderImages(Dataset[tuple[Tensor, ...]]):
    """M images read from files.

    `pixels` (M, C, H, W) uint8, C = 1 or 3; `targets` (M,) int64 the place of each image's label in `classes`, the
    names of the sub-folders, of which there are none for images without labels; `files` the path of each image below
    the folder. `sha256` stands for what the files hold and for their labels, not for their names.
    """

    pixels: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.channels, *self.pixels.shape[2:]

    @property
    def tasks(self) -> dict[str, int]:
        """What there is to tell of an image, and among how many: "label", where two labels or more are known."""
        return {"label": len(self.classes)} if len(self.classes) > 1 else {}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, ...]:
        """(image, label), or (image,) where there are no labels, as of `se_core.datasets.DigitImages`."""
        return item(self, index)

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """The images at `index` (all of them by default), (B, C, H, W) float32 in [0, 1]; `index` and errors as of
        `se_core.datasets.DigitImages.images`."""
        index = slice(None) if index is None else index
        check_index(index, len(self), self.pixels.device)
        return self.pixels[index].to(torch.float32) / 255

    def subset(self, first: int, last: int) -> "FolderImages":
        """Images first, ..., last - 1 of these."""
        rows = slice(first, last)
        return replace(self, pixels=self.pixels[rows], targets=self.targets[rows], files=self.files[rows])

    def labels(self, task: str) -> Tensor:
        """The labels (M,) int64 of the task "label"; InvalidValueError for another, and where there are none."""
        if task != "label":
            raise InvalidValueError(f"task must be 'label', not {task!r}")
        if not self.tasks:
            raise InvalidValueError("these images have no labels: sort them into two sub-folders or more, one a label")
        return self.targets

    @torch.inference_mode(False)  # tensors made in inference mode could not serve a training afterwards
    def to(self, device: torch.device | str) -> "FolderImages":
        """The same images on `device`; DataError where they do not fit into its memory."""
        try:
            return replace(self, pixels=self.pixels.to(device), targets=self.targets.to(device))
        except torch.cuda.OutOfMemoryError as error:
            raise DataError(
                f"{len(self)} images of {_by(self.shape)} need {_gib(self.pixels.numel())} of memory on {device}, "
                "which has less left; choose a smaller image_size, or fewer images"
            ) from error


class _File(NamedTuple):
    """An image file; with `stamp`, its size and time, a list of them tells whether a folder has changed."""

    path: Path
    label: str
    stamp: tuple[int, int]


class _Image(NamedTuple):
    sha256: str
    file: _File
    pixels: NDArray[np.uint8]  # (H, W, C)


class _Contents(NamedTuple):
    """All images of a folder, in the order of the SHA-256 of their files."""

    pixels: Tensor
    files: tuple[_File, ...]
    sha256: tuple[str, ...]


def load_folder(source: str | os.PathLike[str], split: str, image_size: int, skip_damaged: bool) -> FolderImages:
    """One split of the images of a folder; `se_core.datasets.load` says the rest."""
    folder = as_path("source", source)
    try:
        files = _listed(folder)
    except OSError as error:
        raise DataError(f"source {folder}: cannot be read ({error}); check its name and its permissions") from error
    contents = _read(files, image_size, skip_damaged)
    begins, place = [bisect_left(contents.sha256, share, key=_share) for share in _BEGINS], SPLITS.index(split)
    rows = slice(begins[place], begins[place + 1])
    chosen, sha256 = contents.files[rows], contents.sha256[rows]
    if len(chosen) < 2:
        raise DataError(
            f"source {folder}: {len(chosen)} of its {len(files)} images are of the split {split!r}, which needs two; "
            "what a file holds decides its split, so add images (a hundred leave no split empty)"
        )
    classes = tuple(sorted({file.label for file in files} - {""}))
    return FolderImages(
        contents.pixels[rows],
        torch.tensor([classes.index(file.label) if classes else 0 for file in chosen], device="cpu"),
        classes,
        tuple(file.path.relative_to(folder).as_posix() for file in chosen),
        hashlib.sha256("".join(f"{a}  {b.label}\n" for a, b in zip(sha256, chosen, strict=True)).encode()).hexdigest(),
    )


def _listed(folder: Path) -> tuple[_File, ...]:
    """The image files of a folder and of its sub-folders, whose names are the labels; DataError for another layout."""
    here, labels = _images_and_folders(folder)
    if here and labels:
        raise DataError(
            f"source {folder}: holds images, such as {here[0].name}, beside sub-folders, such as {labels[0].name}; "
            "sort all images into sub-folders, which are their labels, or none"
        )
    found = [_File(path, "", _stamp(path)) for path in here]
    for label in labels:
        images, below = _images_and_folders(label)
        if below:
            raise DataError(
                f"source {folder}: {below[0].relative_to(folder)} is a folder in a folder; a label is one folder of "
                "images, and the split into training and test is ours: pass the folder that holds the labels"
            )
        if not images:
            raise DataError(f"source {folder}: the sub-folder {label.name} holds no image; remove it, or fill it")
        found += [_File(path, label.name, _stamp(path)) for path in images]
    if not found:
        raise DataError(f"source {folder}: holds no image, a file that ends in {', '.join(SUFFIXES)}; check its name")
    return tuple(found)


def _images_and_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """What lies in a folder and is not hidden, in the order of names; what is neither image nor folder is mentioned."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    folders = [path for path in entries if path.is_dir()]
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and path not in folders]
    if others := sorted({*entries} - {*folders} - {*images}):
        _log.warning("%s: left out by their names, as no images: %s, ... (%d)", folder, others[0].name, len(others))
    return images, folders


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere: reading it says so
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=1)  # the splits of a folder are asked for one after the other
@torch.inference_mode(False)
def _read(files: tuple[_File, ...], image_size: int, skip_damaged: bool) -> _Contents:
    """All files, decoded. DataError names those that are damaged, unless they are to be left out, and the first that is
    unsuitable."""
    try:  # only now: a user of MNIST does without
        from tqdm import tqdm

        from se_core._image_files import Unsuitable, decoded
    except ImportError as error:
        raise DataError(f"image files need {error.name}, which is missing: pip install 'se-core[lab]'") from error

    images: list[_Image] = []
    damaged: list[str] = []
    for file in tqdm(files, "reading images", disable=None, delay=2, leave=False):  # in a terminal, if it takes long
        try:
            content = file.path.read_bytes()
            pixels = decoded(content, image_size)
        except MemoryError:
            raise
        except Unsuitable as error:
            raise DataError(f"{file.path}: {error}") from None
        except Exception as error:  # a decoder that is fed damage raises anything
            damaged.append(f"{file.path} ({error or type(error).__name__})")
            continue
        images.append(_Image(hashlib.sha256(content).hexdigest(), file, pixels))
        _check_size(images[-1], images[0])
        _check_memory(len(files), pixels.shape)
    _tell(damaged, len(files), skip_damaged)
    images.sort(key=lambda image: image[:2])
    channels = max(image.pixels.shape[2] for image in images)  # grey among colour is in colour
    tensor = torch.empty((len(images), channels, *images[0].pixels.shape[:2]), dtype=torch.uint8, device="cpu")
    for row, image in zip(tensor, images, strict=True):
        row.copy_(torch.from_numpy(image.pixels).movedim(-1, 0))
    return _Contents(tensor, tuple(image.file for image in images), tuple(image.sha256 for image in images))


def _check_size(image: _Image, first: _Image) -> None:
    """Networks are made for square images of one size."""
    (height, width), expected = image.pixels.shape[:2], first.pixels.shape[0]
    if not height == width == expected:
        other = f"those before it of {expected} x {expected}" if image is not first else "which is not square"
        raise DataError(
            f"{image.file.path}: is of {width} x {height} pixels, {other}; pass image_size={min(height, width)}, or "
            "another, to have the middle of each image cut out and resized to that"
        )


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    if count * math.prod(shape) > _memory():
        raise DataError(
            f"{count} images of {_by(shape)} need {_gib(count * math.prod(shape))} of memory, and this machine has "
            f"{_gib(_memory())}; choose a smaller image_size, or fewer images"
        )


@functools.cache
def _memory() -> int:
    """Bytes of this machine; no limit where they are not told, as on Windows."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _tell(damaged: list[str], count: int, skip_damaged: bool) -> None:
    """Name the damaged files: in a warning if they are to be left out and others remain, in a DataError else."""
    if not damaged:
        return
    more = f", and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    message = f"{len(damaged)} of {count} images cannot be read: {'; '.join(damaged[:_NAMED])}{more}"
    if not skip_damaged or len(damaged) == count:
        raise DataError(f"{message}; replace or remove them, or pass skip_damaged=True to leave them out")
    _log.warning("%s; they are left out", message)


def _share(sha256: str) -> float:
    """Where in [0, 1) a SHA-256 lies."""
    return int(sha256[:13], 16) / 16**13
