"""Folders of images: what is read, how it is split, and what is refused by name."""

import hashlib
import logging
import shutil
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from se_core import folders, load
from se_core._image_files import decoded
from se_core._torchvision import import_torchvision
from se_core.datasets import DataError
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.folders import FolderImages

SPLITS = ("train", "validation", "test")


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(root: Path, labels: str = "abc", count: int = 40) -> Path:
    for k, label in enumerate(labels):
        for i in range(count):
            write(root / label / f"{i}.png", noise(1000 * k + i, 8, 8, 3))
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "root")


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    """A copy of one's own to change."""
    return Path(shutil.copytree(shared, tmp_path / "own"))


def by_split(root: Path, **options: object) -> dict[str, FolderImages]:
    return {split: load("images", split, root, **options) for split in SPLITS}


def places(root: Path) -> dict[str, str]:
    """path -> split."""
    return {file: split for split, data in by_split(root).items() for file in data.files}


# What is read


def test_torchvision_reads_the_same_images_and_labels(shared: Path) -> None:
    expected = import_torchvision().datasets.ImageFolder(shared)
    pictures = {Path(p).relative_to(shared).as_posix(): (np.array(expected.loader(p)), k) for p, k in expected.samples}
    seen: list[str] = []
    for data in by_split(shared).values():
        assert list(data.classes) == expected.classes
        assert data.tasks == {"label": 3}
        assert data.shape == (3, 8, 8)
        assert data.pixels.dtype == torch.uint8
        for file, x, label in zip(data.files, data.images(), data.labels("label"), strict=True):
            pixels, k = pictures[file]
            assert torch.equal(x, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
            assert int(label) == k
        seen += data.files
    assert sorted(seen) == sorted(pictures)


def test_a_data_loader_takes_images_with_labels_and_without(shared: Path) -> None:
    data = load("images", "train", shared)
    images, labels = (torch.cat(found) for found in zip(*DataLoader(data, batch_size=32), strict=True))
    assert torch.equal(images, data.images())
    assert torch.equal(labels, data.labels("label"))
    (images,) = (torch.cat(found) for found in zip(*DataLoader(replace(data, classes=()), batch_size=32), strict=True))
    assert torch.equal(images, data.images())


def png(image: Image.Image, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


GREY, COLOUR = noise(1, 8, 8), noise(2, 8, 8, 3)
OPAQUE = np.concatenate([COLOUR, np.full((8, 8, 1), 255, np.uint8)], -1)
GLASS = OPAQUE.copy()
GLASS[3, 3, 3] = 254
TURNED = Image.Exif()
TURNED[0x0112] = 6  # "the camera was turned": the first row is the right side (EXIF 2.32, Orientation)
FEW = Image.fromarray(np.repeat(noise(3, 4, 4, 3), 2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(png(Image.fromarray(GREY)), GREY, id="grey"),
        pytest.param(png(Image.fromarray(COLOUR)), COLOUR, id="colour"),
        pytest.param(png(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0), id="one bit"),
        pytest.param(png(Image.fromarray(OPAQUE)), COLOUR, id="an opaque alpha channel"),
        pytest.param(png(Image.fromarray(np.stack([GREY, 0 * GREY + 255], -1), "LA")), GREY, id="grey, opaque"),
        pytest.param(png(FEW.quantize(16)), np.array(FEW), id="a palette"),
        pytest.param(png(Image.fromarray(COLOUR), exif=TURNED), np.rot90(COLOUR, -1), id="a turned camera"),
    ],
)
def test_pixels_are_those_of_the_file(content: bytes, expected: np.ndarray, tmp_path: Path) -> None:
    write_folder(tmp_path, "a", 30)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(content)  # of all, so that all are in one split, whichever
    share = int(hashlib.sha256(content).hexdigest(), 16) / 16**64
    found = load("images", "test" if share < 1 / 6 else "train" if share < 31 / 36 else "validation", tmp_path / "a")
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert found.channels == len(expected)
    assert np.array_equal(found.pixels[0].numpy(), expected)


def frames() -> bytes:
    stream = BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    return stream.getvalue()


def cmyk() -> bytes:
    stream = BytesIO()
    Image.fromarray(COLOUR).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(Image.fromarray(GLASS)), "is transparent in places; put it on"),
        (png(FEW.quantize(16), transparency=0), "is transparent in places"),
        (png(Image.fromarray(257 * GREY.astype(np.uint16))), "has 16 bits a channel; scale it to 8"),
        (cmyk(), "has pixels of kind CMYK; convert it to grey or RGB"),
        (frames(), "holds 2 frames; write the one you mean"),
    ],
    ids=["transparent", "a transparent colour", "16 bits", "CMYK", "two frames"],
)
def test_what_is_no_eight_bit_image_is_refused_by_name(content: bytes, message: str, own: Path) -> None:
    (own / "b" / "7.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"own/b/7\.png: {message}"):
        load("images", "train", own, skip_damaged=True)


def test_grey_among_colour_is_in_colour(own: Path) -> None:
    write(own / "a" / "0.png", GREY)
    split = places(own)["a/0.png"]
    data = load("images", split, own)
    row = data.pixels[data.files.index("a/0.png")]
    assert data.channels == 3
    assert all(np.array_equal(channel.numpy(), GREY) for channel in row)


# Size


def test_images_of_two_sizes_are_refused_by_name(own: Path) -> None:
    write(own / "b" / "7.png", noise(0, 10, 12, 3))
    with pytest.raises(DataError, match=r"b/7\.png: is of 12 x 10 pixels, those before .* 8 x 8; pass image_size=10"):
        load("images", "train", own)


def test_images_that_are_not_square_are_refused_by_name(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"{i}.png", noise(i, 8, 12))
    with pytest.raises(DataError, match=r"0\.png: is of 12 x 8 pixels, which is not square; pass image_size=8"):
        load("images", "train", tmp_path)
    assert load("images", "train", tmp_path, image_size=8).shape == (1, 8, 8)


def test_the_middle_is_cut_out_and_resized(tmp_path: Path) -> None:
    """A square in the middle of its own colour, between two sides of another: nothing of the sides is left."""
    for i in range(30):
        sides, middle = noise(i, 1)[0] // 2, 255 - i
        pixels = np.full((20, 40), sides, np.uint8)
        pixels[:, 10:30] = middle
        write(tmp_path / f"{i}.png", pixels)
    for size in (20, 7, 50):
        data = load("images", "train", tmp_path, image_size=size)
        assert data.shape == (1, size, size)
        values = torch.tensor([255 - int(file.removesuffix(".png")) for file in data.files])
        assert bool((data.pixels == values[:, None, None, None]).all())


def test_resizing_does_not_alias(tmp_path: Path) -> None:
    """A chessboard of single pixels is grey from afar; taking every fourth pixel would make it black or white."""
    for i in range(30):
        pixels = 255 * (np.indices((32, 32)).sum(0) % 2).astype(np.uint8)
        pixels[0, 0] = i
        write(tmp_path / f"{i}.png", pixels)
    inside = load("images", "train", tmp_path, image_size=8).images()[:, :, 1:-1, 1:-1]
    assert float((inside - 0.5).abs().max()) < 0.02


def test_images_that_do_not_fit_are_refused_with_their_size(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 120 * 3 * 64 * 64
    monkeypatch.setattr(folders, "_memory", lambda: needed)
    assert load("images", "train", shared, image_size=64).shape == (3, 64, 64)
    monkeypatch.setattr(folders, "_memory", lambda: needed - 1)
    message = r"120 images of 65 x 65 x 3 need 0\.00142 GiB of memory, and this machine has 0\.00137 GiB; choose a"
    with pytest.raises(DataError, match=message):
        load("images", "train", shared, image_size=65)


def test_a_full_gpu_is_explained(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("images", "train", shared)

    def full(*_: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(DataError, match=rf"{len(data)} images of 3 x 8 x 8 need .* GiB of memory on cuda:1, which"):
        data.to("cuda:1")


# Splits


def test_what_a_file_holds_decides_its_split(shared: Path) -> None:
    """A sixth of all SHA-256 is test, the last sixth of the others validation; each split in their order."""
    for split, data in by_split(shared).items():
        keys = [hashlib.sha256((shared / file).read_bytes()).hexdigest() for file in data.files]
        assert keys == sorted(keys)
        for key in keys:
            share = int(key, 16) / 16**64
            expected = "test" if share < 1 / 6 else "train" if share < 31 / 36 else "validation"
            assert expected == split


def test_other_files_and_names_move_no_image(own: Path) -> None:
    before = places(own)
    (own / "a" / "0.png").rename(own / "a" / "zero.png")
    (own / "b" / "1.png").unlink()
    write(own / "c" / "new.png", noise(77, 8, 8, 3))
    after = places(own)
    assert after.pop("a/zero.png") == before.pop("a/0.png")
    del before["b/1.png"], after["c/new.png"]
    assert after == before


def test_copies_are_never_on_both_sides(own: Path) -> None:
    for path in sorted(own.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    for data in by_split(own).values():
        names = sorted(data.files)
        assert sorted(name.replace("/", "/copy-") for name in names if "copy" not in name) == [
            name for name in names if "copy" in name
        ]


def test_the_digest_pins_content_and_labels_and_nothing_else(own: Path) -> None:
    before = {split: data.sha256 for split, data in by_split(own).items()}
    assert len(set(before.values())) == 3
    (own / "a" / "0.png").rename(own / "a" / "zero.png")
    assert {split: data.sha256 for split, data in by_split(own).items()} == before
    split = places(own)["a/zero.png"]
    shutil.move(own / "a" / "zero.png", own / "b" / "zero.png")  # another label
    after = {split: data.sha256 for split, data in by_split(own).items()}
    assert [s for s in SPLITS if after[s] != before[s]] == [split]


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "only.png", GREY)
    for split in SPLITS:
        with pytest.raises(DataError, match=rf"[01] of its 1 images are of the split '{split}', which needs two"):
            load("images", split, tmp_path)


# Damage


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "empty", "text"])
def test_damaged_files_are_named_and_left_out_on_request(
    damage: str, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = own / "b" / "7.png"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"IDAT") + 50] ^= 1
    broken = {"cut short": content[:-30], "a flipped bit": bytes(flipped), "empty": b"", "text": b"no image"}
    path.write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"1 of 120 images cannot be read: .*b/7\.png \(.+\); .* skip_damaged=True"):
        load("images", "train", own)
    with caplog.at_level(logging.WARNING):
        data = by_split(own, skip_damaged=True)
    assert "b/7.png" in caplog.text
    assert sum(map(len, data.values())) == 119
    assert not [file for part in data.values() for file in part.files if file == "b/7.png"]


