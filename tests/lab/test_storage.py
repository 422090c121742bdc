"""Files are whole or absent, every bit of a tensor file counts, and results say where they come from."""

import errno
import os
import resource
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from se_core.lab import storage
from se_core.lab.storage import (
    CheckpointError,
    StorageError,
    exclusive,
    read_tensors,
    write_atomically,
    write_tensors,
)


def test_every_single_bit_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(3.0)})
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_tensors(path)
    path.write_bytes(sound)
    assert torch.equal(read_tensors(path)["a"], torch.arange(3.0))


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    subprocess.run(["sha256sum", "--check", "--quiet", "t.safetensors.sha256"], cwd=tmp_path, check=True)


def test_the_kernel_refusing_to_write_more_is_explained(tmp_path: Path) -> None:
    """Not a simulation: the kernel cuts the write short at a file-size limit, as it does on a full disk."""
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(10)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="what was there before is untouched"):
            write_tensors(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *author, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True, cwd=tmp_path)
    monkeypatch.setattr(storage, "__file__", str(tmp_path / "lab" / "storage.py"))
    assert storage.provenance()["commit"] == "not a git checkout"


def test_provenance_names_the_lock_and_what_departs_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "__file__", str(tmp_path / "se_core" / "lab" / "storage.py"))
    assert storage.provenance()["lock"] == "none"
    torch_, numpy_ = torch.__version__.partition("+")[0], version("numpy")
    lock = tmp_path / "constraints.txt"
    lock.write_text(f"# pins\nnumpy=={numpy_}\nscipy==0.1\ntorch=={torch_}\n")
    named = f"constraints.txt, SHA-256 {subprocess.check_output(['sha256sum', lock], text=True).split()[0]}"
    assert storage.provenance()["lock"] == f"{named}, but scipy {version('scipy')}"


def test_a_folder_is_one_process_s_at_a_time_however_that_ends(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from se_core.lab.storage import exclusive
with exclusive(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        (tmp_path / ".half-written.tmp").touch()
        with (
            pytest.raises(StorageError, match="another process is writing to"),
            exclusive(tmp_path),
        ):
            pass
        assert (tmp_path / ".half-written.tmp").exists()  # it may be at it
        holder.kill()
    with exclusive(tmp_path):
        assert not (tmp_path / ".half-written.tmp").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel answers on some network file systems; and nothing takes the place of the lock."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    message = (
        f"cannot lock {tmp_path}: {os.strerror(code)}, as on some network file systems; choose a folder on a local"
    )
    with pytest.raises(StorageError, match=message), exclusive(tmp_path):
        pass


def test_a_system_that_opens_no_folders_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows, where a folder cannot be flushed."""
    opened = os.open

    def refuse_folders(path: object, *arguments: Any, **options: Any) -> int:
        if Path(str(path)).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse_folders)
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
