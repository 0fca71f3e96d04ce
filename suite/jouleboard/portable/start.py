"""What `start.py` of a bundle does: check, join, make an environment from the wheels, and run.

Nothing is fetched from anywhere: wheels come from the bundle, weights and items too.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import files
from .manifest import FOLDERS, BundleError, Manifest, Target, read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS, ENVIRONMENT = "results", ".environment"
MARK = "jouleboard-bundle.txt"
"""Written last into an environment, with the digest of the manifest that it was made from."""
ABOUT = """\
Check this bundle and run its plan. Without an action everything is done in turn: join the parts if there are any, check every
file, make a Python environment from the wheels of the bundle, and run. Nothing is fetched from a network.

Words that are not listed here go on to `jouleboard run`: --limit N, --dry-run, --stop-after MINUTES, ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say and return the exit code.

    Args:
        argv: the words behind the script's name; None: those of this process.
    """
    args, others = _parser().parse_known_args(argv)
    folder = Path(args.bundle).absolute()
    try:
        manifest = read_manifest(folder, sha256=args.manifest_sha256)
        if args.action != "run" and others:
            raise BundleError(f"unknown words: {' '.join(others)}", remedy="see --help")
        target = _joined(folder, manifest, args)
        if args.action == "join":
            print(f"joined: {target}")
            return 0
        _verify(folder, target, manifest, args)
        print(f"{len(manifest.files)} files checked, all as the manifest names them (SHA-256 {manifest.sha256})", flush=True)
        if args.action == "verify":
            return 0
        _run(target, manifest, args, others)
    except BundleError as error:
        print(f"start.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstart.py: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start.py", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["run", "verify", "join"], default="run",
                        help="do everything (default), only check every file, or only join the parts")
    parser.add_argument("--bundle", metavar="DIR", default=os.path.dirname(os.path.abspath(sys.argv[0])),  # noqa: PTH100, PTH120 - no links resolved
                        help="the bundle (default: the folder of this script)")
    parser.add_argument("--to", metavar="DIR", help="join the parts into this folder (default: into the bundle's)")
    parser.add_argument("--out", metavar="DIR", help="where results go (default: results/ in the bundle)")
    parser.add_argument("--environment", metavar="DIR",
                        help="where the Python environment is made (default: .environment/ beside the results)")
    parser.add_argument("--this-python", action="store_true",
                        help="make no environment: run with the Python that runs this script, which must have Jouleboard")
    parser.add_argument("--manifest-sha256", metavar="HEX", help="refuse a bundle whose manifest has another digest")
    return parser


def _joined(folder: Path, manifest: Manifest, args: argparse.Namespace) -> Path:
    """Return the folder that holds the files, after joining the parts if need be."""
    target = Path(args.to).absolute() if args.to else folder
    if not manifest.parts:
        if args.action == "join":
            raise BundleError("this bundle is not in parts", file=folder, remedy="run it as it is: python3 start.py")
        return folder
    if args.action == "verify" and not any((target / name).exists() for name in FOLDERS):
        files.verify_parts(folder, manifest, print)
        print(f"{len(manifest.parts)} parts checked, all as the manifest names them")
        raise SystemExit(0)
    if args.action == "join" or not any((target / name).exists() for name in FOLDERS):
        files.join(folder, target, manifest, print)
    return target


def _verify(folder: Path, target: Path, manifest: Manifest, args: argparse.Namespace) -> None:
    """Check every file; before a run, go on with a join that was interrupted."""
    try:
        files.verify(target, manifest, print)
    except BundleError as error:
        if not files.joinable(folder, manifest, target):
            raise
        if args.action != "run":
            to = f" --to {args.to}" if args.to else ""
            raise BundleError(error.problem, file=error.file,
                              remedy=f"join the parts once more: python3 start.py join{to}") from None
        print("some joined files are missing or wrong: joining the parts once more", flush=True)
        files.join(folder, target, manifest, print)
        files.verify(target, manifest, print)


def misfit(target: Target) -> str | None:
    """Return why the bundle's wheels are not for this Python and machine, in words; None where they are."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if platform.python_implementation() != "CPython" or here != target.python:
        return f"its wheels are for Python {target.python}, this is {platform.python_implementation()} {here} ({sys.executable})"
    if (platform.system(), platform.machine()) != (target.system, target.machine):
        return (f"its wheels are for {target.system} on {target.machine}, this is {platform.system()} on "
                f"{platform.machine()}")
    library, version = platform.libc_ver()
    if target.glibc is not None and target.system == "Linux":
        if library != "glibc":
            return f"its wheels need glibc {target.glibc}, this system has another C library"
        if _numbers(version) < _numbers(target.glibc):
            return f"its wheels need glibc {target.glibc} or newer, this system has {version}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _run(folder: Path, manifest: Manifest, args: argparse.Namespace, others: list[str]) -> NoReturn:
    out = Path(args.out).absolute() if args.out else folder / RESULTS
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT")}
    environment.update({"PYTHONNOUSERSITE": "1", "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"})
    python = sys.executable
    if args.this_python or manifest.target is None:
        environment = dict(os.environ)
    else:
        where = Path(args.environment).absolute() if args.environment else out / ENVIRONMENT
        python = str(make_environment(folder, manifest, manifest.target, where))
    words = [python, "-m", "jouleboard", "run", str(folder), "--out", str(out), *others]
    if args.manifest_sha256:
        words += ["--manifest-sha256", args.manifest_sha256]
    sys.stdout.flush()
    os.execve(python, words, environment)  # noqa: S606 - no shell