def test_no_flipped_bit_of_a_png_changes_a_pixel_unnoticed() -> None:
    """The checksums of the format tell; a decoder that stops once it has all pixels would miss three of these bits."""
    pixels = 4 * np.indices((28, 28), dtype=np.uint8).sum(0, dtype=np.uint8)
    content = png(Image.fromarray(pixels))
    assert len(content) < 100
    changed, noticed = [], 0
    for place, bit in np.ndindex(len(content), 8):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        try:
            found = decoded(bytes(flipped), image_size=0)
        except Exception:
            noticed += 1
        else:
            changed += [(place, bit)] * (not np.array_equal(found[..., 0], pixels))
    assert changed == []
    assert noticed > 7 * len(content)


def test_of_many_damaged_files_ten_are_named(own: Path) -> None:
    for path in (own / "c").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^40 of 120 images cannot be read") as raised:
        load("images", "train", own)
    assert str(raised.value).count(".png") == 10
    assert "and 30 more" in str(raised.value)


def test_a_folder_of_damaged_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        load("images", "train", tmp_path, skip_damaged=True)


# Layout


def test_without_sub_folders_there_are_no_labels(shared: Path) -> None:
    data = load("images", "train", shared / "a")
    assert data.classes == ()
    assert data.tasks == {}
    with pytest.raises(InvalidValueError, match="these images have no labels: sort them into two sub-folders"):
        data.labels("label")
    with pytest.raises(InvalidValueError, match="task must be 'label', not 'digit'"):
        data.labels("digit")


