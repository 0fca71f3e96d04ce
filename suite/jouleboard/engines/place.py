"""The place of one of several workers that compute a variant together, and how it joins them. Nothing is started here.

Example: rank 1 of 2 on GPUs computes on `cuda:1` over nccl, with `RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jouleboard.declared import Noun
from jouleboard.errors import UnitError

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What carries collective operations, by kind of device."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""All ranks are on one machine; gloo's own choice, the interface of the host's name, may not exist or lead elsewhere."""
MARK = ".ranks-"
INTERFACE = "GLOO_SOCKET_IFNAME"


class RankPlace(Noun, frozen=True, kw_only=True):
    """The place of one rank."""

    rank: int
    """From 0; the one of rank 0 decides what all do, and writes the files."""
    world: int
    """How many they are, at least 2."""
    rendezvous: str
    """File through which they find each other; a new one for each group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one rank joins its group."""

    backend: str
    environment: dict[str, str]
    """What is set in its process before torch looks for devices."""


def rank_device(device: str, rank: int) -> str:
    """Return the device of a rank, given that of rank 0: `cuda:0` becomes `cuda:1`; all ranks share a `cpu`."""
    kind, colon, index = device.partition(":")
    return f"{kind}:{int(index) + rank}" if colon else device


def launch(place: RankPlace, device: str, inherited: Mapping[str, str]) -> Launch:
    """Say how a rank joins its group.

    `CUDA_VISIBLE_DEVICES` stays as it is where GPUs compute: so they reach each other directly, and torch numbers them as the
    meter does.

    Args:
        place: the rank's place.
        device: its device, as torch names it: `cpu`, or `cuda:1` for rank 1.
        inherited: the process's environment.

    Raises:
        UnitError: such devices cannot compute together.
    """
    kind = device.partition(":")[0]
    if kind not in BACKENDS:
        raise UnitError(f"several {kind} devices cannot compute one variant", field="count", kind="unsupported",
                        remedy="declare a profile of one device")
    # transformers takes its device by LOCAL_RANK, also in a group that is there already.
    found = {"RANK": str(place.rank), "LOCAL_RANK": str(place.rank), "WORLD_SIZE": str(place.world),
             "LOCAL_WORLD_SIZE": str(place.world)}
    if kind == "cpu":
        # transformers would take a GPU wherever there is one.
        found["CUDA_VISIBLE_DEVICES"] = ""
    if sys.platform in LOOPBACK and INTERFACE not in inherited:
        found[INTERFACE] = LOOPBACK[sys.platform]
    return Launch(backend=BACKENDS[kind], environment=found)


def logs(log: Path, count: int) -> list[Path]:
    """Name a log for each rank: that of rank 0 is the variant's own."""
    return [log if not rank else log.with_name(f"{log.stem}.rank{rank}{log.suffix}") for rank in range(count)]


def rendezvous(folder: Path) -> Path:
    """Name a new file through which ranks find each other; files of runs that were killed are removed.

    Args:
        folder: of one run, which holds its lock: whatever another process left there is nobody's.
    """
    for left in folder.glob(f"{MARK}*"):
        if left.name.split("-")[1] != str(os.getpid()):
            with contextlib.suppress(OSError):
                left.unlink()
    return folder / f"{MARK}{os.getpid()}-{secrets.token_hex(8)}"
