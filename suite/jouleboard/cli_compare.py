"""The command line of `compare`."""

from __future__ import annotations

import argparse

from jouleboard import cli_values

ABOUT = """\
Hold one entry against another: answers, costs, and a verdict in one sentence.

A and B are each the folder of an entry, its report.json, a run folder that holds one entry, or RUN/RECIPE. Without B, A is held
against its own base, measured in the same session. Both must pass `jouleboard check`. Differences are A less B, ratios A over B, with
95 % intervals; only items pair that both were asked in the same words. `lost` are answers that B has right and A wrong, `gained` the
other way round; KL says how far the probabilities of A's choices are from B's, whether that changes the answer or not.

The verdict is the one of the boards: `dominates` (no more than 1 point of accuracy lost, and significantly cheaper; or no more than 2 %
dearer, and significantly better), `dominated`, a trade-off, or undecided, with how many items or trials would decide it. A variant
beside its base is judged in the family of all variants of that run (Holm). There is none across sessions or devices, on simulated
energy, where a gate fails, and where the base's weights were quantised as coarsely before (base-grid): then it says why. Where
no sensor gives energy, costs are CPU time and are called so.
"""
EXAMPLES = """\
examples:
  jouleboard compare runs/quick/int8-weight-only                          beside its base
  jouleboard compare runs/quick/int8-weight-only runs/quick/drop-6-layers
  jouleboard compare runs/quick/int8-weight-only --workload chat --batch 1
  jouleboard compare runs/quick/int8-weight-only --json                   everything: A is `variant`, B is `base`
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `compare`."""
    compare = commands.add_parser("compare", help="hold one entry against another: answers, costs, and the verdict in one sentence",
                                  description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    compare.add_argument("a", metavar="A", help="an entry: its folder, its report.json, or RUN/RECIPE")
    compare.add_argument("b", metavar="B", nargs="?", help="what it is held against (default: A's own base in the same run)")
    compare.add_argument("--json", action="store_true", help="print JSON, for programs")
    compare.add_argument("--workload", metavar="ID", help="only cells of this workload (replay, chat, agent, ...)")
    compare.add_argument("--batch", metavar="N", type=cli_values.positive, help="only cells of this batch size")
    compare.set_defaults(function=_compare)


def _compare(args: argparse.Namespace) -> int:
    from jouleboard import comparing  # noqa: PLC0415 - keeps --help instant

    return comparing.show(args.a, args.b, as_json=args.json, workload=args.workload, batch=args.batch)
