"""A declared profile is held against the device that is there, field by field."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import catalogue, cli, hardware, listing, paths, propose
from jouleboard.declared import Band, Figure, Hardware
from jouleboard.errors import HardwareError, PlanError
from jouleboard.meters import detect, kernel
from tests.simulated_gpu import Gpu, SimulatedGpu, enforced_limit, lost

H100 = "NVIDIA H100 80GB HBM3"
PROFILES: dict[str, Hardware] = catalogue.load_all(paths.data_folder("hardware"), Hardware)

NAMES = {
    "NVIDIA H100 80GB HBM3": "nvidia-h100-sxm-80gb",
    "NVIDIA H100 PCIe": "nvidia-h100-pcie-80gb",
    "NVIDIA H200": "nvidia-h200-sxm-141gb",
    "NVIDIA B200": "nvidia-b200-180gb",
    "NVIDIA A100-SXM4-40GB": "nvidia-a100-sxm-40gb",
    "A100-SXM4-40GB": "nvidia-a100-sxm-40gb",
    "NVIDIA A100-SXM4-80GB": "nvidia-a100-sxm-80gb",
    "NVIDIA A100-PCIE-40GB": "nvidia-a100-pcie-40gb",
    "NVIDIA A100 80GB PCIe": "nvidia-a100-pcie-80gb",
    "NVIDIA L4": "nvidia-l4-24gb",
    "NVIDIA L40S": "nvidia-l40s-48gb",
    "Tesla T4": "nvidia-t4-16gb",
    "NVIDIA GeForce RTX 3090": "nvidia-rtx-3090-24gb",
    "GeForce RTX 3090": "nvidia-rtx-3090-24gb",
    "NVIDIA GeForce RTX 4090": "nvidia-rtx-4090-24gb",
    "NVIDIA GeForce RTX 5090": "nvidia-rtx-5090-32gb",
    "AMD Instinct MI300X": "amd-mi300x-192gb",
    "AMD Instinct MI300X OAM": "amd-mi300x-192gb",
}
"""As NVML and AMD SMI name the boards."""
STRANGERS = (
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA B300 SXM6 AC",
    "NVIDIA A100-SXM-64GB", "NVIDIA A100 40GB PCIe MIG 1g.5gb", "NVIDIA L40", "NVIDIA L20", "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 5090 D", "GRID T4-8Q", "NVIDIA T400",
    "AMD Instinct MI300A", "AMD Instinct MI300X VF", "AMD Instinct MI325X", "",
)
REPORTED_BYTES = {
    "nvidia-h100-sxm-80gb": 81559 * 2**20, "nvidia-h200-sxm-141gb": 143771 * 2**20, "nvidia-b200-180gb": 183359 * 2**20,
    "nvidia-a100-sxm-40gb": 40960 * 2**20, "nvidia-a100-pcie-40gb": 40441 * 2**20, "nvidia-l4-24gb": 23034 * 2**20,
    "nvidia-t4-16gb": 15360 * 2**20, "nvidia-rtx-3090-24gb": 24576 * 2**20, "nvidia-rtx-5090-32gb": 32607 * 2**20,
    "amd-mi300x-192gb": 196592 * 2**20,
}
"""Total memory as nvidia-smi, or AMD SMI, shows it."""


def board(profile: Hardware, name: str, **changes: Any) -> detect.Gpu:
    """A GPU that is as its profile declares."""
    limit_w = profile.power_limit_w and profile.power_limit_w.value
    made = detect.Gpu(name=name, memory_bytes=int(profile.memory_bytes.value) if profile.memory_bytes else None,
                      power_limit_w=limit_w, default_power_limit_w=limit_w, mig=False)
    return replace(made, **changes)


def gpus(*boards: detect.Gpu | str) -> detect.Gpus:
    details = tuple(found for found in boards if isinstance(found, detect.Gpu))
    return detect.Gpus(devices=tuple(found if isinstance(found, str) else found.name for found in boards),
                       reason=None if boards else "no driver", details=details)


def machine(**changes: Any) -> hardware.Machine:
    """An x86-64 virtual machine without anything to measure."""
    nothing = hardware.Machine(
        machine="x86_64", processor="Some CPU", board=None, memory_bytes=16 * 10**9, nvidia=gpus(), amd=gpus(),
        rapl=detect.Rapl(zones=(), readable=False, reason="the kernel shows no RAPL zone"), jetson=False, apple=False)
    return replace(nothing, **changes)


def with_board(profile: Hardware, *boards: detect.Gpu | str) -> hardware.Machine:
    return machine(**{"amd" if profile.sensor == "amdsmi" else "nvidia": gpus(*boards)})


RAPL = detect.Rapl(zones=("intel-rapl:0",), readable=True, reason=None)
DENIED = detect.Rapl(zones=("intel-rapl:0",), readable=False, reason="intel-rapl:0/energy_uj is not readable by this user")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this machine another one."""
    def become(here: hardware.Machine) -> None:
        monkeypatch.setattr("platform.machine", lambda: here.machine)
        monkeypatch.setattr(detect, "gpus", lambda: here.nvidia)
        monkeypatch.setattr(detect, "amd_gpus", lambda: here.amd)
        monkeypatch.setattr(detect, "rapl", lambda: here.rapl)
        monkeypatch.setattr(detect, "cpu_model", lambda: here.processor)
        monkeypatch.setattr(detect, "memory_bytes", lambda: here.memory_bytes)
        monkeypatch.setattr(detect, "apple", lambda: here.apple)
        monkeypatch.setattr(kernel, "board", lambda: here.board)
        monkeypatch.setattr(kernel, "jetson", lambda: here.jetson)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    become(machine())
    return become


