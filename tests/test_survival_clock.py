"""A clock that is set while a run goes on, or back again between two pieces of it, changes no result."""

from __future__ import annotations

import pytest

from tests.survival import Place

pytestmark = pytest.mark.slow


def stepped(place: Place, hours: int) -> str:
    """Set the driver's clock when the quality pass is over, and no other process's."""
    return place.hook(f"""
        import datetime as dt, time
        from jouleboard import energy, session
        shift, now, begin = [0.0], time.time, energy.measure
        class Moved(dt.datetime):
            @classmethod
            def now(cls, zone=None):
                return dt.datetime.now(zone) + dt.timedelta(seconds=shift[0])
        fake = type(sys)('datetime')
        fake.__dict__.update(dt.__dict__, datetime=Moved)
        session.dt = fake
        time.time = lambda: now() + shift[0]
        def measure(*words):
            shift[0] = {hours} * 3600.0
            print('the clock was set', file=sys.stderr, flush=True)
            return begin(*words)
        energy.measure = measure
    """)


def test_a_clock_that_is_set_back_during_a_run_changes_no_result(place: Place):
    done = place.run(PYTHONPATH=stepped(place, -5))
    assert done.code == 0, done.text
    assert "the clock was set" in done.text
    place.nothing_left()
    place.sound(place.ground.undisturbed)
    assert all(0 < trial.window.duration_s < 60 for report in place.reports().values() for trial in report.trials)


def test_a_session_that_began_in_the_future_by_the_clock_is_measured_anew_and_nothing_twice(place: Place):
    run = place.start(PYTHONPATH=stepped(place, 5))
    run.says("the clock was set")
    run.until(lambda: place.trials() >= 1)
    run.kill()
    before = place.kept()
    place.nothing_runs()
    done = place.survives()
    assert "what was measured before is measured again, since it began -" in done.text
    assert {report.session for report in place.reports().values()}.isdisjoint({before.session.name})
    assert place.units() == before.units
