"""What requests cost by the model that was fitted to an entry's probes, and at which batch two entries cost the same.

    found = costmodel.fit(report.probes, "joules")
    costmodel.predict(found, prompt=1500, output=40, batch=8).value      # joules of one request
    costmodel.crossover(base, found, prompt=1500, output=40).batch       # 6.2: there both cost the same

The cost of a batch is a line over its size, `fixed` + B x `each` (see `costfit`), so the ratio of two entries is
(Av + B Dv) / (Ab + B Db) and 1 at B = (Ab - Av) / (Dv - Db).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jouleboard.costfit import LEAST, Fit, Floats, Kind, Residual, Span, Term, fit, matrix, spent
from jouleboard.declared import Noun
from jouleboard.windows import Trial

__all__ = ["Crossover", "Fit", "Line", "Prediction", "Span", "Validation", "beyond", "crossover", "fit", "line", "predict",
           "probed_batches", "request_tokens", "validate"]

LARGEST = 65_536
"""No batch beyond this one is served; a crossing there is rounding."""
SEED = 20260101
DRAWS = 400
LEAST_FREE = 2
"""Probes beyond the terms of the model, both kinds together, below which their scatter says nothing; each kind needs one."""
AGREE = 0.9
"""Share of the draws that must say what the fit says, so that the verdict is decided."""
Direction = Literal["below", "above", "always", "never", "equal"]


class Prediction(Noun, frozen=True, kw_only=True):
    """What one request costs by the model."""

    value: float
    extrapolated: tuple[str, ...]
    """In words, where the request lies outside of what was probed."""


class Validation(Noun, frozen=True, kw_only=True):
    """One serving cell: the model against what was measured."""

    workload: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    measured: float
    """Mean cost of a request over the cell's valid trials."""
    predicted: Prediction
    error: float
    """(predicted - measured) / measured."""


class Line(Noun, frozen=True, kw_only=True):
    """The cost of a batch as a line over its size: `fixed` + B x `each`; of a request: `fixed` / B + `each`."""

    fixed: float
    each: float

    def request(self, batch: float) -> float:
        """Return the cost of one request at a batch size."""
        return self.fixed / batch + self.each


def line(model: Fit, *, prompt: int, output: int) -> Line:
    """Return how the cost of these requests depends on the batch."""
    steps = max(output - 1, 0)
    # Step i of T - 1 attends to P + i tokens: P + T / 2 on average.
    context = prompt + output / 2
    return Line(
        fixed=model.value("a0") + steps * model.value("d0"),
        each=model.value("a1") * prompt + model.value("a2") * prompt**2
        + steps * (model.value("d1") + model.value("d2") * context),
    )


def predict(model: Fit, *, prompt: int, output: int, batch: int) -> Prediction:
    """Predict what one request costs.

    Args:
        model: of one entry.
        prompt: tokens of each prompt, at least 1.
        output: tokens of each output, at least 1.
        batch: sequences at once, at least 1.
    """
    return Prediction(value=line(model, prompt=prompt, output=output).request(batch),
                      extrapolated=(*beyond(model, prompt=prompt, output=output), *_beyond_batch(model, batch)))


def beyond(model: Fit, *, prompt: int, output: int) -> tuple[str, ...]:
    """Say in words where a request is outside of the prompts and contexts that were probed."""
    found = []
    if not model.prompts.holds(prompt):
        found.append(f"a prompt of {prompt} tokens, where {_range(model.prompts)} were probed")
    if output > 1 and not (model.contexts.holds(prompt + 1) and model.contexts.holds(prompt + output - 1)):
        found.append(f"decoding behind {prompt} to {prompt + output - 1} tokens, where it was probed behind "
                     f"{_range(model.contexts)}")
    return tuple(found)


def _beyond_batch(model: Fit, batch: float) -> tuple[str, ...]:
    span = probed_batches(model)
    return () if span.holds(batch) else (f"batch {batch:.4g}, where {_range(span)} were probed",)


def probed_batches(*models: Fit) -> Span:
    """Return the batch sizes over which every model was probed, both kinds; empty (low above high) where there are none."""
    spans = [span for model in models for span in (model.prefill_batches, model.decode_batches)]
    return Span(low=max(span.low for span in spans), high=min(span.high for span in spans))


def _range(span: Span) -> str:
    if span.low > span.high:
        return "none in common"
    return f"{span.low:.0f}" if span.low == span.high else f"{span.low:.0f} to {span.high:.0f}"


