"""Report files on disk: complete or not there at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO


def _is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a terminal or a device: written in place, because a rename would replace it."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def check_writable(path: Path) -> None:
    """Raises OSError now if a report could not be written to `path` later; leaves nothing behind.

    Called before the runs start, so that minutes of work do not end at a mistyped folder.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "is a directory", str(path))
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "not writable", str(path))
        return
    target = path.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(target.parent))
    try:
        handle, name = tempfile.mkstemp(prefix=".xi-", dir=target.parent)
    except OSError as error:
        # mkstemp reports the temporary name, which would puzzle the reader.
        raise OSError(error.errno, error.strerror, str(target)) from error
    os.close(handle)
    os.unlink(name)


def write_atomic(path: Path, text: str) -> None:
    """Writes `text` (UTF-8); see `copy_atomic`."""
    copy_atomic(path, io.BytesIO(text.encode("utf-8", errors="backslashreplace")))


def copy_atomic(path: Path, source: BinaryIO) -> None:
    """Writes what `source` still has to read so that a reader of `path` sees the old file or the whole new one.

    A symbolic link keeps pointing where it did; the mode is that of the file replaced, or what the umask
    leaves. Raises OSError when the file cannot be written; the old one is then untouched.
    """
    if _is_special(path):
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
        return
    target = path.resolve()
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
    try:
        handle, name = tempfile.mkstemp(prefix=".xi-", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value
