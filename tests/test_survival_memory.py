"""Memory that does not suffice is a failed entry that says so; more of it, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.survival import BASE, VARIANT, Place

pytestmark = pytest.mark.slow
CGROUPS = Path("/sys/fs/cgroup")
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A control group of version 1 or 2 with its own account of memory."""

    folder: Path
    limit: str
    usage: str

    @property
    def joined(self) -> tuple[str, ...]:
        """Begin a command inside it."""
        return ("sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh")

    @property
    def used_bytes(self) -> int:
        """What its processes have now."""
        return int((self.folder / self.usage).read_text())

    def hold(self, limit_bytes: int | None) -> None:
        """Set its limit; None: there is none."""
        (self.folder / self.limit).write_text("-1" if limit_bytes is None and "limit" in self.limit else str(limit_bytes or "max"))


@pytest.fixture
def box() -> Iterator[Box]:
    """A control group below our own, or a reason why there is none."""
    name = f"jouleboard-test-{secrets.token_hex(4)}"
    rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = next((path for _, names, path in rows if "memory" in names.split(",")), None)
    second = next((path for _, names, path in rows if not names), None)
    if first is not None:
        made = Box(folder=CGROUPS / "memory" / first.lstrip("/") / name, limit="memory.limit_in_bytes", usage="memory.usage_in_bytes")
    elif second is not None:
        made = Box(folder=CGROUPS / second.lstrip("/") / name, limit="memory.max", usage="memory.current")
    else:
        pytest.skip("no control groups here")
    try:
        made.folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
    if not (made.folder / made.limit).exists():
        made.folder.rmdir()
        pytest.skip("the control groups that can be made here do not limit memory")
    yield made
    for pid in (made.folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    made.folder.rmdir()


def test_a_variant_that_needs_more_than_the_cap_fails_as_out_of_memory(place: Place):
    done = place.run("--worker-memory", 0.05)
    assert done.code == 1, done.text
    found = place.failures()
    assert set(found) == {BASE, VARIANT}
    assert {code for _, code, _ in found.values()} == {"out-of-memory"}
    assert "out-of-memory: " in done.text
    assert "a higher --worker-memory where one is given" in done.text
    place.nothing_left()
    # The cap is no part of the configuration: with more the same run goes on.
    place.survives("--worker-memory", 4, before=[place.kept()])


def test_a_worker_that_the_kernel_ends_for_memory_fails_as_out_of_memory_and_the_driver_lives(place: Place, box: Box):
    run = place.start(within=box.joined)
    run.until(lambda: place.journal(BASE) >= 2 and place.journal(VARIANT) >= 2)
    # A batch's logits alone need more than this.
    box.hold(box.used_bytes + 4 * MEBIBYTE)
    run.until(lambda: not (run.worker(BASE) and run.worker(VARIANT)))
    box.hold(None)
    done = run.wait()
    assert done.code == 1, done.text
    codes = {code for _, code, _ in place.failures().values()}
    assert codes == {"out-of-memory"}, place.failures()
    assert "the machine was out of memory" in done.text
    assert "use a smaller batch or model" in done.text
    place.nothing_left()
    place.survives(before=[place.kept()])