def validate(model: Fit, trials: Sequence[Trial]) -> tuple[Validation, ...]:
    """Hold the model against each serving cell that has valid trials."""
    cells: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        if trial.batch is not None and trial.void is None:
            cells.setdefault((trial.workload, trial.batch), []).append(trial)
    found = []
    for (workload, batch), same in sorted(cells.items()):
        each = [cost / trial.requests for trial in same if (cost := spent(trial.window, model.cost))]
        prompt, output = request_tokens(same[0])
        measured = math.fsum(each) / len(same)
        if len(each) < len(same) or measured < LEAST or prompt < 1 or output < 1:
            continue
        guess = predict(model, prompt=prompt, output=output, batch=batch)
        found.append(Validation(workload=workload, batch=batch, prompt_tokens=prompt, output_tokens=output,
                                measured=measured, predicted=guess, error=guess.value / measured - 1))
    return tuple(found)


def request_tokens(trial: Trial) -> tuple[int, int]:
    """Return prompt and output tokens of each request of a serving trial, whose lengths are forced."""
    return round(trial.prompt_tokens / trial.requests), round(trial.output_tokens / trial.requests)


class Crossover(Noun, frozen=True, kw_only=True):
    """Where a variant costs less than its base, by the two models."""

    cheaper: Direction | None
    """The variant is cheaper `below` or `above` the batch, `always`, or `never`; None where it cannot be said."""
    batch: float | None
    """At which a request costs the same by both; None with a reason where there is none."""
    reason: str | None
    extrapolated: tuple[str, ...]
    decided: bool | None
    """Whether the verdict stands against the scatter of the probes; None where too few probes show any: then it is a guess."""
    low: float | None
    """2.5 % and 97.5 % points of the batch over that scatter; None where it is not decided."""
    high: float | None
    probed: Span | None = None
    """Batch sizes at which both were probed: `always` and `never` speak of these; None where there are none."""


def crossover(base: Fit | None, variant: Fit | None, *, prompt: int, output: int, batch: int | None = None) -> Crossover:
    """Find the batch at which the variant costs as much per request as the base.

    Args:
        base: model of the base; None where it has none.
        variant: of the variant, fitted to the same kind of cost.
        prompt: tokens of each prompt.
        output: tokens of each output.
        batch: at which it is asked for; None: at any that was probed.
    """
    if base is None or variant is None:
        return _unknown(f"no cost model of {'the base' if base is None else 'this variant'}: too few probes")
    if base.cost != variant.cost:
        return _unknown("the two were not measured in the same unit")
    if not (base.knows_batches and variant.knows_batches):
        return _unknown("one batch size was probed, so nothing is known of others")
    theirs, mine = (line(one, prompt=prompt, output=output) for one in (base, variant))
    cheaper, crossing = _meet(mine.fixed - theirs.fixed, mine.each - theirs.each, theirs.fixed + theirs.each)
    decided, low, high = _scatter((base, variant), (prompt, output), cheaper)
    span = probed_batches(base, variant)
    where = f"at every probed batch ({_range(span)})"
    reasons: dict[Direction, str] = {"always": f"the variant is cheaper {where}", "never": f"the base is cheaper {where}",
                                     "equal": f"both cost the same {where}"}
    outside = [*beyond(base, prompt=prompt, output=output), *beyond(variant, prompt=prompt, output=output)]
    outside += [f"batch {one:.4g}, where {_range(span)} were probed" for one in (crossing, batch)
                if one is not None and not span.holds(one)]
    return Crossover(cheaper=cheaper, batch=crossing, reason=reasons.get(cheaper), extrapolated=tuple(dict.fromkeys(outside)),
                     decided=decided, low=low, high=high, probed=span if span.low <= span.high else None)


def _unknown(reason: str) -> Crossover:
    return Crossover(cheaper=None, batch=None, reason=reason, extrapolated=(), decided=None, low=None, high=None)


def _meet(fixed: float, each: float, scale: float) -> tuple[Direction, float | None]:
    """Say where `fixed` + B x `each` (variant less base) is below zero, over batches from 1 up."""
    # Differences of equal sums are rounding, not cost.
    small = 1e-12 * scale
    fixed, each = (0.0 if abs(value) <= small else value for value in (fixed, each))
    if fixed == each == 0:
        return "equal", None
    batch = -fixed / each if fixed * each < 0 else None
    if batch is None or not 1 <= batch <= LARGEST:
        # Without a crossing in reach, batch 1 or any other says it for all; on batch 1 itself both may be equal.
        reached = fixed + each if batch is None or batch > LARGEST else each
        return ("always" if reached < 0 else "never"), None
    return ("below" if each > 0 else "above"), batch