def test_one_sub_folder_tells_nothing_apart(own: Path) -> None:
    shutil.rmtree(own / "b")
    shutil.rmtree(own / "c")
    assert load("images", "train", own).tasks == {}


def test_what_is_hidden_or_no_image_is_left_out(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = places(own)
    (own / ".DS_Store").write_bytes(b"")
    (own / ".ipynb_checkpoints").mkdir()
    (own / "LICENSE").write_text("free")
    write(own / "a" / "._0.png", GREY)
    with caplog.at_level(logging.WARNING):
        assert places(own) == before
    assert "LICENSE" in caplog.text
    assert "DS_Store" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: write(root / "extra.png", GREY),
            r"holds images, such as extra\.png, beside sub-folders, such as a",
        ),
        (lambda root: write(root / "train" / "cat" / "0.png", GREY), "train/cat is a folder in a folder; .* pass the"),
        (lambda root: (root / "empty").mkdir(), "the sub-folder empty holds no image; remove it, or fill it"),
        (lambda root: shutil.rmtree(root), "cannot be read .*; check its name"),
        (lambda root: [shutil.rmtree(root / label) for label in "abc"], r"holds no image, a file that ends in \.bmp"),
    ],
)
def test_other_layouts_are_refused(change, message: str, own: Path) -> None:
    change(own)
    with pytest.raises(DataError, match=f"source .*own: {message}"):
        load("images", "train", own)


