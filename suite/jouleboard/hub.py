"""Files of one repository on the model hub at its pinned commit, each checked against the digest in that commit's own listing.

They lie in the hub library's cache (`HF_HOME`), shared with other programs. What the commit holds is kept in our cache, so that
a second run needs no network::

    hub/datasets--org--name/0123...abcd.json    {"files": [{"path": "data/test.parquet", "size_bytes": 99, "sha256": "..."}]}
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from jouleboard import hubclient, hubfaults, paths, storage, store
from jouleboard.declared import Noun
from jouleboard.errors import SourceError
from jouleboard.hubfaults import Wanted

Say = Callable[[str], None]
TRIES = 2
"""So often a file is fetched whose bytes are not the listed ones."""
UNWRITABLE = storage.FULL | {errno.EROFS, errno.EACCES, errno.EPERM}


class Listed(Noun, frozen=True, kw_only=True):
    """A file of a commit. Of large files the hub knows the SHA-256, of others git's object id."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


class Listing(Noun, frozen=True, kw_only=True):
    """What a commit holds."""

    files: tuple[Listed, ...]
    whole: bool = True
    """Whether it is the commit's own listing; else it is what happens to lie in the hub's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One repository at one commit."""

    name: str
    revision: str
    kind: Literal["model", "dataset"]
    used_by: str
    """Who needs it, for the error messages."""

    @property
    def short(self) -> str:
        """Name and first digits of the commit, for the terminal."""
        return f"{self.name}@{self.revision[:8]}"


def listing(repository: Repository, say: Say) -> Listing:
    """Return what the commit holds: as kept from before, from the hub, or else what of it lies in the hub's cache.

    Raises:
        SourceError: the hub does not give it and nothing of it is on this machine.
        StorageError: it cannot be kept.
    """
    note = paths.cache_folder() / "hub" / f"{repository.kind}s--{repository.name.replace('/', '--')}" / f"{repository.revision}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(note.read_bytes(), type=Listing)
    try:
        with _explained(repository, None):
            found = _from_hub(repository, say)
    except SourceError as error:
        held = _held(repository)
        if not held.files:
            raise
        say(f"{repository.short}: {error.problem.partition(hubfaults.FROM)[2]}; going on with what lies in the hub's cache")
        return held
    store.write_atomic(note, msgspec.json.encode(found))
    return found


def _from_hub(repository: Repository, say: Say) -> Listing:
    from huggingface_hub import HfApi  # noqa: PLC0415 - a quarter of a second, and not needed offline
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415

    with hubclient.patient(repository.short, say):
        tree = HfApi().list_repo_tree(repository.name, recursive=True, revision=repository.revision, repo_type=repository.kind)
        # A name that leads out of the folder is nobody's file.
        files = [entry for entry in tree if isinstance(entry, RepoFile) and not {"..", "", "."} & set(entry.path.split("/"))]
    return Listing(files=tuple(
        Listed(path=file.path, size_bytes=file.size, sha256=file.lfs.sha256 if file.lfs else None,
               git_sha1=None if file.lfs else file.blob_id) for file in sorted(files, key=lambda file: file.path)))