def _scatter(
    models: tuple[Fit, Fit], request: tuple[int, int], said: Direction
) -> tuple[bool | None, float | None, float | None]:
    """Draw both models again within the scatter of their own probes; the same draws each time.

    The scatter is known from few probes itself, so each draw has a scale of its own, as Student's t has.
    """
    generator = np.random.default_rng(SEED)
    # The base is drawn first, and many variants have the same.
    first, generator.bit_generator.state = _first_draws(models[0], request)
    drawn = [first, _draws(models[1], request, generator)]
    if drawn[0] is None or drawn[1] is None:
        return None, None, None
    scale = line(models[0], prompt=request[0], output=request[1])
    directions, batches = _meet_all(drawn[1] - drawn[0], scale.fixed + scale.each)
    same = directions == said
    if same.sum() < AGREE * DRAWS:
        return False, None, None
    crossings = batches[same & np.isfinite(batches)]
    if not len(crossings):
        return True, None, None
    low, high = np.percentile(crossings, [2.5, 97.5])
    return True, float(low), float(high)


@lru_cache(maxsize=64)
def _first_draws(model: Fit, request: tuple[int, int]) -> tuple[Floats | None, Any]:
    """Return the draws of a model that is drawn first, and the state of the generator after them."""
    generator = np.random.default_rng(SEED)
    return _draws(model, request, generator), generator.bit_generator.state


def _meet_all(lines: Floats, scale: float) -> tuple[npt.NDArray[np.str_], Floats]:
    """Say of many lines, shape [draws, 2], what `_meet` says of one; NaN where there is no batch."""
    fixed, each = (np.where(np.abs(side) <= 1e-12 * scale, 0.0, side) for side in lines.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        batches = np.where(fixed * each < 0, -fixed / each, np.nan)
    far = np.isnan(batches) | (batches > LARGEST)
    crossing = (batches >= 1) & (batches <= LARGEST)
    reached = np.where(far, fixed + each, each)
    directions = np.where(crossing, np.where(each > 0, "below", "above"), np.where(reached < 0, "always", "never"))
    directions = np.where((fixed == 0) & (each == 0), "equal", directions)
    return directions, np.where(crossing, batches, np.nan)


def _draws(model: Fit, request: tuple[int, int], generator: np.random.Generator) -> Floats | None:
    """Return `fixed` and `each` of a model under other draws of its residuals, shape [draws, 2]."""
    kinds: tuple[Kind, Kind] = ("prefill", "decode")
    points = {kind: [one for one in model.residuals if one.kind == kind] for kind in kinds}
    # A term at zero stays there: the draws are those of ordinary least squares over the others.
    held = {kind: [term for term in model.terms if term.value > 0 and (term.name[0] == "a") == (kind == "prefill")]
            for kind in kinds}
    spare = {kind: len(points[kind]) - len(held[kind]) for kind in kinds}
    free = sum(spare.values())
    if min(spare.values()) < 1 or free < LEAST_FREE:
        return None
    # Residuals are relative and of one sensor, so both kinds tell of one spread.
    spread = math.sqrt(math.fsum(one.relative**2 for one in model.residuals) / free)
    scales = spread * np.sqrt(free / generator.chisquare(free, DRAWS))
    coefficients: dict[str, Floats] = {}
    for kind in kinds:
        coefficients |= _coefficients(points[kind], held[kind], scales, generator)
    none = np.zeros(DRAWS)
    a0, a1, a2, d0, d1, d2 = (coefficients.get(name, none) for name in ("a0", "a1", "a2", "d0", "d1", "d2"))
    prompt, steps, context = request[0], max(request[1] - 1, 0), request[0] + request[1] / 2
    return np.column_stack([a0 + steps * d0, a1 * prompt + a2 * prompt**2 + steps * (d1 + d2 * context)])


def _coefficients(
    points: Sequence[Residual], held: Sequence[Term], scales: Floats, generator: np.random.Generator
) -> dict[str, Floats]:
    """Return draws of the terms of one kind; `scales` has one standard deviation a draw."""
    weighted = matrix(points, [term.name for term in held]) / np.array([[one.measured] for one in points])
    scale = np.linalg.norm(weighted, axis=0)
    noise = generator.normal(0.0, 1.0, (len(points), DRAWS)) * scales
    moved = (np.linalg.pinv(weighted / scale) @ noise) / scale[:, None]
    return {term.name: np.maximum(term.value + row, 0.0) for term, row in zip(held, moved, strict=True)}
