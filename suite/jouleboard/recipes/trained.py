"""What every step that trains declares, and how it is carried out: text in sequences, the optimiser's loop, facts for the report."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from jouleboard.declared import Count, Fraction, Id, Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import Declaration, Paused

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

Rate = Annotated[float, msgspec.Meta(gt=0, le=1)]
Temperature = Annotated[float, msgspec.Meta(gt=0, le=100)]
Length = Annotated[int, msgspec.Meta(ge=2)]
BODY = ("embed_tokens", "lm_head")
"""Names of the embedding and of the output head: they stay as they are, so what a token means to the rest stays, too."""


Loss = Callable[["torch.Tensor"], "torch.Tensor"]
"""Of a batch of token ids, shape [sequences, tokens]."""
Logits = Callable[["torch.Tensor"], "torch.Tensor"]
"""Of a batch of token ids, shape [sequences, tokens, vocabulary]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, and towards what."""

    model: PreTrainedModel
    """Holds the weights, and those that stay as they are."""
    weights: Mapping[str, nn.Parameter]
    loss: Loss
    passes: int
    """Forward passes of a batch: the student's, and the teacher's where there is one."""


class Trained(Declaration, frozen=True, kw_only=True):
    """Base of the steps that train: AdamW in float32 over a model that computes in its own dtype (see `training.loop`).

    The learning rate rises over a share of the steps and falls along half a cosine; gradients are clipped to norm 1; there is no
    dropout. Texts come in an order that the seed decides, laid one behind another in sequences of one length.
    """

    corpus: Id
    """Of `suite/corpora`."""
    steps: Positive
    learning_rate: Rate
    """The largest."""
    batch_size: Positive = 4
    """Sequences that are computed at once."""
    accumulate: Positive = 1
    """Batches whose gradients make one step."""
    sequence_tokens: Length = 256
    warm_up: Fraction = 0.1
    """Share of the steps over which the learning rate rises."""
    seed: Count = 0

    @property
    def trains_on(self) -> str | None:
        """Id of the corpus."""
        return self.corpus

    def train(self, task: Task, context: Context) -> dict[str, Any]:
        """Train to the end and return the facts.

        `tokens` is of the whole training, however often it was stopped.

        Raises:
            Paused: it was stopped between two steps, and its state is written.
            RecipeError: there is no text.
        """
        from jouleboard.training import loop, text  # noqa: PLC0415 - torch is imported only where tokens are computed

        if context.corpus is None or context.tokenizer is None:
            raise RecipeError(f"there is no text to train on: the corpus {self.corpus} was not brought", field="steps.corpus",
                              remedy="apply the recipe by a run, which fetches the corpus")
        schedule = loop.Schedule(steps=self.steps, batch_size=self.batch_size, accumulate=self.accumulate,
                                 learning_rate=self.learning_rate, warm_up=self.warm_up)
        ids = text.sequences(context.corpus, context.tokenizer, count=self.steps * schedule.sequences, tokens=self.sequence_tokens,
                             seed=self.seed)
        training = loop.Training(task.weights, schedule)
        origin = training.origin(ids, msgspec.json.encode(self).decode(), task.model)
        piece = training.run(ids, task.loss, store=loop.store(context.state, origin), pause=context.pause, progress=context.progress)
        step_tokens = schedule.sequences * self.sequence_tokens * task.passes
        if not piece.finished:
            raise Paused(tokens=piece.steps * step_tokens)
        with context.corpus.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"tokens": self.steps * step_tokens, "first_loss": piece.first_loss, "last_loss": piece.last_loss,
                "corpus_sha256": digest, "trained_parameters": sum(weight.numel() for weight in task.weights.values()),
                "distinct_sequences": len(ids)}


class Taught(Trained, frozen=True, kw_only=True):
    """Base of the steps that are trained by a response distillation (Hinton et al. 2015), or on the text alone.

    The loss is alpha x cross-entropy + (1 - alpha) x T^2 x KL(teacher || student); where alpha is 1 there is no teacher.
    """

    alpha: Fraction = 0.0
    temperature: Temperature = 1.0

    @property
    def passes(self) -> int:
        """Return how many models each batch goes through."""
        return 1 if self.alpha == 1 else 2

    def loss(self, logits: Logits, context: Context) -> Loss:
        """Return the loss of a student, which is given by its logits; the base is loaded where it teaches."""
        import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

        from jouleboard.training import losses  # noqa: PLC0415

        weighting = losses.Weighting(alpha=self.alpha, temperature=self.temperature)
        base = None if self.passes == 1 else teacher(context)

        def of(ids: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = None if base is None else base(ids, use_cache=False).logits
            return losses.response(logits(ids), wanted, losses.next_tokens(ids), weighting)

        return of


def own_logits(model: PreTrainedModel) -> Logits:
    """Return a model's logits of a batch, without a key-value cache."""
    return lambda ids: model(ids, use_cache=False).logits


def body_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the weights of the layers and norms, by name; the embedding and the output head stay as they are."""
    return {name: weight for name, weight in model.named_parameters() if not any(part in name.split(".") for part in BODY)}


@contextlib.contextmanager
def only(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Ask for the gradients of some weights and of no others; afterwards of the same ones as before."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for weight, _ in before:
            weight.requires_grad_(False)
        for weight in trained.values():
            weight.requires_grad_(True)
        yield
    finally:
        for weight, wanted in before:
            weight.requires_grad_(wanted)
            weight.grad = None


def teacher(context: Context) -> PreTrainedModel:
    """Load the base as the teacher.

    Raises:
        RecipeError: nobody can load it here.
    """
    if context.base is None:
        raise RecipeError("there is no teacher: the base's weights were not brought", field="steps",
                          remedy="apply the recipe by a run, which knows the base")
    return context.base().eval().requires_grad_(False)
