"""Turn a model's published weights into dense safetensors, once; every variant starts from these.

A GGUF file is dequantised to float32, which holds each of its values exactly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from jouleboard import scratch, storage, store
from jouleboard.declared import Model
from jouleboard.engines.inspect import fingerprint
from jouleboard.errors import SourceError
from jouleboard.models import IDENTITY, whole
from jouleboard.sources import file_sha256


def to_dense(source: Path, target: Path, model: Model) -> str:
    """Write dense safetensors, configuration and tokenizer of a GGUF file into a folder that appears whole.

    Args:
        source: the GGUF file.
        target: the folder to make.
        model: what the weights are declared to be.

    Returns:
        The fingerprint of the dense weights.

    Raises:
        SourceError: the weights are not the declared ones.
        StorageError: the target cannot be written.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    found = fingerprint(loaded)
    require_weights(found, model)
    with storage.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch.folder(target.parent, ".convert-") as folder:
            loaded.save_pretrained(folder)
            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
            forget_paths(folder)
            files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            store.write_atomic(folder / IDENTITY, json.dumps({"weights_sha256": found, "files": files}).encode())
            put(folder, target, found)
    except Exception as error:
        # Libraries say that the disk is full in errors of their own.
        full = storage.told(error, target)
        if full is not None:
            raise full from None
        raise
    return found


def put(folder: Path, target: Path, weights_sha256: str) -> None:
    """Move finished weights to their place, unless another process has put the same ones there meanwhile: it may be loading them.

    Args:
        folder: the finished weights; they stay where they are if those in the target are kept.
        target: their place.
        weights_sha256: their fingerprint.
    """
    if whole(target, weights_sha256):
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        # A rename never replaces a folder that is not empty: what another process put there in between stays.
        folder.replace(target)
    except OSError:
        if not whole(target, weights_sha256):
            raise


def check_dense(folder: Path, model: Model) -> str:
    """Return the fingerprint of the dense safetensors in a folder, after holding it against the declared one.

    Raises:
        SourceError: a file is damaged or missing, the architecture is not known, or the weights are not the declared ones.
    """
    try:
        # Without the last word the library asks on standard input whether to run a repository's own programs.
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, trust_remote_code=False)
    except SafetensorError as error:
        raise SourceError(f"model {model.id}: the safetensors in {folder} are damaged ({error})", field="source",
                          remedy="bring the model's files there once more, then run the same command again") from None
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SourceError(f"model {model.id}: the weights in {folder} cannot be loaded ({first})", field="source",
                          remedy="name a model whose architecture the installed transformers knows, with its configuration beside "
                          "the weights: no program of a repository is ever run") from None
    found = fingerprint(loaded)
    require_weights(found, model)
    return found


def require_weights(found: str, model: Model) -> None:
    """Refuse weights whose fingerprint is not the declared one."""
    if model.weights_sha256 is not None and found != model.weights_sha256:
        raise SourceError(
            f"model {model.id}: the fingerprint of the dense weights is {found}, declared is {model.weights_sha256}",
            field="weights_sha256",
            remedy="delete this model with `jouleboard cache clear` and fetch it again; if it stays, report it",
        )


def forget_paths(folder: Path) -> None:
    """Take the folder that it was converted in out of the configuration files."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        content.pop("name_or_path", None)
        path.write_text(json.dumps(content, indent=2, sort_keys=True))
