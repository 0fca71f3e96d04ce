"""Whether quality is withheld where it must be: a quantiser no finer than the grid that the base's weights lie on.

Example: a base published as `Q4_1` (4 bits) and a step `bitsandbytes-nf4` (4 bits): every quality is withheld.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from jouleboard import catalogue, paths, scores
from jouleboard.declared import Model, PriorQuantisation
from jouleboard.errors import DataFileError
from jouleboard.problems import Make, Problem
from jouleboard.recipes import TECHNIQUES
from jouleboard.records import Report

_AGAIN = "measure again"


def check_grid(report: Report, at: Make) -> Iterator[Problem]:
    """Hold every task's `withheld` against the steps that were built and the base's published weights."""
    if not report.tasks:
        return
    if report.build is None:
        if report.status != "failed":
            yield at("build", "withheld", "missing, so nothing says how coarse the weights are", _AGAIN)
        return
    bits: list[int] = []
    for index, step in enumerate(report.build.steps):
        try:
            found = step_bits(step)
        except ValueError as error:
            yield at(f"build.steps[{index}]", "withheld", str(error), _AGAIN)
            return
        bits += [] if found is None else [found]
    declared = _declared(report)
    if declared is not None and report.prior_quantisation != _scheme(declared.prior_quantisation):
        yield at("prior_quantisation", "withheld", f"{report.prior_quantisation!r}, weights of this digest are declared "
                 f"as {_scheme(declared.prior_quantisation)!r}", _AGAIN)
        return
    prior = _prior_bits(report, declared)
    if prior is None and report.prior_quantisation is not None:
        yield at("prior_quantisation", "withheld", f"{report.prior_quantisation!r} names no number of bits", _AGAIN)
        return
    wanted = scores.base_grid(prior, min(bits, default=None))
    for index, result in enumerate(report.tasks):
        if (result.withheld == scores.BASE_GRID) != (wanted is not None):
            yield at(f"tasks[{index}].withheld", "withheld",
                     f"{result.withheld!r} with steps of {min(bits, default=None)} bits on a base of {prior} bits", _AGAIN)


def check_engine(report: Report, at: Make) -> Iterator[Problem]:
    """Make sure that an entry which stands on another engine's boards brought its own engine by a step."""
    names = [] if report.build is None else [step.get("step") for step in report.build.steps]
    brought = any(TECHNIQUES[name].about.exports for name in names if isinstance(name, str) and name in TECHNIQUES)
    if brought != (report.engine.beside is not None):
        yield at("engine.beside", "engine", f"{report.engine.beside!r}, and {'a' if brought else 'no'} step hands the model to another engine",
                 _AGAIN)


def step_bits(step: Mapping[str, Any]) -> int | None:
    """Return the bits a weight of one recorded step, None where it does not quantise.

    Raises:
        ValueError: it is no step of any known technique, or says other bits than its fields.
    """
    name = step.get("step")
    if not isinstance(name, str) or name not in TECHNIQUES:
        raise ValueError(f"there is no technique {name!r}")
    technique = TECHNIQUES[name]
    # What is not a field of the step was found out while it was applied.
    fields = {key: value for key, value in step.items() if key in {*technique.__struct_fields__, "step"}}
    try:
        bits = msgspec.convert(fields, technique).weight_bits
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None
    if step.get("weight_bits", bits) != bits:
        raise ValueError(f"{name}: weight_bits is {step['weight_bits']}, its fields say {bits}")
    return bits


def _declared(report: Report) -> Model | None:
    """Return the declared model with the very weights of a report, if this installation has it."""
    path = paths.data_folder("models") / f"{report.model}.yaml"
    try:
        model = catalogue.read_yaml(path, Model) if path.is_file() else None
    except DataFileError:
        # `check_all` says what is wrong with it.
        return None
    return model if model is not None and model.weights_sha256 is not None and (
        model.weights_sha256 == report.model_weights_sha256) else None


def _scheme(prior: PriorQuantisation | None) -> str | None:
    return None if prior is None else prior.scheme


def _prior_bits(report: Report, declared: Model | None) -> int | None:
    if declared is not None:
        return None if declared.prior_quantisation is None else declared.prior_quantisation.bits
    digits = re.search(r"[0-9]{1,3}", report.prior_quantisation or "")
    return None if digits is None else int(digits[0])
