"""From items to scores by lm-eval's own rules, and from scores to intervals. Pure functions, no I/O.

`acc` picks the choice with the largest log-likelihood, `acc_norm` the largest per character, `bits_per_byte` divides the
summed log-likelihood by the summed bytes; ties go to the first choice, as in lm-eval (`numpy.argmax`). `mc2` is the share of
probability on the right choices. `exact_match` compares what was extracted with the right answers, both as they are after
lm-eval's normalisation. BLEU and chrF are of the whole corpus (see `textscores`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

from jouleboard import ownmetrics, textscores
from jouleboard.declared import Model
from jouleboard.declared_tasks import Metric
from jouleboard.records import Chance, Item, Score

LOWER_IS_BETTER: frozenset[Metric] = frozenset({"bits_per_byte", "likelihood_diff", "pct_stereotype", "toxic"})
SHARES: frozenset[Metric] = frozenset({
    "acc", "acc_norm", "pct_stereotype", "exact_match", "pass@1", "refused", "toxic", "contains",
    "prompt_level_strict_acc", "prompt_level_loose_acc", "end_state",
})
"""Metrics whose items are right or wrong, so that a score is a share of trials. An item of `contains` with several targets can be right
in part: its variance is smaller than that of a trial, so the interval is too wide there, never too narrow."""
BY_INSTRUCTION: frozenset[Metric] = frozenset({"inst_level_strict_acc", "inst_level_loose_acc"})
"""Shares of instructions, of which an item has several: one for each of its `targets`."""
ACCURACIES: frozenset[Metric] = frozenset({
    "acc", "acc_norm", "mc2", "exact_match", "f1", "pass@1", "contains", "prompt_level_strict_acc", "prompt_level_loose_acc",
    "inst_level_strict_acc", "inst_level_loose_acc", "end_state",
})
"""Metrics that say how much of what was asked was answered right, from 0 to 1: those that a macro quality averages."""
WILSON_BELOW = 300
Z95 = NormalDist().inv_cdf(0.975)
BASE_GRID = "base-grid"


def rescore(item: Item) -> dict[Metric, float]:
    """Compute an item's accuracies or bits per byte from its log-likelihoods.

    Raises:
        ValueError: a perplexity item has no bytes.
    """
    if not _choices(item):
        if not item.text_bytes:
            raise ValueError("a perplexity item without bytes has no score")
        return {"bits_per_byte": -item.loglikelihoods[0] / (item.text_bytes * math.log(2))}
    right = set(item.correct) if item.gold is None else {item.gold}
    per_char = [value / chars for value, chars in zip(item.loglikelihoods, item.choice_chars, strict=True)]
    return {"acc": float(_argmax(item.loglikelihoods) in right), "acc_norm": float(_argmax(per_char) in right)}


def recompute(item: Item, metric: Metric) -> float | None:
    """Compute one of an item's scores from its other fields; None where it does not follow from them.

    Raises:
        ValueError: a perplexity item has no bytes.
    """
    if metric in {"acc", "acc_norm", "bits_per_byte"}:
        return rescore(item).get(metric) if item.loglikelihoods else None
    if metric == "mc2" and item.correct:
        # Shifted by the largest, which changes no share, so that unlikely texts do not vanish all.
        most = max(item.loglikelihoods)
        shares = [math.exp(value - most) for value in item.loglikelihoods]
        return math.fsum(shares[place] for place in item.correct) / math.fsum(shares)
    if metric in {"likelihood_diff", "pct_stereotype"} and len(item.loglikelihoods) == 2:  # noqa: PLR2004 - a pair of sentences
        first, second = item.loglikelihoods
        return abs(first - second) if metric == "likelihood_diff" else float(first > second)
    if item.extracted is None or not item.targets:
        return None
    if metric in {"exact_match", "end_state"}:
        return float(item.extracted in item.targets)
    if "exact_match" in item.scores:
        # The texts were normalised for it: others do not follow from them.
        return None
    if metric in {"contains", "refused"}:
        return ownmetrics.METRICS[metric](item.extracted, item.targets)
    if metric in textscores.CORPUS and textscores.can_score():
        return textscores.sentence(metric, item.extracted, item.targets)
    return None


def _choices(item: Item) -> bool:
    return item.gold is not None or bool(item.correct)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], -index))


def aggregate(items: Sequence[Item], metric: Metric) -> Score:
    """Average a metric over items.

    For means SE^2 = sum (x_i - p)^2 / (n (n - 1)) (Miller 2024). Bits per byte and shares of instructions are ratios of sums, so
    their standard error is that of a ratio estimator: the residuals l_i - r b_i over the mean of b (Cochran 1977, 6.4). Where
    items belong to clusters, SE^2 = sum over clusters of (sum of residuals)^2 / n^2 (Miller 2024, 2.2). BLEU and chrF are those
    of the corpus where the texts are there, and their standard error is that of the mean of the sentences' values.
    """
    n = len(items)
    above, below = _ratio(items, metric)
    value = math.fsum(above) / sum(below)
    residuals = [a - value * b for a, b in zip(above, below, strict=True)]
    sums: dict[str, float] = {}
    for item, residual in zip(items, residuals, strict=True):
        key = item.cluster or f"item {item.item}"
        sums[key] = sums.get(key, 0.0) + residual
    spread = math.fsum(residual**2 for residual in sums.values())
    clustered = any(item.cluster is not None for item in items)
    stderr = math.sqrt(spread / (n * n if clustered else n * max(n - 1, 1))) / (sum(below) / n)
    if metric in textscores.CORPUS and is_exact(items, metric):
        value = textscores.corpus(metric, items)
    return Score(value=value, stderr=stderr, n=n, clusters=len(sums) if clustered else None)


def is_exact(items: Sequence[Item], metric: Metric) -> bool:
    """Whether `aggregate` gives the very value of a metric: for BLEU and chrF the texts must be there, and what scores them."""
    if metric not in textscores.CORPUS:
        return True
    return textscores.known(items) and not any("exact_match" in item.scores for item in items)


def _ratio(items: Sequence[Item], metric: Metric) -> tuple[list[float], list[int]]:
    if metric == "bits_per_byte":
        return [-item.loglikelihoods[0] / math.log(2) for item in items], [item.text_bytes or 0 for item in items]
    if metric in BY_INSTRUCTION:
        sizes = [max(1, len(item.targets)) for item in items]
        return [item.scores[metric] * size for item, size in zip(items, sizes, strict=True)], sizes
    return [item.scores[metric] for item in items], [1] * len(items)


def interval(score: Score, metric: Metric) -> tuple[float, float]:
    """Return the 95 % interval: for shares of fewer than 300 items Wilson's, the normal one otherwise.

    Items in clusters count as many independent ones as give the same standard error (Kish 1965, 8.2), never more than they are.
    """
    if metric not in SHARES or score.n >= WILSON_BELOW:
        return score.value - Z95 * score.stderr, score.value + Z95 * score.stderr
    if score.clusters is None:
        return wilson(score.value, score.n)
    alike = score.value * (1 - score.value) / score.stderr**2 if score.stderr else score.clusters
    return wilson(score.value, min(alike, score.n))


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of n independent trials (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def choice_chance(golds: Sequence[int], widths: Sequence[int]) -> Chance:
    """Chance level of a choice task: the larger of the mean of 1/k and the share of the best constant answer.

    Args:
        golds: index of the right choice of every document.
        widths: number of choices of every document.
    """
    return _larger([(gold,) for gold in golds], widths, "mean of 1/k")


def chosen_chance(correct: Sequence[Sequence[int]], widths: Sequence[int]) -> Chance:
    """Chance level where several choices are right: the larger of the mean share of right choices and the best constant answer.

    Args:
        correct: indices of the right choices of every document.
        widths: number of choices of every document.
    """
    return _larger(correct, widths, "mean share of right choices")


def _larger(correct: Sequence[Sequence[int]], widths: Sequence[int], guessing: str) -> Chance:
    guess = math.fsum(len(right) / width for right, width in zip(correct, widths, strict=True)) / len(widths)
    constant = Counter(place for right in correct for place in right).most_common(1)[0][1] / len(correct)
    # Where the right choice always stands first (TruthfulQA), its place is how the data are written, which no model sees.
    if guess < constant < 1:
        return Chance(value=constant, source="best constant answer")
    return Chance(value=guess, source=guessing)


def byte_entropy(texts: Sequence[str]) -> Chance:
    """Chance level of bits per byte: the entropy of single bytes, what a model that knows only letter counts needs."""
    counts = Counter(byte for text in texts for byte in text.encode())
    total = sum(counts.values())
    bits = -math.fsum(count / total * math.log2(count / total) for count in counts.values())
    return Chance(value=bits, source="order-0 entropy of the bytes")


def clears_chance(score: Score, chance: Chance, metric: Metric) -> bool:
    """Whether the 95 % bound on the worse side is better than chance."""
    low, high = interval(score, metric)
    return high < chance.value if metric in LOWER_IS_BETTER else low > chance.value


def chance_corrected(score: Score, chance: Chance, metric: Metric) -> tuple[float, float]:
    """Return (p - c)/(1 - c) and its standard error; for bits per byte (c - b)/c, so that 1 is perfect and 0 is chance.

    Never clipped: below chance is negative.
    """
    if metric in LOWER_IS_BETTER:
        return (chance.value - score.value) / chance.value, score.stderr / chance.value
    return (score.value - chance.value) / (1 - chance.value), score.stderr / (1 - chance.value)


def withheld_reason(model: Model, weight_bits: int | None) -> str | None:
    """Return `base-grid` where the recipe quantises to a grid no finer than one the base's weights already lie on.

    Args:
        model: the base.
        weight_bits: bits a weight of the recipe's quantiser, None where it does not quantise.
    """
    prior = model.prior_quantisation
    return base_grid(None if prior is None else prior.bits, weight_bits)


def base_grid(prior_bits: int | None, weight_bits: int | None) -> str | None:
    """Return `base-grid` where a quantiser of `weight_bits` is no finer than a grid of `prior_bits`."""
    if prior_bits is None or weight_bits is None or weight_bits > prior_bits:
        return None
    return BASE_GRID
