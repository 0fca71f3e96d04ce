"""The doctor says in plain words what is measured here, why not more, and what would change that."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jouleboard import doctor, hardware, paths
from jouleboard.meters import detect, kernel, reap
from tests.simulated_gpu import Gpu, SimulatedGpu
from tests.simulated_rapl import DRAM, PACKAGE, PSYS, SimulatedRapl
from tests.test_hardware import DENIED, H100, RAPL, SXM, board, gpus, machine, on

NOTHING = kernel.GpuTraces(nvidia_cards=0, amd_cards=0, nvidia_driver=False, nvidia_nodes=False, container=False)
NO_NVML = detect.Gpus(devices=(), reason="NVML does not start: NVML Shared Library Not Found")
NO_AMD = detect.Gpus(devices=(), reason="the package amdsmi, a part of ROCm, is not installed")
GPU, RAPL_TOPIC, AMD = "NVIDIA GPU", "processor energy counters (RAPL)", "AMD GPU"


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives the doctor's findings on another machine, by topic."""
    def findings(here: hardware.Machine, traces: kernel.GpuTraces = NOTHING, *, virtual: bool = False) -> dict[str, doctor.Finding]:
        monkeypatch.setattr(hardware, "look", lambda: here)
        monkeypatch.setattr(kernel, "gpu_traces", lambda: traces)
        monkeypatch.setattr(kernel, "virtual", lambda: virtual)
        return {row.topic: row for row in doctor.examine()}

    monkeypatch.setattr(reap, "leftovers", list)
    return findings


@pytest.mark.parametrize(("nvidia", "traces", "found", "remedy"), [
    (NO_NVML, {}, "No sign of an NVIDIA card", "run on a machine with an NVIDIA GPU"),
    (NO_NVML, {"container": True}, "No sign of an NVIDIA card", "--gpus all"),
    (NO_NVML, {"nvidia_cards": 2}, "2 NVIDIA card(s) on the PCI bus have no driver", "install NVIDIA's driver"),
    (NO_NVML, {"nvidia_driver": True, "container": True}, "this container sees no /dev/nvidia*", "docker run --gpus all"),
    (NO_NVML, {"nvidia_driver": True, "nvidia_cards": 1}, "this process sees no /dev/nvidia*", "`nvidia-smi` once as root"),
    (NO_NVML, {"nvidia_driver": True, "nvidia_nodes": True, "container": True}, "its library does not answer", "libnvidia-ml.so.1"),
    (detect.Gpus(devices=(), reason="the package nvidia-ml-py is not installed (extra `run`)"), {"nvidia_cards": 1},
     "nvidia-ml-py", "jouleboard[run]"),
    (detect.Gpus(devices=(), reason="CUDA_VISIBLE_DEVICES='' hides every GPU"), {"nvidia_cards": 1, "nvidia_driver": True},
     "hides every GPU", "unset CUDA_VISIBLE_DEVICES"),
])
def test_why_no_nvidia_gpu_is_seen(nvidia: detect.Gpus, traces: dict[str, Any], found: str, remedy: str, look: Any) -> None:
    row = look(machine(nvidia=nvidia), replace(NOTHING, **traces))[GPU]
    assert not row.ok
    assert found in row.found
    assert remedy in (row.remedy or "")


@pytest.mark.parametrize(("gpu", "ok", "remedy"), [
    (board(SXM, H100), True, None),
    (board(SXM, H100, power_limit_w=500.0), False, "nvidia-smi -i 0 -pl 700"),
    (board(SXM, H100, mig=True), False, "nvidia-smi -i 0 -mig 0"),
    (board(SXM, "NVIDIA GeForce RTX 2060"), False, "no declared profile fits this GPU: `jouleboard hardware detect`"),
    (board(SXM, "SIMULATED GPU"), False, "--hardware simulated-gpu"),
])
def test_a_gpu_that_cannot_be_used_is_told_why(gpu: detect.Gpu, ok: bool, remedy: str | None, look: Any) -> None:  # noqa: FBT001
    row = look(machine(nvidia=gpus(gpu)))[GPU]
    assert (row.ok, row.found) == (ok, gpu.name)
    assert row.remedy is None if remedy is None else remedy in (row.remedy or "")


