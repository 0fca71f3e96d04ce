"""What a site wants to be told with every job: partition, account, time, GPUs. One YAML file, closed schema.

Example: `suite/sites/example.yaml`, which `jouleboard run --help` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from jouleboard import catalogue
from jouleboard.declared import Id, Noun, Positive
from jouleboard.errors import DataFileError

DAY_MIN = 1440
Word = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,200}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z-]{1,39}\Z")]
OURS: Mapping[str, str] = {
    "array": "at_once", "job-name": "", "output": "", "error": "", "open-mode": "", "requeue": "", "signal": "signal_s",
    "exclusive": "", "chdir": "", "export": "", "wrap": "", "time": "time_min", "partition": "partition", "account": "account",
    "qos": "qos", "gres": "gres", "cpus-per-task": "cpus", "mem": "mem_gb", "constraint": "constraint", "nodes": "", "ntasks": "",
}
"""What we set ourselves, and the field of this file that sets it; none: nobody may."""


class Site(Noun, frozen=True, kw_only=True):
    """Options of every job at one site."""

    hardware: Id | None = None
    """The profile of its compute nodes; `--hardware` comes before it."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    gres: Word | None = None
    """Devices of one family, as `gpu:h100:1`."""
    constraint: Word | None = None
    """Features of the node; where a run is cut into several jobs, all must get the same kind of node."""
    cpus: Positive | None = None
    """Processor cores of one family."""
    mem_gb: Positive | None = None
    time_min: Positive = DAY_MIN
    """Time limit of a job in minutes; at the limit it is requeued and goes on."""
    signal_s: Annotated[int, msgspec.Meta(ge=30, le=3600)] = 120
    """How long before the limit a job is told, to end its workers and to be requeued, in seconds."""
    restarts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 20
    """How often a job may be requeued at its time limit."""
    at_once: Positive = 8
    """Families at the same time."""
    setup: tuple[Word, ...] = ()
    """Shell lines before the job: `module load cuda`."""
    additional: dict[Name, Word | bool] = {}  # noqa: RUF012 - frozen, and msgspec copies it
    """Further options of `sbatch` by their long names: `{mail-type: END}`."""


def read(path: Path) -> Site:
    """Read a site's file.

    Raises:
        DataFileError: naming file, field and remedy.
    """
    try:
        site = catalogue.read_yaml(path, Site)
    except DataFileError as error:
        fields = ", ".join(Site.__struct_fields__)
        raise DataFileError(error.problem, file=error.file, field=error.field,
                            remedy=f"the fields are {fields}; suite/sites/example.yaml has each with its meaning") from None
    for name in site.additional:
        if name in OURS:
            instead = f"use the field `{OURS[name]}`" if OURS[name] else "leave it out"
            raise DataFileError("is set by Jouleboard itself", file=path, field=f"additional.{name}", remedy=instead)
    if 60 * site.time_min <= 2 * site.signal_s:
        raise DataFileError(f"{site.time_min} minutes are over before a job is told of its end ({site.signal_s} s before)",
                            file=path, field="time_min", remedy="give more time, or a smaller signal_s")
    return site


def parameters(site: Site, *, name: str, exclusive: bool, threads: int) -> dict[str, object]:
    """Return a site's options as submitit's Slurm executor names them.

    Args:
        site: the options.
        name: of the jobs.
        exclusive: let no other job on the node: energy is measured on something that all processes share.
        threads: cores where the site does not say.
    """
    cores = site.cpus or threads
    given = {"partition": site.partition, "account": site.account, "qos": site.qos, "gres": site.gres, "constraint": site.constraint,
             "mem": None if site.mem_gb is None else f"{site.mem_gb}G", "setup": list(site.setup) or None,
             "exclusive": True if exclusive else None}
    return {
        "job_name": name, "time": site.time_min, "signal_delay_s": site.signal_s, "array_parallelism": site.at_once,
        # Since Slurm 22.05 a step no longer inherits the cores of its job.
        "cpus_per_task": cores, "ntasks_per_node": 1,
        # On a node of its own a step without a number would be started once for every core.
        "srun_args": ["--ntasks=1", f"--cpus-per-task={cores}"],
        "additional_parameters": {"requeue": True, **site.additional},
        **{key: value for key, value in given.items() if value is not None},
    }
