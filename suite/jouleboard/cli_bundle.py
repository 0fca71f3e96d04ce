"""The commands for machines without a network: `bundle` and `collect`."""

from __future__ import annotations

import argparse
from pathlib import Path

MAX_PART_MB = 10**7

BUNDLE_ABOUT = """\
Gather everything that a plan needs into one folder, to be run on a machine without a network: dense weights, prepared items, the
declarations, and wheels of all Python packages. A manifest names every file with its SHA-256; its own digest is printed.

On the other machine `python3 start.py` checks every file, makes an environment from the wheels and runs the plan. Where Jouleboard
is installed there, `jouleboard run DIR` does the same without an environment of its own.

Interrupted, the same command goes on; what is there whole is kept.
"""
BUNDLE_EXAMPLES = """\
examples:
  jouleboard bundle quick --out bundle                  for a machine like this one
  jouleboard bundle quick --out bundle --python 3.12 --platform manylinux_2_28_aarch64 --part-size 4000
  jouleboard bundle gpu --out bundle --hardware nvidia-h100-sxm-80gb --exclude-wheels torch
  jouleboard bundle quick --out bundle --no-wheels      the other machine has jouleboard[run] already
"""
COLLECT_ABOUT = """\
Bring entries back from machines that ran bundles, or from several run folders:

  1. every entry below each DIR is checked as `jouleboard check` does; one with a problem is left out and named (exit code 1);
  2. each goes to RUNS/HARDWARE/MODEL/RECIPE/UTC-DIGEST/, whole or not at all; failed and unfinished entries come along;
  3. an entry that is there already is left alone, a newer state of it gets a place beside it, nothing is overwritten.

DIR is a bundle, a run folder, a folder with several of them, or an archive that --archive made on the other machine.
"""
COLLECT_EXAMPLES = """\
examples:
  jouleboard collect bundle --archive board-1.tar       on the machine that ran it: one file to carry
  jouleboard collect board-1.tar board-2.tar --out runs/boards
  jouleboard check runs/boards
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    _bundle(commands)
    collect = commands.add_parser("collect", help="bring entries back from bundles and run folders", description=COLLECT_ABOUT,
                                  epilog=COLLECT_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    collect.add_argument("where", nargs="+", metavar="DIR", type=Path, help="bundle, run folder, or archive")
    collect.add_argument("--out", metavar="RUNS", type=Path, help="folder that gets the entries")
    collect.add_argument("--archive", metavar="FILE", type=Path, help="write them into one tar file instead")
    collect.set_defaults(function=_run_collect)


def _bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bundle = commands.add_parser("bundle", help="gather all that a plan needs, for a machine without a network",
                                 description=BUNDLE_ABOUT, epilog=BUNDLE_EXAMPLES,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    bundle.add_argument("plan", nargs="?", metavar="PLAN", help="a plan's id or a YAML file (default: quick)")
    bundle.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the bundle: new, empty, or a bundle")
    bundle.add_argument("--model", metavar="MODEL", help="this model instead of the plan's, as for `jouleboard run`")
    bundle.add_argument("--recipe", nargs="+", metavar="ID", help="these recipes; the base always goes with them")
    bundle.add_argument("--tasks", nargs="+", metavar="ID", help="these tasks")
    bundle.add_argument("--limit", type=_whole, metavar="N", help="at most N items a task")
    # Not `hardware`: a profile of another machine is named here, and this one need not fit.
    bundle.add_argument("--hardware", metavar="ID", dest="profile",
                        help="profile of the other machine (default: all go along, and it is detected there)")
    bundle.add_argument("--python", metavar="X.Y", help="Python of the other machine (default: as here)")
    bundle.add_argument("--platform", metavar="TAG",
                        help="its platform, for example manylinux_2_28_aarch64 (default: as here); what packages need is asked "
                        "of this Python, so bundle for another system on a machine of the same kind")
    bundle.add_argument("--exclude-wheels", nargs="+", metavar="PACKAGE", default=[],
                        help="leave these out, with what only they need: the other machine brings them, for example torch")
    bundle.add_argument("--no-wheels", action="store_true", help="no wheels at all: the other machine has its own environment")
    bundle.add_argument("--part-size", metavar="MB", type=_whole, help="cut the bundle into parts of at most this many megabytes")
    bundle.set_defaults(function=_run_bundle)


def _whole(text: str) -> int:
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0  # noqa: PLR2004 - nobody has more
    if not 1 <= value <= MAX_PART_MB:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {MAX_PART_MB}")
    return value


def _run_bundle(args: argparse.Namespace) -> int:
    from jouleboard import bundle, bundlewheels, commands  # noqa: PLC0415 - keeps --help instant
    from jouleboard.errors import PlanError  # noqa: PLC0415

    if args.no_wheels and (args.python or args.platform or args.exclude_wheels):
        raise PlanError("does not go with --python, --platform or --exclude-wheels", field="--no-wheels", remedy="leave one out")
    wanted = None if args.no_wheels else bundlewheels.Wanted(
        python=args.python, platform=args.platform, excluded=tuple(args.exclude_wheels))
    return bundle.make(bundle.BundleOptions(
        run=commands.RunOptions(plan=args.plan, model=args.model, recipes=tuple(args.recipe or ()),
                                tasks=tuple(args.tasks or ()), limit=args.limit, hardware=args.profile, out=None, dry_run=False),
        out=args.out, wanted=wanted, part_bytes=None if args.part_size is None else args.part_size * 10**6,
    ))


def _run_collect(args: argparse.Namespace) -> int:
    from jouleboard import collect  # noqa: PLC0415

    return collect.collect(args.where, args.out, args.archive)
