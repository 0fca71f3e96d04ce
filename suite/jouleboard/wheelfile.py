"""Write wheels: an empty one that only says to be a package, and the wheel of an installed package again."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from jouleboard import sources
from jouleboard.errors import SourceError

_ZIP_TIME = (2020, 2, 2, 0, 0, 0)
"""As hatchling has it: the same files make the same wheel."""


def stub(name: str, version: str, folder: Path) -> Path:
    """Write an empty wheel that says to be a package, so that pip asks no index for it nor for what it needs."""
    base = f"{name.replace('-', '_')}-{version}"
    info = f"{base}.dist-info"
    return write(folder / f"{base}-py3-none-any.whl", info, {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: jouleboard\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    })


def repack(installed: metadata.Distribution, folder: Path) -> Path:
    """Write the wheel of an installed package again, from the files that its RECORD names.

    Raises:
        SourceError: what is installed is not whole, or is an editable install.
    """
    info = f"{installed.metadata['Name'].replace('-', '_')}-{installed.version}.dist-info"
    members = dict(_members(installed, info))
    # An editable install holds a pointer and no package.
    if f"{info}/WHEEL" not in members or not any(name.endswith("/__init__.py") for name in members):
        raise SourceError(f"the installed {installed.metadata['Name']} does not hold its own files", field="wheels",
                          remedy="install it from a wheel, or make the bundle from a checkout")
    return write(folder / f"{info.removesuffix('.dist-info')}-py3-none-any.whl", info, members)


def _members(installed: metadata.Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    # What the installer adds of its own is no part of the wheel.
    added = {f"{info}/{name}" for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")}
    for file in installed.files or ():
        name = file.as_posix()
        if name.startswith("..") or name in added or name.endswith(".pyc"):
            continue
        path = Path(str(installed.locate_file(file)))
        if file.hash is not None and file.hash.mode == "sha256":
            digest = base64.urlsafe_b64encode(bytes.fromhex(sources.file_sha256(path))).rstrip(b"=").decode()
            if digest != file.hash.value:
                raise SourceError("was changed after it was installed", file=path, field="wheels",
                                  remedy="install Jouleboard again, or make the bundle from a checkout")
        yield name, path.read_bytes()


def write(path: Path, info: str, members: Mapping[str, bytes]) -> Path:
    """Write a wheel with its RECORD; the same members give the same bytes.

    Args:
        path: the wheel's file.
        info: name of its `.dist-info` folder.
        members: contents by name.
    """
    rows = [f"{name},sha256={_record_digest(data)},{len(data)}\n" for name, data in sorted(members.items())]
    record = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*sorted(members.items()), (f"{info}/RECORD", record)]:
            about: Any = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(about, data)
    return path


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