@pytest.mark.parametrize(("rapl", "traces", "virtual", "ok", "words"), [
    (RAPL, {}, False, True, "intel-rapl:0"),
    (replace(RAPL, psys=True), {}, False, True, "psys is the whole platform"),
    (DENIED, {}, True, False, "chmod a+r"),
    (machine().rapl, {"container": True}, True, False, "a virtual machine is not shown"),
    (machine().rapl, {"container": True}, False, False, "outside the container"),
    (machine().rapl, {}, False, False, "modprobe intel_rapl_msr"),
])
def test_why_the_processors_counters_are_not_read(
    rapl: detect.Rapl, traces: dict[str, Any], virtual: bool, ok: bool, words: str, look: Any  # noqa: FBT001
) -> None:
    row = look(machine(rapl=rapl), replace(NOTHING, **traces), virtual=virtual)[RAPL_TOPIC]
    assert row.ok is ok
    assert words in (row.found if ok else row.remedy or "")


def test_an_arm_machine_is_not_sent_looking_for_rapl(look: Any) -> None:
    assert "only Intel and AMD" in (look(machine(machine="aarch64"))[RAPL_TOPIC].remedy or "")


@pytest.mark.parametrize(("traces", "words"), [({}, "No AMD card"), ({"amd_cards": 8}, "8 AMD card(s) on the PCI bus")])
def test_why_no_amd_gpu_is_seen(traces: dict[str, Any], words: str, look: Any) -> None:
    row = look(machine(amd=NO_AMD), replace(NOTHING, **traces))[AMD]
    assert not row.ok
    assert words in row.found
    assert "ROCm" in (row.remedy or "")


def test_an_amd_gpu_that_is_declared_is_usable(look: Any) -> None:
    rows = look(machine(amd=gpus("AMD Instinct MI300X")))
    assert rows[AMD].ok
    assert "gpu_counter" in rows["energy method"].found


@pytest.mark.parametrize(("here", "topic", "ok"), [
    (machine(), "NVIDIA Jetson", False), (machine(), "Apple processor", False),
    (machine(machine="aarch64", jetson=True, board="NVIDIA Jetson AGX Orin Developer Kit"), "NVIDIA Jetson", True),
    (machine(machine="arm64", apple=True, processor="Apple M3"), "Apple processor", False),
])
def test_systems_on_a_chip_are_looked_for(here: hardware.Machine, topic: str, ok: bool, look: Any) -> None:  # noqa: FBT001
    row = look(here)[topic]
    assert row.ok is ok
    assert bool(row.remedy) is not ok
    if here.apple:
        assert "zeus-apple-silicon" in (row.remedy or "")


def test_without_a_sensor_it_says_what_is_measured_instead_and_that_it_is_never_ranked(look: Any) -> None:
    row = look(machine())["energy method"]
    assert not row.ok
    for words in ("no energy is measured", "CPU-seconds", "CPU-time board", "±50%", "never ranked"):
        assert words in row.found
    assert "import-power" in (row.remedy or "")


@pytest.mark.parametrize(("here", "words"), [
    (machine(nvidia=gpus(board(SXM, H100))), "gpu_counter: joules are measured by the device's own counter, and hold the GPU alone"),
    (machine(rapl=RAPL), "rapl: joules are measured by the device's own counter, and hold processor packages"),
])
def test_with_a_sensor_it_says_what_the_joules_hold(here: hardware.Machine, words: str, look: Any) -> None:
    row = look(here)["energy method"]
    assert row.ok
    assert words in row.found


def test_a_machine_that_no_profile_fits_is_still_examined(look: Any) -> None:
    rows = look(machine(machine="riscv64"))
    assert not rows["hardware profile"].ok
    assert "energy method" not in rows
    assert rows[RAPL_TOPIC].remedy


def test_everything_that_is_not_well_has_a_remedy(look: Any) -> None:
    for here in (machine(), machine(machine="riscv64"), machine(nvidia=gpus("NVIDIA GeForce RTX 2060"), rapl=DENIED)):
        assert [row.topic for row in look(here).values() if not row.ok and not row.remedy] == []


