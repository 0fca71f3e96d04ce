"""RAPL by plain files: wraps are undone, whatever cannot be told voids the window, and nothing is ever 0 J or less."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from jouleboard.errors import MeterError
from jouleboard.meters import powercap
from jouleboard.meters.rapl import HostReader, RaplMeter

RANGE_UJ = 262_143_328_850
"""What the kernel gives for a package of most processors."""
FAST_S = 0.02


def zone(folder: Path, name: str, uj: int = 1_000_000_000, range_uj: int = RANGE_UJ) -> Path:
    """Lay a zone out as the kernel does."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n", encoding="ascii")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n", encoding="ascii")
    put(folder, uj)
    return folder


def put(folder: Path, uj: int) -> None:
    """Set a counter at once, as the kernel's files change."""
    partial = folder / ".energy_uj"
    partial.write_text(f"{uj}\n", encoding="ascii")
    partial.replace(folder / "energy_uj")


@pytest.fixture
def package(tmp_path):
    """One package at 1,000 J."""
    return zone(tmp_path / "intel-rapl:0", "package-0")


def measure(root, change, **options):
    """Measure a window in which `change` moves the counters."""
    meter = RaplMeter(root, **options)
    meter.begin("trial-0")
    change()
    reading = meter.end(duration_s=1.0, cpu_s=None)
    meter.close()
    return reading


def code(reading):
    """Return the reason code of a void reading, whose joules must be unknown."""
    assert reading.energy.measured_j is None
    assert reading.energy.domains_j == {}
    return reading.void.partition(":")[0]


def test_joules_are_the_difference_of_the_counter(tmp_path, package):
    reading = measure(tmp_path, lambda: put(package, 1_000_000_000 + 250_500_000))
    assert reading.void is None
    assert reading.energy.measured_j == 250.5
    assert reading.energy.domains_j == {"package-0": 250.5}
    assert (reading.energy.method, reading.energy.boundary) == ("rapl", "package")
    assert reading.energy.estimate_j is None
    assert (reading.start.counter_j, reading.end.counter_j) == (1000.0, 1250.5)
    assert [sample.counter_j for sample in reading.samples] == [1000.0, 1250.5]
    assert {sample.window for sample in reading.samples} == {"trial-0"}


def test_packages_and_memory_add_up_and_cores_do_not_count_twice(tmp_path):
    """Two sockets; core and uncore are inside the package's counter, dram is not."""
    parts = []
    for number in range(2):
        package = zone(tmp_path / f"intel-rapl:{number}", f"package-{number}")
        for index, name in enumerate(("core", "uncore", "dram")):
            parts.append(zone(package / f"intel-rapl:{number}:{index}", name))
        parts.append(package)

    def run():
        for index, part in enumerate(parts):
            put(part, 1_000_000_000 + (index + 1) * 1_000_000)

    reading = measure(tmp_path, run)
    assert reading.energy.domains_j == {"dram-0": 3.0, "package-0": 4.0, "dram-1": 7.0, "package-1": 8.0}
    assert reading.energy.measured_j == 22.0
    assert reading.host_j == {}


def test_the_platform_holds_the_package_and_is_never_added(tmp_path, package):
    psys = zone(tmp_path / "intel-rapl:1", "psys")

    def run():
        put(package, 1_100_000_000)
        put(psys, 1_150_000_000)

    reading = measure(tmp_path, run)
    assert reading.energy.measured_j == 100.0
    assert reading.energy.domains_j == {"package-0": 100.0}
    assert reading.host_j == {"psys": 50.0 + 100.0}
    put(package, 1_000_000_000)
    host = HostReader(tmp_path)
    host.begin()
    put(package, 1_010_000_000)
    put(psys, 1_170_000_000)
    found = host.end()
    assert found == {"package-0": 10.0, "psys": 20.0}
    assert powercap.total_j(found) == 10.0


def test_a_platform_counter_that_fails_does_not_void_the_package(tmp_path, package):
    psys = zone(tmp_path / "intel-rapl:1", "psys")

    def run():
        put(package, 1_100_000_000)
        shutil.rmtree(psys)

    reading = measure(tmp_path, run)
    assert (reading.void, reading.energy.measured_j, reading.host_j) == (None, 100.0, {})


