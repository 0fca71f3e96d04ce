"""Losses of distillation, summed over rows of logits in pieces, with their gradients written out.

A row of logits is as long as the vocabulary: in one piece and in float32, the copies that autograd keeps of a batch take more
memory than the model. Here the gradient is computed with the loss, and nothing but it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Label of a position that does not count: padding, and the last token, after which nothing is known."""
ROWS = 64
"""Rows in a piece: what is computed of them stays in a processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """How the two losses of a response distillation are weighed (Hinton et al. 2015)."""

    alpha: float
    """Share of the cross-entropy with the labels; the rest is the divergence from the teacher."""
    temperature: float


def next_tokens(ids: torch.Tensor) -> torch.Tensor:
    """Return what each position is to predict, shape as `ids`, [sequences, tokens]; nothing at the last one."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:]
    return labels


def response(student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    """Return alpha x CE(labels, student) + (1 - alpha) x T^2 x KL(teacher || student), averaged over the positions that count.

    Both distributions of the divergence are taken at temperature T; T^2 keeps its gradient's size independent of T.

    Args:
        student: logits, shape [..., vocabulary].
        teacher: logits of the same shape; None where alpha is 1.
        labels: token ids, shape [...]; positions with `IGNORED` count in neither loss.
        weighting: of the two.
    """
    width = student.shape[-1]
    found: torch.Tensor = _Response.apply(  # type: ignore[no-untyped-call]
        student.reshape(-1, width), None if teacher is None else teacher.reshape(-1, width), labels.reshape(-1), weighting)
    return found


class _Response(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, weighting: Weighting) -> torch.Tensor:
        wide = torch.promote_types(student.dtype, torch.float32)
        counted = labels != IGNORED
        count = counted.sum().clamp(min=1)
        total = torch.zeros((), dtype=wide, device=student.device)
        gradient = torch.empty_like(student)
        for start in range(0, len(labels), ROWS):
            rows = slice(start, start + ROWS)
            loss, slope = _rows(student[rows].to(wide), None if teacher is None else teacher[rows].to(wide), labels[rows], weighting)
            weight = (counted[rows].to(wide) / count)[:, None]
            total += (loss * weight[:, 0]).sum()
            gradient[rows] = slope.mul_(weight).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None


def _rows(student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, weighting: Weighting) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's loss, shape [rows], and its slope by the student's logits, shape [rows, vocabulary]."""
    alpha, temperature = weighting.alpha, weighting.temperature
    loss = torch.zeros(len(labels), dtype=student.dtype, device=student.device)
    slope = torch.zeros_like(student)
    if alpha:
        known = labels.clamp(min=0)[:, None]
        logs = torch.log_softmax(student, dim=-1)
        loss -= alpha * logs.gather(1, known)[:, 0]
        # d CE / d z = softmax(z) - onehot
        slope += alpha * logs.exp()
        slope.scatter_add_(1, known, torch.full_like(known, -1, dtype=slope.dtype) * alpha)
    if teacher is not None and alpha < 1:
        logs = torch.log_softmax(student / temperature, dim=-1)
        wanted = torch.log_softmax(teacher / temperature, dim=-1)
        shares = wanted.exp()
        loss += (1 - alpha) * temperature**2 * (shares * (wanted - logs)).sum(-1)
        # d T^2 KL / d z = T (softmax(z / T) - softmax(teacher / T))
        slope += (1 - alpha) * temperature * (logs.exp() - shares)
    return loss, slope


def hidden(student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of hidden states, each position's in relation to the teacher's mean square there.

    A few positions of most models, the first one above all, have states that are hundreds of times larger than the others' (Sun
    et al. 2024, massive activations): a plain mean would be about these alone.

    Args:
        student: hidden states, shape [sequences, tokens, width], in the teacher's width.
        teacher: the same of the teacher.
        counted: which positions count, shape [sequences, tokens].
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    wanted = teacher.to(wide)
    error = (student.to(wide) - wanted).square().mean(-1) / wanted.square().mean(-1).clamp(min=torch.finfo(wide).tiny)
    weight = counted.to(wide)
    return (error * weight).sum() / weight.sum().clamp(min=1)
