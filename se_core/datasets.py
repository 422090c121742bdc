"""MNIST and colour MNIST, and a folder of one's own images, held as tensors.

The digits come from three places through one function, `load`: the 12,000 bundled with the package, all 70,000 once
`fetch` has brought them, or a folder of the user's own IDX files. Colour MNIST paints each grey digit in one of the
seven corners of the RGB cube without black, after the split into training and test digits, so that no digit is seen
in both. Grey digits stay `uint8`, and colour is applied to a batch when it is asked for: the 420,000 colour images of
the full training set never exist at once. Images of one's own are in `se_core.folders`.
"""

import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from se_core._idx import DataError, Digits, Record, as_path, locate, read_split
from se_core._indexing import check_index, item
from se_core._mnist import fetch, record_of
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.folders import FolderImages, load_folder

__all__ = [
    "COLOURS",
    "RGB",
    "Colouring",
    "DataError",
    "DatasetName",
    "DigitImages",
    "Images",
    "Split",
    "fetch",
    "load",
]

DatasetName = Literal["mnist", "colour-mnist", "images"]
Split = Literal["train", "validation", "test"]
Colouring = Literal["random", "all"]

COLOURS = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _rgb(colours: Tensor) -> Tensor:
    """Colour indices (...,) to RGB corners (..., 3) of the same integer type.

    Colour k is the number k + 1 in binary, its bits R, G, B from the lowest. Shifts need no table, so a batch on a
    GPU waits for no copy from the host.
    """
    return (colours[..., None] + 1 >> torch.arange(3, device=colours.device)) & 1


with torch.inference_mode(False):  # whatever mode or default device the caller imports this under
    RGB = _rgb(torch.arange(len(COLOURS), device="cpu"))
"""The corners of the RGB cube without black, (7, 3), in the order of `COLOURS`; the columns are R, G, B."""

_BUNDLED = Path(__file__).parent / "data"
_BUNDLED_RECORD = Record(
    {
        "train-images-idx3-ubyte.gz": "bab80e3f784ff219733c915c9cfdd195672969b31a38e643f5f36222ecaa5029",
        "train-labels-idx1-ubyte.gz": "17b37fecfb2a91cdac2f408800564e48d6551070d9c6946786deaf4233e42bee",
        "t10k-images-idx3-ubyte.gz": "48c4cc4550a3af55251bcbc28f4d56429e4ff2bf2e6c7fbc10f84bd6fef2afa9",
        "t10k-labels-idx1-ubyte.gz": "a0552363246f1b8cd91aecfc6aae39891ad6a3c0fc08e94c0269ffa39a80cd9d",
    },
    "the file is damaged, reinstall the package",
)


