"""Genuine entries, made once, and a copy of one for each attack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import genuine


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Genuine entries in their places: of a GPU, and of a machine without a sensor."""
    root = tmp_path_factory.mktemp("originals")
    return {"gpu": genuine.publish_one(root / "gpu" / "reports", *genuine.entry()),
            "cpu": genuine.publish_one(root / "cpu" / "reports", *genuine.cpu_entry())}


@pytest.fixture
def copied(originals: dict[str, Path], tmp_path: Path):
    """Copy a genuine entry, with its place, for one attack."""

    def copy(kind: str = "gpu") -> Path:
        source = originals[kind]
        target = tmp_path / "reports" / source.relative_to(source.parents[3])
        shutil.copytree(source, target)
        return target

    return copy
