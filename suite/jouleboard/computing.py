"""What computes a variant: torch, or the engine that its recipe hands the model to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers

from jouleboard import protocol, workloads
from jouleboard.engines import edge, fitness, inspect
from jouleboard.engines.billing import Billing, added
from jouleboard.engines.edge import work
from jouleboard.engines.edge.lm import EdgeLM
from jouleboard.engines.parallel import Group
from jouleboard.engines.reference import SOFTMAX_DTYPE, ReferenceLM
from jouleboard.engines.running import Running
from jouleboard.engines.shared import SharedPrefixLM
from jouleboard.errors import RecipeError
from jouleboard.records import Engine, Realised

if TYPE_CHECKING:
    from jouleboard.recipes import Recipe

PLANNED: dict[str, type[ReferenceLM]] = {"reference": ReferenceLM, "shared-prefix": SharedPrefixLM}
"""By the name that plans have for it: how torch scores."""


class Decodes(Protocol):
    """Decode steps behind a filled cache."""

    def loop(self) -> Iterator[torch.Tensor]:
        """Take the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """Measured work with a model; see the functions of the same names in `workloads`."""

    serve: Callable[[Any, torch.Tensor, int], Iterator[torch.Tensor]]
    prefill: Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]
    decode: Callable[[Any, torch.Tensor, int], Decodes]


EDGE_WORKS = Works(serve=work.serve, prefill=work.prefill, decode=work.Decode)


def torch_works(running: Running) -> Works:
    """Return the work of a model that torch computes, run in this way."""
    return Works(serve=partial(workloads.serve, running=running), prefill=partial(workloads.prefill, running=running),
                 decode=partial(workloads.Decode, running=running))


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """A built model, and how it is used."""

    model: Any
    """Of transformers, or an `EdgeModel`."""
    realised: Realised
    works: Works
    scores: type[ReferenceLM]
    refused: str | None
    """Why the plan's engine does not compute it; None: it does."""
    engine: Engine


def choose(
    request: protocol.Build, recipe: Recipe, group: Group, *, model: Any, tokenizer: Any, steps: list[dict[str, Any]],
    running: Running,
) -> Computing:
    """Read back what was built, and choose what computes it.

    Args:
        request: what was asked for.
        recipe: its recipe.
        group: of the ranks that compute it together.
        model: of torch, after the recipe's steps.
        tokenizer: the model's.
        steps: the steps with what they found out.
        running: how torch runs it.

    Raises:
        RecipeError: a claim is not so; or another engine does not take the model.
    """
    devices = group.gather(request.device)
    if recipe.export is not None:
        return _handed(request, model, tokenizer, steps, devices)
    refused = None if request.engine == "reference" else fitness.refusal(model, ranks=group.world, running=running)
    scores = ReferenceLM if refused else PLANNED[request.engine]
    return Computing(
        model=model, realised=inspect.realised(model, steps, int(model.config.num_hidden_layers)), works=torch_works(running),
        scores=scores, refused=refused,
        engine=Engine(name=scores.engine_name, version=transformers.__version__, dtype=recipe.dtype,
                      attention=str(getattr(model.config, "_attn_implementation", "unknown")), **_words(request, devices)))


def _handed(request: protocol.Build, model: Any, tokenizer: Any, steps: list[dict[str, Any]], devices: Sequence[str]) -> Computing:
    if len(devices) > 1:
        raise RecipeError(f"{steps[-1]['step']} computes on one device, and the profile has {len(devices)}", field="steps",
                          remedy="run this recipe with a profile of one device")
    with Billing(torch.device("cpu")) as billing:
        taken, realised = edge.take(model.float(), tokenizer, steps, request.threads)
    # The step itself only says which engine: exporting and loading is what it takes.
    steps[-1]["bill"] = added(steps[-1]["bill"], billing.bill(tokens=0))
    return Computing(
        model=taken, realised=realised, works=EDGE_WORKS, scores=EdgeLM,
        refused=None if request.engine == "reference" else fitness.refusal(taken),
        engine=Engine(name=taken.runs.name, version=taken.runs.version, dtype="float32", attention=taken.runs.attention,
                      beside=(PLANNED[request.engine].engine_name, transformers.__version__), **_words(request, devices)))


def _words(request: protocol.Build, devices: Sequence[str]) -> dict[str, Any]:
    return {"device": ",".join(devices), "threads": request.threads, "batch_size": request.batch_size,
            "planned_batch_size": request.planned_batch_size, "softmax_dtype": SOFTMAX_DTYPE}