def profile(ident: str = "x86-vm", **changes: Any) -> Hardware:
    return msgspec.structs.replace(PROFILES[ident], **changes)


def figures(found: Hardware) -> dict[str, Figure | Band]:
    """Every figure of a profile, by its field."""
    named = {name: getattr(found, name) for name in found.__struct_fields__}
    rates = {f"peak_flops.{dtype}": figure for dtype, figure in found.peak_flops.items()}
    return {name: value for name, value in (named | rates).items() if isinstance(value, Figure | Band)}


# --- the declared profiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ident", PROFILES)
def test_every_figure_has_a_source_that_can_be_looked_up(ident: str) -> None:
    found = figures(PROFILES[ident])
    model = PROFILES[ident].power_model
    sources = {name: figure.source for name, figure in found.items()} | ({"power_model": model.source} if model else {})
    assert sources
    for name, source in sources.items():
        assert len(source.split()) >= 3, name
        assert "://" not in source, f"{name}: documents are cited by name"
    for name in ("electricity_usd_per_kwh", "grid_kgco2e_per_kwh", "pue"):
        if name in found:
            assert found[name].year, f"{name} changes from year to year"


@pytest.mark.parametrize("ident", PROFILES)
def test_the_figures_of_a_profile_are_possible_together(ident: str) -> None:
    one = PROFILES[ident]
    limits = [figure.value for figure in (one.min_power_limit_w, one.power_limit_w, one.max_power_limit_w) if figure]
    assert limits == sorted(limits)
    if one.idle_w and one.power_limit_w:
        assert 0 < one.idle_w.value < one.power_limit_w.value
    if one.start_temperature_c:
        assert one.start_temperature_c.low < one.start_temperature_c.high < 90
    if one.power_model:
        assert 0 < one.power_model.idle_w_per_core < one.power_model.max_w_per_core
    if "int8" in one.peak_flops and "bfloat16" in one.peak_flops:
        # On every board of these generations; a sparse figure beside a dense one would show here.
        assert one.peak_flops["int8"].value / one.peak_flops["bfloat16"].value == pytest.approx(2 if one.category == "datacentre" else 4, rel=0.05)


def test_what_people_run_on_is_declared() -> None:
    assert {"jetson-agx-orin-64gb", "jetson-orin-nano-8gb", "apple-m-series", "x86-rapl", "x86-vm", "arm64-vm", "raspberry-pi-5",
            "phone-tensor-g1", "simulated-gpu", *NAMES.values()} == set(PROFILES)


