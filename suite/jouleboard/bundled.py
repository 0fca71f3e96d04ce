"""Run from a bundle: check all of it, and let it stand in for the declarations and the cache while its plan is run.

Nothing is fetched and nothing in the bundle is written to; results go to `results/` in it or where `--out` says.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jouleboard import __version__, paths, plan
from jouleboard.errors import DataFileError, PlanError
from jouleboard.portable import files, start
from jouleboard.portable.manifest import MANIFEST, BundleError, Manifest, Target, read_manifest

RESULTS = start.RESULTS
NEEDED = ("torch", "transformers", "lm-eval")
"""What every run computes with, whoever brings it."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PIP_NO_INDEX": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a bundle was made to run."""

    folder: Path
    plan: str
    hardware: str | None


def named(ident: str | None, *, sha256: str | None = None) -> Path | None:
    """Return the folder that PLAN names, or None where it names a plan.

    A declared plan is never hidden by a folder of its name.

    Args:
        ident: what PLAN says.
        sha256: digest that was demanded of a manifest.

    Raises:
        PlanError: it is a folder without a manifest, or a digest was demanded and it is no folder.
    """
    found = _named(ident)
    if found is None and sha256 is not None:
        raise PlanError("only a bundle has a manifest, and PLAN names none", field="--manifest-sha256",
                        remedy="name the folder that `jouleboard bundle` wrote: ./NAME where a plan has the same name")
    return found


def _named(ident: str | None) -> Path | None:
    if ident is None or paths.bundle_folder() is not None or Path(ident).suffix in {".yaml", ".yml"}:
        return None
    if ident in {file.stem for file in paths.data_folder("plans").glob("*.yaml")} or not Path(ident).is_dir():
        return None
    if not (Path(ident) / MANIFEST).is_file():
        raise PlanError(f"is a folder without a {MANIFEST}: no bundle, or one that was not finished", file=ident, field="PLAN",
                        remedy="name a plan, a YAML file, or the folder that `jouleboard bundle` wrote")
    return Path(ident).absolute()


@contextlib.contextmanager
def stand_in(folder: Path, *, sha256: str | None = None) -> Iterator[Held]:
    """Check a bundle, and let this process and its workers take everything from it until the end of the block.

    Args:
        folder: the bundle.
        sha256: digest that its manifest must have; None: any.

    Raises:
        DataFileError: a file is missing, damaged or not in the manifest; each is named.
        PlanError: it was made for another Python, platform or set of packages.
    """
    try:
        manifest = read_manifest(folder, sha256=sha256)
        _require_fit(manifest, folder)
        files.verify(folder, manifest, _say)
    except BundleError as error:
        raise DataFileError(error.problem, file=error.file or folder, remedy=error.remedy) from None
    _say(f"bundle    {folder}: {len(manifest.files)} files checked, manifest {manifest.sha256}")
    before = {name: os.environ.get(name) for name in (*OFFLINE, paths.BUNDLE_VARIABLE)}
    # Workers inherit it.
    os.environ.update({**OFFLINE, paths.BUNDLE_VARIABLE: str(folder)})
    try:
        yield Held(folder=folder, plan=manifest.plan, hardware=manifest.hardware)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _require_fit(manifest: Manifest, folder: Path) -> None:
    if manifest.target is not None:
        wrong = start.misfit(manifest.target)
        if wrong is not None:
            raise PlanError(f"this bundle is not for this machine: {wrong}", file=folder,
                            remedy="make another one for it: `jouleboard bundle --python ... --platform ...`, or --no-wheels")
    wrong = "; ".join(_wrong_packages(manifest.packages, manifest.target))
    if wrong:
        raise PlanError(f"this environment is not the bundle's: {wrong}", file=folder,
                        remedy="call `python3 start.py` in the bundle: it makes the environment from the bundle's wheels"
                        if manifest.target is not None else
                        f"install jouleboard[run] of version {manifest.packages.get('jouleboard')} here, or make the bundle with wheels")


def _wrong_packages(wanted: dict[str, str], target: Target | None) -> Iterator[str]:
    """Say of each package that decides what is computed how it differs; without wheels most may differ and are recorded."""
    exact = {"jouleboard"} if target is None else {"jouleboard", *plan.COMPUTING_PACKAGES}.intersection(wanted)
    for name in sorted({*exact, *NEEDED, *(() if target is None else target.left_out)}):
        found = __version__ if name == "jouleboard" else _version(name)
        if found is None:
            yield f"{name} is not installed"
        elif name in exact and _public(found) != _public(wanted.get(name, found)):
            yield f"{name} is {found}, the bundle's is {wanted[name]}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Leave out the local part: a build of the same version for another device."""
    return version.partition("+")[0]
