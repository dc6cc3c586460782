"""System calls that change a disk, in one place: tests put a failing or recording disk here."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from cnnfeat.errors import CnnfeatError, StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process or file system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EIO: "the disk reports an input/output error",
}
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}
_HINT = "free some space there, or write elsewhere with -o; finished blocks are kept for --resume"


class Disk:
    """The real disk."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open for reading and writing, never truncating; close-on-exec, and through no link."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        return os.open(path, flags, 0o666)

    def close(self, handle: int) -> None:
        """Close."""
        os.close(handle)

    def write(self, handle: int, data: bytes | memoryview, *, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        while len(view):
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, handle: int, size: int) -> None:
        """Set a file's size."""
        os.ftruncate(handle, size)

    def allocate(self, handle: int, size: int) -> None:
        """Take disk space for `size` bytes, where the file system can."""
        if not hasattr(os, "posix_fallocate"):  # as on macOS
            return
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise

    def sync(self, handle: int) -> None:
        """Bring a file's bytes to the medium."""
        os.fsync(handle)

    def forget(self, handle: int) -> None:
        """Let the system drop what it caches of a file and has brought to the medium.

        A word of advice: where there is none to give it to, nothing is lost.
        """
        if hasattr(os, "posix_fadvise"):  # not on macOS
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_folder(self, folder: Path) -> None:
        """Bring a folder's names to the medium."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
        finally:
            os.close(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, over an existing file too."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Unlink; a missing file is fine."""
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the system says into a `StorageError` that names the file and what to do."""
    try:
        yield
    except CnnfeatError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"{path}: can't write: {reason}", hint=_HINT) from error
