"""The processes that serve a run may die: the fork server, and the one that reads the sensor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.survival import BASE, LONG_S, VARIANT, Place

pytestmark = pytest.mark.slow


def test_a_fork_server_that_is_killed_before_and_after_workers_were_started_costs_the_run_nothing(place: Place):
    run = place.start()
    first = run.until(run.fork_server)
    os.kill(first, signal.SIGKILL)
    second = run.until(lambda: (found := run.fork_server()) != first and found)
    run.until(lambda: place.journal(BASE) >= 3)
    os.kill(second, signal.SIGKILL)
    done = run.wait()
    assert done.code == 0, done.text
    place.nothing_left()
    place.sound(place.ground.undisturbed)


def test_a_fork_server_that_hangs_is_replaced(place: Place):
    hurried = place.hook("""
        from jouleboard import forking
        forking.FORK_S = 2.0
    """)
    run = place.start(PYTHONPATH=hurried)
    run.until(lambda: run.worker("convert"))
    first = run.fork_server()
    os.kill(first, signal.SIGSTOP)
    done = run.wait()
    assert done.code == 0, done.text
    place.nothing_left()
    place.sound(place.ground.undisturbed)


def test_a_fork_server_whose_driver_died_before_it_could_ask_the_kernel_imports_nothing():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        done = subprocess.run([sys.executable, "-m", "jouleboard.forkserver", str(theirs.fileno()), "torch"], capture_output=True,
                              text=True, check=False, pass_fds=[theirs.fileno()], timeout=LONG_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_server_whose_driver_was_killed_ends_what_was_started(place: Place):
    run = place.start()
    run.until(lambda: place.journal(VARIANT) >= 3)
    server = run.fork_server()
    os.kill(server, signal.SIGSTOP)
    run.kill()
    # The kernel ends the workers; the server ends as soon as it may.
    os.kill(server, signal.SIGCONT)
    place.nothing_runs()


def test_a_meter_process_that_is_killed_in_a_window_makes_it_void_and_nothing_else(place: Place):
    simulated = ("--hardware", "simulated-gpu")
    run = place.start(*simulated)
    run.until(lambda: place.trials() >= 1)
    meter = run.until(run.meter)
    os.kill(meter, signal.SIGKILL)
    done = run.wait()
    assert "Traceback" not in done.text
    place.nothing_left()
    voids = [trial.window.void for report in place.reports().values() for trial in report.trials if trial.window.void]
    assert place.failures() == {}
    assert len(voids) <= 1, voids
    assert done.code in {0, 1}, done.text
    place.survives(*simulated, before=[place.kept()])
