"""A disk that is full or read-only ends a run with what to do; no variant has failed by it, and it goes on afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.survival import BASE, Place

pytestmark = pytest.mark.slow
MEBIBYTE = 2**20


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """Mount something on a folder for a while; where the kernel refuses that, the test is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Lay a small disk under a folder; what was in it is copied."""
    held = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with mounted(folder, "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs"):
        for name, data in held.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write below a folder: root would not mind its mode."""
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


def fill(folder: Path) -> Path:
    """Leave no byte free on a folder's disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return filler


def test_a_run_folder_that_is_too_small_is_refused_before_anything_is_computed(place: Place):
    with small_disk(place.out, 4):
        done = place.run()
        assert done.code == 2
        assert "the run folder: " in done.text
        assert "MB are needed" in done.text
        assert f"on the disk of {place.out}" in done.text
        assert "convert" not in {path.stem for path in place.out.rglob("*.log")}
        place.nothing_left()


def test_a_run_folder_that_fills_up_ends_the_run_and_goes_on_when_there_is_room(place: Place):
    with small_disk(place.out, 48):
        kept = []
        for moment in (lambda: place.journal(BASE) >= 3, lambda: place.trials() >= 1):
            run = place.start()
            run.until(moment)
            kept.append(place.kept())
            filler = fill(place.out)
            done = run.wait()
            assert done.code == 2, done.text
            assert "No space left on device" in done.text or "MB are free" in done.text
            assert "remedy: free " in done.text
            assert "run the same command again" in done.text
            assert "Traceback" not in done.text
            place.nothing_runs()
            assert place.failures() == {}, "a full disk is no fault of a variant"
            filler.unlink()
        place.survives(before=kept)


def test_a_cache_that_is_full_ends_the_run_and_goes_on_when_there_is_room(place: Place):
    with small_disk(place.cache, 4):
        filler = fill(place.cache)
        done = place.run()
        assert done.code == 2, done.text
        assert "remedy: free at least" in done.text
        assert f"on the disk of {place.cache}" in done.text
        place.nothing_runs()
        assert place.reports() == {}
        filler.unlink()
        place.survives()


def test_a_read_only_run_folder_or_cache_is_named_with_what_to_do(place: Place):
    with read_only(place.out):
        done = place.run()
        assert done.code == 2
        assert "Read-only file system" in done.text
        assert "remedy: " in done.text
        assert str(place.out) in done.text
        place.nothing_runs()
    with read_only(place.cache):
        done = place.run()
        assert done.code == 2
        assert "Read-only file system" in done.text
        assert f"mount the disk of {place.cache}" in done.text
        place.nothing_left()
    run = place.start()
    run.until(lambda: place.journal(BASE) >= 3)
    run.kill()
    before = place.kept()
    with read_only(place.out):
        done = place.run()
        assert done.code == 2
        place.nothing_runs()
    # A cache that has everything need not be written.
    with read_only(place.cache):
        place.survives(before=[before])
