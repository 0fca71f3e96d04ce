"""Applies a recipe's steps, each with its bill: in memory, or from dense weights in a folder to others in another folder.

Example of the second: the weights of 30 layers and the step `drop-layers` give a folder with the weights of 24, configuration and tokenizer.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer, PreTrainedModel

from jouleboard import protocol, recipes, scratch, storage, store
from jouleboard.engines import convert, inspect, loading, parallel
from jouleboard.engines.billing import Billing
from jouleboard.errors import StorageError
from jouleboard.models import IDENTITY
from jouleboard.recipes.interface import Context, Paused, Technique
from jouleboard.sources import file_sha256

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", IDENTITY)
"""What `save_pretrained` writes anew; everything else of a folder, the tokenizer above all, is carried over."""


def prepare(
    request: protocol.Prepare, go: Callable[[], None], progress: Callable[[int, int], None]
) -> protocol.Prepared:
    """Load dense weights, apply one step, hold it against its claims, and save the result.

    Args:
        request: what to apply to what.
        go: called when the imports are done, before anything is loaded.
        progress: told how far a long step is.

    Raises:
        RecipeError: the step cannot be applied, or is not what it claims to be.
        StorageError: the result cannot be written.
    """
    torch.set_num_threads(request.threads)
    device, dtype = torch.device(request.device), getattr(torch, request.dtype)
    step = msgspec.convert(request.step, recipes.Step)
    tokenizer = AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
    go()
    begun_s = time.monotonic()
    alone = parallel.Group()
    with Billing(device) as billing:
        model = loading.dense(request.folder, dtype, request.device, alone)
        context = Context(
            calibration_ids=loading.calibration_ids(tokenizer, request.calibration), tokenizer=tokenizer,
            base=lambda: loading.dense(request.base, dtype, request.device, alone),
            corpus=None if request.corpus is None else Path(request.corpus),
            checkpoint=None if request.checkpoint is None else Path(request.checkpoint), state=Path(request.state),
            pause=lambda: time.monotonic() - begun_s > request.piece_s, progress=progress,
        )
        try:
            found = recipes.apply_one(model, step, context)
        except Paused:
            return protocol.Prepared(step={}, peak_memory_bytes=billing.peak_memory_bytes)
        realised = inspect.realised(model, [found], int(model.config.num_hidden_layers))
        save(model, Path(request.folder), Path(request.target), realised.weights_sha256)
    return protocol.Prepared(step=found, claims=realised.claims, weights_sha256=realised.weights_sha256,
                             peak_memory_bytes=billing.peak_memory_bytes)


def applied(
    model: PreTrainedModel, steps: Sequence[Technique], context: Context, *, opened_s: float | None = None
) -> list[dict[str, Any]]:
    """Apply steps to a model in memory, in order.

    Args:
        model: dense; changed in place.
        steps: what to apply.
        context: what they may need.
        opened_s: when the window around them opened, by `time.perf_counter`; None: there is none.

    Returns:
        Each step as declared, with what it found out and its `bill`.
    """
    found = []
    for step in steps:
        with Billing(model.device, opened_s=opened_s) as billing:
            one = recipes.apply_one(model, step, context)
        found.append(one | {"bill": billing.bill(tokens=int(one.get("tokens", 0)))})
    return found


def save(model: PreTrainedModel, source: Path, target: Path, weights_sha256: str) -> None:
    """Write a model's dense weights into a folder that appears whole, with the tokenizer of where it came from.

    Args:
        model: what to save.
        source: folder whose other files are carried over.
        target: the folder to make.
        weights_sha256: fingerprint of the model.

    Raises:
        StorageError: it cannot be written.
    """
    with storage.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch.folder(target.parent, ".prepare-") as folder:
            model.save_pretrained(folder)
            written = {path.name for path in folder.iterdir()}
            for path in sorted(source.iterdir()):
                if path.is_file() and path.name not in written and not any(map(path.match, WEIGHTS)):
                    shutil.copyfile(path, folder / path.name)
            convert.forget_paths(folder)
            files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            note: dict[str, Any] = {"weights_sha256": weights_sha256, "files": files}
            store.write_atomic(folder / IDENTITY, json.dumps(note).encode())
            convert.put(folder, target, weights_sha256)
    except StorageError:
        raise
    except Exception as error:
        # Libraries say that the disk is full in errors of their own.
        full = storage.told(error, target)
        if full is not None:
            raise full from None
        raise
