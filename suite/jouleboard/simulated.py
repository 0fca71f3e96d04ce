"""The simulated GPU as a machine that one can run on: `--hardware simulated-gpu`. Everything it gives says SIMULATED.

pynvml and Zeus must find the simulated library when a process starts, so the command starts itself once more with an
environment in which they do. The library and its GPUs live in the checkout's `tests/simulated_gpu`; this module only
starts that and says when the machine works, so that its power follows the load.

    simulated.enter("simulated-gpu", arguments=None)      # returns in the second process
    with simulated.load().busy():                         # around whatever a worker computes
        ...
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jouleboard import paths
from jouleboard.errors import HardwareError

PROFILE = "simulated-gpu"
VARIABLE = "JOULEBOARD_SIMULATED_GPU"
"""Names the control file of the simulated machine that a process runs on."""


def enter(hardware: str | None, *, arguments: Sequence[str] | None) -> None:
    """Make sure that this process sees the simulated GPU, where that is the hardware that was asked for.

    Args:
        hardware: a profile's id; any other than `simulated-gpu` changes nothing.
        arguments: what `cli.main` was given; None: this process is the command, and may start itself once more.

    Raises:
        HardwareError: there is no checkout, no C compiler, or the process is not a command of ours.
    """
    if hardware != PROFILE:
        return
    if VARIABLE in os.environ:
        _remove_at_the_end(Path(os.environ[VARIABLE]).parent)
        return
    if arguments is not None:
        raise HardwareError("the simulated GPU must be there when a process starts", field="--hardware",
                            remedy="run `jouleboard` as a command of its own, not inside this process")
    environment = machine(paths.checkout())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 - the same command once more, no shell


def machine(checkout: Path | None) -> dict[str, str]:
    """Make a machine with the simulated GPU and return the environment of a process that runs on it.

    Args:
        checkout: root of the source checkout, if there is one.

    Raises:
        HardwareError: there is no checkout, or the library cannot be built.
    """
    if checkout is None or not (checkout / "tests" / "simulated_gpu").is_dir():
        raise HardwareError("the simulated GPU lives in tests/simulated_gpu of the source checkout, not in the package",
                            field="--hardware", remedy="clone the repository, `pip install -e '.[run]'` there, and run again")
    folder = _new_folder()
    command = [sys.executable, "-m", "tests.simulated_gpu", "machine", str(folder), "--library", str(_root() / "library")]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise HardwareError(f"the simulated GPU cannot be built: {lines[-1]}", file=checkout / "tests" / "simulated_gpu",
                            remedy="install a C compiler, or `pip install ziglang`")
    # Zeus takes its indices from it, and the simulated GPU is the only one.
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**inherited, **json.loads(done.stdout)}


def _root() -> Path:
    return paths.cache_folder() / "simulated-gpu"


def _new_folder() -> Path:
    """Make a folder that names this process, whose id stays through `execve`; sweep those of processes that have died."""
    machines = _root() / "machines"
    try:
        machines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HardwareError(f"the simulated GPU cannot be built there ({error.strerror})", file=machines,
                            remedy="set JOULEBOARD_CACHE to a folder that you may write to") from None
    for left in machines.iterdir():
        owner = re.match(r"(\d{1,9})-", left.name)
        if owner is not None and not _lives(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=machines, prefix=f"{os.getpid()}-"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_at_the_end(folder: Path) -> None:
    """Remove a machine that this very process made before it started itself again; others' folders stay."""
    if folder.parent == _root() / "machines" and folder.name.startswith(f"{os.getpid()}-"):
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


class Load:
    """Tells the simulated machine when it works. Does nothing on any other machine."""

    def __init__(self, file: Path | None) -> None:
        """Keep the file that the simulated library reads; None: not simulated."""
        self._file = file
        self._lock = threading.Lock()
        self._busy = 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Load the machine for a while; from several threads at once it is loaded until the last one has ended."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        if self._file is None:
            return
        with self._lock:
            was, self._busy = self._busy, self._busy + step
            if (was == 0) != (self._busy == 0):
                # One write, so that the library never reads half a line; opened anew, so that nothing stays open.
                with self._file.open("ab", buffering=0) as file:
                    file.write(b"%s %d\n" % (b"on" if was == 0 else b"off", time.monotonic_ns()))


def load() -> Load:
    """Return the load of the machine that this process runs on: always the same object, so that all workers count together."""
    return _load(os.environ.get(VARIABLE))


@functools.cache
def _load(control: str | None) -> Load:
    return Load(None if control is None else Path(f"{control}.load"))
