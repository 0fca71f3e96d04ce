"""A folder of one's own beside a file that is being made; those that killed processes left are removed.

Several runs may share a cache, so what is another's and in use must stay: each folder is held by a lock that the kernel gives
back when its process ends, however it ends. On NFS and Lustre such a lock is seen within one machine only, so a folder's name
tells which machine made it, and those of others go only after hours without a write::

    models/.convert-3f0c9a1be2d47756-x81_kq2a/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SILENT_S = 12 * 3600.0
"""Nothing was written in a folder for so long: whoever made it has gone. To convert or fetch the largest file takes less."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
"""What flock(2) says where a file system has no locks; EBADF: none of a file that is open for reading only, as folders are."""


@contextlib.contextmanager
def folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder and remove it at the end, whatever is in it then, if it is still there.

    Args:
        parent: where; it exists.
        prefix: of its name; what dead processes left under the same prefix is removed first.

    Raises:
        OSError: it cannot be made.
    """
    sweep(parent, prefix)
    made, handle = _hold(parent, prefix)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders that nobody holds any more: this machine's by their locks, others after hours of silence.

    Args:
        parent: where they are.
        prefix: of their names.
    """
    mine = f"{prefix}{machine()}-"
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                told = _lock(handle) and left.name.startswith(mine)
                if told or _silent(left):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


def machine() -> str:
    """Return the short digest of this machine's name and of its kernel's boot id, where it has one to show."""
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:16]


def _lock(handle: int) -> bool:
    """Take the lock of a folder; False where the file system has none.

    Raises:
        BlockingIOError: another holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _silent(left: Path) -> bool:
    """Whether nothing was written there for hours."""
    latest_s = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
    return time.time() - latest_s > SILENT_S


def _hold(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{machine()}-"))
        try:
            handle = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another process swept it before it was held.
            continue
        try:
            _lock(handle)
        except BlockingIOError:
            # Another process is sweeping it at this moment.
            os.close(handle)
            continue
        if made.is_dir():
            return made, handle
        os.close(handle)
