"""Whose reproductions give the highest level of trust: `reports/maintainers.yaml`, which only maintainers change.

Example: `maintainers: [octocat, hubot]`.
"""

from __future__ import annotations

from pathlib import Path

from jouleboard import strictyaml
from jouleboard.declared import Noun
from jouleboard.records import Submitter

FILE = "maintainers.yaml"


class Maintainers(Noun, frozen=True, kw_only=True):
    """The accounts."""

    maintainers: tuple[Submitter, ...]


def read(reports: Path) -> frozenset[str]:
    """Return the accounts; none where the file is missing.

    Raises:
        DataFileError: it is not what it should be.
    """
    path = reports / FILE
    if not path.is_file():
        return frozenset()
    return frozenset(strictyaml.convert(strictyaml.read(path), Maintainers, path).maintainers)
