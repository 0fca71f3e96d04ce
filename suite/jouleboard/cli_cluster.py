"""The command line of runs as jobs: the options of `run` that say where families run, and `status`."""

from __future__ import annotations

import argparse
from pathlib import Path

SITE_HELP = """\
families as jobs (one family is one model with all its variants, on one device):
  jouleboard run PLAN --executor local                      each family in a process of its own, one after another
  jouleboard run PLAN --executor local --parallel 2         two at once: only where each has a GPU of its own that is measured
  jouleboard run PLAN --executor slurm --site mysite.yaml   an array of Slurm jobs; Ctrl-C leaves them running
  jouleboard status runs/PLAN --watch                       how it goes, from any machine that sees the folder

a site file (all fields may be left out; suite/sites/example.yaml has each with its meaning):
  hardware: nvidia-h100-sxm-80gb      # the profile of the compute nodes
  partition: gpu
  account: my-project
  gres: "gpu:h100:1"                  # devices of one family
  constraint: sapphirerapids          # a run that is requeued must get the same kind of node
  cpus: 8
  mem_gb: 64
  time_min: 720                       # at the limit a job is requeued, and goes on
  at_once: 4                          # families at the same time
  setup: ["module load cuda"]
  additional: {mail-type: END}        # any other option of sbatch
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where families run."""
    parser.epilog = SITE_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--executor", choices=["local", "slurm"],
                        help="run each family as a job, here or on a Slurm cluster (default: in this process)")
    parser.add_argument("--parallel", type=_count, metavar="N", default=1,
                        help="with `--executor local`: so many families at once, where their energy can be told apart (default: 1)")
    parser.add_argument("--site", type=Path, metavar="FILE", help="with `--executor slurm`: the site's options, a YAML file (see below)")
    parser.add_argument("--no-wait", action="store_true", help="with `--executor slurm`: hand the jobs in and return")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `status`."""
    status = commands.add_parser(
        "status", help="what a run's folder holds, and how its run goes",
        description="Say of each family and variant of a run whether it waits, is at work (what, how far, how long still), is complete "
        "or has failed, and of jobs where they are. Reads plain files, and asks Slurm where there are jobs of it. Exit 0 when nothing is "
        "wrong, 1 when a variant failed or work was left undone, 2 when the folder holds no run.",
    )
    status.add_argument("folder", metavar="DIR", type=Path, help="a run's folder")
    status.add_argument("--json", action="store_true", help="print JSON, for programs")
    status.add_argument("--watch", action="store_true", help="show it anew every few seconds until the run has finished")
    status.set_defaults(function=_status)


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) < 4 else 0  # noqa: PLR2004 - nobody has a thousand devices
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of families from 1 to 999")
    return value


def _status(args: argparse.Namespace) -> int:
    from jouleboard import statusview  # noqa: PLC0415 - keeps --help instant

    return statusview.show(args.folder, as_json=args.json, watch=args.watch)
