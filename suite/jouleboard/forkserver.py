"""A process that only imports, and forks workers on request: it never computes and never starts CUDA or NVML.

Started by `forking.ForkServer` as `python -m jouleboard.forkserver FD MODULE...`. Over the socket FD, one message each::

    server   {"problem": null}                      imported, ready to fork; or why it must not
    driver   "fork" + [requests, replies, log]      three descriptors
    server   {"pid": 4242}

A worker is forked twice: its first parent ends at once, so that it becomes a child of the driver, which adopts orphans
(PR_SET_CHILD_SUBREAPER). The driver can wait for it, it dies with the driver, and killing this server does not touch it.
When the driver has gone, this server ends all that carries the run's token, whoever started it, and then itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from jouleboard import lineage, worker

BLAS = "OPENBLAS_NUM_THREADS"
CALM = {BLAS: "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""In force while this server imports, and undone in its workers. OpenBLAS starts its threads and pyarrow's jemalloc its
cleaner when they are loaded; and should an import call `torch.cuda.is_available`, torch must ask NVML and not start CUDA."""
Given = Mapping[str, str | None]
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def main() -> None:
    """Import, say so, and fork until the driver goes away."""
    driver = os.getppid()
    # An import cannot be interrupted to look at the driver; later the end of the socket says that it has gone.
    lineage.die_with_parent()
    # A batch system signals every process of a job; the driver ends the others itself.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    if hung_up(channel):
        # The driver died before the kernel was asked to tell.
        return
    given = {name: os.environ.get(name) for name in CALM}
    os.environ.update(CALM)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    # What is imported stays for good: the collector need not write into its pages, which workers share until then.
    gc.freeze()
    problem = unfit()
    print(f"imported {', '.join(sys.argv[2:])}: {problem or 'ready to fork'}", file=sys.stderr, flush=True)
    channel.send(json.dumps({"problem": problem}).encode())
    lineage.die_with_parent(wanted=False)
    while os.getppid() == driver:
        data, descriptors, _, _ = socket.recv_fds(channel, 64, 3)
        if not data:
            break
        answer(channel, driver, descriptors, given)
    lineage.end_carriers(os.environ.get(lineage.TOKEN_VARIABLE, ""))


def hung_up(channel: socket.socket) -> bool:
    """Return whether the other end of a socket is closed."""
    waiting = select.poll()
    waiting.register(channel, 0)
    return any(events & select.POLLHUP for _, events in waiting.poll(0))


def unfit() -> str | None:
    """Say why this process must not fork workers; None when it may.

    A fork copies one thread only: a lock that another one holds stays locked. CUDA and NVML do not work in a fork of a
    process that has started them.
    """
    with contextlib.suppress(OSError):
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names only
        if threads > 1:
            return f"an import has started {threads - 1} thread(s)"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has started CUDA"
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            if (opened := str(entry.readlink())).startswith(DEVICES):
                return f"an import has opened {opened}"
    with contextlib.suppress(OSError):
        if "libnvidia-ml" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
            return "an import has loaded NVML"
    return None


def answer(channel: socket.socket, driver: int, descriptors: list[int], given: Given) -> None:
    """Fork one worker and tell its id.

    Args:
        channel: to the driver.
        driver: its process id.
        descriptors: the worker's three streams.
        given: the variables that were changed, as the driver gave them.
    """
    gate_read, gate_write = os.pipe()
    told_read, told_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        middle = os.fork()
    except OSError as error:
        channel.send(json.dumps({"problem": f"no process can be had ({error.strerror})"}).encode())
        middle = -1
    if middle == 0:
        os.close(gate_write)
        _fork_again(told_write, partial(_become_worker, driver, gate_read, descriptors, given))
    for descriptor in (gate_read, told_write, *descriptors):
        os.close(descriptor)
    with os.fdopen(told_read, "rb") as told, os.fdopen(gate_write, "wb", buffering=0) as gate:
        if middle > 0:
            pid = told.read()
            os.waitpid(middle, 0)
            message = {"pid": int(pid)} if pid else {"problem": "no process can be had"}
            # If the driver never hears of it the gate closes, and the worker ends before it has done anything.
            with contextlib.suppress(OSError):
                channel.send(json.dumps(message).encode())
                gate.write(b"g")


def _fork_again(told: int, become: Callable[[], int]) -> NoReturn:
    """Fork the worker out of the process in the middle, which ends: neither returns."""
    code = 1
    try:
        pid = os.fork()
        if pid:
            os.write(told, str(pid).encode())
            code = 0
        else:
            os.close(told)
            code = become()
    except BaseException:  # noqa: BLE001 - nothing may fall through into the server's loop
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _become_worker(driver: int, gate: int, descriptors: list[int], given: Given) -> int:
    """Wait until the driver knows of this process and is its parent, take the three streams, and work."""
    os.setsid()
    if os.read(gate, 1) != b"g":
        return 1
    lineage.die_with_parent()
    # The first parent was waited for before the gate opened, so the driver has adopted this process, or has died.
    if os.getppid() != driver:
        return 1
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
    # The server's socket, the gate, and what the streams came as.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _as_given(given)
    worker.work()
    return 0


def _as_given(given: Given) -> None:
    for name, value in given.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    if (threads := int(given[BLAS] or 1)) > 1:
        # What OpenBLAS would have read for itself. It comes with scikit-learn, which lm-eval needs.
        with contextlib.suppress(ImportError):
            import threadpoolctl  # noqa: PLC0415

            threadpoolctl.threadpool_limits(threads, user_api="blas")


if __name__ == "__main__":
    main()
