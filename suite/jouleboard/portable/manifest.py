"""A bundle's `manifest.json`, read strictly: it names each file of the bundle with size and digest.

Example::

    {"format": "jouleboard-bundle", "format_version": 1, "files": [{"path": "data/tasks/x.yaml", "size": 9, "sha256": "…"}], …}

Cut into parts, the files lie one behind the other, in the manifest's order, in `parts/part-0001`, `parts/part-0002`, …
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

FORMAT, FORMAT_VERSION = "jouleboard-bundle", 1
MANIFEST, README, START = "manifest.json", "README.txt", "start.py"
FOLDERS = ("data", "inputs", "wheels")
"""What a bundle's files lie in; nothing else may lie there."""
CODE = "portable"
"""Folder of the modules that `start.py` needs."""
PARTS = "parts"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 100_000
MAX_BYTES = 2**50
_KEYS = {"format", "format_version", "made_from", "plan", "hardware", "target", "packages", "files", "parts"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!@=-]{0,199}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_AGAIN = "copy this file from the place where the bundle was made once more; if that does not help, make the bundle again"


class BundleError(Exception):
    """Something about a bundle that a person can mend: what, which file, and what to do."""

    def __init__(self, problem: str, *, file: object = None, remedy: str = _AGAIN) -> None:
        """Keep the parts."""
        super().__init__(problem)
        self.problem, self.file, self.remedy = problem, file, remedy

    def __str__(self) -> str:
        """Give file, problem and remedy as lines for the terminal."""
        return f"{self.file}: {self.problem}\n  remedy: {self.remedy}" if self.file else f"{self.problem}\n  remedy: {self.remedy}"


class Named(NamedTuple):
    """A file of a bundle, or a part of one."""

    path: str
    size: int
    sha256: str


class Target(NamedTuple):
    """What the bundle's wheels are for."""

    python: str
    system: str
    machine: str
    glibc: str | None
    left_out: tuple[str, ...]


class Manifest(NamedTuple):
    """A bundle's manifest."""

    plan: str
    hardware: str | None
    target: Target | None
    packages: dict[str, str]
    files: tuple[Named, ...]
    parts: tuple[Named, ...]
    sha256: str

    def packed(self) -> tuple[Named, ...]:
        """Return the files that parts hold, in their order."""
        return tuple(file for file in self.files if not is_loose(file.path))


# --- the manifest -----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, *, sha256: str | None = None) -> Manifest:
    """Read a bundle's manifest strictly.

    Args:
        folder: the bundle.
        sha256: digest that the manifest must have; None: any.

    Raises:
        BundleError: it is missing, not whole, not ours, of another version, or names files outside of the bundle.
    """
    path = folder / MANIFEST
    data = _read_regular(path, MAX_MANIFEST_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise BundleError(f"its SHA-256 is {found}, demanded was {sha256}", file=path,
                          remedy="this is not the bundle that you were told of: ask whoever made it")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not valid JSON ({error or 'nested too deeply'})", file=path) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BundleError("is not the manifest of a Jouleboard bundle", file=path, remedy="name the folder that "
                          "`jouleboard bundle` wrote")
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"is of version {version!r}, this program reads version {FORMAT_VERSION}", file=path,
                          remedy="use the start.py of the bundle itself, or a Jouleboard of the version that made it")
    try:
        return _manifest(value, found)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"is not as it should be: {error}", file=path) from None


def _read_regular(path: Path, most: int) -> bytes:
    """Read a small file that is no link, device or pipe."""
    try:
        about = path.lstat()
    except OSError:
        raise BundleError("is missing, so this is no bundle, or one that was not finished", file=path,
                          remedy="name the folder that `jouleboard bundle` wrote; run that command again if it was interrupted"
                          ) from None
    if not stat.S_ISREG(about.st_mode):
        raise BundleError("is no regular file", file=path)
    if about.st_size > most:
        raise BundleError(f"has {about.st_size} bytes, more than the {most} allowed", file=path)
    return path.read_bytes()


def _manifest(value: dict[str, Any], sha256: str) -> Manifest:
    if set(value) != _KEYS:
        raise ValueError(f"the fields {', '.join(sorted(set(value) ^ _KEYS))} are missing or unknown")
    files, parts = _named(value["files"], "files"), _named(value["parts"], "parts")
    check_names([file.path for file in files])
    if [part.path for part in parts] != [part_name(number) for number in range(1, len(parts) + 1)]:
        raise ValueError("parts are not numbered one by one")
    packages = value["packages"]
    if not isinstance(packages, dict) or not all(isinstance(one, str) for one in packages.values()):
        raise ValueError("packages: a version is no text")
    manifest = Manifest(plan=_text(value, "plan"), hardware=None if value["hardware"] is None else _text(value, "hardware"),
                        target=_target(value["target"]), packages=packages, files=files, parts=parts, sha256=sha256)
    if parts and sum(part.size for part in parts) != sum(file.size for file in manifest.packed()):
        raise ValueError("the parts do not hold as many bytes as the files")
    return manifest


def _named(value: object, field: str) -> tuple[Named, ...]:
    if not isinstance(value, list) or len(value) > MAX_FILES:
        raise ValueError(f"{field} is no list of at most {MAX_FILES}")
    found = []
    for row in value:
        if not isinstance(row, dict) or set(row) != {"path", "size", "sha256"}:
            raise ValueError(f"{field}: a row has not the fields path, size and sha256")
        if type(row["size"]) is not int or not 0 <= row["size"] <= MAX_BYTES:
            raise ValueError(f"{field}: a size is no number of bytes")
        if not _SHA256.match(_text(row, "sha256")):
            raise ValueError(f"{field}: a digest is no SHA-256")
        found.append(Named(_text(row, "path"), row["size"], row["sha256"]))
    return tuple(found)


def _target(value: object) -> Target | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(Target._fields) or not isinstance(value["left_out"], list):
        raise ValueError(f"target has not the fields {', '.join(Target._fields)}")
    return Target(python=_text(value, "python"), system=_text(value, "system"), machine=_text(value, "machine"),
                  glibc=None if value["glibc"] is None else _text(value, "glibc"),
                  left_out=tuple(str(name) for name in value["left_out"]))


def _text(value: dict[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str) or len(text) > 1000 or not text.isprintable():  # noqa: PLR2004 - no name is longer
        raise ValueError(f"{key} is no text")
    return text


def check_names(names: list[str]) -> None:
    """Refuse names that lead out of the bundle, occur twice (also where a disk knows no upper case), or are odd.

    Raises:
        ValueError: naming the first that is wrong.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        if not all(_NAME.match(part) for part in parts) or len(parts) > 10:  # noqa: PLR2004 - none is deeper
            raise ValueError(f"{name[:200]!r} is no name of a file in a bundle")
        if not is_loose(name) and (parts[0] not in FOLDERS or len(parts) == 1):
            raise ValueError(f"{name[:200]!r} lies outside of {', '.join(FOLDERS)}")
        if name.lower() in seen:
            raise ValueError(f"{name[:200]!r} is named twice")
        seen.add(name.lower())
        folders.update("/".join(parts[:depth]).lower() for depth in range(1, len(parts)))
    if seen & folders:
        raise ValueError(f"{min(seen & folders)!r} is a file and a folder")


def is_loose(name: str) -> bool:
    """Whether a file is never cut into parts: it is what joins them."""
    return name in (README, START) or name.startswith(f"{CODE}/")


def part_name(number: int) -> str:
    """Return the path of a part, counted from 1."""
    return f"{PARTS}/part-{number:04d}"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
