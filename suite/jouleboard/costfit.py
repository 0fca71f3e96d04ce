"""The cost model of one entry, fitted to its prefill and decode probes; `costmodel` says what follows. Pure, no I/O.

With prompts of P tokens, outputs of T tokens and B sequences at once::

    prefill of the batch   a0 + a1 B P + a2 B P^2
    one decode step        d0 + d1 B + d2 B context
    one request            (prefill + (T - 1) steps) / B        the prefill gives the first output token

Costs are CPU-seconds or measured joules, never estimates. No coefficient is negative (Lawson and Hanson 1974), and the
least squares are those of relative residuals, so that a cheap probe counts as much as a dear one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from jouleboard.declared import Noun
from jouleboard.windows import Probe, Window

Cost = Literal["cpu_s", "joules"]
Name = Literal["a0", "a1", "a2", "d0", "d1", "d2"]
Kind = Literal["prefill", "decode"]
Floats = NDArray[np.float64]

LEAST = 1e-12
"""Seconds or joules of a pass, a step or a request that no clock or sensor resolves."""

_PREFILL: tuple[Name, ...] = ("a1", "a0", "a2")
_DECODE: tuple[Name, ...] = ("d0", "d1", "d2")
"""In the order in which they are taken up: what a lone probe can tell comes first."""
_SQUARE_NEEDS = 3
_SAME = 1e-9
_ROUNDS = 1000


class Term(Noun, frozen=True, kw_only=True):
    """One fitted coefficient, in the unit of the cost."""

    name: Name
    value: float


class LeftOut(Noun, frozen=True, kw_only=True):
    """A term that these probes cannot tell apart from the others."""

    name: Name
    reason: str


class Residual(Noun, frozen=True, kw_only=True):
    """One probe against the model: the cost of one pass (prefill) or one step (decode) of its whole batch."""

    kind: Kind
    batch: int
    prompt_tokens: int
    output_tokens: int
    measured: float
    predicted: float
    relative: float
    """(predicted - measured) / measured."""


class Span(Noun, frozen=True, kw_only=True):
    """The least and the most that was probed."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is inside."""
        return self.low <= value <= self.high


class Fit(Noun, frozen=True, kw_only=True):
    """The cost model of one entry."""

    cost: Cost
    terms: tuple[Term, ...]
    left_out: tuple[LeftOut, ...]
    residuals: tuple[Residual, ...]
    rms: float
    """Root mean square of the relative residuals."""
    worst: float
    """The relative residual that is farthest from zero."""
    prompts: Span
    """Tokens a sequence, of the prefill probes."""
    prefill_batches: Span
    decode_batches: Span
    contexts: Span
    """Tokens that the steps of the decode probes attended to."""

    def value(self, name: Name) -> float:
        """Return a coefficient; one that was left out is zero."""
        return next((term.value for term in self.terms if term.name == name), 0.0)

    @property
    def is_saturated(self) -> bool:
        """Whether a part has no more probes than terms above zero, so that its residuals say nothing of its errors."""
        return any(sum(one.kind == kind for one in self.residuals) <= sum(
            term.value > 0 and term.name[0] == letter for term in self.terms) for kind, letter in (("prefill", "a"), ("decode", "d")))

    @property
    def knows_batches(self) -> bool:
        """Whether the probes say how the cost of a decode step grows with the batch."""
        return not {"d0", "d1"} & {one.name for one in self.left_out}


def spent(window: Window, cost: Cost) -> float | None:
    """Return what a window cost; None where it was not measured or its reading failed."""
    if cost == "cpu_s":
        return window.cpu_s
    return None if window.void is not None else window.energy.measured_j


def fit(probes: Sequence[Probe], cost: Cost) -> Fit | None:
    """Fit the model.

    Args:
        probes: of one entry; void ones, and those without a cost above zero, are left out.
        cost: what to fit.

    Returns:
        None where either kind has no usable probe.
    """
    prefill, decode = _points(probes, cost, "prefill"), _points(probes, cost, "decode")
    if not prefill or not decode:
        return None
    names = {"prefill": _tell_apart(prefill, _PREFILL), "decode": _tell_apart(decode, _DECODE)}
    terms = [*_solve(prefill, names["prefill"]), *_solve(decode, names["decode"])]
    values = {term.name: term.value for term in terms}
    residuals = tuple(_residual(point, values) for point in (*prefill, *decode))
    relative = [one.relative for one in residuals]
    return Fit(
        cost=cost, terms=tuple(sorted(terms, key=lambda term: term.name)),
        left_out=tuple(LeftOut(name=name, reason=_why(name, prefill if name[0] == "a" else decode))
                       for name in sorted((*_PREFILL, *_DECODE)) if name not in values),
        residuals=residuals, rms=math.sqrt(math.fsum(one**2 for one in relative) / len(relative)),
        worst=max(relative, key=abs), prompts=_span([one.prompt_tokens for one in prefill]),
        prefill_batches=_span([one.batch for one in prefill]), decode_batches=_span([one.batch for one in decode]),
        contexts=_span([end for one in decode for end in (one.prompt_tokens + 1, one.prompt_tokens + one.output_tokens)]),
    )


