"""Distillation: the model learns to predict as the base does (Hinton et al. 2015), or also to represent as it does (Romero et al. 2015).

Example (`suite/recipes/drop-6-distil.yaml`, shortened)::

    steps:
      - {step: drop-layers, count: 6}
      - {step: distil, method: response, corpus: mixed-prose, alpha: 0.0, temperature: 1.0, steps: 150, learning_rate: 5.0e-4}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.declared import Count, NonNegative
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About
from jouleboard.recipes.trained import Task, Taught, body_weights, only, own_logits, teacher

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Distil(Taught, tag="distil", tag_field="step", frozen=True, kw_only=True):
    """Train all layers towards the base's next-token distributions; embedding and output head stay as they are."""

    about: ClassVar[About] = About(stage="dense", changes=())

    method: Literal["response", "feature"] = "response"
    """`response`: the loss above alone; `feature`: and beta x the error of hidden states (Romero et al. 2015)."""
    beta: NonNegative = 1.0
    """Weight of the hidden states' error, of `feature` only."""
    layer_map: tuple[Count, ...] | None = None
    """Of `feature`: which of the teacher's layers, counted from 0, each layer of the student is to end like; None: evenly spread."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Train; every batch goes through the teacher, too."""
        weights = body_weights(model)
        if self.method == "response":
            with only(model, weights):
                return self.train(Task(model=model, weights=weights, loss=self.loss(own_logits(model), context), passes=self.passes), context)
        features = _Features(self, model, teacher(context))
        with only(model, weights):
            facts = self.train(Task(model=model, weights=weights | features.projections, loss=features.loss, passes=2), context)
        return facts | {"layer_map": list(features.layer_map)}


class _Features:
    """The response loss and the error of hidden states, with a learned projection for each layer where the widths differ."""

    def __init__(self, step: Distil, model: PreTrainedModel, base: PreTrainedModel) -> None:
        import torch  # noqa: PLC0415
        from torch import nn  # noqa: PLC0415

        from jouleboard.training import losses  # noqa: PLC0415

        self._model, self._base, self._beta = model, base, step.beta
        self._weighting = losses.Weighting(alpha=step.alpha, temperature=step.temperature)
        student, taught = int(model.config.num_hidden_layers), int(base.config.num_hidden_layers)
        self.layer_map = even_map(student, taught) if step.layer_map is None else step.layer_map
        if len(self.layer_map) != student or max(self.layer_map) >= taught:
            raise RecipeError(f"does not name one of {taught} teacher layers for each of {student} layers", field="steps.layer_map",
                              remedy="leave it out: then layers are spread evenly")
        narrow, wide = int(model.config.hidden_size), int(base.config.hidden_size)
        self.projections: dict[str, nn.Parameter] = {}
        if narrow != wide:
            generator = torch.Generator().manual_seed(step.seed)
            for layer in range(student):
                drawn = torch.randn(wide, narrow, generator=generator) / narrow**0.5
                self.projections[f"projection.{layer}"] = nn.Parameter(drawn.to(model.device))

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the whole loss of a batch."""
        import torch  # noqa: PLC0415

        from jouleboard.training import losses  # noqa: PLC0415

        with torch.no_grad():
            wanted = self._base(ids, use_cache=False, output_hidden_states=True)
        found = self._model(ids, use_cache=False, output_hidden_states=True)
        labels = losses.next_tokens(ids)
        total = losses.response(found.logits, wanted.logits, labels, self._weighting)
        errors = []
        for layer, like in enumerate(self.layer_map):
            # The first entry is the embedding; the last one, of both models, is after the final norm.
            state = found.hidden_states[layer + 1]
            if self.projections:
                state = state.float() @ self.projections[f"projection.{layer}"].T
            errors.append(losses.hidden(state, wanted.hidden_states[like + 1], torch.ones_like(labels, dtype=torch.bool)))
        return total + self._beta * torch.stack(errors).mean()


def even_map(student: int, teacher_layers: int) -> tuple[int, ...]:
    """Spread a student's layers evenly over the teacher's, the last one on the last one (Jiao et al. 2020, TinyBERT)."""
    return tuple(max(0, (layer + 1) * teacher_layers // student - 1) for layer in range(student))