def test_the_kernels_links_count_each_zone_once(tmp_path):
    """As in /sys: flat links at the top to nested folders below devices/, another way to the same counter, and mmio."""
    real = zone(tmp_path / "devices" / "intel-rapl" / "intel-rapl:0", "package-0")
    dram = zone(real / "intel-rapl:0:0", "dram")
    root = tmp_path / "class" / "powercap"
    mmio = zone(tmp_path / "devices" / "intel-rapl-mmio" / "intel-rapl-mmio:0", "package-0")
    root.mkdir(parents=True)
    (root / "intel-rapl").symlink_to(real.parent)
    (root / "intel-rapl:0").symlink_to(real)
    (root / "intel-rapl:0:0").symlink_to(dram)
    (root / "intel-rapl:7").symlink_to(real)
    (root / "intel-rapl-mmio:0").symlink_to(mmio)
    (real / "subsystem").symlink_to(root)
    (real / "intel-rapl:0").symlink_to(real)

    def run():
        put(real, 1_005_000_000)
        put(dram, 1_002_000_000)
        put(mmio, 1_900_000_000)

    reading = measure(root, run)
    assert reading.energy.domains_j == {"package-0": 5.0, "dram-0": 2.0}
    assert [found.domain for found in powercap.zones(root / "intel-rapl")] == ["package-0", "dram-0"]


def test_amds_zones_have_intels_names(tmp_path):
    package = zone(tmp_path / "intel-rapl:0", "package-0", range_uj=65_532_610_987)
    zone(tmp_path / "intel-rapl:0:0", "core", range_uj=65_532_610_987)
    reading = measure(tmp_path, lambda: put(package, 1_000_000_001))
    assert reading.energy.domains_j == {"package-0": 1e-6}


def test_dies_of_one_package_are_domains_of_their_own(tmp_path):
    for number in range(2):
        zone(tmp_path / f"intel-rapl:{number}", f"package-0-die-{number}")
        zone(tmp_path / f"intel-rapl:{number}:0", "dram")
    assert {found.domain for found in powercap.zones(tmp_path)} == {
        "package-0-die-0", "package-0-die-1", "dram-0-die-0", "dram-0-die-1"}


def test_a_memory_counter_that_never_counted_is_left_out(tmp_path, package):
    zone(tmp_path / "intel-rapl:0:0", "dram", uj=0)
    reading = measure(tmp_path, lambda: put(package, 1_001_000_000))
    assert reading.energy.domains_j == {"package-0": 1.0}


def test_a_wrap_is_undone(tmp_path):
    package = zone(tmp_path / "intel-rapl:0", "package-0", RANGE_UJ - 100_000_000)
    reading = measure(tmp_path, lambda: put(package, 50_000_000))
    assert reading.void is None
    assert reading.energy.measured_j == 150.0
    # States and trace go on across the wrap: a counter that falls would be another fault.
    assert reading.samples[-1].counter_j - reading.samples[0].counter_j == pytest.approx(150.0)
    assert reading.end.counter_j - reading.start.counter_j == pytest.approx(150.0)


def test_many_wraps_in_one_window_are_undone_while_it_is_read_often_enough(tmp_path):
    """A counter of 100 J range and 20 W a package: read each 20 ms, it cannot wrap unseen, and it wraps five times."""
    range_uj = 100_000_000
    package = zone(tmp_path / "intel-rapl:0", "package-0", 0, range_uj)
    true_uj = 0

    def run():
        nonlocal true_uj
        for _ in range(25):
            true_uj += 20_000_000
            put(package, true_uj % range_uj)
            time.sleep(0.05)

    reading = measure(tmp_path, run, poll_s=FAST_S, max_power_w=50.0)
    assert reading.void is None
    assert reading.energy.measured_j == true_uj / 1e6 == 500.0
    powers = [sample.power_w for sample in reading.samples if sample.power_w is not None]
    assert all(power >= 0 for power in powers)


def test_a_window_with_room_for_two_wraps_between_two_readings_is_void(tmp_path):
    """1 kW fills 10 J in 10 ms, so after 30 ms nobody knows how often it wrapped, forward or backward."""
    for after_uj in (3_000_000, 9_000_000):
        folder = tmp_path / str(after_uj)
        package = zone(folder / "intel-rapl:0", "package-0", 5_000_000, 10_000_000)

        def run(package=package, after_uj=after_uj):
            time.sleep(0.03)
            put(package, after_uj)

        assert code(measure(folder, run)) == "rapl-wrap-unsure"


