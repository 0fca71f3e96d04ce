"""Hold a bundle's files against its manifest, and join a bundle that was cut into parts.

Everything that is wrong is named at once. Links are never followed below the bundle's own folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .manifest import FOLDERS, MANIFEST, BundleError, Manifest, Named, is_loose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 2**20
SAY_EVERY_S = 5.0
SPARE_BYTES = 64 * 2**20
"""Left free on a disk that is written to."""
MOST_NAMED = 10
_JOIN = "join the parts once more: python3 start.py join"
_AGAIN = "copy what is named from the place where the bundle was made once more; if that does not help, make the bundle again"


def quiet(_message: str) -> None:
    """Say nothing: the default listener."""


class Tally:
    """Says from time to time how far a long step is."""

    def __init__(self, what: str, of: int, say: Callable[[str], None]) -> None:
        """Begin at nothing, of so many bytes."""
        self._what, self._of, self._say = what, of, say
        self._done, self._began_s = 0, time.monotonic()
        self._said_s = self._began_s

    def add(self, size: int) -> None:
        """Count bytes."""
        self._done += size
        now_s = time.monotonic()
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            rate = self._done / (now_s - self._began_s)
            self._say(f"{self._what}: {self._done / 1e6:.0f} of {self._of / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s, "
                      f"{max(self._of - self._done, 0) / rate:.0f} s left")


# --- checking ---------------------------------------------------------------------------------------------------------


def verify(folder: Path, manifest: Manifest, say: Callable[[str], None] = quiet) -> None:
    """Hold every file of a bundle against its digest, and make sure that nothing else lies among them.

    Raises:
        BundleError: naming what is missing, damaged, a link, or not in the manifest.
    """
    if manifest.parts and not any((folder / name).exists() for name in FOLDERS):
        raise BundleError("this bundle is in parts", file=folder, remedy="join them first: python3 start.py join")
    tally = Tally("checking", sum(file.size for file in manifest.files), say)
    wrong = [f"{file.path}: {why}" for file in manifest.files if (why := fault(folder, file, tally)) is not None]
    remedy = _JOIN if wrong and joinable(folder, manifest, folder) else _AGAIN
    wrong += [f"{name}: is not in the manifest" for name in _strangers(folder, {file.path for file in manifest.files})]
    _refuse(folder, wrong, len(manifest.files), remedy)


def joinable(folder: Path, manifest: Manifest, target: Path) -> bool:
    """Tell whether the folder has all parts, and a file of theirs is missing or wrong in the target: a join was interrupted."""
    return (bool(manifest.parts) and all((folder / part.path).is_file() for part in manifest.parts)
            and not all(_is_whole(target, file) for file in manifest.packed()))


def verify_parts(folder: Path, manifest: Manifest, say: Callable[[str], None] = quiet) -> None:
    """Hold every part against its digest.

    Raises:
        BundleError: naming the parts that are missing, cut short, damaged, or swapped with another.
    """
    tally = Tally("checking parts", sum(part.size for part in manifest.parts), say)
    others = {part.sha256: part.path for part in manifest.parts}
    wrong = []
    for part in manifest.parts:
        why = fault(folder, part, tally, others)
        if why is not None:
            wrong.append(f"{part.path}: {why}")
    _refuse(folder, wrong, len(manifest.parts))


def _refuse(folder: Path, wrong: list[str], of: int, remedy: str = _AGAIN) -> None:
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise BundleError(f"{len(wrong)} of {of} files are wrong: {'; '.join(wrong[:MOST_NAMED])}{more}", file=folder,
                          remedy=remedy)


def fault(folder: Path, file: Named, tally: Tally, others: dict[str, str] | None = None) -> str | None:
    """Return what is wrong with one file, in words; None where it is the file that the manifest names.

    Args:
        folder: the bundle.
        file: what the manifest says of it.
        tally: counts what was read.
        others: paths by digest, to tell a swapped part from a damaged one.
    """
    try:
        link = next((part for part in _ancestors(folder, file.path) if part.is_symlink()), None)
        if link is not None:
            return "is a link" if link == folder / file.path else f"lies behind the link {link.relative_to(folder)}"
        about = (folder / file.path).lstat()
        if not stat.S_ISREG(about.st_mode):
            return "is no regular file"
        if about.st_size != file.size:
            return f"{'cut short' if about.st_size < file.size else 'too long'}: {about.st_size} of {file.size} bytes"
        found = file_sha256(folder / file.path, tally)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found == file.sha256:
        return None
    if others is not None and found in others:
        return f"holds the bytes of {others[found]}: the two were swapped"
    return f"other bytes than the manifest names (SHA-256 {found[:16]}…, not {file.sha256[:16]}…)"


def _ancestors(folder: Path, name: str) -> Iterator[Path]:
    """Yield a file and every folder above it that is below the bundle."""
    path = folder
    for part in name.split("/"):
        path = path / part
        yield path


def file_sha256(path: Path, tally: Tally) -> str:
    """Return the SHA-256 of a file, in hexadecimal, and count its bytes."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
            tally.add(len(block))
    return hasher.hexdigest()


