"""MNIST and colour MNIST: what is loaded is exact, and nothing damaged is.

Set SE_CORE_MNIST to a folder to compare the bundled digits with all of MNIST: `fetch` fills the folder if it is empty,
which is the only use of a network in these tests.
"""

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from digit_files import PREFIX, write_digits
from scipy import stats

from se_core import datasets
from se_core._torchvision import import_torchvision
from se_core.datasets import COLOURS, RGB, DataError, DigitImages, fetch, load

BUNDLED = Path(datasets.__file__).parent / "data"
SIZES = {"train": 10_000, "test": 2_000}
CORNERS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
    "white": (1, 1, 1),
}


def indices(split: str) -> list[int]:
    return [int(line) for line in (BUNDLED / f"{PREFIX[split]}-indices.txt").read_text().split()]


def ramp(colour: str | None = None) -> DigitImages:
    """One image with every grey level in it."""
    pixels = torch.arange(784).remainder(256).to(torch.uint8).reshape(1, 28, 28)
    colours = None if colour is None else torch.tensor([COLOURS.index(colour)])
    return DigitImages(pixels, torch.tensor([3]), colours, torch.tensor([0]))


# The bundled digits


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundle_agrees_with_torchvisions_reader(split, tmp_path):
    data = load("mnist", split)
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        with gzip.open(BUNDLED / f"{PREFIX[split]}-{name}.gz") as packed:
            (tmp_path / name).write_bytes(packed.read())
    read = import_torchvision().datasets.mnist
    assert len(data) == SIZES[split]
    assert data.channels == 1
    assert torch.equal(data.pixels, read.read_image_file(str(tmp_path / "images-idx3-ubyte")))
    assert torch.equal(data.labels("digit"), read.read_label_file(str(tmp_path / "labels-idx1-ubyte")))
    assert data.digits.dtype == torch.int64
    assert data.pixels.dtype == torch.uint8