def test_a_counter_that_was_reset_voids_the_window(tmp_path):
    """From 100 kJ to 5 J: a wrap would mean 162 kJ in a moment."""
    package = zone(tmp_path / "intel-rapl:0", "package-0", 100_000_000_000)
    reading = measure(tmp_path, lambda: put(package, 5_000_000))
    assert code(reading) == "rapl-reset"
    assert "package-0 went from 100000000000 to 5000000 uJ" in reading.void


def test_a_small_step_back_voids_the_window(tmp_path, package):
    assert code(measure(tmp_path, lambda: put(package, 999_999_999))) == "rapl-reset"


def test_a_jump_that_no_power_explains_voids_the_window(tmp_path, package):
    assert code(measure(tmp_path, lambda: put(package, 9_000_000_000_0))) == "rapl-reset"


def test_a_counter_that_stands_still_is_no_zero(tmp_path, package):
    assert code(measure(tmp_path, lambda: None)) == "rapl-frozen"


def test_memory_that_stands_still_voids_the_sum(tmp_path, package):
    zone(tmp_path / "intel-rapl:0:0", "dram")
    reading = measure(tmp_path, lambda: put(package, 1_001_000_000))
    assert code(reading) == "rapl-frozen"
    assert "dram-0" in reading.void


def test_a_zone_that_vanishes_voids_the_window_even_when_it_comes_back(tmp_path, package):
    meter = RaplMeter(tmp_path, poll_s=FAST_S)
    meter.begin("trial-0")
    (package / "energy_uj").rename(package / "gone")
    time.sleep(5 * FAST_S)
    (package / "gone").rename(package / "energy_uj")
    put(package, 10_000_000)
    time.sleep(5 * FAST_S)
    assert code(meter.end(duration_s=1.0, cpu_s=None)) == "rapl-gone"
    # The next window is another one.
    meter.begin("trial-1")
    put(package, 20_000_000)
    assert meter.end(duration_s=1.0, cpu_s=None).energy.measured_j == 10.0


def test_a_zone_that_has_gone_before_the_window_neither_raises(tmp_path, package):
    meter = RaplMeter(tmp_path)
    shutil.rmtree(package)
    meter.begin("trial-0")
    reading = meter.end(duration_s=1.0, cpu_s=None)
    assert code(reading) == "rapl-gone"
    assert (reading.start, reading.end, reading.samples, meter.state()) == (None, None, (), None)


def test_a_folder_in_the_counters_place_voids_the_window(tmp_path, package):
    def run():
        (package / "energy_uj").unlink()
        (package / "energy_uj").mkdir()

    assert code(measure(tmp_path, run)) == "rapl-unreadable"


@pytest.mark.parametrize("text", [b"", b"\n", b"-5\n", b"12a\n", b"1e9\n", b"\xff\xfe", b"1 2\n", b"9" * 5000 + b"\n"])
def test_what_is_no_whole_number_voids_the_window(tmp_path, package, text):
    assert code(measure(tmp_path, lambda: (package / "energy_uj").write_bytes(text))) == "rapl-unreadable"


def test_a_counter_above_its_own_range_voids_the_window(tmp_path):
    package = zone(tmp_path / "intel-rapl:0", "package-0", RANGE_UJ - 10)
    assert code(measure(tmp_path, lambda: put(package, RANGE_UJ + 1_000_000))) == "rapl-unreadable"


def test_a_half_written_value_is_read_again(tmp_path, package, monkeypatch):
    """`1001` of `1001000000` would be a reset, or a wrap; without its line's end it is looked at again."""
    counter = package / "energy_uj"
    counter.write_bytes(b"1001")
    monkeypatch.setattr(powercap.time, "sleep", lambda _: counter.write_bytes(b"1001000000\n"))
    assert powercap.read_uj(counter) == 1_001_000_000


def test_a_value_without_a_lines_end_counts_once_it_stays(tmp_path, package):
    (package / "energy_uj").write_bytes(b"1002000000")
    assert powercap.read_uj(package / "energy_uj") == 1_002_000_000


