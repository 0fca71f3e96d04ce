"""Turn a model's published weights into dense safetensors, once; every variant starts from these.

A GGUF file is dequantised to float32, which holds each of its values exactly.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from jouleboard import store
from jouleboard.declared import Model
from jouleboard.engines.inspect import fingerprint
from jouleboard.errors import SourceError
from jouleboard.models import IDENTITY
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
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    found = fingerprint(loaded)
    require_weights(found, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".convert-"))
    try:
        loaded.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
        _forget_paths(folder)
        files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        store.write_atomic(folder / IDENTITY, json.dumps({"weights_sha256": found, "files": files}).encode())
        # What is there is damaged, or half of what another process is about to finish with the same bytes.
        shutil.rmtree(target, ignore_errors=True)
        folder.replace(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def check_dense(folder: Path, model: Model) -> str:
    """Return the fingerprint of the dense safetensors in a folder, after holding it against the declared one."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
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


def _forget_paths(folder: Path) -> None:
    """Take the folder that it was converted in out of the configuration files."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        content.pop("name_or_path", None)
        path.write_text(json.dumps(content, indent=2, sort_keys=True))
