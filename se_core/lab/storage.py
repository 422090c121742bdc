"""Files that are whole or absent, and the record of where a result comes from.

Every file is written to a temporary name, flushed to disk and renamed: whatever moment a process is killed at, a file
is the old one or the new one. Tensor files have their SHA-256 beside them, because a flipped bit loads silently from
safetensors as from any other format.
"""

import errno
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from se_core import __version__
from se_core.errors import SmoothEncoderError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # how file systems say that they have none


class CheckpointError(SmoothEncoderError):
    """A file of a run is damaged, or the run is not finished. The message names the file and the remedy."""


class StorageError(SmoothEncoderError):
    """A file could not be written. What was there before is untouched."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to disk, and rename. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with suppress(OSError):  # Windows cannot, nor can some file systems
            _flush_folder(path.parent)  # makes the rename itself durable
    except OSError as error:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
        remedy = "free some space" if error.errno == errno.ENOSPC else "choose a folder that can be written"
        raise StorageError(
            f"cannot write {path}: {error.strerror}; what was there before is untouched; "
            f"{remedy} and run the same command again"
        ) from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file; CheckpointError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); run the same command again") from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all. Raises StorageError."""
    write_atomically(path, json.dumps(content, indent=1).encode())


def checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file and, written first, its SHA-256 in the format of `sha256sum`."""
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(checksum_file(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    write_atomically(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by `write_tensors`; CheckpointError if a single bit of it has changed."""
    try:
        content, recorded = path.read_bytes(), checksum_file(path).read_text(errors="replace").split()[:1]
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}; train the run again") from error
    actual = hashlib.sha256(content).hexdigest()
    if recorded != [actual]:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {actual}, {checksum_file(path).name} says {''.join(recorded) or '?'}; "
            f"nothing was loaded; train the run again"
        )
    return load_tensors(content)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the lock ends with the process, however it ends. Raises StorageError.

    What a killed process left half written is removed.
    """
    # No lock by a mere file where the system has none: that would outlive a process that is killed.
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StorageError(f"another process is writing to {folder}; wait for it, or stop it first") from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise StorageError(
                f"cannot lock {folder}: {error.strerror}, as on some network file systems; choose a folder on a local "
                "disk, or have this file system mounted with locks (flock)"
            ) from error
        raise StorageError(
            f"cannot write to {folder}: {error.strerror}; choose another output folder or change its permissions"
        ) from error
    try:
        for left_over in folder.glob(".*.tmp"):
            left_over.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _lock(path: Path) -> str:
    """The lock beside the package, by its SHA-256, and what computes in another version than it says."""
    if not path.is_file():
        return "none"
    content = path.read_bytes()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", content.decode(), re.MULTILINE))
    installed = {name: version(name).partition("+")[0] for name in ("numpy", "scipy", "torch")}
    others = "".join(f", but {name} {found}" for name, found in installed.items() if found != pins.get(name))
    return f"{path.name}, SHA-256 {hashlib.sha256(content).hexdigest()}{others}"


def provenance(device: str = "cpu") -> dict[str, str]:
    """Where a result that was computed on `device` comes from: package, commit, lock, versions and machine."""

    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package that only lies inside somebody else's repository has no commit of its own.
    commit = git("ls-files", "--error-unmatch", f"lab/{Path(__file__).name}") and git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no", "--", "."):
        commit += " (modified)"
    return {
        "se_core": __version__,
        "commit": commit or "not a git checkout",
        "lock": _lock(package.parent / "constraints.txt"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def machines_of(provenances: Iterable[dict[str, str]]) -> dict[str, str]:
    """The machines and devices of several results, each once: on a cluster, not those of the login node."""
    known = list(provenances)
    keys = ("machine", "device")
    return {key: "; ".join(sorted({name for place in known for name in place[key].split("; ")})) for key in keys}