def test_the_trace_gives_the_power_between_its_rows(tmp_path, package):
    def run():
        for step in range(1, 6):
            time.sleep(0.06)
            put(package, 1_000_000_000 + step * 3_000_000)

    reading = measure(tmp_path, run, poll_s=0.15)
    times = [sample.elapsed_s for sample in reading.samples]
    assert times == sorted(times)
    assert times[0] < 0.05
    powers = [sample.power_w for sample in reading.samples[:-1] if sample.power_w is not None]
    assert powers
    assert reading.samples[-1].power_w is None
    for row, after in itertools.pairwise(reading.samples):
        if row.power_w is not None:
            moved = after.counter_j - row.counter_j
            assert row.power_w == pytest.approx(moved / (after.elapsed_s - row.elapsed_s))
    assert reading.energy.measured_j == 15.0


def test_the_integral_of_the_trace_is_what_the_counter_gave(tmp_path, package):
    """As `check` integrates it: each row's power holds until the next."""
    meter = RaplMeter(tmp_path, poll_s=0.12)
    meter.begin("trial-0")
    for step in range(1, 7):
        time.sleep(0.12)
        put(package, 1_000_000_000 + step * 5_000_000)
    time.sleep(0.12)
    length_s = powercap.clock_s() - meter._poller._window.start_s
    reading = meter.end(duration_s=length_s, cpu_s=None)
    assert reading.energy.measured_j == 30.0
    assert reading.energy.integral_j == pytest.approx(30.0, rel=0.1)


def test_a_window_that_was_left_open_is_forgotten(tmp_path, package):
    meter = RaplMeter(tmp_path)
    meter.begin("trial-0")
    put(package, 1_500_000_000)
    meter.begin("trial-1")
    put(package, 1_501_000_000)
    assert meter.end(duration_s=1.0, cpu_s=None).energy.measured_j == 1.0
    assert code(meter.end(duration_s=1.0, cpu_s=None)) == "rapl-unreadable"
    assert not [thread for thread in threading.enumerate() if thread.name == "rapl"]


def test_closing_ends_the_thread(tmp_path, package):
    meter = RaplMeter(tmp_path)
    meter.begin("trial-0")
    assert [thread for thread in threading.enumerate() if thread.name == "rapl"]
    meter.close()
    meter.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "rapl"]


def test_no_zone_is_an_error_with_a_remedy(tmp_path):
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MeterError, match="no RAPL zone") as caught:
            RaplMeter(root)
        assert "method `model`" in caught.value.remedy
    host = HostReader(tmp_path)
    host.begin()
    assert host.end() == {}
    assert "no RAPL zone" in host.reason
    host.close()


def test_a_platform_counter_alone_is_no_package(tmp_path):
    zone(tmp_path / "intel-rapl:0", "psys")
    with pytest.raises(MeterError, match="no RAPL zone"):
        RaplMeter(tmp_path)


def test_the_environment_names_another_folder(tmp_path, package, monkeypatch):
    monkeypatch.setenv(powercap.VARIABLE, str(tmp_path))
    meter = RaplMeter()
    meter.begin("trial-0")
    put(package, 1_004_000_000)
    assert meter.end(duration_s=1.0, cpu_s=None).energy.measured_j == 4.0


def test_the_host_beside_a_gpu_is_all_or_nothing(tmp_path, package):
    second = zone(tmp_path / "intel-rapl:1", "package-1")
    host = HostReader(tmp_path)
    host.begin()
    put(package, 1_004_000_000)
    put(second, 1_005_000_000)
    assert host.end() == {"package-0": 4.0, "package-1": 5.0}
    host.begin()
    put(package, 1_006_000_000)
    (second / "energy_uj").unlink()
    assert host.end() == {}
    assert host.reason.startswith("rapl-gone: ")
    assert host.end() == {}


# --- as a user that is not root ---------------------------------------------------------------------------------------

