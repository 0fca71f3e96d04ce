"""A table of the variants in run folders: `python tests/bench/recipes.py runs/recipes [MORE ...]`. Prints figures, judges none.

`jouleboard run recipes` makes such a folder. Bytes, perplexity a token on the book and tokens per second of prefill and decode are
ratios to the base of the same run (above 1: more bytes, more perplexity, faster); accuracies are in per cent with the primary metric's
interval; the bill is that of making the variant from the base's weights: seconds, CPU-seconds, joules (~: estimated), tokens through a
model. `base-grid`: quality is withheld, because the base's published weights lie on as coarse a grid already.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from jouleboard import costs, store
from jouleboard.records import Report

BOOK = "book_year2889"


def nats(folder: Path) -> float | None:
    """Return the mean negative log-likelihood a token on the book; None where it was not scored."""
    items = [item for item in store.read_items(folder) if item.task == BOOK]
    tokens = sum(item.output_tokens for item in items)
    return -math.fsum(item.loglikelihoods[0] for item in items) / tokens if tokens else None


def speeds(report: Report) -> dict[str, float]:
    """Return tokens per CPU-second of each probe."""
    return {f"{one.kind} {one.batch}": costs.probe_tokens(one) / one.window.cpu_s for one in report.probes if one.window.cpu_s}


def bill(report: Report) -> str:
    """Say what making the variant took."""
    build = report.build
    if build is None:
        return ""
    energy = build.energy
    joules = "" if energy is None else (f"{energy.measured_j:.0f} J" if energy.measured_j is not None else f"~{energy.estimate_j or 0:.0f} J")
    tokens = sum(int(step.get("bill", {}).get("tokens", 0)) for step in build.steps)
    return f"{build.duration_s:.0f} s, {build.cpu_s or 0:.0f} CPU-s, {joules}, {tokens} tokens"


def row(report: Report, folder: Path, base: Report, base_nats: float | None) -> str:
    """Return one line of the table."""
    name = f"{report.recipe:28}"
    if report.failure is not None or report.realised is None or base.realised is None:
        reason = "not built" if report.failure is None else f"{report.failure.code}: {report.failure.reason}"
        return f"{name} {reason}"
    withheld = any(result.withheld for result in report.tasks)
    found = None if withheld else nats(folder)
    perplexity = "base-grid" if withheld else "" if found is None or base_nats is None else f"{math.exp(found - base_nats):.3f}"
    accuracies = []
    for result in report.tasks:
        score = result.scores[result.primary_metric]
        if result.task != BOOK and score is not None:
            accuracies.append(f"{100 * score.value:5.1f}")
    mine, theirs = speeds(report), speeds(base)
    ratios = " ".join(f"{mine[key] / theirs[key]:6.2f}" if key in mine else "     -" for key in sorted(theirs))
    return (f"{name} {report.realised.weight_bytes / 1e6:5.0f} {report.realised.weight_bytes / base.realised.weight_bytes:5.2f} "
            f"{perplexity:>9} {' '.join(accuracies):20} {ratios}  {bill(report)}")


def apart(folder: Path, other: Path) -> str | None:
    """Say how far the log-likelihoods of choices, and of the book's passages a token, are from those of another entry, in nats."""
    theirs = {(item.task, item.item): item for item in store.read_items(other)}
    choices, passages = [], []
    for item in store.read_items(folder):
        one = theirs.get((item.task, item.item))
        if one is None or len(one.loglikelihoods) != len(item.loglikelihoods):
            continue
        found = [abs(mine - base) for mine, base in zip(item.loglikelihoods, one.loglikelihoods, strict=True)]
        if item.task == BOOK:
            passages.append(found[0] / max(item.output_tokens, 1))
        else:
            choices += found
    if not choices:
        return None
    book = f"; a token of the book {max(passages):.2g}" if passages else ""
    return f"{len(choices)} choices: median {statistics.median(choices):.2g}, largest {max(choices):.2g}{book}"


def main() -> None:
    """Print the table of each folder."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="+", type=Path)
    words.add_argument("--apart", metavar="RECIPE", help="how far every entry's log-likelihoods are from those of this one, in nats")
    given = words.parse_args()
    for run in given.runs:
        found = {path.parent: store.read_report(path) for path in store.find_reports(run)}
        bases = [(folder, report) for folder, report in found.items() if report.is_base and report.failure is None]
        for folder, base in bases:
            kinds = " ".join(f"{kind:>6}" for kind in sorted(speeds(base)))
            tasks = " ".join(result.task[:8] for result in base.tasks if result.task != BOOK)
            print(f"\n{run}: {base.model}, {base.hardware}, {base.engine.threads} thread(s)\n{'':28} {'MB':>5} {'x':>5} {'ppl x':>9} {tasks:20} {kinds}  bill")
            for other, report in sorted(found.items(), key=lambda one: (not one[1].is_base, one[1].recipe)):
                if report.model == base.model:
                    print(row(report, other, base, nats(folder)))
        reference = next((folder for folder, report in found.items() if report.recipe == given.apart), None)
        for other, report in sorted(found.items(), key=lambda one: one[1].recipe) if reference else ():
            if other != reference and (said := apart(other, reference)):
                print(f"{report.recipe:28} from {given.apart}: {said}")


if __name__ == "__main__":
    main()
