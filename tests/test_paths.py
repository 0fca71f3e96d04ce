"""Data come from the copy inside the package where there is one, and else from the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from jouleboard import paths

KINDS = {"corpora": "suite/corpora", "models": "suite/models", "recipes": "suite/recipes", "plans": "suite/plans", "tasks": "tasks",
         "hardware": "hardware", "site": "site"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The import package of a checkout that is empty otherwise."""
    folder = tmp_path / "root" / "suite" / "jouleboard"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_checkout_the_folders_lie_above_the_package(kind: str, package: Path) -> None:
    assert paths.data_folder(kind, package=package) == package.parents[1] / KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_packages_own_copy_wins(kind: str, package: Path) -> None:
    (package.parents[1] / KINDS[kind]).mkdir(parents=True)
    copy = package / "_data" / KINDS[kind]
    copy.mkdir(parents=True)
    assert paths.data_folder(kind, package=package) == copy


@pytest.mark.parametrize("kind", KINDS)
def test_every_folder_of_this_installation_is_there(kind: str) -> None:
    assert any(paths.data_folder(kind).iterdir())


def test_another_kind_is_a_bug_and_not_a_folder() -> None:
    with pytest.raises(KeyError):
        paths.data_folder("secrets")


def test_a_checkout_is_known_by_its_project_file(package: Path) -> None:
    root = package.parents[1]
    assert paths.checkout(package=package) is None
    (root / "pyproject.toml").touch()
    assert paths.checkout(package=package) == root


def test_an_installed_package_is_no_checkout(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "site-packages" / "jouleboard"
    package.mkdir(parents=True)
    (tmp_path / "lib" / "pyproject.toml").touch()
    assert paths.checkout(package=package) is None


def test_the_cache_is_where_the_variable_says_or_in_the_platforms_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "x"))
    assert paths.cache_folder() == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JOULEBOARD_CACHE", "~/y")
    assert paths.cache_folder() == tmp_path / "y"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOULEBOARD_CACHE", "z")
    assert paths.cache_folder() == tmp_path / "z"
    for empty in (None, ""):
        if empty is None:
            monkeypatch.delenv("JOULEBOARD_CACHE")
        else:
            monkeypatch.setenv("JOULEBOARD_CACHE", empty)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert paths.cache_folder().name == "jouleboard"
        assert not paths.cache_folder().exists(), "naming the cache does not make it"