def test_a_folder_that_has_changed_is_read_again(own: Path) -> None:
    before = load("images", "train", own)
    first = own / before.files[0]
    first.write_bytes((own / before.files[1]).read_bytes())  # now a copy of the second, beside it by its SHA-256
    assert torch.equal(*load("images", "train", own).pixels[:2])
    assert not torch.equal(*before.pixels[:2])
    for path in (own / "a").iterdir():
        path.unlink()
    shutil.rmtree(own / "a")
    after = load("images", "train", own)
    assert after.classes == ("b", "c")
    assert len(after) < len(before)


def test_a_missing_decoder_is_explained(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "se_core._image_files", raising=False)
    with pytest.raises(DataError, match=r"image files need PIL, which is missing: pip install 'se-core\[lab\]'"):
        load("images", "train", own)


# Calls


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda root: load("images", "val", root), InvalidValueError, "'train', 'validation', 'test', not 'val'"),
        (lambda root: load("images", "train"), InvalidValueError, "source='bundled' holds digits; name the folder"),
        (lambda root: load("images", "train", 3), InvalidTypeError, "source must be a path, not 3"),
        (
            lambda root: load("images", "train", root, image_size=-1),
            InvalidValueError,
            "image_size=-1 must be at least",
        ),
        (lambda root: load("mnist", "train", image_size=32), InvalidValueError, "image_size and .* of 'images'; leave"),
        (lambda root: load("images", "train", root).images(0), InvalidTypeError, r"pass torch.tensor\(\[0\]\)"),
    ],
)
def test_wrong_calls_are_refused(call, error: type[Exception], message: str, shared: Path) -> None:
    with pytest.raises(error, match=message):
        call(shared)


def test_the_state_of_torch_changes_nothing(own: Path) -> None:
    with torch.inference_mode(), torch.device("meta"):
        data = load("images", "train", own).subset(2, 9).to("cpu")
    assert not data.pixels.is_inference()
    assert not data.targets.is_inference()
    plain = load("images", "train", own)
    assert torch.equal(data.images(), plain.images(slice(2, 9)))
    assert torch.equal(data.labels("label"), plain.labels("label")[2:9])
    assert data.files == plain.files[2:9]