# --- the environment --------------------------------------------------------------------------------------------------


def make_environment(folder: Path, manifest: Manifest, target: Target, where: Path) -> Path:
    """Make a virtual environment from the bundle's wheels, or use the one that was made from them before.

    Args:
        folder: the bundle, already checked.
        manifest: the bundle's.
        target: what its wheels are for.
        where: the environment's folder.

    Returns:
        The environment's Python.

    Raises:
        BundleError: the wheels are not for this machine, or the environment cannot be made.
    """
    wrong = misfit(target)
    if wrong is not None:
        raise BundleError(wrong, file=folder, remedy=f"call start.py with Python {target.python} on the machine that the bundle "
                          "was made for, or make another bundle (`jouleboard bundle --python ... --platform ...`)")
    python, mark = where / "bin" / "python", where / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() == manifest.sha256 and python.exists():
        print(f"environment: {where}, made before", flush=True)
        return python
    if where.exists() and not (where / "pyvenv.cfg").is_file() and any(where.iterdir()):
        raise BundleError("is there already and is no environment of Python's", file=where, remedy="name another folder with "
                          "--environment")
    print(f"environment: {where}, being made from the wheels of the bundle", flush=True)
    try:
        shutil.rmtree(where, ignore_errors=True)
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"cannot be written ({error.strerror})", file=where,
                          remedy="name folders that you may write to with --out and --environment") from None
    # Packages that were left out of the bundle are the machine's own.
    system = ["--system-site-packages"] if target.left_out else []
    _call([sys.executable, "-m", "venv", "--without-pip", *system, str(where)], where, target)
    wheels = [folder / file.path for file in manifest.files if file.path.startswith("wheels/")]
    pip = next((wheel for wheel in wheels if wheel.name.startswith("pip-")), None)
    if pip is None:
        raise BundleError("the bundle has no wheel of pip", file=folder, remedy="make the bundle again without leaving out pip, "
                          "or use an environment of your own with --this-python")
    # Every wheel is named, so that exactly these versions are installed; pip runs from its own wheel.
    named = [f"{wheel}[run]" if wheel.name.startswith("jouleboard-") else str(wheel) for wheel in wheels]
    _call([str(python), f"{pip}/pip", "--isolated", "--disable-pip-version-check", "--no-input", "install", "--quiet",
           "--no-index", "--no-cache-dir", *named], where, target)
    mark.write_text(manifest.sha256 + "\n", encoding="utf-8")
    return python


def _call(words: list[str], where: Path, target: Target) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
    remedy = f"these packages were left out of the bundle and must be here: {', '.join(target.left_out)}; or " if (
        target.left_out) else ""
    raise BundleError(f"the environment could not be made: {'; '.join(lines[-3:]) or f'exit code {done.returncode}'}", file=where,
                      remedy=f"{remedy}use an environment of your own with --this-python")
