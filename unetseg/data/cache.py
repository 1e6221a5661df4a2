"""Resized images and masks in one memory-mapped file, shared by all processes of a machine.

A file is written under another name and renamed when it is whole, so that a process may be killed at any moment. Its
name says what it was made from: of pictures that have changed, a new one is made. Who builds or opens a file holds the
folder's lock meanwhile. Who uses one in RAM holds a shared lock of it, and the last one to let go removes it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import __version__ as pillow
from rich.progress import track

from unetseg.data.pictures import Range, Unreadable
from unetseg.errors import UserError

VERSION = f"3 {cv2.__version__} {pillow}"
"""Of the file's format, and of what decodes the pictures."""
SHARED_MEMORY = Path("/dev/shm")
QUARTER = 4
"""Of the shared memory, which is half of the machine's where nobody has set it otherwise: what `auto` takes at most."""
ADVICE = {
    "ram": "data.cache=disk, a smaller data.size, or a larger /dev/shm (docker run --shm-size=...)",
    "disk": "XDG_CACHE_HOME=FOLDER in the environment, or data.cache=none",
}


class Cache:
    """The resized examples of a split, N of them: image SxSx3 and mask SxS, uint8.

    Args:
        kind: disk: under $XDG_CACHE_HOME, for later runs too; ram: under /dev/shm, until the last process that uses it
            ends (if it is killed: until the next cache is opened there).
        files: image and mask of each example.
        values: the table by which it translates masks.
        size: S.
        read: maps a position to image and mask, or raises Unreadable; called from several threads.
        value_range: by which it reads pictures.

    Raises:
        UserError: there is no room, or the folder belongs to somebody else.
    """

    def __init__(
        self,
        kind: str,
        files: Sequence[tuple[Path, Path]],
        values: np.ndarray,
        size: int,
        read: Callable[[int], tuple[np.ndarray, np.ndarray]],
        value_range: Range = None,
    ):
        folder = folder_of(kind)
        names, state = _fingerprints(files, values, size, value_range)
        self.path = folder / f"{names}-{state}.squares"
        self.record = np.dtype(
            [("image", np.uint8, (size, size, 3)), ("mask", np.uint8, (size, size)), ("whole", np.bool_)]
        )
        self.length, self.size = len(files), size
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not private(folder, 0o022 if kind == "disk" else 0o077):
                raise UserError(f"data.cache={kind}: {folder} is open to others, or theirs", advice=ADVICE[kind])
            with _locked(folder):
                _remove(folder.glob("*.partial"))  # nobody else is building
                if kind == "ram":
                    _remove_unused(set(folder.glob("*.squares")) - {self.path})
                file = _opened(self.path, self.length * self.record.itemsize)
                if file is None:
                    _remove(folder.glob(f"{names}-*.squares"))  # the same pictures, in an earlier state
                    self._build(read)
                    file = self.path.open("rb")
                    fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            needed = f"data.cache={kind} needs {self.length * self.record.itemsize:,} bytes in {folder}"
            raise UserError(f"{needed}: {error.strerror}", advice=ADVICE[kind]) from None
        self.records = self._mapped()
        if kind == "disk":
            file.close()
        else:
            weakref.finalize(self, _let_go, file, self.path, os.getpid())

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return copies of an example's image and mask, or None if they could not be read."""
        record = self.records[index]
        return (np.array(record["image"]), np.array(record["mask"])) if record["whole"] else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the content: a process that isn't forked maps it itself."""
        return {name: value for name, value in self.__dict__.items() if name != "records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the content."""
        self.__dict__ |= state
        self.records = self._mapped()

    def _mapped(self) -> np.ndarray:
        return np.memmap(self.path, self.record, "r", shape=(self.length,))

    def _build(self, read: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> None:
        """Decode all examples into the file."""
        each, partial = self.record.itemsize, self.path.with_suffix(".partial")
        free = shutil.disk_usage(partial.parent).free
        if free < self.length * each:
            raise OSError(errno.ENOSPC, f"{free:,} are free")

        def write(index: int) -> None:
            with suppress(Unreadable):  # its record stays zero
                record = np.array((*read(index), True), self.record)
                if os.pwrite(file.fileno(), record.tobytes(), index * each) < each:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            with open(partial, "wb", opener=_not_by_link) as file:
                file.truncate(self.length * each)
                written = [_decoders(os.getpid()).submit(write, index) for index in range(self.length)]
                try:
                    for future in track(written, "decoding pictures", transient=True):
                        future.result()
                finally:  # nothing is written after the file was closed
                    for future in written:
                        future.cancel()
                    wait(written)
                os.fsync(file.fileno())
            partial.rename(self.path)
        finally:
            partial.unlink(missing_ok=True)


@functools.cache
def _decoders(process: int) -> ThreadPoolExecutor:
    """Return the threads in which this process decodes; they stay until it ends.

    OpenCV takes a lock when a thread ends, also after Python has waited for it. A loader's process that is forked at
    that moment waits for the lock forever.
    """
    return ThreadPoolExecutor()


def modest(length: int, size: int) -> bool:
    """Return whether `auto` keeps a split of this length in RAM: where it takes little of what there is."""
    try:
        return length * (4 * size**2 + 1) <= shutil.disk_usage(SHARED_MEMORY).total / QUARTER
    except OSError:  # a system without shared memory in the file tree
        return False


def folder_of(kind: str) -> Path:
    """Return where the files of a kind, disk or ram, lie."""
    if kind == "ram":
        return _own_folder(SHARED_MEMORY / f"unetseg-{os.getuid()}")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unetseg"


def private(folder: Path, others: int) -> bool:
    """Return whether a folder, and no link, is this user's, and no one else has one of these rights to it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


def _own_folder(folder: Path) -> Path:
    """Return the folder, or another name where somebody else was faster: all may write to its parent."""
    for found in [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))]:
        if private(found, 0o077):
            return found
    if not os.path.lexists(folder):
        return folder  # to be made
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))


def _not_by_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _fingerprints(
    files: Sequence[tuple[Path, Path]], values: np.ndarray, size: int, value_range: Range
) -> tuple[str, str]:
    """Return a hash of which files are to become what, and one of the state in which these files are."""
    how = f"{size} {None if value_range is None else [*map(float, value_range)]}"
    names, state = hashlib.sha256(how.encode() + values.tobytes()), hashlib.sha256(VERSION.encode())
    for path in itertools.chain.from_iterable(files):
        status = path.stat()
        names.update(os.fsencode(path.absolute()) + b"\0")
        # the time of the last change, unlike that of the last writing, no program can set
        state.update(b"%d %d\0" % (status.st_size, status.st_ctime_ns))
    return names.hexdigest()[:16], state.hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from building and opening files of this folder."""
    with open(folder / "lock", "w", opener=_not_by_link) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path, length: int) -> BinaryIO | None:
    """Return a file of this length with a shared lock, or None if there is none (any more), or it was cut short."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits for one who is just removing it
    status = os.fstat(file.fileno())
    if status.st_nlink and status.st_size == length:
        return file
    file.close()
    return None


def _let_go(file: BinaryIO, path: Path, owner: int) -> None:
    """Give a shared lock back; remove the file if nobody else has one. A forked process leaves that to `owner`."""
    if os.getpid() == owner:
        with file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def _remove_unused(paths: set[Path]) -> None:
    """Remove what killed processes have left."""
    for path in paths:
        with suppress(FileNotFoundError):
            _let_go(path.open("rb"), path, os.getpid())


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
