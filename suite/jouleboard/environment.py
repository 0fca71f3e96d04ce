"""What a report says of machine and software: enough to disbelieve it, nothing that names a host or a user."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from jouleboard import __version__, paths, plan
from jouleboard.declared import Hardware
from jouleboard.hardware import device_names
from jouleboard.meters import detect
from jouleboard.records import Environment


def describe(hardware: Hardware, torch_cpu_capability: str | None) -> Environment:
    """Describe this machine and its software.

    Args:
        hardware: the profile in use; its devices are named.
        torch_cpu_capability: what a worker's torch says of the processor (`AVX512`).
    """
    commit, dirty = code_state(paths.checkout())
    return Environment(
        jouleboard=__version__, code_commit=commit, code_dirty=dirty, python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}", cpu_model=detect.cpu_model(),
        logical_cores=os.cpu_count() or 1, memory_bytes=detect.memory_bytes(), devices=device_names(hardware),
        packages=plan.versions(), torch_cpu_capability=torch_cpu_capability,
    )


def code_state(root: Path | None) -> tuple[str | None, bool | None]:
    """Return the checkout's commit and whether tracked files differ from it; None and None outside a checkout."""
    git = shutil.which("git")
    if root is None or git is None:
        return None, None
    # The checkout may belong to another user than the one who runs; nothing is written to it.
    base = [git, "-C", str(root), "-c", f"safe.directory={root}"]
    commit = subprocess.run([*base, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode != 0:
        return None, None
    status = subprocess.run([*base, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True,
                            check=False)
    return commit.stdout.strip(), bool(status.stdout.strip())