def test_all_figures_of_the_simulated_gpu_say_that_they_are_invented() -> None:
    assert all(figure.source.startswith("invented: ") for figure in figures(PROFILES["simulated-gpu"]).values())
    one = PROFILES["simulated-gpu"]
    assert (one.category, one.method, one.boundary, one.sensor, one.vendor) == ("simulated", "simulated", "gpu", "nvml", "SIMULATED")


@pytest.mark.parametrize(("name", "ident"), NAMES.items())
def test_the_name_of_a_real_device_fits_exactly_one_profile(name: str, ident: str) -> None:
    kinds = [one for one in PROFILES.values() if one.sensor in hardware.GPU_SENSORS]
    assert [one.id for one in kinds if re.search(one.device_pattern, name)] == [ident]
    here = with_board(PROFILES[ident], board(PROFILES[ident], name))
    assert [one.id for one in kinds if hardware.misfit(one, here) is None] == [ident]
    assert hardware.resolve(None, here).id == ident


@pytest.mark.parametrize("name", STRANGERS)
def test_the_name_of_another_device_fits_no_profile(name: str) -> None:
    kinds = [one for one in PROFILES.values() if one.sensor in hardware.GPU_SENSORS]
    assert [one.id for one in kinds if re.search(one.device_pattern, name)] == []


@pytest.mark.parametrize(("ident", "found"), REPORTED_BYTES.items())
def test_the_memory_that_drivers_report_fits_the_declared_size(ident: str, found: int) -> None:
    name = next(name for name, one in NAMES.items() if one == ident)
    assert hardware.misfit(PROFILES[ident], with_board(PROFILES[ident], board(PROFILES[ident], name, memory_bytes=found))) is None


@pytest.mark.parametrize("name", [*NAMES, "GPU", *STRANGERS])
def test_no_real_profile_ever_takes_a_simulated_device(name: str) -> None:
    for one in PROFILES.values():
        if one.sensor not in hardware.GPU_SENSORS or one.category == "simulated":
            continue
        for pattern in (one.device_pattern, ".", name and re.escape(name)):
            greedy = msgspec.structs.replace(one, device_pattern=pattern)
            found = hardware.misfit(greedy, with_board(one, board(one, f"SIMULATED {name}")))
            assert found is not None, (one.id, pattern)
            assert found.field == "device_pattern"


@pytest.mark.parametrize("name", [H100, "Tesla T4", "NOT SIMULATED"])
def test_the_simulated_profile_never_takes_a_real_device(name: str) -> None:
    greedy = profile("simulated-gpu", device_pattern=".")
    found = hardware.misfit(greedy, with_board(greedy, board(greedy, name)))
    assert found is not None
    assert (found.field, "real" in found.how) == ("device_pattern", True)


# --- which one is chosen ----------------------------------------------------------------------------------------------


PI = {"machine": "aarch64", "board": "Raspberry Pi 5 Model B Rev 1.0", "processor": "Raspberry Pi 5 Model B Rev 1.0"}
JETSON = {"machine": "aarch64", "processor": "ARMv8 Processor rev 1 (v8l)", "jetson": True}


