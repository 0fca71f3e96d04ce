"""Engines outside of torch: a recipe's last step may hand the finished dense model to one of them, all listed in `ENGINES`.

Each is an optional extra of this package, and is imported when a recipe asks for it. The model is saved, exported by the engine's own
tools, and loaded; the files are gone afterwards, so a variant holds what it computes with and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jouleboard import paths, scratch, storage
from jouleboard.engines.edge import ctranslate, onnx
from jouleboard.engines.edge.interface import Exported, Handed
from jouleboard.engines.edge.model import EdgeModel, realised
from jouleboard.records import Realised

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINES: dict[str, Callable[[Handed], Exported]] = {
    "ctranslate2": ctranslate.export,
    "onnx-genai": onnx.export,
}
"""By the tag of the step that asks for it."""
FOLDER, PREFIX = "exports", ".export-"


def take(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: list[dict[str, Any]], threads: int
) -> tuple[EdgeModel, Realised]:
    """Hand a model to the engine that the last step names; the torch model is empty afterwards.

    Args:
        model: dense, in float32, on the CPU.
        tokenizer: some engines store its vocabulary.
        steps: the recipe's steps with what they found out.
        threads: that the engine computes with.

    Raises:
        RecipeError: the engine does not know the architecture, or did not store what was asked for.
        StorageError: there is no room for the files.
    """
    parent = paths.cache_folder() / FOLDER
    with storage.writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    parameters = sum(weight.numel() for weight in model.parameters())
    with scratch.folder(parent, PREFIX) as folder:
        dense = folder / "dense"
        _save(model, tokenizer, dense)
        # The exporters load it themselves: two of them would not fit where one does.
        model.to("meta")
        made = ENGINES[steps[-1]["step"]](
            Handed(dense=dense, target=folder / "engine", step=steps[-1], config=model.config, threads=threads))
    found = realised(made, steps, parameters=parameters, layers=int(model.config.num_hidden_layers))
    return EdgeModel(made.runs, model.config, model.generation_config), found


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    # A head that a step made anew would be left out of the file.
    model.config.tie_word_embeddings = head is not None and head.weight is embedding.weight
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
