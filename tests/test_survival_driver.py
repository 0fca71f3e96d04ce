"""The driver is killed or asked to end, in every phase: nothing runs on, and the same command goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.survival import BASE, VARIANT, Kept, Place, Run

pytestmark = pytest.mark.slow
WHEN: dict[str, Callable[[Place, Run], object]] = {
    "prepare": lambda _place, run: run.fork_server(),
    "build": lambda _place, run: run.worker(VARIANT),
    "quality": lambda place, _run: place.journal(BASE) >= 3,
    "energy": lambda place, _run: place.trials() >= 1,
    "probes": lambda place, _run: any(held.probes for held in place.session().held.values()) if place.session() else None,
}


def interrupted(place: Place, phase: str, number: int) -> tuple[Run, Kept]:
    """Start a run, send a signal to its driver in a phase, and return what was finished then."""
    run = place.start()
    run.until(lambda: WHEN[phase](place, run))
    kept = place.kept()
    run.process.send_signal(number)
    return run, kept


def test_a_driver_that_is_killed_in_any_phase_takes_its_workers_along_and_loses_nothing(place: Place):
    kept = []
    for phase in WHEN:
        run, found = interrupted(place, phase, signal.SIGKILL)
        assert run.wait().code == -signal.SIGKILL, phase
        place.nothing_runs()
        kept.append(found)
    assert len(kept[-1].units) == 4
    assert kept[-1].session is not None
    done = place.survives(before=kept)
    assert "goes on with the session of" in done.text


def stops_in_order(place: Place, phase: str, number: int, code: int) -> Kept:
    """Ask a run to end in a phase, and make sure that it does so in order."""
    run, kept = interrupted(place, phase, number)
    done = run.wait()
    assert done.code == code, done.text
    assert "interrupted; what was finished is kept" in done.text
    assert "Traceback" not in done.text
    assert place.failures() == {}, "what is stopped on purpose has not failed"
    place.nothing_left()
    return kept


def test_a_driver_that_is_asked_to_end_ends_in_order_in_any_phase(place: Place):
    kept = [stops_in_order(place, phase, number, code) for phase, number, code in (
        ("prepare", signal.SIGTERM, 143), ("build", signal.SIGHUP, 129), ("quality", signal.SIGINT, 130),
        ("energy", signal.SIGTERM, 143))]
    place.survives(before=kept)


def test_a_second_ctrl_c_during_the_end_ends_at_once(place: Place):
    slow = place.hook("""
        import time
        from jouleboard.session import Session
        def stop(session, stop=Session.stop):
            print('ending slowly', file=sys.stderr, flush=True)
            time.sleep(60)
        Session.stop = stop
    """)
    run = place.start(PYTHONPATH=slow)
    run.until(lambda: place.journal(BASE) >= 3)
    kept = place.kept()
    run.process.send_signal(signal.SIGINT)
    run.says("ending slowly")
    time.sleep(0.7)
    begun_s = time.monotonic()
    done = run.kill(signal.SIGINT)
    assert time.monotonic() - begun_s < 10
    assert done.code == 130
    assert "ended at once; what was finished is kept" in done.text
    place.nothing_runs()
    place.survives(before=[kept])