def test_meter_processes_without_a_driver_are_named(look: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "leftover meter processes" not in look(machine())
    monkeypatch.setattr(reap, "leftovers", lambda: [reap.Leftover(token=tmp_path.name, pids=(7, 8), file=tmp_path)])
    row = look(machine())["leftover meter processes"]
    assert "7 8" in row.found
    assert "kill -9 7 8" in (row.remedy or "")


SIMULATED = "simulated GPU, to try everything without a sensor"


@pytest.mark.parametrize(("checkout", "tools", "ok", "words"), [
    (True, {"gcc"}, True, "with gcc"), (True, set(), False, "ziglang"), (False, {"gcc"}, False, "clone the repository"),
])
def test_it_says_whether_the_simulated_gpu_can_be_built(
    checkout: bool, tools: set[str], ok: bool, words: str, look: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # noqa: FBT001
) -> None:
    (tmp_path / "tests" / "simulated_gpu").mkdir(parents=True)
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path if checkout else None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    row = look(machine())[SIMULATED]
    assert row.ok is ok
    assert words in (row.found if ok else row.remedy or "")


def test_on_the_simulated_gpu_it_says_that_nothing_is_measured(tmp_path: Path) -> None:
    done = on(SimulatedGpu(tmp_path, Gpu(), clock="manual"), "-m", "jouleboard", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["topic"]: row for row in json.loads(done.stdout)["findings"]}
    assert (rows[GPU]["ok"], rows[GPU]["found"]) == (False, "SIMULATED GPU")
    assert "measures nothing" in rows[GPU]["remedy"]
    assert "simulated" not in rows["hardware profile"]["found"]


# --- what the kernel's files say --------------------------------------------------------------------------------------


def files(root: Path, **contents: str) -> Path:
    """Write files below a folder; `__` stands for `/` in their names."""
    for name, text in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("contents", "name"), [
    ({}, None),
    ({"proc__device-tree__model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "Raspberry Pi 5 Model B Rev 1.0"),
    ({"proc__cpuinfo": "processor\t: 0\nCPU part\t: 0xd0b\n\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"},
     "Raspberry Pi 5 Model B Rev 1.0"),
    ({"proc__cpuinfo": "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) Processor\n"}, None),
    ({"proc__device-tree__model": "\0", "proc__cpuinfo": "Model\t\t:\n"}, None),
])
def test_a_board_is_known_by_its_device_tree(contents: dict[str, str], name: str | None, tmp_path: Path) -> None:
    assert kernel.board(files(tmp_path, **contents)) == name


def test_a_jetson_is_known_by_its_device_tree(tmp_path: Path) -> None:
    assert not kernel.jetson(tmp_path)
    assert not kernel.jetson(files(tmp_path, **{"proc__device-tree__compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}))
    assert kernel.jetson(files(tmp_path, **{"proc__device-tree__compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"}))


@pytest.mark.parametrize(("contents", "virtual"), [
    ({}, False), ({"proc__cpuinfo": "flags\t\t: fpu vme hypervisor lahf_lm\n"}, True), ({"proc__cpuinfo": "flags\t\t: fpu vme\n"}, False),
    ({"sys__hypervisor__type": "xen\n"}, True),
])
def test_a_virtual_machine_is_known_by_its_flags(contents: dict[str, str], virtual: bool, tmp_path: Path) -> None:  # noqa: FBT001
    assert kernel.virtual(files(tmp_path, **contents)) is virtual


def test_cards_driver_device_files_and_containers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("container", raising=False)
    assert kernel.gpu_traces(tmp_path) == NOTHING
    bus = "sys__bus__pci__devices__"
    files(tmp_path, **{f"{bus}1__vendor": "0x10de\n", f"{bus}1__class": "0x030200\n", f"{bus}2__vendor": "0x10de\n", f"{bus}2__class": "0x040300\n",
                       f"{bus}3__vendor": "0x1002\n", f"{bus}3__class": "0x038000\n", f"{bus}4__vendor": "0x8086\n", f"{bus}4__class": "0x030000\n"})
    assert kernel.gpu_traces(tmp_path) == replace(NOTHING, nvidia_cards=1, amd_cards=1), "a card's sound function is no GPU"
    files(tmp_path, **{"proc__driver__nvidia__version": "NVRM", ".dockerenv": ""})
    assert kernel.gpu_traces(tmp_path) == replace(NOTHING, nvidia_cards=1, amd_cards=1, nvidia_driver=True, container=True)
    files(tmp_path, dev__nvidiactl="")
    assert kernel.gpu_traces(tmp_path).nvidia_nodes


def test_rapl_is_looked_for_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = SimulatedRapl(tmp_path, PACKAGE, DRAM, PSYS)
    for name, value in simulated.environment().items():
        monkeypatch.setenv(name, value)
    found = detect.rapl()
    assert (found.readable, found.psys, found.reason) == (True, True, None)
    monkeypatch.setenv("JOULEBOARD_POWERCAP", str(tmp_path / "none"))
    assert not detect.rapl().readable


def test_a_platform_counter_alone_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:1").mkdir()
    (tmp_path / "intel-rapl:1" / "name").write_text("psys\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1\n")
    found = detect.rapl(tmp_path)
    assert (found.readable, found.psys) == (False, True)
    assert "package" in (found.reason or "")


# --- AMD SMI ----------------------------------------------------------------------------------------------------------


class AmdSmiError(Exception):
    """What amdsmi raises."""


def amdsmi(**changes: Any) -> types.SimpleNamespace:
    """A library with one GPU, in the units of amdsmi 7: MiB and microwatts."""
    def fail(*_: object) -> None:
        raise AmdSmiError("broken")

    whole = {
        "AmdSmiException": AmdSmiError, "amdsmi_init": lambda: None, "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["one"], "amdsmi_get_gpu_asic_info": lambda _: {"market_name": "AMD Instinct MI300X"},
        "amdsmi_get_power_cap_info": lambda _: {"power_cap": 750_000_000, "default_power_cap": 750_000_000, "min_power_cap": 0, "max_power_cap": "N/A"},
        "amdsmi_get_gpu_vram_info": lambda _: {"vram_size": 196592}, "amdsmi_get_gpu_device_uuid": lambda _: "uuid",
    }
    return types.SimpleNamespace(**whole | {name: fail if value is fail or value == "fail" else value for name, value in changes.items()})


def with_amdsmi(library: object, monkeypatch: pytest.MonkeyPatch) -> detect.Gpus:
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: object())
    return detect.amd_gpus()


def test_what_an_amd_gpu_says_of_itself_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_amdsmi(amdsmi(), monkeypatch)
    assert found.details == (detect.Gpu(name="AMD Instinct MI300X", device=detect.short_digest("uuid"), memory_bytes=196592 * 2**20, power_limit_w=750.0,
                                        default_power_limit_w=750.0, min_power_limit_w=0.0, max_power_limit_w=None),)
    assert (found.devices, found.reason) == (("AMD Instinct MI300X",), None)


@pytest.mark.parametrize(("changes", "devices", "word"), [
    ({"amdsmi_init": "fail"}, (), "does not start"), ({"amdsmi_get_processor_handles": "fail"}, (), "lists no GPU"),
    ({"amdsmi_get_gpu_asic_info": "fail"}, (), "lists no GPU"), ({"amdsmi_get_processor_handles": list}, (), "lists no GPU"),
    ({"amdsmi_shut_down": "fail", "amdsmi_get_power_cap_info": "fail", "amdsmi_get_gpu_vram_info": "fail", "amdsmi_get_gpu_device_uuid": "fail"},
     ("AMD Instinct MI300X",), None),
])
def test_asking_for_amd_gpus_never_raises(changes: dict[str, Any], devices: tuple[str, ...], word: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_amdsmi(amdsmi(**changes), monkeypatch)
    assert found.devices == devices
    assert found.reason is None if word is None else word in (found.reason or "")


def test_an_amdsmi_without_its_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise KeyError("libamd_smi.so")

    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(detect.importlib, "import_module", broken)
    assert "libamd_smi.so" in (detect.amd_gpus().reason or "")
