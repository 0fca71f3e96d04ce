"""The command line of `run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from jouleboard import cli_cluster, cli_values

ALLOW_CODE = (
    "run programs that the model writes (HumanEval). Each runs in a process of its own with no network, no writing outside a "
    "temporary folder, no other processes, and limits of memory and time, as far as this machine can enforce them; what is missing "
    "for that stops the task. This is no virtual machine: it does not guard against errors in the kernel, such a program may read "
    "what you may read, and one that is written to deceive its own tests can claim to pass. Not on a machine that holds secrets"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `run`."""
    run = commands.add_parser(
        "run", help="evaluate a model's variants and measure what they cost",
        description="Run a plan: fetch the model and the items, build the variants, score every item, measure energy "
        "trials and probes, write one entry a variant. What is finished is kept: run the same command again to go on.",
    )
    run.add_argument("plan", nargs="?", metavar="PLAN", help="a plan's id, a YAML file, or a bundle's folder (default: quick)")
    run.add_argument("--model", metavar="MODEL",
                     help="run this model instead of the plan's: a declared id, a folder with safetensors, or OWNER/NAME@COMMIT")
    run.add_argument("--recipe", nargs="+", metavar="ID", help="run these recipes; the base is always run with them")
    run.add_argument("--tasks", nargs="+", metavar="ID", help="run these tasks, all items unless --limit is given")
    run.add_argument("--limit", type=cli_values.positive, metavar="N", help="at most N items a task (a stratified sample)")
    run.add_argument("--engine", choices=["shared-prefix", "reference"],
                     help="how choices are scored: what prompts share computed once, or as lm-eval does it (default: the plan's)")
    run.add_argument("--allow-code", action="store_true", help=ALLOW_CODE)
    run.add_argument("--hardware", metavar="ID", help="a declared profile (default: the one that fits this machine)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<plan>)")
    run.add_argument("--dry-run", action="store_true", help="print what would be run and what time it needs, and stop")
    run.add_argument("--resume", action="store_true",
                     help="only go on with the run that is in the folder: an error where there is none. Without it a run goes "
                     "on too, or begins; another configuration in the folder is refused either way, with what differs")
    run.add_argument("--stop-after", type=cli_values.minutes, metavar="MINUTES",
                     help="stop in time, between two windows, with exit code 3; the same command goes on from there")
    run.add_argument("--patience", type=cli_values.minutes, metavar="MINUTES",
                     help="a variant's process that says nothing for so long hangs, and fails (default: 15)")
    run.add_argument("--worker-memory", type=cli_values.gigabytes, metavar="GB",
                     help="each variant's process may allocate so much beside its libraries (default: no limit)")
    run.add_argument("--resident", choices=["auto", "all", "pair"], default="auto",
                     help="what is in memory: all variants, or the base and one at a time, which takes longer (default: as memory allows)")
    run.add_argument("--manifest-sha256", metavar="HEX", help="refuse a bundle whose manifest has another digest")
    cli_cluster.add_run_options(run)
    run.set_defaults(function=_run)


def add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `reproduce`."""
    again = commands.add_parser(
        "reproduce", help="run the plan of a published entry again here, and compare",
        description="Run the base and the variant of a published entry again by its own plan, and say whether the intervals of quality, and of "
        "the cost over the base's, overlap. The new entry names the one that it reproduces; published by another account (`jouleboard submit`) "
        "it raises that one's level of trust. Exit code 0: every interval overlaps; 1: some are apart; 3: stopped by --stop-after.")
    again.add_argument("entry", type=Path, metavar="ENTRY", help="the folder of a published entry")
    again.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/reproduce-DIGEST)")
    again.add_argument("--hardware", metavar="ID", help="a declared profile (default: the one that fits this machine)")
    again.add_argument("--dry-run", action="store_true", help="print what would be run and what time it needs, and stop")
    again.add_argument("--stop-after", type=cli_values.minutes, metavar="MINUTES", help="as for `run`: the same command goes on from there")
    again.add_argument("--allow-code", action="store_true", help="as for `run`")
    again.set_defaults(function=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from jouleboard import reproduce  # noqa: PLC0415 - likewise

    return reproduce.run(reproduce.Wishes(entry=args.entry, out=args.out, hardware=args.hardware, dry_run=args.dry_run,
                                          stop_after_min=args.stop_after, allow_code=args.allow_code))


def _run(args: argparse.Namespace) -> int:
    from jouleboard import commands  # noqa: PLC0415 - keeps --help instant

    return commands.run(commands.RunOptions(
        plan=args.plan, model=args.model, recipes=tuple(args.recipe or ()), tasks=tuple(args.tasks or ()),
        limit=args.limit, engine=args.engine, hardware=args.hardware, out=args.out, dry_run=args.dry_run, allow_code=args.allow_code, resident=args.resident,
        stop_after_min=args.stop_after, manifest_sha256=args.manifest_sha256, resume=args.resume, patience_min=args.patience, worker_memory_gb=args.worker_memory,
        executor=args.executor, parallel=args.parallel, site=args.site, wait=not args.no_wait,
    ))
