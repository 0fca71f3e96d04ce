"""Wheels for another machine: pip finds them by Python and platform, builds what is source only, and leaves out what it is told."""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from jouleboard import bundlewheels, wheelfile
from jouleboard.bundlewheels import Wanted
from jouleboard.errors import PlanError, SourceError
from jouleboard.portable.manifest import Target
from tests.wheels import wheel


def test_pip_finds_the_wheels_of_another_python_and_platform(registry: Path, own: Path, tmp_path: Path) -> None:
    wheel(registry, "torch", "2.1", ("huge>=1",), "cp399-cp399-manylinux_2_17_aarch64.manylinux2014_aarch64")
    wheel(registry, "torch", "2.2", (), "cp399-cp399-manylinux_2_35_aarch64")
    wheel(registry, "huge", "1.0", (), "cp38-abi3-manylinux_2_24_aarch64")
    wheel(registry, "pip", "30.0")
    found = bundlewheels.gather(Wanted(python="3.99", platform="manylinux_2_28_aarch64"), own, "", tmp_path / "wheels")
    assert found.packages == {"huge": "1.0", "jouleboard": "0.1", "pip": "30.0", "torch": "2.1"}
    assert found.target == Target(python="3.99", system="Linux", machine="aarch64", glibc="2.24", left_out=())


def test_what_the_plans_recipes_need_is_there_too(registry: Path, tmp_path: Path) -> None:
    own = wheel(tmp_path, "jouleboard", "0.1", ('torch>=2; extra == "run"', 'pip; extra == "run"', 'peft>=0.17; extra == "train"'))
    for name in ("torch", "peft", "pip"):
        wheel(registry, name, "30.0")
    found = bundlewheels.gather(Wanted(extras=("run", "train")), own, "", tmp_path / "wheels")
    assert sorted(found.packages) == ["jouleboard", "peft", "pip", "torch"]


def test_what_is_left_out_is_not_even_looked_for_nor_what_only_it_needs(registry: Path, own: Path, tmp_path: Path) -> None:
    wheel(registry, "pip", "30.0")
    wheel(registry, "huge", "1.0")
    wanted = Wanted(python="3.99", platform="manylinux_2_28_x86_64", excluded=("torch",))
    found = bundlewheels.gather(wanted, own, "torch==2.13.0\n", tmp_path / "wheels")
    assert found.packages == {"jouleboard": "0.1", "pip": "30.0"}
    assert found.target.left_out == ("torch",)
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [file.name for file in found.files]


def test_the_versions_of_the_constraints_are_taken(registry: Path, own: Path, tmp_path: Path) -> None:
    for version in ("2.5", "2.6"):
        wheel(registry, "torch", version)
    wheel(registry, "pip", "30.0")
    assert bundlewheels.gather(Wanted(), own, "torch==2.5\n", tmp_path / "wheels").packages["torch"] == "2.5"


def test_a_wheel_that_is_not_to_be_had_is_named_with_what_to_do(registry: Path, own: Path, tmp_path: Path) -> None:
    wheel(registry, "pip", "30.0")
    with pytest.raises(SourceError, match="there is no wheel of torch") as caught:
        bundlewheels.gather(Wanted(python="3.99", platform="manylinux_2_28_x86_64"), own, "", tmp_path / "wheels")
    assert "3.99" in caught.value.problem
    assert "--exclude-wheels torch" in str(caught.value.remedy)


def source_only(registry: Path, tag: str) -> None:
    """Publish `torch` as a source distribution, with a build backend of its own."""
    backend = f"""
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/torch-2.5-{tag}.whl", "w") as archive:
        info = "torch-2.5.dist-info/"
        archive.writestr("torch/__init__.py", "")
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: torch\\nVersion: 2.5\\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        archive.writestr(info + "RECORD", "torch/__init__.py,,\\n" + info + "METADATA,,\\n" + info + "WHEEL,,\\n" + info + "RECORD,,\\n")
    return "torch-2.5-{tag}.whl"
"""
    texts = {"pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n', "backend.py": backend,
             "PKG-INFO": "Metadata-Version: 2.1\nName: torch\nVersion: 2.5\n"}
    with tarfile.open(registry / "torch-2.5.tar.gz", "w:gz") as tar:
        for name, text in texts.items():
            about = tarfile.TarInfo(f"torch-2.5/{name}")
            about.size = len(text)
            tar.addfile(about, io.BytesIO(text.encode()))


