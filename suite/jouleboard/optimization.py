"""Compress a model of your own by a recipe, without plans, tasks or boards.

Example::

    from jouleboard.optimization import adapt_model, run_optimization

    adapted = adapt_model("path/to/model", "int8-weight-only")        # one call; the model is ready to use
    adapted.model.generate(...)
    found = run_optimization("path/to/model", texts, "drop-6-distil") # trains on `texts`, and says what was lost and what it cost
    print(found.perplexity_before, found.perplexity_after, found.bill.cpu_s)

A recipe is the id of one of ours, a YAML file, a mapping with the same fields, or a `Recipe`.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from jouleboard import bills, catalogue, preparing, recipes, sources
from jouleboard.bills import Bill
from jouleboard.engines import inspect, loading, parallel
from jouleboard.errors import DataFileError, RecipeError
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.interface import Meter, OpenWindow
from jouleboard.paths import data_folder
from jouleboard.plan import CALIBRATION
from jouleboard.recipes import Recipe
from jouleboard.recipes.interface import Context
from jouleboard.records import Realised

RecipeLike = Recipe | str | Path | Mapping[str, Any]
HELD_OUT = 10
"""Every so manieth text is held out of training and calibration, to measure perplexity on."""
CALIBRATION_TOKENS, WINDOW_TOKENS, MOST_HELD_OUT_TOKENS = 2048, 512, 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A model after a recipe."""

    model: PreTrainedModel
    realised: Realised
    """What was read back from the built model: bytes, dtypes, classes, and which claims of the recipe were found to be so."""
    steps: tuple[dict[str, Any], ...]
    """Each step as declared, with what it found out and its `bill` (seconds, CPU-seconds, tokens, peak bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """A model after a recipe, with what it lost on held-out text and what making it cost."""

    adapted: Adapted
    perplexity_before: float
    """Of the base, exp of the mean negative log-likelihood a token, on texts that no step has seen."""
    perplexity_after: float
    held_out_tokens: int
    bill: Bill | None
    """Seconds, CPU-seconds and energy of all steps together; None: no meter was given."""


def read_recipe(recipe: RecipeLike) -> Recipe:
    """Return a recipe, however it was named.

    Raises:
        PlanError: there is no recipe of that id.
        DataFileError: the file or the mapping is not a recipe; the field is named.
        RecipeError: its steps stand in an order that cannot be.
    """
    if isinstance(recipe, Recipe):
        found = recipe
    elif isinstance(recipe, Mapping):
        try:
            found = msgspec.convert(dict(recipe), Recipe)
        except msgspec.ValidationError as error:
            raise DataFileError(str(error), field="recipe", remedy="give the fields of `suite/recipes/*.yaml`") from None
    else:
        own = Path(recipe)
        found = catalogue.read_yaml(own, Recipe) if own.suffix in {".yaml", ".yml"} else recipes.load(str(recipe))
    recipes.require_order(found)
    return found


def adapt_model(
    model: PreTrainedModel | str | Path, recipe: RecipeLike, *, tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: Sequence[str] = (), corpus: Path | None = None, state: Path | None = None, device: str = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Adapted:
    """Apply a recipe to a model, and hold the result against what the recipe claims.

    Args:
        model: a dense causal language model, which is changed in place, or a folder with dense safetensors.
        recipe: what to do.
        tokenizer: of the model; None: that of the folder.
        calibration: texts that steps look at activations with; empty: our own calibration text.
        corpus: JSON lines with the field `text` for steps that train; needed by those only.
        state: folder in which long steps keep what they need to go on after they were stopped; None: they begin anew.
        device: where a folder is loaded to; a live model stays where it is.
        progress: told how far a long step is.

    Returns:
        The model, what is realised, and each step with what it found out and took.

    Raises:
        RecipeError: the recipe cannot run on this device or model, lacks a corpus, or is not what it claims to be.
        PlanError: there is no such recipe.
        DataFileError: the recipe is malformed.
    """
    chosen = read_recipe(recipe)
    folder = None if isinstance(model, PreTrainedModel) else Path(model)
    dtype = getattr(torch, chosen.dtype)
    live = model.to(dtype=dtype).eval() if isinstance(model, PreTrainedModel) else _dense(str(model), dtype, device)
    words = tokenizer if tokenizer is not None or folder is None else AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _require(chosen, live, words, corpus)
    # A live model is changed in place: its teacher must be copied before.
    trains = any(step.trains_on is not None for step in chosen.steps)
    kept = copy.deepcopy(live) if trains and folder is None else None
    source = chosen.steps[0].needs_source if chosen.steps else None
    context = Context(
        checkpoint=None if source is None else sources.checkpoint(source, used_by=f"recipe {chosen.id}"),
        calibration_ids=_ids(words, calibration), tokenizer=words, corpus=corpus, state=state, progress=progress,
        base=(lambda: copy.deepcopy(kept)) if kept is not None else (lambda: _dense(str(folder), dtype, str(live.device))),
    )
    steps = preparing.applied(live, chosen.steps, context)
    return Adapted(model=live, steps=tuple(steps), realised=inspect.realised(live, steps, int(live.config.num_hidden_layers)))


def run_optimization(
    model: PreTrainedModel | str | Path, dataset: Iterable[str] | Path, recipe: RecipeLike, *,
    tokenizer: PreTrainedTokenizerBase | None = None, state: Path | None = None, device: str = "cpu", meter: Meter | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Optimized:
    """Apply a recipe with a data set of your own, and measure what was lost and what it cost.

    Every tenth text is held out; the others are training and calibration text.

    Args:
        model: a dense causal language model, which is changed in place, or a folder with dense safetensors.
        dataset: texts, or a file of JSON lines with the field `text`.
        recipe: what to do.
        tokenizer: of the model; None: that of the folder.
        state: folder in which long steps keep what they need to go on.
        device: where a folder is loaded to.
        meter: measures the energy of all steps together (`jouleboard.meters.choose` gives one for a hardware profile).
        progress: told how far a long step is.

    Raises:
        RecipeError: as `adapt_model`; or the data set has too few texts.
        DataFileError: the file is malformed.
    """
    texts = list(_texts(dataset))
    seen, held = [text for place, text in enumerate(texts) if place % HELD_OUT], texts[::HELD_OUT]
    if not seen:
        raise RecipeError(f"{len(texts)} texts are too few to train on some and to measure on others", field="dataset",
                          remedy="give at least two, better hundreds")
    words = tokenizer if tokenizer is not None or isinstance(model, PreTrainedModel) else AutoTokenizer.from_pretrained(
        Path(model), trust_remote_code=False)
    if words is None:
        raise RecipeError("a live model needs its tokenizer", field="tokenizer", remedy="give tokenizer=")
    chosen = read_recipe(recipe)
    live = model if isinstance(model, PreTrainedModel) else _dense(str(model), getattr(torch, chosen.dtype), device)
    held_ids = _windows(words, held)
    before = perplexity(live, held_ids)
    with tempfile.TemporaryDirectory(prefix="jouleboard-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in seen), encoding="utf-8")
        window = None if meter is None else OpenWindow(meter, ProcessClock(os.getpid()), "build")
        try:
            adapted = adapt_model(live, chosen, tokenizer=words, calibration=seen, corpus=corpus, state=state, progress=progress)
            bill = None if window is None else bills.of_windows([window.close()[0]])
        finally:
            if window is not None:
                window.abandon()
    return Optimized(adapted=adapted, perplexity_before=before, perplexity_after=perplexity(adapted.model, held_ids),
                     held_out_tokens=sum(ids.numel() - 1 for ids in held_ids), bill=bill)


def perplexity(model: PreTrainedModel, windows: Sequence[torch.Tensor]) -> float:
    """Return exp of the mean negative log-likelihood a token.

    Args:
        model: any causal language model.
        windows: token ids, each of shape [1, tokens]; the first token of each is not scored.
    """
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in windows:
            logits = model(ids.to(model.device)).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device), reduction="sum"))
            count += ids.shape[1] - 1
    return math.exp(total / count)


def _require(recipe: Recipe, model: PreTrainedModel, tokenizer: object, corpus: Path | None) -> None:
    why = recipes.missing(recipe, str(model.device))
    if why is not None:
        raise RecipeError(why, field="recipe", remedy="use another recipe or device: `jouleboard recipes list` says what each needs")
    if tokenizer is None:
        raise RecipeError("a live model needs its tokenizer", field="tokenizer", remedy="give tokenizer=")
    if corpus is None and any(step.trains_on is not None for step in recipe.steps):
        raise RecipeError("the recipe trains and was given no text", field="corpus",
                          remedy="give corpus=, a file of JSON lines with the field `text`, or use run_optimization")


def _dense(folder: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    return loading.dense(folder, dtype, device, parallel.Group())


def _ids(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    if not texts:
        return loading.calibration_ids(tokenizer, str(data_folder("tasks") / CALIBRATION))
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= CALIBRATION_TOKENS:
            break
    return torch.tensor([ids[:CALIBRATION_TOKENS]])


def _windows(tokenizer: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    """Cut held-out texts into windows, up to a number of tokens."""
    found: list[torch.Tensor] = []
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        found += [piece[None] for piece in torch.split(ids, WINDOW_TOKENS) if len(piece) > 1]
        if sum(piece.numel() for piece in found) >= MOST_HELD_OUT_TOKENS:
            break
    if not found:
        raise RecipeError("the texts that are held out have no two tokens", field="dataset", remedy="give longer texts")
    return found


def _texts(dataset: Iterable[str] | Path) -> Iterator[str]:
    if not isinstance(dataset, Path):
        yield from dataset
        return
    for number, line in enumerate(dataset.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])["text"]
        except (msgspec.DecodeError, KeyError):
            raise DataFileError("no JSON object with the field `text`", file=dataset, field=f"line {number}",
                                remedy='write {"text": "..."} on each line') from None
