"""Wheels that are made in a moment, and a folder of them in the place of a package registry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jouleboard import wheelfile


def wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = (), tag: str = "py3-none-any") -> Path:
    """Write an installable wheel."""
    info = f"{name}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    extras = "".join(f"Provides-Extra: {extra}\n" for extra in ("run", "train"))
    members = {f"{name}/__init__.py": b"", f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
               f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}{required}".encode()}
    return wheelfile.write(folder / f"{name}-{version}-{tag}.whl", info, members)


def own_wheel(folder: Path) -> Path:
    """Write a wheel of Jouleboard's name, whose extra `run` needs two packages."""
    folder.mkdir()
    return wheel(folder, "jouleboard", "0.1", ('torch>=2; extra == "run"', 'pip; extra == "run"'))


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder, and let pip look for packages there and nowhere else."""
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return folder