@dataclass(frozen=True, eq=False)
class DigitImages(Dataset[tuple[Tensor, ...]]):
    """M images drawn from N grey digits, in grey or in colour: as tensors (`images`, `labels`), or for a DataLoader.

    `pixels` (N, 28, 28) uint8 are the grey digits; `digits` (M,) int64 the label of each image; `colours` (M,) int64
    the index of its colour in `COLOURS`, or None for grey images; `source` (M,) int64 the row of `pixels` that it is
    drawn from. `sha256` stands for the content that was read: it is that of the split's unpacked files in a row, the
    output of `cat train-images-idx3-ubyte train-labels-idx1-ubyte | sha256sum`, however they are spelled or packed;
    empty for images that come from no file.
    """

    pixels: Tensor
    digits: Tensor
    colours: Tensor | None
    source: Tensor
    sha256: str = ""

    @property
    def channels(self) -> int:
        return 1 if self.colours is None else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.channels, *self.pixels.shape[1:]

    @property
    def tasks(self) -> dict[str, int]:
        """What there is to tell of an image, and among how many."""
        return {"digit": 10} if self.colours is None else {"colour": len(COLOURS), "digit": 10}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, ...]:
        """What is at `index`, and one label for each of `tasks`: (image, digit) or, in colour, (image, colour, digit).

        For one number, which may be negative, one image (C, 28, 28) float32 in [0, 1] and labels of shape () int64; for
        what `images` takes, a batch of them. This is for a `torch.utils.data.DataLoader`, of any number of processes;
        `images(index)` is much faster. Raises IndexError for an image that is not there, and what `images` raises.
        """
        return item(self, index)

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """The images at `index` (all of them by default), (B, C, 28, 28) float32 in [0, 1], channels R, G, B.

        `index` is a slice or a one-dimensional tensor, int64 or int32, best on the device of the data: then the host
        waits for nothing. A mask, bool of shape (M,), selects too, but a GPU is waited for to count its images.

        Raises:
            InvalidTypeError: `index` is anything else.
            InvalidValueError: `index` has another shape, or is on a device from which it cannot reach the data.
            IndexError: an image is asked for that is not there. On a GPU it is CUDA that stops, later.
        """
        if index is None:
            index = slice(None)
        check_index(index, len(self), self.source.device)
        grey = self.pixels[self.source[index]].unsqueeze(1)
        if self.colours is not None:
            grey = grey * _rgb(self.colours[index]).to(torch.uint8)[..., None, None]
        return grey.to(torch.float32) / 255

    def subset(self, first: int, last: int) -> "DigitImages":
        """Images first, ..., last - 1 of these."""
        rows = slice(first, last)
        colours = None if self.colours is None else self.colours[rows]
        return DigitImages(self.pixels, self.digits[rows], colours, self.source[rows], self.sha256)

    def labels(self, task: str) -> Tensor:
        """The labels (M,) int64 of the task "digit" (0 to 9) or "colour" (0 to 6).

        Raises InvalidValueError for any other task, and for "colour" on grey images.
        """
        if task == "digit":
            return self.digits
        if task != "colour":
            raise InvalidValueError(f"task must be 'digit' or 'colour', not {task!r}")
        if self.colours is None:
            raise InvalidValueError("task 'colour' needs colour images, these are grey: load 'colour-mnist' instead")
        return self.colours

    @torch.inference_mode(False)  # tensors made in inference mode could not serve a training afterwards
    def to(self, device: torch.device | str) -> "DigitImages":
        """The same images with every tensor on `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            digits=self.digits.to(device),
            colours=None if self.colours is None else self.colours.to(device),
            source=self.source.to(device),
        )


Images = DigitImages | FolderImages


@overload
def load(
    dataset: Literal["mnist", "colour-mnist"],
    split: Literal["train", "test"],
    source: str | Path = "bundled",
    colouring: Colouring = "random",
    seed: int = 0,
) -> DigitImages: ...
@overload
def load(
    dataset: Literal["images"], split: Split, source: str | Path, *, image_size: int = 0, skip_damaged: bool = False
) -> FolderImages: ...
@overload
def load(
    dataset: DatasetName,
    split: Split,
    source: str | Path = "bundled",
    colouring: Colouring = "random",
    seed: int = 0,
    image_size: int = 0,
    skip_damaged: bool = False,
) -> Images: ...
@torch.inference_mode(False)
def load(
    dataset: DatasetName,
    split: Split,
    source: str | Path = "bundled",
    colouring: Colouring = "random",
    seed: int = 0,
    image_size: int = 0,
    skip_damaged: bool = False,
) -> Images:
    """MNIST, colour MNIST, or the images of a folder, on the CPU whatever the default device.

    Args:
        dataset: "mnist", "colour-mnist" or "images".
        split: "train" or "test"; of images also "validation". Digits are split before they are coloured.
        source: "bundled" for the 10,000 + 2,000 digits inside the package; else a folder, either the root given to
            `fetch` or any folder with four IDX files of 28 x 28 images and labels 0 to 9, under MNIST's own names
            (`train-images-idx3-ubyte`, or `train-images.idx3-ubyte`), raw or gzipped. They are sought in the folder
            itself and in its `MNIST/raw`. EMNIST's images are transposed: exchange their rows and columns first.
            Of "images", a folder of image files, or of sub-folders of them, whose names are the labels.
        colouring: for colour MNIST, "random" paints each digit in one random colour; "all" repeats each digit in all
            seven, digit by digit in the order of `COLOURS`.
        seed: of the random colours. The two splits draw from different streams of one seed.
        image_size: of "images", the side to which the largest square in the middle of each image is resized; 0 leaves
            them as they are, and then they must be square and of one size.
        skip_damaged: of "images", leave out files that cannot be read, with a warning that names them.

    What an image file holds, its SHA-256, decides its split, so that copies are never on both sides: a sixth is "test",
    a sixth of the rest "validation". Files that end in one of `se_core.folders.SUFFIXES` are read, PNG, JPEG, TIFF and
    WebP among them, grey or colour; grey among colour is in colour. A palette is looked up, an opaque alpha channel
    dropped, a camera's orientation applied; images with transparency, 16 bits a channel, other colours or several
    frames are refused. All are decoded, some five thousand small ones a second, and held as a byte a pixel.

    Raises:
        InvalidValueError: an argument is not one of the above, or not one of this data set.
        InvalidTypeError: `source` is not a path, or `seed` not an integer.
        DataError: a file is missing, damaged, or not MNIST-like; or there are two that `source` could mean. Bundled and
            fetched files must have their recorded SHA-256; a user's own are checked for format, size and labels. Of
            images: one is damaged, unsuitable or of another size; the folder is laid out otherwise, holds too few for
            its splits, or more than fit into memory.
    """
    _check_choice("dataset", dataset, get_args(DatasetName))
    if dataset == "images":
        _check_choice("split", split, get_args(Split))
        if not image_size >= 0:
            raise InvalidValueError(f"image_size={image_size} must be at least 1, or 0 for images as they are")
        if source == "bundled":
            raise InvalidValueError("source='bundled' holds digits; name the folder of your images")
        return load_folder(source, split, image_size, skip_damaged)
    if image_size or skip_damaged:
        raise InvalidValueError(f"image_size and skip_damaged are of 'images'; leave them for {dataset!r}")
    _check_choice("split", split, ("train", "test"))
    _check_choice("colouring", colouring, get_args(Colouring))
    seed = _checked_seed(seed)
    pixels, digits, sha256 = _read(source, split)
    rows = torch.arange(len(digits), device="cpu")
    if dataset == "mnist":
        return DigitImages(pixels, digits, None, rows, sha256)
    if colouring == "all":
        repeats = len(COLOURS)
        colours = torch.arange(repeats, device="cpu").repeat(len(digits))
        return DigitImages(pixels, digits.repeat_interleave(repeats), colours, rows.repeat_interleave(repeats), sha256)
    generator = torch.Generator("cpu").manual_seed(2 * seed + (split == "test"))
    colours = torch.randint(len(COLOURS), rows.shape, generator=generator, device="cpu")
    return DigitImages(pixels, digits, colours, rows, sha256)


def _read(source: str | Path, split: str) -> Digits:
    if source == "bundled":
        return read_split(_BUNDLED, split, _BUNDLED_RECORD)
    folder = as_path("source", source)
    try:
        folder = locate(folder)
        return read_split(folder, split, record_of(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}); check its name and its permissions") from error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _checked_seed(seed: int) -> int:
    try:
        seed = operator.index(seed)
    except TypeError as error:
        raise InvalidTypeError(f"seed must be an integer, not {seed!r}; pass an int such as 0") from error
    if not -(2**62) <= seed < 2**63:  # each split has a stream of its own, and torch takes 64 bits
        raise InvalidValueError(f"seed must be at least -2**62 and below 2**63, not {seed}; pass a smaller one")
    return seed
