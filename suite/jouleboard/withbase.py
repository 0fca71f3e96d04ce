"""What became of the base's answers in a variant, for the rows of a board: kept, lost, gained, and how far the choices moved. Pure.

`contrasts` says the same of two entries with intervals and by task, from whole items; this is for thousands of rows, from arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from jouleboard.answers import Answers, Floats
from jouleboard.rows import WithBase


def with_base(tasks: Sequence[str], base: Mapping[str, Answers], variant: Mapping[str, Answers]) -> WithBase | None:
    """Hold a variant's answers against its base's, each task of the same weight.

    Args:
        tasks: those that count; both answered the same items of each.
        base: answers of the base, by task.
        variant: of the variant.

    Returns:
        None without a task.
    """
    if not tasks:
        return None
    pairs = [(base[task], variant[task]) for task in tasks]
    theirs, mine = (fmean(float(pair[side].scores.mean()) for pair in pairs) for side in (0, 1))
    whole = [pair for pair in pairs if all(np.isin(one.scores, (0.0, 1.0)).all() for one in pair)]
    moved = [_divergence(one.loglikelihoods, other.loglikelihoods) for one, other in pairs
             if one.loglikelihoods is not None and other.loglikelihoods is not None and one.loglikelihoods.shape[1] > 1]
    known = len(whole) == len(pairs)
    return WithBase(
        retention=mine / theirs if theirs > 0 else None,
        lost_share=fmean(float(((one.scores == 1) & (other.scores == 0)).mean()) for one, other in whole) if known else None,
        gained_share=fmean(float(((one.scores == 0) & (other.scores == 1)).mean()) for one, other in whole) if known else None,
        divergence_nats=fmean(moved) if moved else None)


def _divergence(base: np.ndarray, variant: np.ndarray) -> float:
    """Return the mean over items of KL(base || variant), of the softmax over the choices, shape [n, choices]; minus infinity is no choice."""
    p, q = _log_shares(base), _log_shares(variant)
    there = np.isfinite(p)
    apart = np.where(there, np.exp(p) * (np.where(there, p, 0.0) - np.where(there, q, 0.0)), 0.0)
    return float(np.maximum(apart.sum(axis=1), 0.0).mean())


def _log_shares(values: np.ndarray) -> Floats:
    found = values.astype(np.float64)
    found = found - found.max(axis=1, keepdims=True)
    return np.asarray(found - np.log(np.exp(found).sum(axis=1, keepdims=True)))