@pytest.mark.parametrize(("here", "expected"), [
    (machine(), "x86-vm"),
    (machine(machine="aarch64"), "arm64-vm"),
    (machine(machine="arm64"), "arm64-vm"),
    (machine(rapl=RAPL), "x86-rapl"),
    (machine(rapl=DENIED), "x86-vm"),
    (machine(machine="aarch64", rapl=RAPL), "arm64-vm"),
    (machine(nvidia=gpus(H100)), "nvidia-h100-sxm-80gb"),
    (machine(nvidia=gpus(H100), rapl=RAPL), "nvidia-h100-sxm-80gb"),
    (machine(nvidia=gpus("NVIDIA GeForce RTX 2060"), rapl=RAPL), "x86-rapl"),
    (machine(nvidia=gpus("NVIDIA GeForce RTX 2060")), "x86-vm"),
    (machine(nvidia=gpus("SIMULATED GPU")), "x86-vm"),
    (machine(amd=gpus("AMD Instinct MI300X OAM"), rapl=RAPL), "amd-mi300x-192gb"),
    (machine(**PI), "raspberry-pi-5"),
    (machine(**PI | {"board": "Raspberry Pi 4 Model B Rev 1.5"}), "arm64-vm"),
    (machine(**PI | {"board": "Raspberry Pi 500 Rev 1.0"}), "arm64-vm"),
    (machine(machine="aarch64", processor="Raspberry Pi 5 Model B Rev 1.0"), "raspberry-pi-5"),
    (machine(**JETSON, board="NVIDIA Jetson AGX Orin Developer Kit", memory_bytes=65_900_000_000), "jetson-agx-orin-64gb"),
    (machine(**JETSON, board="NVIDIA Jetson AGX Orin Developer Kit", memory_bytes=32_900_000_000), "arm64-vm"),
    (machine(**JETSON, board="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", memory_bytes=7_990_000_000),
     "jetson-orin-nano-8gb"),
    (machine(**JETSON, board="NVIDIA Jetson Orin Nano Developer Kit", memory_bytes=3_990_000_000), "arm64-vm"),
    (machine(**JETSON | {"jetson": False}, board="NVIDIA Jetson AGX Orin Developer Kit", memory_bytes=64_000_000_000), "arm64-vm"),
    (machine(machine="arm64", processor="Apple M4 Max", apple=True), "apple-m-series"),
    (machine(machine="arm64", processor="Apple M2", apple=False), "arm64-vm"),
])
def test_the_profile_with_a_sensor_is_preferred_where_it_fits(here: hardware.Machine, expected: str) -> None:
    assert hardware.resolve(None, here).id == expected


def test_phones_and_simulated_devices_are_only_taken_by_request() -> None:
    assert [one.id for one in hardware.declared() if not hardware.detectable(one)] == ["simulated-gpu", "phone-tensor-g1"]
    assert hardware.resolve("phone-tensor-g1", machine(machine="aarch64")).id == "phone-tensor-g1"
    simulated = profile("simulated-gpu")
    assert hardware.resolve("simulated-gpu", with_board(simulated, board(simulated, "SIMULATED GPU"))).id == "simulated-gpu"


def test_a_machine_that_fits_no_profile_is_told_what_to_do() -> None:
    with pytest.raises(HardwareError, match="riscv64") as caught:
        hardware.resolve(None, machine(machine="riscv64"))
    assert "profile of your own" in (caught.value.remedy or "")


def test_a_profile_that_fits_is_taken_although_another_one_is_better() -> None:
    assert hardware.resolve("x86-vm", machine(nvidia=gpus(H100))).id == "x86-vm"


def test_an_unknown_profile_gets_the_nearest_names() -> None:
    with pytest.raises(PlanError) as caught:
        hardware.resolve("nvidia-h100")
    assert "nvidia-h100" in (caught.value.remedy or "")


# --- refusals ---------------------------------------------------------------------------------------------------------


SXM = PROFILES["nvidia-h100-sxm-80gb"]