def test_a_package_that_is_published_as_source_only_is_built_here(registry: Path, own: Path, tmp_path: Path) -> None:
    """lm-eval needs two such packages."""
    wheel(registry, "pip", "30.0")
    source_only(registry, "py3-none-any")
    said: list[str] = []
    found = bundlewheels.gather(Wanted(python="3.99", platform="manylinux_2_28_aarch64"), own, "torch==2.5\n", tmp_path / "wheels",
                                say=said.append)
    assert found.packages["torch"] == "2.5"
    assert said == ["  torch: there is no wheel of it, so one is built here from its source"]


def test_what_would_be_compiled_for_this_machine_is_not_built_for_another(registry: Path, own: Path, tmp_path: Path) -> None:
    wheel(registry, "pip", "30.0")
    source_only(registry, f"py3-none-linux_{platform.machine()}")
    for pins in ("", "torch==2.5\n"):
        with pytest.raises(SourceError, match="there is no wheel of torch"):
            bundlewheels.gather(Wanted(python="3.99", platform="manylinux_2_28_aarch64"), own, pins, tmp_path / "wheels")


@pytest.mark.parametrize("wanted", [
    Wanted(python="3.9"), Wanted(python="3"), Wanted(python="three"), Wanted(platform="windows"), Wanted(platform="manylinux_2_28"),
    Wanted(platform="../x"), Wanted(excluded=("jouleboard",)), Wanted(excluded=("PIP",)),
])
def test_a_python_or_platform_that_there_is_not_is_refused(wanted: Wanted) -> None:
    with pytest.raises(PlanError):
        wanted.checked()


def test_a_package_that_no_run_needs_cannot_be_left_out(own: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not among the packages"):
        bundlewheels.gather(Wanted(excluded=("no-such-thing",)), own, "", tmp_path / "wheels")


def test_a_newer_system_takes_the_wheels_of_older_ones() -> None:
    tags = bundlewheels.compatible("manylinux_2_17_x86_64")
    assert tags[0] == "manylinux_2_17_x86_64"
    assert {"manylinux_2_5_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"} < set(tags)
    assert "manylinux2014_x86_64" not in bundlewheels.compatible("manylinux_2_16_x86_64")
    assert bundlewheels.compatible("macosx_14_0_arm64") == ["macosx_14_0_arm64"]
    assert bundlewheels.compatible("manylinux2014_aarch64")[0] == "manylinux_2_17_aarch64"


@pytest.mark.parametrize(("name", "minor"), [
    ("a-1-py3-none-any.whl", None), ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", 28), ("a-1-cp311-cp311-manylinux1_i686.whl", 5),
    ("a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 17), ("a-1-1-cp311-cp311-macosx_11_0_arm64.whl", None),
    ("a-1-cp311-cp311-manylinux_2_31_x86_64.manylinux_2_17_x86_64.whl", 17),
])
def test_the_glibc_that_a_wheel_needs_stands_in_its_name(name: str, minor: int | None) -> None:
    assert bundlewheels.least_glibc(name) == minor


def test_an_installed_wheel_is_packed_as_it_was(tmp_path: Path) -> None:
    """Installed by pip, packed again, installed again: the same files."""
    (tmp_path / "in").mkdir()
    first = wheel(tmp_path / "in", "jouleboard", "0.1", ("numpy",))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(first)], check=True)
    (found,) = metadata.distributions(path=[str(tmp_path / "site")])
    (tmp_path / "out").mkdir()
    again = wheelfile.repack(found, tmp_path / "out")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(again) as two:
        assert {name: one.read(name) for name in one.namelist()} == {name: two.read(name) for name in two.namelist()}
    (tmp_path / "site" / "jouleboard" / "__init__.py").write_text("changed = True")
    with pytest.raises(SourceError, match="changed after it was installed"):
        wheelfile.repack(found, tmp_path / "out")


def test_a_wheels_record_holds_the_digests_of_its_members(tmp_path: Path) -> None:
    path = wheel(tmp_path, "some", "1.0")
    with zipfile.ZipFile(path) as archive:
        rows = [line.split(",") for line in archive.read("some-1.0.dist-info/RECORD").decode().splitlines()]
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert int(size) == len(data)
        assert {row[0] for row in rows} == set(archive.namelist())