def _span(values: Sequence[float]) -> Span:
    return Span(low=min(values), high=max(values))


def _points(probes: Sequence[Probe], cost: Cost, kind: Kind) -> list[Residual]:
    """Turn probes into the cost of one pass or one step, not yet predicted."""
    found = []
    for probe in probes:
        total, parts = spent(probe.window, cost), probe.loops * (1 if kind == "prefill" else probe.output_tokens)
        if probe.kind != kind or probe.void is not None or not total or not parts:
            continue
        measured = total / parts
        if measured > LEAST:
            found.append(Residual(kind=kind, batch=probe.batch, prompt_tokens=probe.prompt_tokens,
                                  output_tokens=probe.output_tokens, measured=measured, predicted=0.0, relative=0.0))
    return found


def _factor(name: Name, point: Residual) -> float:
    """Return what a coefficient is multiplied with. A step attends to the prompt and what it has put out so far."""
    batch, prompt = point.batch, point.prompt_tokens
    context = prompt + (point.output_tokens + 1) / 2
    factors: dict[Name, float] = {"a0": 1.0, "a1": batch * prompt, "a2": batch * prompt**2,
                                  "d0": 1.0, "d1": batch, "d2": batch * context}
    return float(factors[name])


def matrix(points: Sequence[Residual], names: Sequence[Name]) -> Floats:
    """Return what each term is multiplied with at each point, shape [points, terms]."""
    return np.array([[_factor(name, point) for name in names] for point in points], dtype=np.float64)


def _tell_apart(points: Sequence[Residual], names: Sequence[Name]) -> tuple[Name, ...]:
    """Return the terms that these points can tell apart."""
    found: tuple[Name, ...] = ()
    for name in names:
        if _too_few(name, points) is None:
            columns = matrix(points, (*found, name))
            if np.linalg.matrix_rank(columns / columns.max(axis=0), tol=_SAME) == len(found) + 1:
                found = (*found, name)
    return found


def _too_few(name: Name, points: Sequence[Residual]) -> str | None:
    """Say what a term would need and the points lack."""
    prompts, batches = {one.prompt_tokens for one in points}, {one.batch for one in points}
    if name == "a2" and len(prompts) < _SQUARE_NEEDS:
        return f"{len(prompts)} of the three prompt lengths that it takes were probed"
    if name == "d1" and len(batches) < 2:  # noqa: PLR2004 - one batch size says nothing of others
        return "one batch size was probed"
    if name == "d2" and len({one.prompt_tokens + one.output_tokens / 2 for one in points}) < 2:  # noqa: PLR2004
        return "decode was probed at one context length"
    return None


def _why(name: Name, points: Sequence[Residual]) -> str:
    return _too_few(name, points) or "the probes cannot tell it from the other terms"


def _solve(points: Sequence[Residual], names: Sequence[Name]) -> list[Term]:
    """Non-negative least squares of relative residuals."""
    weighted = matrix(points, names) / np.array([[point.measured] for point in points])
    scale = np.linalg.norm(weighted, axis=0)
    scaled, ones = weighted / scale, np.ones(len(points))
    found, _ = optimize.nnls(scaled, ones, maxiter=_ROUNDS)
    held = found > 0
    # The solver works with normal equations; solving once more over the terms it kept wins the digits back.
    again = np.linalg.lstsq(scaled[:, held], ones, rcond=None)[0]
    if (again > 0).all():
        found[held] = again
    return [Term(name=name, value=float(value)) for name, value in zip(names, found / scale, strict=True)]


def _residual(point: Residual, values: dict[Name, float]) -> Residual:
    names = [name for name in values if (name[0] == "a") == (point.kind == "prefill")]
    predicted = math.fsum(values[name] * _factor(name, point) for name in names)
    return Residual(kind=point.kind, batch=point.batch, prompt_tokens=point.prompt_tokens,
                    output_tokens=point.output_tokens, measured=point.measured, predicted=predicted,
                    relative=predicted / point.measured - 1)
