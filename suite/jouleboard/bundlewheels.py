"""Wheels for a machine without a network: everything that the extra `run` and the plan's recipes need, for a named Python and platform, by pip.

The wheel of Jouleboard itself is built from the checkout, or packed again from the installed one. Wheels that the other
machine brings itself (`--exclude-wheels torch`) are replaced by empty ones while pip resolves, and then left out.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from jouleboard import paths, wheelfile
from jouleboard.errors import PlanError, SourceError
from jouleboard.portable.manifest import Target
from jouleboard.sources import Say, quiet

PACKAGE = "jouleboard"
PIP_TIMEOUT_S = 3600
MOST_BUILT = 20
"""How many packages without a wheel are built here before it is given up."""
_LEGACY_GLIBC = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
"""Minor version of glibc 2 behind the old names (PEP 513, 571, 599); PEP 600 has it in the name."""
_OLDEST_GLIBC = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which wheels are wanted."""

    python: str | None = None
    """`3.12`; None: as this interpreter."""
    platform: str | None = None
    """A tag of PEP 425 (`manylinux_2_28_x86_64`); None: as this machine."""
    excluded: tuple[str, ...] = ()
    """Packages that the other machine brings itself."""
    extras: tuple[str, ...] = ("run",)
    """Extras of Jouleboard that the plan's recipes need."""

    def checked(self) -> Wanted:
        """Return this with canonical names.

        Raises:
            PlanError: a Python, platform or package that there is not.
        """
        if self.python is not None and not re.fullmatch(r"3\.(1[1-9]|[2-9][0-9])", self.python):
            raise PlanError(f"{self.python!r} is no Python that Jouleboard runs on", field="--python", remedy="say it as 3.12")
        if self.platform is not None:
            machine_of(self.platform)
        names = tuple(sorted({canonical(name) for name in self.excluded}))
        if PACKAGE in names or "pip" in names:
            raise PlanError("jouleboard and pip cannot be left out: the bundle is started with them", field="--exclude-wheels",
                            remedy="use --no-wheels where the other machine has an environment of its own")
        return replace(self, excluded=names)

    @property
    def for_here(self) -> bool:
        """Whether the wheels are for this very interpreter and machine."""
        return self.platform is None and self.python in {None, _here()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    """Wheels that pip found."""

    files: tuple[Path, ...]
    packages: dict[str, str]
    """Version of each package."""
    target: Target


def _here() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def canonical(name: str) -> str:
    """Return a package's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def machine_of(tag: str) -> tuple[str, str]:
    """Return system and machine of a platform tag, as `platform.system` and `platform.machine` say them.

    Raises:
        PlanError: it is no tag of a system that Jouleboard knows.
    """
    match = re.fullmatch(r"(manylinux(?:_2_[0-9]+|2014|2010|1)|linux|macosx_[0-9]+_[0-9]+)_([a-z0-9_]+)", tag)
    if match is None:
        raise PlanError(f"{tag!r} is no platform tag", field="--platform",
                        remedy="for example manylinux_2_28_x86_64, manylinux_2_28_aarch64, macosx_14_0_arm64")
    return "Darwin" if match[1].startswith("macosx") else "Linux", match[2]


def compatible(tag: str) -> list[str]:
    """Return the tags of wheels that a platform can use, its own first: pip widens old names only."""
    system, machine = machine_of(tag)
    name = tag.removesuffix(f"_{machine}")
    if system != "Linux" or name == "linux":
        return [tag]
    newest = _LEGACY_GLIBC.get(name) or int(name.rpartition("_")[2])
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    legacy = [f"{old}_{machine}" for old, minor in reversed(_LEGACY_GLIBC.items()) if minor <= newest]
    return [*tags, *legacy, f"linux_{machine}"]


def _this_platform() -> str:
    library, version = platform.libc_ver()
    if platform.system() == "Linux" and library == "glibc":
        return f"manylinux_{version.replace('.', '_')}_{platform.machine()}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


# --- gathering --------------------------------------------------------------------------------------------------------


def own_wheel(folder: Path) -> Path:
    """Write the wheel of Jouleboard itself into a folder: built from the checkout, or packed from what is installed."""
    root = paths.checkout()
    if root is None:
        return wheelfile.repack(metadata.distribution(PACKAGE), folder)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        text = _pip(["wheel", "--no-deps", "--wheel-dir", new, str(root)])
        if text is not None:
            raise _refusal("the wheel of Jouleboard itself could not be built", text)
        (wheel,) = Path(new).glob("*.whl")
        return wheel.replace(folder / wheel.name)


def constraints() -> str:
    """Return the versions to take: the checkout's `constraints.txt`, else those of the installed environment."""
    root = paths.checkout()
    if root is not None and (root / "constraints.txt").is_file():
        return (root / "constraints.txt").read_text(encoding="utf-8")
    # Without the local part: `2.13.0+cpu` is this machine's build of 2.13.0.
    pins = {f"{canonical(one.metadata['Name'])}=={one.version.partition('+')[0]}" for one in metadata.distributions()
            if canonical(one.metadata["Name"]) != PACKAGE}
    return "".join(f"{pin}\n" for pin in sorted(pins))


def gather(wanted: Wanted, own: Path, pins: str, folder: Path, *, say: Say = quiet) -> Wheels:
    """Let pip download everything that the wanted extras of Jouleboard need into a folder; what is there already is used.

    Args:
        wanted: for which Python and platform, and what to leave out; already checked.
        own: the wheel of Jouleboard itself.
        pins: a constraints file's text.
        folder: for these wheels alone.
        say: told what had to be built.

    Raises:
        SourceError: pip found no wheel of something, or could not reach its index.
        PlanError: nobody knows the version of a package that is to be left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        (Path(scratch) / "constraints.txt").write_text(pins, encoding="utf-8")
        stubs = [wheelfile.stub(name, _version_of(name, pins), Path(scratch)) for name in wanted.excluded]
        words = ["download", "--dest", str(folder), "--only-binary=:all:", "--constraint", f"{scratch}/constraints.txt",
                 "--find-links", scratch, *_flags(wanted), f"{own}[{','.join(wanted.extras)}]", *map(str, stubs)]
        about = f"Python {wanted.python or _here()} on {wanted.platform or 'this machine'}"
        _download(words, Path(scratch), f"the wheels for {about} could not be had", say)
        for stub in stubs:
            (folder / stub.name).unlink(missing_ok=True)
    return found(wanted, folder)


def found(wanted: Wanted, folder: Path) -> Wheels:
    """Say what wheels a folder holds."""
    files = tuple(sorted(folder.glob("*.whl")))
    packages = dict(sorted(_name_and_version(file) for file in files))
    return Wheels(files=files, packages=packages, target=_target(wanted, files))


def wanted_here(wanted: Wanted) -> list[Any]:
    """Return all that decides which wheels are wanted, as plain values."""
    return [wanted.python or _here(), wanted.platform or _this_platform(), wanted.for_here, list(wanted.excluded), list(wanted.extras)]


def _download(words: Sequence[str], scratch: Path, what: str, say: Say) -> None:
    """Let pip download; a package that is published as source only is built here, if that gives a wheel for any machine."""
    for _ in range(MOST_BUILT):
        text = _pip(words)
        if text is None:
            return
        built = [name for name in _missing(text) if _build(name, scratch, words)]
        if not built:
            raise _refusal(what, text)
        say(f"  {', '.join(built)}: there is no wheel of it, so one is built here from its source")
    raise _refusal(what, f"more than {MOST_BUILT} packages have no wheel")


def _missing(text: str) -> list[str]:
    """Return the packages that pip found no wheel of, by what it printed: alone, or as the reason of a conflict."""
    single = re.findall(r"No matching distribution found for ([A-Za-z0-9._-]+)", text)
    listed = re.search(r"no matching distributions available for your environment:\n((?:    \S+\n)+)", text)
    return sorted({canonical(name) for name in (*single, *(listed[1].split() if listed else ()))})


def _build(name: str, scratch: Path, words: Sequence[str]) -> bool:
    """Build a wheel from source into a folder; whether it is there now, new and for any machine."""
    before = set(scratch.glob("*.whl"))
    pins = words[words.index("--constraint") + 1]
    if _pip(["wheel", "--no-deps", "--wheel-dir", str(scratch), "--constraint", pins, name]) is not None:
        return False
    new = set(scratch.glob("*.whl")) - before
    for file in [file for file in new if not file.name.endswith("-none-any.whl")]:
        # Compiled for this machine and Python: of no use, or of a use that nobody can tell, on the other.
        file.unlink()
        new.remove(file)
    return bool(new)


def _flags(wanted: Wanted) -> list[str]:
    if wanted.for_here:
        return []
    python = wanted.python or _here()
    tags = compatible(wanted.platform or _this_platform())
    return ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}",
            *(word for tag in tags for word in ("--platform", tag))]


def _target(wanted: Wanted, files: Sequence[Path]) -> Target:
    here = platform.system(), platform.machine()
    system, machine = here if wanted.platform is None else machine_of(wanted.platform)
    minors = [minor for file in files if (minor := least_glibc(file.name)) is not None]
    return Target(python=wanted.python or _here(), system=system, machine=machine,
                  glibc=f"2.{max(minors)}" if minors else None, left_out=wanted.excluded)


def least_glibc(wheel: str) -> int | None:
    """Return the minor version of glibc 2 that a wheel needs, by its name; None where it says nothing of glibc."""
    tags = wheel.removesuffix(".whl").rpartition("-")[2].split(".")
    minors = [int(match[1]) if (match := re.match(r"manylinux_2_([0-9]+)_", tag)) else _LEGACY_GLIBC[tag.partition("_")[0]]
              for tag in tags if re.match(r"manylinux(_2_[0-9]+|2014|2010|1)_", tag)]
    return min(minors) if minors else None


def _name_and_version(file: Path) -> tuple[str, str]:
    name, version, *_ = file.name.split("-")
    return canonical(name), version


def _version_of(name: str, pins: str) -> str:
    """Return the version that a left-out package is taken to have while pip resolves."""
    for line in pins.splitlines():
        package, _, version = line.partition("==")
        if canonical(package.strip()) == name and version:
            return version.strip()
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        raise PlanError(f"{name} is not among the packages that a run needs", field="--exclude-wheels",
                        remedy="name packages as `pip list` does: torch bitsandbytes") from None


def _pip(words: Sequence[str]) -> str | None:
    """Call pip; None where it did what it was asked, else what it printed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", words[0], "--progress-bar", "off", *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {PIP_TIMEOUT_S} s; what is downloaded is kept for the next call"
    return None if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def _refusal(what: str, text: str) -> SourceError:
    missing = _missing(text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    why = f"there is no wheel of {', '.join(missing)}" if missing else "; ".join(lines[-2:]) or "pip said nothing"
    leave = " ".join(missing) if missing else "torch"
    return SourceError(f"{what}: {why}", field="wheels",
                       remedy=f"leave out what the other machine has (--exclude-wheels {leave}), name another --python or "
                       "--platform, or set pip's PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to where such wheels are; "
                       "--no-wheels makes a bundle without any")
