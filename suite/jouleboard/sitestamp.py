"""Whether anything that a site is made from has changed since it was built: then nothing is checked and rendered again.

    stamp = sitestamp.of([reports, factors], settings=["world"], out=out)
    sitestamp.is_current(out, stamp)      # True: what is there is what a build would make

A stamp is a digest over names, sizes and times of change of all files: those below `reports`, the data files, this package, and the site
itself. It lies in the cache and not in the site, because times differ between machines and two builds must not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jouleboard import paths, storage

_KINDS = ("factors", "hardware", "models", "plans", "recipes", "site", "tasks", "workloads")
SKIPPED = frozenset({".work", "__pycache__", "node_modules", "logs"})
"""Folders that no build reads."""


def of(reports: Path, *, settings: Sequence[str], extra: Sequence[Path] = ()) -> str:
    """Return the stamp of everything that goes into a site.

    Args:
        reports: the folder of reports.
        settings: what else decides: options of the command.
        extra: files beside these.
    """
    found = hashlib.sha256("\0".join(settings).encode())
    for root in (reports, *(paths.data_folder(kind) for kind in _KINDS), Path(__file__).resolve().parent, *extra):
        found.update(f"\0root {root.resolve()}".encode())
        for line in _files(root):
            found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _files(root: Path) -> Iterator[str]:
    """Give a line a file, in a fixed order; a link is what it says, and not what it leads to."""
    if root.is_file():
        yield _line(root, root.name)
        return
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in SKIPPED)
        for name in sorted(files):
            path = Path(folder) / name
            yield _line(path, os.path.relpath(path, root))


def _line(path: Path, name: str) -> str:
    known = path.lstat()
    return f"\0{name}\0{known.st_mode}\0{known.st_size}\0{known.st_mtime_ns}"


def is_current(out: Path, stamp: str) -> bool:
    """Whether the site there was built from what has this stamp, and is untouched since."""
    try:
        kept = _place(out).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return False
    return out.is_dir() and kept == [stamp, _site(out)]


def keep(out: Path, stamp: str) -> None:
    """Remember what a site was built from."""
    place = _place(out)
    with storage.writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{stamp} {_site(out)}\n", encoding="ascii")


def _site(out: Path) -> str:
    return hashlib.sha256("".join(_files(out)).encode("utf-8", "surrogateescape")).hexdigest()


def _place(out: Path) -> Path:
    return paths.cache_folder() / "sites" / hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:32]