def _strangers(folder: Path, named: set[str]) -> list[str]:
    """Return what else lies in the bundle's folders, links to folders too; but not what an interrupted join had begun to write."""
    found = []
    for top in FOLDERS:
        for where, folders, files in os.walk(folder / top):
            links = [name for name in folders if Path(where, name).is_symlink()]
            found += [Path(where, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(set(found) - named - {_partial(Path(name)).as_posix() for name in named})


def _partial(path: Path) -> Path:
    """Return where a file lies while it is written; no file of a bundle has a name that begins with a dot."""
    return path.with_name(f".{path.name}.partial")


# --- joining ----------------------------------------------------------------------------------------------------------


def join(folder: Path, target: Path, manifest: Manifest, say: Callable[[str], None] = quiet) -> None:
    """Lay out the files that a bundle's parts hold. What is there whole is kept; each other file appears whole or not at all.

    Args:
        folder: the bundle with its parts.
        target: where the files go: the same folder, or another, which then is a bundle of its own.
        manifest: the bundle's.
        say: told how far it is.

    Raises:
        BundleError: a part is wrong, or the target cannot be written or has no room.
    """
    verify_parts(folder, manifest, say)
    missing = [file for file in manifest.packed() if not _is_whole(target, file)]
    _require_room(target, sum(file.size for file in missing))
    tally = Tally("joining", sum(file.size for file in missing), say)
    stream = _Stream(folder, manifest.parts)
    wanted = {file.path for file in missing}
    try:
        for file in manifest.packed():
            if file.path in wanted:
                _write(target, file, stream, tally)
            else:
                stream.skip(file.size)
                _partial(target / file.path).unlink(missing_ok=True)
        if target.resolve() != folder.resolve():
            for name in (*(file.path for file in manifest.files if is_loose(file.path)), MANIFEST):
                _copy(folder / name, target, name)
    except OSError as error:
        raise BundleError(f"cannot be written ({error.strerror})", file=error.filename or target,
                          remedy="make the folder writable, free some space, or name another folder with --to") from None
    finally:
        stream.close()


def _is_whole(target: Path, file: Named) -> bool:
    return fault(target, file, Tally("", file.size, quiet)) is None


def _require_room(target: Path, size: int) -> None:
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size + SPARE_BYTES > free:
        raise BundleError(f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free", file=target,
                          remedy="free some space, or name a folder on another disk with --to")


def _write(target: Path, file: Named, stream: _Stream, tally: Tally) -> None:
    path = place(target, file.path)
    partial = _partial(path)
    hasher = hashlib.sha256()
    # What lies there could be a link to elsewhere.
    partial.unlink(missing_ok=True)
    try:
        with partial.open("wb") as out:
            for block in stream.read(file.size):
                out.write(block)
                hasher.update(block)
                tally.add(len(block))
            out.flush()
            os.fsync(out.fileno())
        if hasher.hexdigest() != file.sha256:
            raise BundleError("the parts give other bytes than the manifest names", file=file.path)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _copy(source: Path, target: Path, name: str) -> None:
    path = place(target, name)
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    partial.write_bytes(source.read_bytes())
    partial.replace(path)


def place(target: Path, name: str) -> Path:
    """Return where a file of a bundle goes, and make the folders above it.

    Raises:
        BundleError: a folder above it is a link, so the file would lie outside of the bundle.
    """
    *above, path = _ancestors(target, name)
    link = next((one for one in above if one.is_symlink()), None)
    if link is not None:
        raise BundleError("is a link", file=link, remedy="take it away, or name an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Stream:
    """The bytes of all parts, one behind the other."""

    def __init__(self, folder: Path, parts: tuple[Named, ...]) -> None:
        """Open nothing yet."""
        self._paths = [folder / part.path for part in parts]
        self._sizes = [part.size for part in parts]
        self._number, self._offset = 0, 0
        self._file: BinaryIO | None = None

    def read(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes; fewer where the parts end."""
        while size > 0 and self._number < len(self._paths):
            if self._file is None:
                self._file = self._paths[self._number].open("rb")
                self._file.seek(self._offset)
            block = self._file.read(min(size, BLOCK_BYTES, self._sizes[self._number] - self._offset))
            self._forward(len(block) or self._sizes[self._number] - self._offset)
            size -= len(block)
            if block:
                yield block

    def skip(self, size: int) -> None:
        """Leave out the next bytes."""
        while size > 0 and self._number < len(self._paths):
            step = min(size, self._sizes[self._number] - self._offset)
            self.close()
            self._forward(step)
            size -= step

    def _forward(self, size: int) -> None:
        self._offset += size
        while self._number < len(self._sizes) and self._offset >= self._sizes[self._number]:
            self._offset -= self._sizes[self._number]
            self._number += 1
            self.close()

    def close(self) -> None:
        """Close the part that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