@pytest.mark.parametrize(("ident", "here", "field", "remedy"), [
    ("arm64-vm", machine(), "machine", "hardware list"),
    ("x86-vm", machine(machine="aarch64"), "machine", "hardware list"),
    ("raspberry-pi-5", machine(), "machine", "hardware list"),
    ("raspberry-pi-5", machine(machine="aarch64"), "device_pattern", "hardware detect"),
    ("nvidia-h100-sxm-80gb", machine(), "count", "doctor"),
    ("simulated-gpu", machine(), "count", "doctor"),
    ("simulated-gpu", machine(nvidia=gpus(H100)), "device_pattern", "hardware detect"),
    ("amd-mi300x-192gb", machine(nvidia=gpus(H100)), "count", "doctor"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus("NVIDIA A100-SXM4-80GB")), "device_pattern", "hardware detect"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus(f"{H100} MIG 1g.10gb")), "device_pattern", "hardware detect"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus(board(SXM, H100, mig=True))), "boundary", "-mig 0"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus(board(SXM, H100, memory_bytes=96 * 10**9))), "memory_bytes", "hardware detect"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus(board(SXM, H100, power_limit_w=500.0))), "power_limit_w", "nvidia-smi -i 0 -pl 700"),
    ("nvidia-h100-sxm-80gb", machine(nvidia=gpus(board(SXM, H100, power_limit_w=None))), "power_limit_w", "driver"),
    ("amd-mi300x-192gb", machine(amd=gpus(board(PROFILES["amd-mi300x-192gb"], "AMD Instinct MI300X", power_limit_w=650.0))),
     "power_limit_w", "rocm-smi"),
    ("x86-rapl", machine(), "sensor", "virtual machines"),
    ("x86-rapl", machine(rapl=DENIED), "sensor", "chmod"),
    ("jetson-agx-orin-64gb", machine(**JETSON | {"jetson": False}, board="NVIDIA Jetson AGX Orin", memory_bytes=64 * 10**9), "sensor", "Jetson"),
    ("jetson-agx-orin-64gb", machine(**JETSON, board="NVIDIA Jetson AGX Orin", memory_bytes=32 * 10**9), "memory_bytes", "hardware detect"),
    ("apple-m-series", machine(machine="arm64", processor="Apple M1"), "sensor", "Mac"),
])
def test_a_profile_that_does_not_fit_is_refused_by_field(
    ident: str, here: hardware.Machine, field: str, remedy: str, device: Any
) -> None:
    device(here)
    with pytest.raises(HardwareError) as caught:
        hardware.resolve(ident)
    assert caught.value.field == field
    assert remedy in (caught.value.remedy or "")
    assert (caught.value.file or "").endswith(f"{ident}.yaml")
    assert (hardware.mismatch(PROFILES[ident]) or "").startswith(f"{field}: ")


@pytest.mark.parametrize(("limit_w", "fits"), [(700.0, True), (699.0, True), (701.0, True), (698.9, False), (701.1, False), (0.0, False)])
def test_the_limit_in_force_agrees_to_a_watt(limit_w: float, fits: bool) -> None:  # noqa: FBT001
    here = with_board(SXM, board(SXM, H100, power_limit_w=limit_w))
    assert (hardware.misfit(SXM, here) is None) is fits


@pytest.mark.parametrize(("size", "fits"), [(72 * 10**9, True), (88 * 10**9, True), (72 * 10**9 - 1, False), (88 * 10**9 + 1, False),
                                            (0, False), (None, True)])
def test_memory_agrees_to_a_tenth(size: int | None, fits: bool) -> None:  # noqa: FBT001
    assert (hardware.misfit(SXM, with_board(SXM, board(SXM, H100, memory_bytes=size))) is None) is fits


def test_every_device_that_a_profile_counts_must_match() -> None:
    two, good = profile("nvidia-h100-sxm-80gb", count=2), board(SXM, H100)
    assert hardware.mismatch(two, with_board(two, good, good)) is None
    assert "'NVIDIA T4'" in (hardware.mismatch(two, with_board(two, H100, "NVIDIA T4")) or "")
    assert "2 device(s), 1 found" in (hardware.mismatch(two, with_board(two, H100)) or "")
    for field, change in {"boundary": {"mig": True}, "power_limit_w": {"power_limit_w": 400.0}, "memory_bytes": {"memory_bytes": 1}}.items():
        here = with_board(two, good, replace(good, **change))
        assert (hardware.mismatch(two, here) or "").startswith(field)
        assert hardware.mismatch(SXM, here) is None, "only one GPU is used"


