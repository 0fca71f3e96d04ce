"""A run's folder has one holder, also where the lock does not reach another machine."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from jouleboard import holder, processes
from jouleboard.errors import PlanError
from jouleboard.holder import Holder


def leave_name(folder: Path, *, host: str | None = None, pid: int = 2**22 + 5, silent_s: float = 0.0, job: str | None = None) -> Holder:
    """Leave a holder's name as one does who was killed, or who works on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    me = processes.identity()
    process = msgspec.structs.replace(me, pid=pid, **({} if host is None else {"host": host, "boot": "f" * 16}))
    left = Holder(process=process, job=job, since_utc="2030-01-01T00:00:00Z")
    (folder / holder.HOLDER).write_bytes(msgspec.json.encode(left))
    then_s = (folder / holder.HOLDER).stat().st_mtime - silent_s
    os.utime(folder / holder.HOLDER, (then_s, then_s))
    return left


def test_a_second_holder_hears_who_the_first_is(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with holder.hold(work, tmp_path):
        first = holder.holder(work)
        with pytest.raises(PlanError) as caught, holder.hold(work, tmp_path):
            pass
        assert holder.holder(work) == first, "who was refused does not sign the name off"
    me = processes.identity()
    assert f"process {me.pid} on {me.host}, since 20" in caught.value.problem
    assert f"kill {me.pid}" in caught.value.remedy
    assert holder.holder(work) is None
    with holder.hold(work, tmp_path):
        pass


def test_a_killed_holder_leaves_its_name_and_stops_nobody(tmp_path: Path) -> None:
    words = ("import os, signal, sys, pathlib; from jouleboard import holder\n"
             "with holder.hold(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", words, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert holder.holder(tmp_path) is not None
    with holder.hold(tmp_path, tmp_path):
        assert holder.holder(tmp_path).process == processes.identity()
    assert holder.holder(tmp_path) is None


def test_another_process_of_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    left = leave_name(tmp_path, pid=os.getpid())
    name = msgspec.structs.replace(left, process=msgspec.structs.replace(left.process, began_s=left.process.began_s - 60))
    (tmp_path / holder.HOLDER).write_bytes(msgspec.json.encode(name))
    with holder.hold(tmp_path, tmp_path):
        pass


def test_a_holder_of_another_machine_counts_although_its_lock_does_not_reach_here(tmp_path: Path) -> None:
    leave_name(tmp_path, host="node7", silent_s=60)
    with pytest.raises(PlanError, match=r"process \d+ on node7, since 2030-01-01T00:00:00Z, heard of 6\d s ago"), holder.hold(
            tmp_path, tmp_path):
        pass


def test_a_holder_of_another_machine_that_is_silent_has_gone(tmp_path: Path) -> None:
    leave_name(tmp_path, host="node7", silent_s=holder.SILENT_S + 5)
    with holder.hold(tmp_path, tmp_path):
        assert holder.holder(tmp_path).process == processes.identity()


def test_a_requeued_job_follows_itself_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_name(tmp_path, host="node7", job="812_1")
    monkeypatch.setenv("SLURM_JOB_ID", "900")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "812")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(PlanError, match="job 812_1"), holder.hold(tmp_path, tmp_path):
        pass
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with pytest.raises(PlanError, match="job 812_1"), holder.hold(tmp_path, tmp_path):
        pytest.fail("a second command in one job does not follow the first")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with holder.hold(tmp_path, tmp_path):
        assert (holder.holder(tmp_path).job, holder.holder(tmp_path).restarts) == ("812_1", 1)


HOLDS = ("import os, pathlib, sys, time; from jouleboard import holder\n"
         "with holder.hold(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)")


@pytest.mark.parametrize(("job", "restarts", "follows"), [("812", "1", True), ("812", "0", False), ("813", "1", False)])
def test_a_requeued_job_waits_for_its_earlier_life_to_end_and_for_nobody_else(
    job: str, restarts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, follows: bool
) -> None:
    slept: list[float] = []
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE,
                          env={**os.environ, "SLURM_JOB_ID": "812"}) as earlier:
        assert earlier.stdout.readline() == b"held\n"

        def end_it(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                earlier.kill()
                earlier.wait()

        monkeypatch.setattr(holder, "time", SimpleNamespace(sleep=end_it, monotonic=time.monotonic, time=time.time))
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        if follows:
            with holder.hold(tmp_path, tmp_path):
                assert holder.holder(tmp_path).process == processes.identity()
        else:
            with pytest.raises(PlanError, match="job 812"), holder.hold(tmp_path, tmp_path):
                pass
            earlier.kill()
    assert len(slept) == (3 if follows else 0)


def test_an_earlier_life_that_nobody_can_end_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter(range(10**6))
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE,
                          env={**os.environ, "SLURM_JOB_ID": "812"}) as earlier:
        assert earlier.stdout.readline() == b"held\n"
        monkeypatch.setattr(holder, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(now_s), time=time.time))
        monkeypatch.setenv("SLURM_JOB_ID", "812")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with pytest.raises(PlanError, match=r"another `jouleboard run` works in this folder: process \d+ on .*, job 812"), holder.hold(
                tmp_path, tmp_path):
            pass
        earlier.kill()
    assert next(now_s) == holder.EARLIER_LIFE_S + 1


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(holder.fcntl, "flock", refuse)
    monkeypatch.setattr(holder, "SETTLE_S", 0.0)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_two_commands_in_one_job_do_not_both_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with subprocess.Popen(["sleep", "60"]) as other:
        left = leave_name(tmp_path, pid=other.pid, job="77")
        alive = msgspec.structs.replace(left, process=processes.identity(other.pid))
        (tmp_path / holder.HOLDER).write_bytes(msgspec.json.encode(alive))
        with pytest.raises(PlanError, match="job 77"), holder.hold(tmp_path, tmp_path):
            pass
        assert holder.holder(tmp_path) == alive
        other.kill()
    with holder.hold(tmp_path, tmp_path):
        assert holder.holder(tmp_path).process == processes.identity()


