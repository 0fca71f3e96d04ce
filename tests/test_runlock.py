"""What a killed run left is swept when the next one holds the folder; what may be a living one's stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jouleboard import runlock, storage
from jouleboard.engines import place

HELD = (".work/m/.session.json.a1.tmp", ".work/m/.progress.json.tmp", ".work/m/base/.items.jsonl.b2.tmp",
        ".work/m/logs/.ranks-4194309-00ff")
"""Below the family's own folder the lock tells: nobody else writes there."""
SHARED = (".work/.jobs.json.c3.tmp", ".work/.run.json.tmp", ".work/jobs/.7.json.tmp", ".work/jobs/.submission_file_0f.sh",
          ".probe-x.tmp")
"""Other families' runs and the command that hands jobs in write there too."""
CACHE = (".probe-y.tmp", "models/.tmp-note/.jouleboard.json.d4.tmp", "data/.x.jsonl.e5.tmp")
OTHERS = ("mine.tmp", ".mine.tmp", "notes/.x.tmp", "m--base/.x.tmp", ".probe-x", ".work/jobs/7_0_log.err", ".work/jobs.json",
          ".work/other/.session.json.a1.tmp", ".work/other/logs/.ranks-4194309-00ff", ".work/jobs/submission_file_1.sh",
          ".work/m/logs/base.log", ".work/m/ranks-1", ".work/jobs/mine/.x.tmp")
OTHERS_CACHE = ("models/m/model.safetensors", "files/ab/.model.gguf", ".mine.tmp", "models/.convert-x/half")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "out"


def lay(root: Path, names: tuple[str, ...], *, hours: float) -> None:
    then_s = time.time() - 3600 * hours
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
        os.utime(root / name, (then_s, then_s))


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or path.is_file()}


def held(out: Path) -> set[str]:
    """Hold the folder as a run does, and return what lies in it then."""
    with runlock.held(out, out / ".work" / "m", []):
        return tree(out) - {".work/m/lock", ".work/m/holder.json"}


def test_what_a_killed_run_left_is_swept_and_nothing_else(out: Path) -> None:
    cache = out.parent / "cache"
    # Another machine's clock may be ahead.
    lay(out, HELD, hours=-1)
    lay(out, SHARED, hours=1.1)
    lay(out, OTHERS, hours=100)
    lay(cache, CACHE, hours=1.1)
    lay(cache, OTHERS_CACHE, hours=100)
    assert held(out) == set(OTHERS)
    assert tree(cache) == set(OTHERS_CACHE)


def test_what_another_process_may_be_writing_stays(out: Path) -> None:
    cache = out.parent / "cache"
    lay(out, SHARED, hours=0.9)
    lay(cache, CACHE, hours=0.9)
    assert held(out) == set(SHARED)
    assert tree(cache) == set(CACHE)


def test_the_names_are_those_that_are_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = out / ".work" / "m" / "logs"
    logs.mkdir(parents=True)
    place.rendezvous(logs).touch()
    with monkeypatch.context() as patch:
        # The room is tried with a file that goes at once: here it gets a second name that stays.
        patch.setattr(storage.os, "fsync", lambda _: [os.link(path, path.with_name(f"{path.name[:7]}kept{path.name[-4:]}"))
                                                      for path in out.glob(".*") if path.is_file()])
        storage.require(out, need_bytes=0, what="the run folder")
    assert (out / ".probe-kept.tmp").is_file()
    then_s = time.time() - 3601
    os.utime(out / ".probe-kept.tmp", (then_s, then_s))
    assert held(out) == set()


def test_a_link_to_the_script_of_a_job_stays_and_a_broken_one_goes(out: Path) -> None:
    """submitit leaves a link under the former name of a script that was handed in."""
    jobs = out / ".work" / "jobs"
    lay(out, (".work/jobs/7_submission.sh",), hours=2)
    (jobs / ".submission_file_aa.sh").symlink_to(jobs / "7_submission.sh")
    (jobs / ".submission_file_bb.sh").symlink_to(jobs / "8_submission.sh")
    then_s = time.time() - 7200
    for name in ("aa", "bb"):
        os.utime(jobs / f".submission_file_{name}.sh", (then_s, then_s), follow_symlinks=False)
    assert held(out) == {".work/jobs/7_submission.sh", ".work/jobs/.submission_file_aa.sh"}


def test_what_cannot_be_removed_stops_nobody(out: Path) -> None:
    (out / ".probe-x.tmp" / "mine").mkdir(parents=True)
    os.utime(out / ".probe-x.tmp", (0, 0))
    held(out)
    assert (out / ".probe-x.tmp" / "mine").is_dir()