DROP = """
import json, os, sys
from pathlib import Path
from jouleboard.errors import MeterError
from jouleboard.meters.rapl import HostReader, RaplMeter
# After the imports: the interpreter's own folder may be closed to others.
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv[1])
found = {"uid": os.getuid()}
try:
    meter = RaplMeter(root)
except MeterError as error:
    found["error"], found["remedy"] = error.problem, error.remedy
else:
    meter.begin("trial-0")
    print("open", flush=True)
    sys.stdin.readline()
    reading = meter.end(duration_s=1.0, cpu_s=None)
    found["void"], found["measured_j"] = reading.void, reading.energy.measured_j
host = HostReader(root)
host.begin()
found["host"], found["reason"] = host.end(), host.reason
print(json.dumps(found))
"""


@pytest.fixture
def public():
    """A folder that any user may enter: pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def start(root: Path) -> subprocess.Popen[str]:
    """Measure below a folder as the user nobody (or as whoever runs the tests, if that is not root)."""
    return subprocess.Popen([sys.executable, "-c", DROP, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_counters_that_only_root_may_read_are_an_error_with_a_remedy(public):
    package = zone(public / "intel-rapl:0", "package-0")
    (package / "energy_uj").chmod(0o400 if os.getuid() == 0 else 0o000)
    process = start(public)
    out, err = process.communicate(timeout=60)
    found = json.loads(out.splitlines()[-1]) if out else pytest.fail(err)
    assert found["uid"] != 0
    assert found["error"].startswith("rapl-denied: intel-rapl:0/energy_uj")
    assert "chmod a+r" in found["remedy"]
    assert found["host"] == {}
    assert found["reason"].startswith("rapl-denied: ")


def test_a_permission_lost_in_a_window_voids_it(public):
    package = zone(public / "intel-rapl:0", "package-0")
    process = start(public)
    assert process.stdout.readline() == "open\n"
    put(package, 1_050_000_000)
    (package / "energy_uj").chmod(0o400 if os.getuid() == 0 else 0o000)
    out, err = process.communicate("\n", timeout=60)
    found = json.loads(out) if out else pytest.fail(err)
    assert found["void"].startswith("rapl-denied: ")
    assert found["measured_j"] is None
    assert found["host"] == {}


# --- what Zeus makes of the same files --------------------------------------------------------------------------------

NAIVE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from jouleboard.errors import MeterError
from jouleboard.meters.rapl import RaplMeter
from zeus.device.cpu import rapl

def put(folder, uj):
    partial = folder / ".energy_uj"
    partial.write_text(f"{uj}\\n")
    partial.replace(folder / "energy_uj")

def window(folder, before_uj, after_uj):
    put(folder, before_uj)
    naive, ours = rapl.RAPLFile(str(folder)), RaplMeter(folder.parent)
    ours.begin("trial-0")
    start_mj = naive.read()
    put(folder, after_uj)
    naive_j = (naive.read() - start_mj) / 1000
    reading = ours.end(duration_s=1.0, cpu_s=None)
    naive.wraparound_tracker._stop()
    return {"zeus": naive_j, "ours": reading.energy.measured_j, "void": reading.void}

if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = {"wrap": window(root / "intel-rapl:0", 262_143_328_850 - 9_000_000, 1_000_000)}
    found["reset"] = window(root / "intel-rapl:0", 100_000_000_000, 5_000_000)
    from zeus.monitor import ZeusMonitor
    rapl.RAPL_DIR = rapl.CONTAINER_RAPL_DIR = str(root / "nothing")
    monitor = ZeusMonitor(gpu_indices=[])
    monitor.begin_window("w", sync_execution=False)
    found["hidden"] = {"zeus": monitor.end_window("w", sync_execution=False).cpu_energy}
    try:
        RaplMeter(root / "nothing")
    except MeterError as error:
        found["hidden"]["ours"] = error.problem
    print(json.dumps(found))
"""


def test_zeus_is_a_whole_wrap_off_takes_resets_and_hides_what_it_cannot_read(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0")
    script = tmp_path / "naive.py"
    script.write_text(NAIVE, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False,
                          timeout=120, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrap"]["zeus"] == pytest.approx(10 - RANGE_UJ / 1e6)
    assert (found["wrap"]["ours"], found["wrap"]["void"]) == (10.0, None)
    assert found["reset"]["zeus"] < 0
    assert found["reset"]["ours"] is None
    assert found["reset"]["void"].startswith("rapl-reset: ")
    assert found["hidden"]["zeus"] is None
    assert "no RAPL zone" in found["hidden"]["ours"]
