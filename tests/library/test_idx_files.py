"""A folder of the user's own IDX files: what lies in the folder that was named is loaded, or nothing is."""

import gzip
import hashlib
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from digit_files import IMAGES, LABELS, PREFIX, idx, write_digits

from se_core._torchvision import import_torchvision
from se_core.datasets import DataError, load
from se_core.errors import SmoothEncoderError

# Spellings and packings


def dotted(name: str) -> str:
    return name.replace("-idx", ".idx")


SPELLINGS = {
    "plain": lambda name, content: (name, content),
    "gzipped": lambda name, content: (f"{name}.gz", gzip.compress(content)),
    "dotted": lambda name, content: (dotted(name), content),
    "dotted, gzipped": lambda name, content: (f"{dotted(name)}.gz", gzip.compress(content)),
    "gzipped, not so called": lambda name, content: (name, gzip.compress(content)),
    "so called, not gzipped": lambda name, content: (f"{name}.gz", content),
}


def respelled(original: Path, folder: Path, spelling: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in original.iterdir():
        name, content = SPELLINGS[spelling](path.name, path.read_bytes())
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_spelling_holds_the_same_digits(split, spelling, place, tmp_path):
    plain = write_digits(tmp_path / "plain")
    respelled(plain, tmp_path / "other" / place, spelling)
    read = import_torchvision().datasets.mnist
    images, labels = (plain / f"{PREFIX[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    for source in (tmp_path / "other", str(tmp_path / "other"), tmp_path / "other" / place):
        data = load("mnist", split, source)
        assert torch.equal(data.pixels, read.read_image_file(str(images)))
        assert torch.equal(data.digits, read.read_label_file(str(labels)))
        assert data.sha256 == hashlib.sha256(images.read_bytes() + labels.read_bytes()).hexdigest()


def test_the_checksum_goes_with_the_images_and_changes_with_them(tmp_path):
    one, other = write_digits(tmp_path / "one"), write_digits(tmp_path / "other", seed=1)
    for dataset in ("mnist", "colour-mnist"):
        data = load(dataset, "train", one)
        assert data.to("meta").sha256 == data.to("cpu").sha256 == data.sha256
    content = bytearray((one / LABELS).read_bytes())
    content[-1] = (content[-1] + 1) % 10
    (one / LABELS).write_bytes(content)
    found = {data.sha256, *(load("mnist", split, other).sha256 for split in ("train", "test"))}
    found |= {load("mnist", "train", one).sha256, load("mnist", "train").sha256}
    assert len(found) == 5


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name not in ("plain", "gzipped, not so called")])
def test_two_spellings_of_one_file_must_agree(spelling, tmp_path):
    plain = write_digits(tmp_path / "plain")
    both = respelled(plain, shutil.copytree(plain, tmp_path / "both"), spelling)
    assert load("mnist", "train", both).sha256 == load("mnist", "train", plain).sha256
    name, content = SPELLINGS[spelling](LABELS, idx(np.zeros(30)))
    (both / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(both / LABELS))}: {re.escape(name)} stands for .* remove"):
        load("mnist", "train", both)
    assert load("mnist", "test", both).sha256 == load("mnist", "test", plain).sha256


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_digits(tmp_path / "digits")
    for source in ("~/digits", Path("~/digits")):
        assert len(load("mnist", "train", source)) == 30


# Which folder


@pytest.mark.parametrize("stray", [False, True])
def test_a_folder_stands_for_its_own_files(stray, tmp_path):
    own = write_digits(tmp_path / "own")
    if stray:
        (own / "MNIST" / "raw").mkdir(parents=True)
        (own / "MNIST" / "raw" / "notes.txt").write_text("nothing here")
    assert len(load("mnist", "train", own)) == 30


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("present", [[IMAGES], ["t10k-labels-idx1-ubyte"], None])
def test_of_two_places_none_is_chosen(spelling, present, tmp_path):
    own, raw = write_digits(tmp_path / "own"), tmp_path / "own" / "MNIST" / "raw"
    respelled(write_digits(tmp_path / "other", train=40), raw, spelling)
    for name in {path.name for path in own.iterdir() if path.is_file()} - set(present or ()) if present else ():
        (own / name).unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", "train", own)
    assert f"source {own}: IDX files are both in {own} itself and in {raw}" in str(caught.value)
    assert f"pass {raw} as the source to read those, or move the ones of {own}" in str(caught.value)
    assert len(load("mnist", "train", raw)) == 40  # the remedy works


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_other_data_in_mnists_place_are_a_users_own(name, tmp_path):
    raw = write_digits(tmp_path / name / "raw")
    (raw / f"{IMAGES}.gz").write_bytes(gzip.compress((raw / IMAGES).read_bytes()))  # as torchvision leaves them
    for source in [raw, *([tmp_path] if name == "MNIST" else [])]:
        assert len(load("mnist", "train", source)) == 30


@pytest.mark.parametrize("place", [".", "EMNIST/raw", "MNIST/raw"])
def test_emnist_is_told_from_mnist(place, tmp_path, caplog):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    emnist = folder / "emnist-digits-train-images-idx3-ubyte.gz"
    emnist.write_bytes(gzip.compress(idx(np.zeros((30, 28, 28)))))
    with pytest.raises(DataError) as caught:
        load("mnist", "train", tmp_path)
    for part in (f"{emnist}: this is a file of EMNIST", "transposed, under names of its own", IMAGES, "the rows"):
        assert part in str(caught.value)
    assert len(load("mnist", "train", write_digits(tmp_path / "own"))) == 30
    assert not caplog.text
    write_digits(folder)
    assert len(load("mnist", "train", tmp_path if place != "EMNIST/raw" else folder)) == 30
    assert f"{emnist} is a file of EMNIST; if those read from" in caplog.text
    assert "transposed" in caplog.text


# Faults

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
    "not gzip": (lambda c: b"<html>captive portal</html>", "magic number 2051 .* found 1013478509"),
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
    expected = f"{re.escape(str(tmp_path))}: expected the file {LABELS} or {LABELS}.gz, found none; run `se-core data`"
    with pytest.raises(DataError, match=expected):
        load("mnist", "train", tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / IMAGES):
        expected = f"{re.escape(str(folder))}: expected IDX files such as {IMAGES} .*found none; run `se-core data`"
        with pytest.raises(DataError, match=expected):
            load("mnist", "train", folder)


def test_a_name_that_the_system_refuses_is_named():
    with pytest.raises(DataError, match=r"x{300}: cannot be read .*; check its name"):
        load("mnist", "train", "x" * 300)


def test_faults_of_data_are_errors_that_the_package_explains():
    assert issubclass(DataError, SmoothEncoderError)
