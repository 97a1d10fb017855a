"""Files written whole or not at all, and checksums by which a reader knows that they are as they were written."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldmscale.errors import UserError

BLOCK = 1 << 22  # bytes
MARK = b"CRC32 "


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises UserError where the disk is full or may not be written.
    """
    try:
        with _replacing(path) as temporary:
            yield temporary
    except Exception as error:
        if not _of_the_disk(error):
            raise
        raise UserError(unwritable(path, error)) from error


def unwritable(path: str | Path, error: Exception) -> str:
    """What to say of a file that could not be written."""
    why = getattr(error, "strerror", None) or error
    return f"{path} cannot be written ({why}): make room on its disk or make it writable, then run snakemake again"


def _of_the_disk(error: Exception) -> bool:
    """Whether the disk is full or read-only; NumPy and Rust say the first without its number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return any(said in str(error) for said in ("requested and", "No space left", "Read-only file system"))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: numpy, pandas and matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # on a disk that has turned read-only it stays
            temporary.unlink()


def seal(path: Path) -> None:
    """Append to a file the CRC-32 of its bytes, which formats that know their own length pass over."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        found = _crc32(file, size)
        file.seek(size)
        file.write(MARK + b"%08x" % found)


def sealed_size(path: Path) -> int:
    """Bytes of ``path`` before its seal, all of them where it has none. Raises ValueError where the seal is not
    theirs."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - len(MARK) - 8))
        mark, said = file.read(len(MARK)), file.read()
        if mark != MARK:
            return size
        file.seek(0)
        if said != b"%08x" % _crc32(file, size - len(MARK) - 8):
            raise ValueError("its checksum is another")
    return size - len(MARK) - 8


def _crc32(file, size: int) -> int:
    found = 0
    while size > 0 and (block := file.read(min(size, BLOCK))):
        found, size = zlib.crc32(block, found), size - len(block)
    return found
