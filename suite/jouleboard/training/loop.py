"""The optimiser's loop: AdamW over float32 copies of the weights, while the model itself computes in its own dtype.

bfloat16 products are fastest on CPUs and GPUs alike, and stable; but a weight in bfloat16 has eight bits of precision, so most
updates of a small learning rate would be rounded away. They add up in the copies, and the model has the copies rounded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from jouleboard.errors import RecipeError, UnitError
from jouleboard.training.state import State, Store

CLIP = 1.0
"""Largest norm of all gradients together; more is scaled down."""
BETAS = (0.9, 0.95)
"""As language models are trained (Brown et al. 2020); over a hundred steps a longer memory would still hold the beginning."""
Objective = Callable[[torch.Tensor], torch.Tensor]
"""The loss of a batch of token ids, shape [sequences, tokens]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast is trained."""

    steps: int
    batch_size: int
    """Sequences that are computed at once."""
    accumulate: int
    """Batches whose gradients are added up for one step."""
    learning_rate: float
    """The largest: it is reached after the warm-up, and falls to nothing along half a cosine (Loshchilov & Hutter 2017)."""
    warm_up: float
    """Share of the steps."""
    weight_decay: float = 0.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    @property
    def sequences(self) -> int:
        """Return how many sequences one step takes."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one piece of a training did."""

    steps: int
    """Optimiser steps in this piece."""
    finished: bool
    first_loss: float
    """Of the training's first step."""
    last_loss: float


class Training:
    """Weights, their float32 copies and the optimiser over them."""

    def __init__(self, weights: Mapping[str, nn.Parameter], schedule: Schedule) -> None:
        """Copy the weights.

        Args:
            weights: those that are trained, by name.
            schedule: how long and how fast.

        Raises:
            RecipeError: they are float16, or several devices share them.
        """
        for name, weight in weights.items():
            if weight.dtype == torch.float16:
                raise RecipeError(f"{name} is float16, whose gradients underflow", field="dtype", remedy="train in bfloat16 or float32")
            if hasattr(weight, "full_tensor"):
                raise RecipeError("several devices share the model, and it is trained on one only", field="steps",
                                  remedy="train on a device that holds the model whole")
        self._weights, self._schedule = dict(weights), schedule
        self._copies = {name: nn.Parameter(weight.detach().to(torch.float32, copy=True)) for name, weight in weights.items()}
        self._optimiser = torch.optim.AdamW(self._copies.values(), lr=schedule.learning_rate, betas=BETAS,
                                            weight_decay=schedule.weight_decay, fused=True)
        self._facts: dict[str, float] = {}
        self._step = 0

    @property
    def step(self) -> int:
        """Return how many steps are done."""
        return self._step

    def origin(self, ids: torch.Tensor, words: str, model: nn.Module) -> str:
        """Return the digest of what this training follows from: all weights, the tokens, the schedule and the step's own settings."""
        hasher = hashlib.sha256(f"{words}|{self._schedule}|{tuple(ids.shape)}".encode())
        for name, weight in sorted({**dict(model.named_parameters()), **self._weights}.items()):
            hasher.update(f"|{name}|{weight.dtype}|{tuple(weight.shape)}|".encode())
            hasher.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        hasher.update(ids.numpy().tobytes())
        return hasher.hexdigest()

    def run(self, ids: torch.Tensor, objective: Objective, *, store: Store | None, pause: Callable[[], bool],
            progress: Callable[[int, int], None]) -> Piece:
        """Train until the end, or until a pause.

        Args:
            ids: all sequences, shape [sequences, tokens]; read again from the first one where there are too few.
            objective: the loss of a batch.
            store: where the state is kept; None: there is no pause.
            pause: asked after each step.
            progress: told after each step.

        Raises:
            UnitError: a loss or a gradient is not finite.
        """
        held = store.newest() if store is not None else None
        if held is not None:
            self._restore(held)
        begun = self._step
        while self._step < self._schedule.steps:
            self._one(ids, objective)
            progress(self._step, self._schedule.steps)
            if self._step < self._schedule.steps and store is not None and pause():
                store.write(self._state())
                break
        return Piece(steps=self._step - begun, finished=self._step == self._schedule.steps, first_loss=self._facts["first_loss"],
                     last_loss=self._facts["last_loss"])

    def _one(self, ids: torch.Tensor, objective: Objective) -> None:
        schedule, device = self._schedule, next(iter(self._weights.values())).device
        loss = 0.0
        for batch in range(schedule.accumulate):
            first = (self._step * schedule.accumulate + batch) * schedule.batch_size
            rows = torch.arange(first, first + schedule.batch_size) % len(ids)
            found = objective(ids[rows].to(device)) / schedule.accumulate
            found.backward()  # type: ignore[no-untyped-call]
            loss += float(found.detach())
            self._collect()
        norm = float(nn.utils.clip_grad_norm_(self._copies.values(), CLIP))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UnitError(f"step {self._step + 1}: the loss is {loss}, the gradient's norm {norm}", field="steps.learning_rate",
                            kind="non-finite", remedy="lower the learning rate")
        for group in self._optimiser.param_groups:
            group["lr"] = schedule.rate(self._step)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._give_back()
        self._step += 1
        self._facts = {"first_loss": self._facts.get("first_loss", loss), "last_loss": loss}

    def _collect(self) -> None:
        """Add the gradients of the model's weights to those of their copies, in float32."""
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            copy = self._copies[name]
            copy.grad = weight.grad.to(torch.float32) if copy.grad is None else copy.grad.add_(weight.grad)
            weight.grad = None

    def _give_back(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._copies[name])

    def _state(self) -> State:
        tensors = {f"weight.{name}": copy.detach() for name, copy in self._copies.items()}
        for name, copy in self._copies.items():
            tensors |= {f"{key}.{name}": value for key, value in self._optimiser.state[copy].items()}
        tensors["random"] = torch.get_rng_state()
        device = next(iter(self._weights.values())).device
        if device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(device)
        return State(step=self._step, facts=self._facts, tensors=tensors)

    def _restore(self, state: State) -> None:
        tensors = state.tensors
        with torch.no_grad():
            for name, copy in self._copies.items():
                copy.copy_(tensors[f"weight.{name}"])
                self._optimiser.state[copy] = {
                    key: tensors[f"{key}.{name}"].to(copy.device) for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}.{name}" in tensors}
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], next(iter(self._weights.values())).device)
        self._step, self._facts = state.step, state.facts
        self._give_back()


def store(folder: Path | None, origin: str) -> Store | None:
    """Open the states of a training; None where it cannot be stopped."""
    return None if folder is None else Store(folder, origin)