@pytest.mark.parametrize(("shown", "devices"), [
    (None, (H100, "Tesla T4")), ("1", ("Tesla T4",)), ("1,0", ("Tesla T4", H100)), ("", ()), ("-1", ()), ("0,-1,1", (H100,)), ("7", ()),
    ("GPU-b", ("Tesla T4",)), ("GPU-c", ()), (" 1 , 0", ("Tesla T4", H100)), ("MIG-GPU-a/1/0", ()),
])
def test_gpus_are_counted_as_cuda_counts_them(shown: str | None, devices: tuple[str, ...], device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [detect.short_digest(uuid) for uuid in ("GPU-a", "GPU-b")]
    device(machine(nvidia=gpus(board(SXM, H100, device=digests[0]), board(PROFILES["nvidia-t4-16gb"], "Tesla T4", device=digests[1]))))
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    found = hardware.look().nvidia
    assert (found.devices, tuple(gpu.name for gpu in found.details)) == (devices, devices)
    assert (found.reason is None) == bool(devices)
    assert (hardware.misfit(SXM) is None) is (devices[:1] == (H100,))


def test_a_profile_of_the_processor_is_held_against_the_processors_name() -> None:
    here = machine(nvidia=gpus(H100), processor="AMD EPYC 7B13")
    assert hardware.mismatch(profile(device_pattern="EPYC"), here) is None
    assert "AMD EPYC 7B13" in (hardware.mismatch(profile(device_pattern="Xeon"), here) or "")
    assert hardware.device_names(profile(), here) == ("AMD EPYC 7B13",)
    assert hardware.device_names(SXM, here) == (H100,)


def test_gpus_that_the_profile_in_use_does_not_measure_are_named() -> None:
    here = machine(nvidia=gpus(H100), amd=gpus("AMD Instinct MI300X"))
    assert hardware.unused_gpus(profile(), here) == (H100, "AMD Instinct MI300X")
    assert hardware.unused_gpus(profile("x86-rapl"), here) == (H100, "AMD Instinct MI300X")
    assert hardware.unused_gpus(SXM, here) == hardware.unused_gpus(profile("simulated-gpu"), here) == ()


def test_a_pattern_that_is_no_regular_expression_is_named_and_no_traceback() -> None:
    assert "no regular expression" in (hardware.mismatch(profile(device_pattern="(["), machine()) or "")


def test_a_profile_without_a_list_of_machines_fits_any() -> None:
    assert hardware.mismatch(profile(machine=()), machine(machine="sparc64")) is None


# --- the simulated GPU ------------------------------------------------------------------------------------------------

RESOLVE = """
import json
from jouleboard import hardware
from jouleboard.errors import HardwareError
rows = {}
for ident in ("simulated-gpu", "nvidia-h100-sxm-80gb", None):
    try:
        rows[str(ident)] = hardware.resolve(ident).id
    except HardwareError as error:
        rows[str(ident)] = [error.field, error.problem]
print(json.dumps(rows))
"""


def on(simulated: SimulatedGpu, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that sees the simulated GPUs and no others."""
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120,
                          env={**clean, **simulated.environment()})


@pytest.mark.parametrize(("gpu", "expected"), [
    (Gpu(), "simulated-gpu"),
    (Gpu(name=H100), "simulated-gpu"),
    (Gpu(name="A SIMULATED GPU"), "device_pattern"),
    (Gpu(numbers={"limit_mw": 500_000}), "power_limit_w"),
    (Gpu(numbers={"limit_mw": -1}), "power_limit_w"),
    (Gpu(spans=(enforced_limit(650.0, from_s=0.0),)), "power_limit_w"),
    (Gpu(numbers={"mig": 1}), "boundary"),
    (Gpu(numbers={"mig": -1}), "simulated-gpu"),
    (Gpu(numbers={"memory_bytes": 40 * 10**9}), "memory_bytes"),
    (Gpu(spans=(lost(0.0),)), "count"),
])
def test_a_simulated_device_that_is_not_as_declared_is_refused_by_field(gpu: Gpu, expected: str, tmp_path: Path) -> None:
    done = on(SimulatedGpu(tmp_path, gpu, clock="manual"), "-c", RESOLVE)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    found = rows["simulated-gpu"]
    assert (found if isinstance(found, str) else found[0]) == expected
    assert rows["nvidia-h100-sxm-80gb"][0] in {"device_pattern", "count"}
    assert PROFILES[rows["None"]].method in {"model", "rapl"}, "it is never detected"


def test_what_a_gpu_says_of_itself_is_read_through_nvml(tmp_path: Path) -> None:
    code = "from jouleboard.meters import detect; print(detect.gpus())"
    gpu = Gpu(numbers={"limit_mw": 450_000, "default_limit_mw": 600_000, "min_limit_mw": 90_000, "max_limit_mw": 650_000, "mig": 1,
                       "memory_bytes": 12345})
    done = on(SimulatedGpu(tmp_path, gpu, clock="manual"), "-c", code)
    expected = detect.Gpu(name="SIMULATED GPU", device=detect.short_digest("GPU-SIMULATED-0000"), memory_bytes=12345, power_limit_w=450.0,
                          default_power_limit_w=600.0, min_power_limit_w=90.0, max_power_limit_w=650.0, mig=True)
    assert done.stdout.strip() == repr(detect.Gpus(devices=("SIMULATED GPU",), reason=None, details=(expected,))), done.stderr


def test_detect_says_that_a_simulated_gpu_is_one(tmp_path: Path) -> None:
    done = on(SimulatedGpu(tmp_path, Gpu(name=H100), clock="manual"), "-m", "jouleboard", "hardware", "detect")
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout.splitlines()[0]
    assert "\nid: simulated-gpu\n" in done.stdout
    done = on(SimulatedGpu(tmp_path, Gpu(numbers={"mig": 1}), clock="manual"), "-m", "jouleboard", "hardware", "detect")
    assert "# simulated-gpu is declared for this GPU, but boundary:" in done.stdout
    assert "nvidia-smi -i 0 -mig 0" in done.stdout.replace("\n# ", " ")


# --- proposals --------------------------------------------------------------------------------------------------------


def read(text: str, folder: Path) -> Hardware:
    """Save a proposal under its own id and read it back."""
    ident = next(line for line in text.splitlines() if line.startswith("id: ")).removeprefix("id: ").strip('"')
    path = folder / f"{ident}.yaml"
    path.write_text(text)
    return catalogue.read_yaml(path, Hardware)


@pytest.mark.parametrize(("sensor", "name"), [
    ("nvml", "NVIDIA GeForce RTX 2060"), ("nvml", 'Quote "5" \\ slash'), ("nvml", "A: #b {c} [d] (e) *f+ $g ^h|i?"), ("nvml", "日本 GPU"),
    ("nvml", "no"), ("nvml", "x" * 95), ("amdsmi", "AMD Radeon RX 7900 XTX"), ("nvml", "NVIDIA H100 80GB HBM3 (next)"), ("nvml", "???"),
])
def test_the_proposal_for_an_unknown_gpu_is_a_profile_that_fits_it(sensor: str, name: str, device: Any, tmp_path: Path) -> None:
    gpu = detect.Gpu(name=name, memory_bytes=6_442_450_944, power_limit_w=160.0, default_power_limit_w=160.0, min_power_limit_w=125.0,
                     max_power_limit_w=190.0, mig=None)
    here = machine(**{"nvidia" if sensor == "nvml" else "amd": gpus(gpu)})
    device(here)
    found = read(propose.proposal(), tmp_path)
    assert hardware.misfit(found, here) is None
    assert (found.sensor, found.method, found.boundary) == (sensor, "gpu_counter", "gpu")
    assert [figure and figure.value for figure in (found.memory_bytes, found.power_limit_w, found.min_power_limit_w, found.max_power_limit_w,
                                                   found.counter_tick_s, found.idle_w)] == [6_442_450_944, 160, 125, 190, None, None]
    other = machine(**{"nvidia" if sensor == "nvml" else "amd": gpus(replace(gpu, name=f"{name} Ti"))})
    assert (hardware.mismatch(found, other) or "").startswith("device_pattern")
    assert "hardware calibrate" in propose.proposal()


def test_a_gpu_that_says_little_gets_a_proposal_without_figures(tmp_path: Path) -> None:
    found = read(propose.new_profile(detect.Gpu(name="Tesla V100-SXM2-16GB"), "nvml"), tmp_path)
    assert figures(found) == {}
    assert found.id == "tesla-v100-sxm2-16gb"


def test_a_proposal_declares_the_boards_default_limit_not_a_changed_one(tmp_path: Path) -> None:
    text = propose.new_profile(detect.Gpu(name="X", power_limit_w=100.0, default_power_limit_w=160.0), "nvml")
    assert read(text, tmp_path).power_limit_w.value == 160


@pytest.mark.parametrize(("here", "ident", "words"), [
    (machine(), "x86-vm", "no sensor"), (machine(rapl=RAPL), "x86-rapl", "fits this machine"),
    (machine(nvidia=gpus(board(SXM, H100))), "nvidia-h100-sxm-80gb", "fits this machine: energy method gpu_counter"),
    (machine(nvidia=gpus(board(SXM, H100, power_limit_w=500.0))), "x86-vm", "power_limit_w: GPU 0 has 500 W in force"),
    (machine(nvidia=gpus(board(SXM, H100, mig=True)), rapl=RAPL), "x86-rapl", "nvidia-smi -i 0 -mig 0"),
])
def test_detect_prints_the_declared_profile_and_why_it_is_that_one(here: hardware.Machine, ident: str, words: str, device: Any, tmp_path: Path) -> None:
    device(here)
    text = propose.proposal()
    assert read(text, tmp_path) == PROFILES[ident]
    remarks = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    assert words in remarks


def test_detect_refuses_a_machine_of_which_nothing_is_known(device: Any) -> None:
    device(machine(machine="riscv64"))
    with pytest.raises(HardwareError, match="riscv64"):
        propose.proposal()


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_list_says_for_each_profile_whether_it_fits_and_else_why_not(device: Any, capsys: pytest.CaptureFixture[str]) -> None:
    device(machine(nvidia=gpus(board(SXM, H100, power_limit_w=500.0)), rapl=DENIED))
    assert listing.show_hardware() == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {"ID", *PROFILES}
    assert "fits here" in lines["x86-vm"]
    for ident, why in {"nvidia-h100-sxm-80gb": "no: another power limit", "nvidia-h200-sxm-141gb": "no: another device",
                       "amd-mi300x-192gb": "no: no such device", "x86-rapl": "no: sensor not readable",
                       "arm64-vm": "no: another architecture"}.items():
        assert why in lines[ident]
        assert PROFILES[ident].category in lines[ident]
        assert PROFILES[ident].title in lines[ident]


def test_the_list_looks_at_the_machine_once(device: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    monkeypatch.setattr(detect, "gpus", lambda: calls.append(1) or gpus())
    listing.show_hardware()
    assert len(calls) == 1
    assert capsys.readouterr().out


@pytest.mark.parametrize(("words", "arguments"), [
    ((), ("x86-vm",)), (("--seconds", "30"), ("x86-vm", 30)), (("--hardware", "x86-vm"), ("x86-vm",)),
    (("--hardware", "x86-vm", "--seconds", "5"), ("x86-vm", 5)),
])
def test_calibrate_is_given_the_profile_of_this_machine(
    words: tuple[str, ...], arguments: tuple[object, ...], device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []

    def calibrate(found: Hardware, *rest: object) -> int:
        given.append((found.id, *rest))
        return 7

    monkeypatch.setitem(sys.modules, "jouleboard.meters.calibrate", types.SimpleNamespace(calibrate=calibrate))
    assert cli.main(["hardware", "calibrate", *words]) == 7
    assert given == [arguments]


@pytest.mark.parametrize(("words", "text"), [
    (("hardware", "calibrate", "--hardware", "arm64-vm"), "arm64-vm.yaml: machine:"), (("hardware", "show"), "which one?"),
    (("hardware", "show", "x86vm"), "x86-vm"), (("hardware", "calibrate", "--seconds", "0"), "whole number"), (("hardware", "eat"), "invalid choice"),
    (("hardware",), "ACTION"),
])
def test_wrong_words_say_what_is_wrong(words: tuple[str, ...], text: str, device: Any, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "show", "detect", "calibrate"])
def test_every_action_has_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["hardware", action, "--help"])
    assert end.value.code == 0
    assert f"usage: jouleboard hardware {action}" in capsys.readouterr().out