def _held(repository: Repository) -> Listing:
    """List what of the commit lies in the hub's cache, put there by whatever program."""
    folder = snapshot(repository)
    found = [Listed(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
             for path in sorted(folder.rglob("*")) if path.is_file()]
    return Listing(files=tuple(found), whole=False)


def snapshot(repository: Repository) -> Path:
    """Return the folder of the commit in the hub's cache, whether it is there or not."""
    from huggingface_hub import constants  # noqa: PLC0415

    # The library resolves links in the name of its cache, too.
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / f"{repository.kind}s--{repository.name.replace('/', '--')}" / "snapshots" / repository.revision


def fetch(repository: Repository, files: Sequence[Listed], say: Say, *, thorough: bool = True, tell: bool = True) -> Path:
    """Return the folder of the commit with some of its files, fetching those that are not there.

    Args:
        repository: which.
        files: of its listing.
        say: told what is fetched, and of pauses.
        thorough: digest what was there before too; else only its size is looked at.
        tell: say how much is fetched; pauses are told of anyway.

    Raises:
        SourceError: a file cannot be had, or has other bytes than the commit's listing says.
        StorageError: the disk is full or cannot be written.
    """
    folder = snapshot(repository)
    missing = [file for file in files if not _there(repository, folder, file, say, thorough=thorough)]
    size_bytes = sum(file.size_bytes for file in missing)
    if tell:
        say(f"{repository.short}: fetching {len(missing)} of {len(files)} file(s), {size_bytes / 1e6:.1f} MB, from the model hub"
            if missing else f"{repository.short}: {len(files)} file(s) in the hub's cache")
    if not missing:
        return folder
    with hubclient.patient(repository.short, say):
        for file in missing:
            _fetch_one(repository, file, say)
    return folder


def _there(repository: Repository, folder: Path, file: Listed, say: Say, *, thorough: bool) -> bool:
    """Tell whether a file lies in the cache as listed; a damaged one is deleted."""
    path = folder / file.path
    if not path.is_file():
        return False
    wrong = misfit(path, file, thorough=thorough)
    if wrong is None:
        return True
    say(f"{repository.short}: {file.path} in the hub's cache {wrong}; fetched again")
    _remove(path)
    return False


def misfit(path: Path, file: Listed, *, thorough: bool = True) -> str | None:
    """Say how a file differs from the listing; None where it does not.

    Args:
        path: of the file.
        file: as listed; a listing without digests says no more than the size.
        thorough: digest it too.
    """
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        return f"is cut short: {size_bytes} of {file.size_bytes} bytes" if size_bytes < file.size_bytes else (
            f"has {size_bytes} bytes, the commit's has {file.size_bytes}")
    if not thorough or (file.sha256 or file.git_sha1) is None:
        return None
    # Git's object id is the SHA-1 over a short header and the content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    with path.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return None if digest.hexdigest() == (file.sha256 or file.git_sha1) else "has other bytes than the commit's"


def _fetch_one(repository: Repository, file: Listed, say: Say) -> None:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    asked, wrong = wanted(repository, file.path), ""
    for number in range(TRIES):
        with _explained(repository, file.path):
            try:
                found = Path(hf_hub_download(repository.name, file.path, repo_type=repository.kind, revision=repository.revision))
            except OSError as error:
                if not str(error).startswith(CONSISTENCY):
                    raise
                wrong = "comes cut short"
            else:
                commit = found.parts[-2 - file.path.count("/")]
                if commit != repository.revision:
                    raise hubfaults.other_commit(asked, commit)
                wrong = misfit(found, file) or ""
                if not wrong:
                    return
                _remove(found)
        if number + 1 < TRIES:
            say(f"{repository.short}: {file.path} {wrong}; fetched again")
    raise hubfaults.wrong_bytes(asked, wrong)


def one_file(repository: Repository, path: str, say: Say) -> Path:
    """Return one file of a commit, as it lies in the hub's cache.

    Args:
        repository: which one, at which commit.
        path: of the file inside it.
        say: told what is fetched.

    Raises:
        SourceError: the hub does not give it, or there is no such file.
        StorageError: the disk is full.
    """
    held = listing(repository, say)
    found = [one for one in held.files if one.path == path]
    if not found:
        raise hubfaults.error(wanted(repository, path), hubfaults.Reason(why="it has no file of that name", remedy=(
            "correct `source.file`" if held.whole else "connect to the hub and run the same command again")))
    return fetch(repository, found, say) / path


def incomplete(repository: Repository, missing: Sequence[str]) -> SourceError:
    """Return the error of a commit, or of a hub's cache, that lacks files that another file of it names."""
    return hubfaults.error(wanted(repository, missing[0]), hubfaults.Reason(
        why=f"{len(missing)} file(s) that belong to it are not there", remedy="connect to the hub and run the same command again; "
        "where it is connected, the repository itself lacks them: name another revision"))


CONSISTENCY = "Consistency check failed"
"""How the hub's library tells of a file that is shorter or longer than was said: it has no class of its own."""


def _remove(path: Path) -> None:
    """Delete a file of the hub's cache: the link to it, and what it leads to."""
    blob = path.resolve()
    with storage.writing(path):
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def wanted(repository: Repository, file: str | None = None) -> Wanted:
    """Return what an error says was asked for: a file, or the listing of the commit."""
    return Wanted(name=repository.name, revision=repository.revision, kind=repository.kind, used_by=repository.used_by, file=file)


@contextlib.contextmanager
def _explained(repository: Repository, file: str | None) -> Iterator[None]:
    """Turn whatever the hub's library raises into one error that says what was wanted, why it failed and what to do."""
    from huggingface_hub import errors  # noqa: PLC0415

    # Of all versions of the library; XetDownloadError is an Exception and no more.
    known: tuple[type[Exception], ...] = (
        errors.HTTPError, errors.EntryNotFoundError, getattr(errors, "XetDownloadError", errors.EntryNotFoundError),  # type: ignore[attr-defined]
        hubclient.PassingError, OSError, ValueError, TypeError, KeyError, RuntimeError)
    try:
        yield
    except known as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise storage.problem(error, Path(str(error.filename or "the hub's cache"))) from None
        raise hubfaults.explain(error, wanted(repository, file)) from None
