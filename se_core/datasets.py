"""MNIST and colour MNIST, held as tensors.

The digits come from three places through one function, `load`: the 12,000 bundled with the package, all 70,000 once
`fetch` has brought them, or a folder of the user's own IDX files. Colour MNIST paints each grey digit in one of the
seven corners of the RGB cube without black, after the split into training and test digits, so that no digit is seen
in both. Grey digits stay `uint8`, and colour is applied to a batch when it is asked for: the 420,000 colour images of
the full training set never exist at once.
"""

import operator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from se_core._idx import DataError, Digits, Record, as_path, locate, read_split
from se_core._mnist import fetch, record_of
from se_core.errors import InvalidTypeError, InvalidValueError

__all__ = ["COLOURS", "RGB", "DataError", "DigitImages", "fetch", "load"]

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
class DigitImages:
    """M images drawn from N grey digits, in grey or in colour.

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

    def __len__(self) -> int:
        return len(self.source)

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
        self._check_index(index)
        grey = self.pixels[self.source[index]].unsqueeze(1)
        if self.colours is not None:
            grey = grey * _rgb(self.colours[index]).to(torch.uint8)[..., None, None]
        return grey.to(torch.float32) / 255

    def _check_index(self, index: object) -> None:
        """Look at the type, shape and device only: a value on a GPU would have to be waited for."""
        if isinstance(index, slice):
            return
        if not isinstance(index, Tensor):
            found, remedy = f"a {type(index).__name__}", "torch.as_tensor(index)"
            if isinstance(index, int):
                found, remedy = repr(index), f"torch.tensor([{index}]) for a batch of one"
            raise InvalidTypeError(f"index must be a slice or a one-dimensional tensor, not {found}; pass {remedy}")
        if index.dtype not in (torch.int64, torch.int32, torch.bool):
            raise InvalidTypeError(
                f"index must be a tensor of int64, int32 or bool, not {index.dtype}; pass index.long() if it holds the "
                "numbers of images, index.bool() if it is a mask"
            )
        if index.ndim != 1:
            raise InvalidValueError(f"index must have one dimension, not shape {tuple(index.shape)}; flatten it")
        if index.dtype == torch.bool and len(index) != len(self):
            raise InvalidValueError(
                f"index is a mask of {len(index)} entries for {len(self)} images; pass one entry for each image, or "
                "the numbers of the images"
            )
        if index.device.type != "cpu" and index.device != self.source.device:
            raise InvalidValueError(
                f"index is on {index.device} and the images on {self.source.device}; move one of the two with .to()"
            )

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


@torch.inference_mode(False)
def load(
    dataset: str, split: str, source: str | Path = "bundled", colouring: str = "random", seed: int = 0
) -> DigitImages:
    """MNIST or colour MNIST, on the CPU whatever the default device.

    Args:
        dataset: "mnist" or "colour-mnist".
        split: "train" or "test". Digits are split before they are coloured.
        source: "bundled" for the 10,000 + 2,000 digits inside the package; else a folder, either the root given to
            `fetch` or any folder with four IDX files of 28 x 28 images and labels 0 to 9, under MNIST's own names
            (`train-images-idx3-ubyte`, or `train-images.idx3-ubyte`), raw or gzipped. They are sought in the folder
            itself and in its `MNIST/raw`. EMNIST's images are transposed: exchange their rows and columns first.
        colouring: for colour MNIST, "random" paints each digit in one random colour; "all" repeats each digit in all
            seven, digit by digit in the order of `COLOURS`.
        seed: of the random colours. The two splits draw from different streams of one seed.

    Raises:
        InvalidValueError: an argument is not one of the above.
        InvalidTypeError: `source` is not a path, or `seed` not an integer.
        DataError: a file is missing, damaged, or not MNIST-like; or there are two that `source` could mean. Bundled and
            fetched files must have their recorded SHA-256; a user's own are checked for format, size and labels.
    """
    _check_choice("dataset", dataset, ("mnist", "colour-mnist"))
    _check_choice("split", split, ("train", "test"))
    _check_choice("colouring", colouring, ("random", "all"))
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
