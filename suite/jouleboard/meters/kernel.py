"""What the kernel's own files say of a machine, without any driver library.

Example::

    board()        "Raspberry Pi 5 Model B Rev 1.0"
    gpu_traces()   GpuTraces(nvidia_cards=1, nvidia_driver=False, ...): a card without its driver
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_NVIDIA_VENDOR = "0x10de"
_AMD_VENDOR = "0x1002"
_DISPLAY_CLASS = "0x03"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTraces:
    """Signs of GPUs that need no driver library: they tell a missing driver from a missing GPU."""

    nvidia_cards: int
    amd_cards: int
    nvidia_driver: bool
    """The kernel module is loaded; inside a container it is the host's."""
    nvidia_nodes: bool
    """This process can see the module's device files."""
    container: bool


def text(path: Path) -> str | None:
    """Read a short file; None where it is missing, empty, or not for this user."""
    try:
        # Strings of the device tree end in a zero byte.
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip() or None
    except OSError:
        return None


def cpuinfo(*keys: str, root: Path = ROOT) -> str | None:
    """Return the value of the first line of /proc/cpuinfo that begins with one of the keys, in lower case."""
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        if line.lower().startswith(keys) and ":" in line:
            return line.split(":", 1)[1].strip()
    return None


def board(root: Path = ROOT) -> str | None:
    """Return the board's name as the device tree or, on older Raspberry Pi kernels, /proc/cpuinfo gives it."""
    # x86 kernels have a line `model`, in small letters, with a number.
    line = re.search(r"^Model\s*:\s*(\S.*)$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return text(root / "proc/device-tree/model") or (line[1].strip() if line else None)


def short_digest(name: str) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a name that is not to be published."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def boot_digest(root: Path = ROOT) -> str | None:
    """Return the short digest of the kernel's boot id; None where the kernel has none to show."""
    boot_id = text(root / "proc/sys/kernel/random/boot_id")
    return None if boot_id is None else short_digest(boot_id)


def jetson(root: Path = ROOT) -> bool:
    """Tell whether this is an NVIDIA Jetson."""
    return "nvidia,tegra" in (text(root / "proc/device-tree/compatible") or "")


def virtual(root: Path = ROOT) -> bool:
    """Tell whether the kernel knows that it runs in a virtual machine."""
    return " hypervisor" in (cpuinfo("flags", root=root) or "") or (root / "sys/hypervisor/type").exists()


def gpu_traces(root: Path = ROOT) -> GpuTraces:
    """Look for signs of GPUs and of their driver below a root folder."""
    cards = [text(card / "vendor") for card in sorted((root / "sys/bus/pci/devices").glob("*"))
             if (text(card / "class") or "").startswith(_DISPLAY_CLASS)]
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return GpuTraces(
        nvidia_cards=cards.count(_NVIDIA_VENDOR), amd_cards=cards.count(_AMD_VENDOR),
        nvidia_driver=(root / "proc/driver/nvidia/version").exists() or (root / "sys/module/nvidia").exists(),
        nvidia_nodes=(root / "dev/nvidiactl").exists() or (root / "dev/dxg").exists(),
        container=any(mark.exists() for mark in marks) or "container" in os.environ,
    )
