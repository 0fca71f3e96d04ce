"""A model's dense weights on this machine: fetched from its one source, made dense once, checked by fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jouleboard import paths, sources, store
from jouleboard.declared import HubSource, Model, PackageSource
from jouleboard.errors import SourceError
from jouleboard.sources import Say, quiet

IDENTITY = "jouleboard.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A folder with dense safetensors, configuration and tokenizer."""

    folder: Path
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """What only a process with torch can do; the run driver lends a worker for it."""

    convert: Callable[[Path, Path], str]
    """GGUF file and target folder to the fingerprint."""
    fingerprint: Callable[[Path], str]


def prepare(model: Model, helper: Callable[[], Helper], *, say: Say = quiet) -> Dense:
    """Return the model's dense weights, fetching and converting what is missing.

    Args:
        model: the declared model.
        helper: called only when torch is needed.
        say: told what is fetched, converted or re-used.

    Raises:
        SourceError: the weights cannot be had, or are not the declared ones.
    """
    source = model.source
    if isinstance(source, HubSource):
        folder = sources.hub_model(source, used_by=f"model {model.id}", say=say)
        if not list(folder.glob("*.safetensors")):
            raise SourceError(f"model {model.id}: {source.repo} has no safetensors at this revision", field="source",
                              remedy="only safetensors and GGUF weights are loaded; name a repository that has them")
        return Dense(folder=folder, weights_sha256=_known(model, source.revision, folder, helper))
    if isinstance(source, PackageSource):
        file = sources.package_file(source, used_by=f"model {model.id}", say=say)
        key = source.sha256
    else:
        file = sources.path_file(source, used_by=f"model {model.id}")
        if model.format == "safetensors":
            return Dense(folder=file, weights_sha256=helper().fingerprint(file))
        key = source.sha256 or sources.file_sha256(file)
    if model.format != "gguf":
        raise SourceError(f"model {model.id}: a single file must be GGUF", field="format", remedy="declare format: gguf")
    target = paths.cache_folder() / "models" / f"{model.id}-{key[:16]}"
    if (target / IDENTITY).is_file() and _whole(target):
        say(f"{model.id}: dense weights in the cache")
        return Dense(folder=target, weights_sha256=_identity(target, model))
    say(f"{model.id}: making the weights dense (once)")
    return Dense(folder=target, weights_sha256=helper().convert(file, target))


def _whole(folder: Path) -> bool:
    """Whether every file of converted weights is there with the bytes that were written."""
    try:
        files = json.loads((folder / IDENTITY).read_text())["files"]
        return all(sources.file_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _identity(folder: Path, model: Model) -> str:
    try:
        found = str(json.loads((folder / IDENTITY).read_text())["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        found = "unreadable"
    if found == "unreadable" or (model.weights_sha256 or found) != found:
        raise SourceError(f"model {model.id}: the cached weights are {found}, declared is {model.weights_sha256}",
                          file=folder / IDENTITY, field="weights_sha256",
                          remedy="run `jouleboard cache clear` and the same command again")
    return found


def _known(model: Model, revision: str, folder: Path, helper: Callable[[], Helper]) -> str:
    """Fingerprint a hub model once a revision: the pinned commit already fixes its files."""
    note = paths.cache_folder() / "models" / f"{model.id}-{revision[:16]}" / IDENTITY
    if note.is_file():
        return _identity(note.parent, model)
    found = helper().fingerprint(folder)
    store.write_atomic(note, json.dumps({"weights_sha256": found}).encode())
    return found