@pytest.mark.parametrize("split", ["train", "test"])
def test_readme_of_the_bundle_counts_its_classes(split):
    row = re.search(rf"^\| {PREFIX[split]} \|(.*)\|$", (BUNDLED / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    assert [int(count) for count in row[1].split("|")] == load("mnist", split).digits.bincount().tolist()


@pytest.mark.parametrize(("split", "total"), [("train", 60_000), ("test", 10_000)])
def test_recorded_indices_are_rows_of_the_original(split, total):
    rows = indices(split)
    assert len(rows) == SIZES[split]
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < total


def test_no_digit_is_in_both_splits():
    train, test = ({image.numpy().tobytes() for image in load("mnist", split).pixels} for split in ("train", "test"))
    assert len(train) == SIZES["train"]
    assert len(test) == SIZES["test"]
    assert not train & test


@pytest.mark.parametrize("place", [4, 5, 0.5, -1], ids=["time", "time+1", "middle", "end"])
@pytest.mark.parametrize("name", ["images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_flipped_bit_is_never_loaded(split, name, place, tmp_path, monkeypatch):
    # Bytes 4 to 7 hold the time of a gzip file, which no checksum of gzip covers.
    folder = shutil.copytree(BUNDLED, tmp_path / "data")
    monkeypatch.setattr(datasets, "_BUNDLED", folder)
    assert len(load("mnist", split)) == SIZES[split]
    path = folder / f"{PREFIX[split]}-{name}"
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected SHA-256 \w+, found \w+.*reinstall"):
        load("mnist", split)


@pytest.fixture(scope="session")
def whole_mnist() -> Path:
    root = os.environ.get("SE_CORE_MNIST")
    if not root:
        pytest.skip("set SE_CORE_MNIST to a folder that holds all of MNIST, or may be filled from the network")
    return fetch(root)


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundle_is_the_recorded_part_of_mnist(split, whole_mnist):
    bundled, whole = load("mnist", split), load("mnist", split, whole_mnist)
    rows = torch.tensor(indices(split))
    assert torch.equal(bundled.pixels, whole.pixels[rows])
    assert torch.equal(bundled.digits, whole.digits[rows])
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[: SIZES[split]]
    assert torch.equal(rows, drawn.sort().values)


@pytest.mark.parametrize(("split", "total"), [("train", 60_000), ("test", 10_000)])
def test_whole_mnist_agrees_with_torchvision(split, total, whole_mnist):
    theirs = import_torchvision().datasets.MNIST(whole_mnist, train=split == "train", download=False)
    ours = load("mnist", split, whole_mnist)
    assert len(ours) == total
    assert torch.equal(ours.pixels, theirs.data)
    assert torch.equal(ours.digits, theirs.targets)


# Images


def test_every_grey_level_becomes_the_nearest_float():
    image = ramp().images()
    assert image.shape == (1, 1, 28, 28)
    assert image.dtype == torch.float32
    levels = np.array([level / 255 for level in range(256)])  # float64, then rounded once
    assert np.array_equal(image.flatten()[:256].numpy(), levels.astype(np.float32))
    assert image.min() == 0
    assert image.max() == 1


def test_colours_are_the_corners_of_the_cube_without_black():
    assert dict(zip(COLOURS, map(tuple, RGB.tolist()), strict=True)) == CORNERS


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_lights_its_own_channels_and_no_other(colour):
    grey, image = ramp().images()[0, 0], ramp(colour).images()
    assert image.shape == (1, 3, 28, 28)
    assert image.dtype == torch.float32
    for channel, lit in zip(image[0], CORNERS[colour], strict=True):
        assert torch.equal(channel, grey if lit else torch.zeros_like(grey))


@pytest.mark.parametrize("dataset", ["mnist", "colour-mnist"])
@pytest.mark.parametrize("colouring", ["random", "all"])
def test_an_index_selects_among_all_images(dataset, colouring, tmp_path):
    data = load(dataset, "train", write_digits(tmp_path), colouring)
    everything = data.images()
    assert everything.shape == (len(data), data.channels, 28, 28)
    index = torch.tensor([len(data) - 1, 0, 8, 8])
    assert torch.equal(data.images(index), everything[index])
    assert torch.equal(data.images(index.int()), everything[index])
    assert torch.equal(data.images(slice(3, 12)), everything[3:12])
    mask = torch.arange(len(data)) % 3 == 1
    assert torch.equal(data.images(mask), everything[1::3])
    for empty in (torch.empty(0, dtype=torch.int64), slice(0)):
        assert data.images(empty).shape == (0, data.channels, 28, 28)
        assert data.images(empty).dtype == torch.float32
    with pytest.raises(IndexError):
        data.images(torch.tensor([len(data)]))


@pytest.mark.parametrize("dataset", ["mnist", "colour-mnist"])
def test_a_batch_needs_no_value_on_the_host(dataset):
    # Tensors on the meta device have no values: whatever asks for one, or for a table on the CPU, fails.
    data = load(dataset, "test").to("meta")
    images = data.images(torch.empty(64, dtype=torch.int64, device="meta"))
    assert images.device.type == "meta"
    assert images.shape == (64, data.channels, 28, 28)
    assert all(
        data.labels(task).device.type == "meta" for task in (["digit", "colour"] if data.channels == 3 else ["digit"])
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dataset", ["mnist", "colour-mnist"])
def test_cuda_gives_the_same_images_without_waiting(dataset):
    data = load(dataset, "test")
    there, index = data.to("cuda"), torch.arange(0, 2_000, 7, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = there.images(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert images.max() == 1
    # CUDA divides by a constant through its reciprocal: at most one unit in the last place away.
    torch.testing.assert_close(images.cpu(), data.images(index.cpu()), rtol=2**-23, atol=0)


# Colouring


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_are_taken_before_colouring(split):
    grey = load("mnist", split)
    for colouring in ("random", "all"):
        assert torch.equal(load("colour-mnist", split, colouring=colouring).pixels, grey.pixels)


def test_each_digit_comes_in_all_seven_colours():
    grey, data = load("mnist", "train"), load("colour-mnist", "train", colouring="all")
    assert len(data) == 7 * len(grey)
    assert data.pixels.numel() == grey.pixels.numel()  # one grey copy serves the seven
    pairs = set(zip(data.source.tolist(), data.labels("colour").tolist(), strict=True))
    assert pairs == {(row, colour) for row in range(len(grey)) for colour in range(7)}
    assert torch.equal(data.digits, grey.digits[data.source])
    brightest = data.images(slice(0, 70)).amax(dim=1, keepdim=True)
    assert torch.equal(brightest, grey.images(data.source[:70]))


def test_random_colours_repeat_with_their_seed_only():
    first = load("colour-mnist", "train", seed=5)
    assert torch.equal(first.colours, load("colour-mnist", "train", seed=5).colours)
    torch.manual_seed(1)  # the global generator plays no part
    assert torch.equal(first.colours, load("colour-mnist", "train", seed=5).colours)
    assert torch.equal(first.digits, load("mnist", "train").digits)


def draws() -> dict[str, np.ndarray]:
    train, test = load("colour-mnist", "train"), load("colour-mnist", "test")
    return {
        "digit": train.digits[:2_000].numpy(),
        "colour": train.colours[:2_000].numpy(),
        "neighbour": train.colours[1:2_001].numpy(),
        "next seed": load("colour-mnist", "train", seed=1).colours[:2_000].numpy(),
        "test": test.colours.numpy(),
        "next seed, test": load("colour-mnist", "test", seed=1).colours.numpy(),
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("digit", "colour"),
        ("colour", "neighbour"),
        ("colour", "next seed"),
        ("colour", "test"),
        ("test", "next seed"),
        ("test", "next seed, test"),
    ],
)
def test_random_colours_are_independent(one, other):
    values = draws()
    table = np.zeros((10, 10))
    np.add.at(table, (values[one], values[other]), 1)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    assert table.shape[1] == 7
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("split", ["train", "test"])
def test_random_colours_are_uniform(split):
    counts = load("colour-mnist", split).colours.bincount(minlength=7).numpy()
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
