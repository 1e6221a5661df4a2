"""Images and masks as a view resizes them, in one memory-mapped file that all processes of a machine share.

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
from unetseg.data.pictures import Unreadable
from unetseg.data.view import RGB, View
from unetseg.errors import UserError
from unetseg.files import user_cache

VERSION = f"4 {cv2.__version__} {pillow}"
"""Versions of the file's format and of the decoders."""
SHARED_MEMORY = Path("/dev/shm")
QUARTER = 4
"""`auto` takes at most one part in QUARTER of the shared memory, which is half of the machine's RAM by default."""
ADVICE = {
    "ram": "data.cache=disk, a smaller data.size or data.scale, or a larger /dev/shm (docker run --shm-size=...)",
    "disk": "XDG_CACHE_HOME=FOLDER in the environment, or data.cache=none",
}


class Cache:
    """The examples of a split, N of them, as a view resizes them: image hxwxC uint8 or float32, and mask hxw uint8.

    Args:
        kind: disk: under $XDG_CACHE_HOME, for later runs too; ram: under /dev/shm, until the last process that uses it
            ends (if it is killed: until the next cache is opened there).
        files: image and mask of each example.
        values: by which `read` translates masks.
        view: by which `read` reads and resizes pictures.
        read: maps a position to image and mask, or raises Unreadable; called from several threads.
        sizes: Nx2, height and width of the files' pictures; needed where the view doesn't make squares of them.

    Raises:
        UserError: there is not enough room, or the folder belongs to somebody else.
    """

    def __init__(
        self,
        kind: str,
        files: Sequence[tuple[Path, Path]],
        values: MaskValues,
        view: View,
        read: Callable[[int], tuple[np.ndarray, np.ndarray]],
        sizes: Sequence[Sequence[int]] | np.ndarray | None = None,
    ):
        folder = cache_folder(kind)
        names, state = _fingerprints(files, values, view)
        self.path = folder / f"{names}-{state}.squares"
        self.shapes, self.starts = _layout(view, len(files), sizes)
        self.channels, self.dtype = view.channels, pixel_type(view)
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
                file = _open_shared(self.path, self.nbytes)
                if file is None:
                    _remove(folder.glob(f"{names}-*.squares"))  # the same pictures, in an earlier state
                    self._build(read, files)
                    file = self.path.open("rb")
                    fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            needed = f"data.cache={kind} needs {self.nbytes:,} bytes in {folder}"
            raise UserError(f"{needed}: {error.strerror}", advice=ADVICE[kind]) from None
        self.content = np.asarray(np.memmap(self.path, np.uint8, "r"))
        if kind == "disk":
            file.close()
        else:
            weakref.finalize(self, _release, file, self.path, os.getpid())

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return an example's image and mask, in memory that can't be written, or None if they could not be read."""
        if not self.content[index]:
            return None
        height, width = self.shapes[index].tolist()
        start, pixels = int(self.starts[index]), height * width
        middle = start + pixels * self.channels * self.dtype.itemsize
        image = self.content[start:middle].view(self.dtype).reshape(height, width, self.channels)
        return image, self.content[middle : middle + pixels].reshape(height, width)

    @property
    def nbytes(self) -> int:
        """Length of the file: a byte for each example, 1 if it could be read, then the examples."""
        return int(self.starts[-1])

    @property
    def whole(self) -> np.ndarray:
        """N bool: which examples could be read."""
        return np.array(self.content[: len(self)], bool)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the content: a process that isn't forked maps the file itself."""
        return {name: value for name, value in self.__dict__.items() if name != "content"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.content = np.asarray(np.memmap(self.path, np.uint8, "r"))

    def _build(self, read: Callable[[int], tuple[np.ndarray, np.ndarray]], files: Sequence[tuple[Path, Path]]) -> None:
        """Decode all examples into the file."""
        partial = self.path.with_suffix(".partial")
        free = shutil.disk_usage(partial.parent).free
        if free < self.nbytes:
            raise OSError(errno.ENOSPC, f"{free:,} are free")

        def write(index: int) -> None:
            with suppress(Unreadable):  # its bytes stay zero
                image, mask = read(index)
                check(index, image, mask)
                parts = ((image.tobytes() + mask.tobytes(), int(self.starts[index])), (b"\1", index))
                if any(os.pwrite(file.fileno(), part, place) < len(part) for part, place in parts):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def check(index: int, image: np.ndarray, mask: np.ndarray) -> None:
            height, width = self.shapes[index].tolist()
            found, expected = (image.shape, image.dtype, mask.shape), (height, width, self.channels)
            if found != (expected, self.dtype, expected[:2]):
                raise UserError(f"{files[index][0]} has changed since the files were checked", advice="start again")

        try:
            with open(partial, "wb", opener=_open_nofollow) as file:
                file.truncate(self.nbytes)
                futures = [_decoders(os.getpid()).submit(write, index) for index in range(len(self))]
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


def pixel_type(view: View) -> np.dtype:
    """Return the type of an image's values: RGB is 8-bit, other channels are as stored, in float32."""
    return np.dtype(np.uint8 if view.channels == RGB else np.float32)


def cache_bytes(view: View, length: int, sizes: Sequence[Sequence[int]] | np.ndarray | None = None) -> int:
    """Return the length of a cache's file; arguments as for `Cache`, of so many examples."""
    return int(_layout(view, length, sizes)[1][-1])


def _layout(
    view: View, length: int, sizes: Sequence[Sequence[int]] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shapes of N examples, Nx2, and where each begins in the file, with the file's end, N+1 int64."""
    if view.crop is None:
        shapes = np.full((length, 2), view.size)
    else:
        assert sizes is not None
        shapes = np.array([view.resized(*map(int, size)) for size in sizes], np.int64).reshape(-1, 2)
    each = shapes.prod(1) * (view.channels * pixel_type(view).itemsize + 1)
    aligned = -(-np.concatenate([[length], each]) // 8) * 8
    return shapes, aligned.cumsum()


def fits_in_memory(nbytes: int) -> bool:
    """Return whether `auto` keeps so many bytes in RAM: they must be little of the shared memory."""
    try:
        return nbytes <= shutil.disk_usage(SHARED_MEMORY).total / QUARTER
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
    taken = os.path.lexists(folder)  # asked first: another process of ours may create it during the loop
    for candidate in [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))]:
        if is_private(candidate, 0o077):
            return candidate
    if not taken:
        return folder  # the caller creates it
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _fingerprints(files: Sequence[tuple[Path, Path]], values: MaskValues, view: View) -> tuple[str, str]:
    """Return a hash of the files' names and of how they are read, and a hash of the files' present state."""
    ends = None if view.value_range is None else [*map(float, view.value_range)]
    kind = (view.crop is not None, view.size if view.crop is None else view.scale, view.fit, ends, view.channels)
    options = repr((*kind, None if view.mean is None else [*view.mean]))
    names = hashlib.sha256(options.encode() + values.table.tobytes() + values.reading.encode())
    state = hashlib.sha256(VERSION.encode())
    for path in itertools.chain.from_iterable(files):
        status = path.stat()
        names.update(os.fsencode(path.absolute()) + b"\0")
        # programs can set st_mtime, but not st_ctime
        state.update(b"%d %d\0" % (status.st_size, status.st_ctime_ns))
    return names.hexdigest()[:16], state.hexdigest()[:16]


@contextmanager
def made_folder(kind: str) -> Iterator[Path]:
    """Yield the folder, locked, of files of one kind that are made of a data set's own: masks, slices.

    Raises:
        UserError: it can't be written, or others may write to it.
    """
    folder, advice = cache_folder("disk") / kind, "XDG_CACHE_HOME=FOLDER in the environment"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder, 0o022):
            raise UserError(f"{folder} is open to others, or theirs", advice=advice)
        with locked(folder):
            yield folder
    except OSError as error:
        raise UserError(f"{kind} can't be written into {folder}: {error.strerror}", advice=advice) from None


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
