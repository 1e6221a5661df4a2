"""Resized images and masks in one memory-mapped file, shared by all processes of a machine.

A file is written under another name and renamed when it is complete, so that a process may be killed at any moment.
Its name is a fingerprint of the pictures: if they change, a new file is built. A process holds the folder's lock while
it builds or opens a file. A process that uses a file in RAM holds a shared lock of it; the last one to release its lock
removes the file.
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

from unetseg.data.masks import MaskValues
from unetseg.data.pictures import Range, Unreadable
from unetseg.errors import UserError
from unetseg.files import user_cache

VERSION = f"3 {cv2.__version__} {pillow}"
"""Versions of the file's format and of the decoders."""
SHARED_MEMORY = Path("/dev/shm")
QUARTER = 4
"""`auto` takes at most one part in QUARTER of the shared memory, which is half of the machine's RAM by default."""
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
        values: by which `read` translates masks.
        size: S.
        read: maps a position to image and mask, or raises Unreadable; called from several threads.
        value_range: by which `read` reads pictures of more than 8 bits.

    Raises:
        UserError: there is not enough room, or the folder belongs to somebody else.
    """

    def __init__(
        self,
        kind: str,
        files: Sequence[tuple[Path, Path]],
        values: MaskValues,
        size: int,
        read: Callable[[int], tuple[np.ndarray, np.ndarray]],
        value_range: Range = None,
    ):
        folder = cache_folder(kind)
        names, state = _fingerprints(files, values, size, value_range)
        self.path = folder / f"{names}-{state}.squares"
        self.record = np.dtype(
            [("image", np.uint8, (size, size, 3)), ("mask", np.uint8, (size, size)), ("whole", np.bool_)]
        )
        self.length, self.size = len(files), size
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(folder, 0o022 if kind == "disk" else 0o077):
                raise UserError(f"data.cache={kind}: {folder} is open to others, or theirs", advice=ADVICE[kind])
            with locked(folder):
                _remove(folder.glob("*.partial"))  # of killed processes: no other process is building
                if kind == "ram":
                    for path in set(folder.glob("*.squares")) - {self.path}:
                        with suppress(FileNotFoundError):
                            _release(path.open("rb"), path, os.getpid())  # removes it unless a process uses it
                file = _open_shared(self.path, self.length * self.record.itemsize)
                if file is None:
                    _remove(folder.glob(f"{names}-*.squares"))  # the same pictures, in an earlier state
                    self._build(read)
                    file = self.path.open("rb")
                    fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            needed = f"data.cache={kind} needs {self.length * self.record.itemsize:,} bytes in {folder}"
            raise UserError(f"{needed}: {error.strerror}", advice=ADVICE[kind]) from None
        self.records = self._map_records()
        if kind == "disk":
            file.close()
        else:
            weakref.finalize(self, _release, file, self.path, os.getpid())

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return copies of an example's image and mask, or None if they could not be read."""
        record = self.records[index]
        return (np.array(record["image"]), np.array(record["mask"])) if record["whole"] else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the records: a process that isn't forked maps the file itself."""
        return {name: value for name, value in self.__dict__.items() if name != "records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.records = self._map_records()

    def _map_records(self) -> np.ndarray:
        return np.memmap(self.path, self.record, "r", shape=(self.length,))

    def _build(self, read: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> None:
        """Decode all examples into the file."""
        itemsize = self.record.itemsize
        partial = self.path.with_suffix(".partial")
        free = shutil.disk_usage(partial.parent).free
        if free < self.length * itemsize:
            raise OSError(errno.ENOSPC, f"{free:,} are free")

        def write(index: int) -> None:
            with suppress(Unreadable):  # its record stays zero
                record = np.array((*read(index), True), self.record)
                if os.pwrite(file.fileno(), record.tobytes(), index * itemsize) < itemsize:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            with open(partial, "wb", opener=_open_nofollow) as file:
                file.truncate(self.length * itemsize)
                futures = [_decoders(os.getpid()).submit(write, index) for index in range(self.length)]
                try:
                    for future in track(futures, "decoding pictures", transient=True):
                        future.result()
                finally:  # after the file is closed nothing may be written
                    for future in futures:
                        future.cancel()
                    wait(futures)
                os.fsync(file.fileno())
            partial.rename(self.path)
        finally:
            partial.unlink(missing_ok=True)


@functools.cache
def _decoders(process: int) -> ThreadPoolExecutor:
    """Return the threads in which this process decodes; they live until it ends.

    OpenCV takes a lock when a thread ends, even after Python has joined the thread. A loader process that is forked at
    that moment would wait for the lock forever.
    """
    return ThreadPoolExecutor()


def fits_in_memory(length: int, size: int) -> bool:
    """Return whether `auto` keeps a split of this length in RAM: it must take little of the shared memory."""
    try:
        return length * (4 * size**2 + 1) <= shutil.disk_usage(SHARED_MEMORY).total / QUARTER
    except OSError:  # a system without /dev/shm
        return False


def cache_folder(kind: str) -> Path:
    """Return the folder of the files of a kind, disk or ram."""
    if kind == "ram":
        return _own_folder(SHARED_MEMORY / f"unetseg-{os.getuid()}")
    return user_cache()


def is_private(folder: Path, others: int) -> bool:
    """Return whether a folder, not a link, belongs to this user, and nobody else has any of the rights `others`."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


def _own_folder(folder: Path) -> Path:
    """Return the folder, or one of another name if somebody else took the name: all may write to its parent."""
    for candidate in [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))]:
        if is_private(candidate, 0o077):
            return candidate
    if not os.path.lexists(folder):
        return folder  # the caller creates it
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _fingerprints(
    files: Sequence[tuple[Path, Path]], values: MaskValues, size: int, value_range: Range
) -> tuple[str, str]:
    """Return a hash of the files' names and of how they are read, and a hash of the files' present state."""
    options = f"{size} {None if value_range is None else [*map(float, value_range)]}"
    names = hashlib.sha256(options.encode() + values.table.tobytes() + values.reading.encode())
    state = hashlib.sha256(VERSION.encode())
    for path in itertools.chain.from_iterable(files):
        status = path.stat()
        names.update(os.fsencode(path.absolute()) + b"\0")
        # programs can set st_mtime, but not st_ctime
        state.update(b"%d %d\0" % (status.st_size, status.st_ctime_ns))
    return names.hexdigest()[:16], state.hexdigest()[:16]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from building and opening files of this folder during the block."""
    with open(folder / "lock", "w", opener=_open_nofollow) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_shared(path: Path, length: int) -> BinaryIO | None:
    """Return a file with a shared lock, or None if it does not exist, has been removed, or has another length."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits for a process that is removing the file
    status = os.fstat(file.fileno())
    if status.st_nlink and status.st_size == length:
        return file
    file.close()
    return None


def _release(file: BinaryIO, path: Path, owner: int) -> None:
    """In the process `owner`, not in its forks: release a shared lock, and remove the file if nobody else has one."""
    if os.getpid() == owner:
        with file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