@pytest.fixture
def quick_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that comes at once."""
    monkeypatch.setattr(holder, "BEAT_S", 0.02)


SLEPT_THROUGH = """
import pathlib, sys, time
from jouleboard import holder, interrupts
from jouleboard.errors import PlanError
folder, other = (pathlib.Path(word) for word in sys.argv[1:])
interrupts.listen()
holder.BEAT_S = 0.02
try:
    with holder.hold(folder, folder):
        if other.exists():
            other.replace(folder / holder.HOLDER)
        else:
            (folder / holder.HOLDER).unlink()
        time.sleep(30)
except PlanError as error:
    print(error.problem)
    print(error.remedy)
"""


@pytest.mark.parametrize("left", [True, False])
def test_a_run_that_was_followed_while_it_slept_stops_and_leaves_the_others_name(tmp_path: Path, *, left: bool) -> None:
    """In a process of its own: the beat ends its process by a signal."""
    follower = leave_name(tmp_path / "other", host="node7") if left else None
    done = subprocess.run([sys.executable, "-c", SLEPT_THROUGH, str(tmp_path / "work"), str(tmp_path / "other" / holder.HOLDER)],
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    problem, remedy = done.stdout.splitlines()
    assert "another run took it over" in problem
    assert ("process" in problem) == left
    assert "run the same command again" in remedy
    assert holder.holder(tmp_path / "work") == follower


SWALLOWS = """
import gc, pathlib, sys, time
from jouleboard import holder, interrupts
folder, = (pathlib.Path(word) for word in sys.argv[1:])
interrupts.listen()
holder.BEAT_S = 1.0
class Finalised:
    def __del__(self):
        (folder / holder.HOLDER).unlink()
        time.sleep(2.5)
        print("went on", flush=True)
with holder.hold(folder, folder):
    Finalised()
    time.sleep(30)
    print("not ended", flush=True)
"""


def test_a_signal_that_a_finaliser_swallows_is_sent_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWS, str(tmp_path / "work")], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 128 + 15
    assert "not ended" not in done.stdout


@pytest.mark.usefixtures("quick_beat")
def test_a_name_that_cannot_be_read_for_a_moment_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[Path] = []

    def unreadable(path: Path) -> bytes:
        beats.append(path)
        raise OSError(errno.ESTALE, "Stale file handle")

    with holder.hold(tmp_path, tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", unreadable)
            deadline_s = time.monotonic() + 20
            while len(beats) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.02)
        assert len(beats) >= 3


def test_who_ends_a_run_is_not_told_of_another_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), holder.hold(tmp_path, tmp_path):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_name_is_what_counts(tmp_path: Path) -> None:
    with holder.hold(tmp_path, tmp_path), pytest.raises(PlanError, match="another"), holder.hold(tmp_path, tmp_path):
        pass
    leave_name(tmp_path)
    with holder.hold(tmp_path, tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_flock_of_two_at_the_same_moment_the_last_to_sign_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder.time, "sleep", lambda _s: leave_name(tmp_path, host="node7"))
    with pytest.raises(PlanError, match="node7"), holder.hold(tmp_path, tmp_path):
        pass
    assert holder.holder(tmp_path).process.host == "node7"


def test_what_is_no_name_of_ours_is_no_holder(tmp_path: Path) -> None:
    (tmp_path / holder.HOLDER).write_text(json.dumps({"pid": 1}))
    with holder.hold(tmp_path, tmp_path):
        pass
