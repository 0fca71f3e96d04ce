"""A declared profile is held against the device that is there, field by field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jouleboard import catalogue, hardware
from jouleboard.declared import Hardware
from jouleboard.errors import HardwareError, PlanError
from jouleboard.meters import detect

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this machine another one."""
    def become(machine: str = "x86_64", gpus: tuple[str, ...] = (), processor: str = "Some CPU") -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(detect, "gpus", lambda: detect.Gpus(devices=gpus, reason=None if gpus else "no driver"))
        monkeypatch.setattr(detect, "cpu_model", lambda: processor)

    become()
    return become


def profile(ident: str = "x86-vm", **changes: Any) -> Hardware:
    return msgspec.structs.replace(catalogue.hardware(ident), **changes)


@pytest.mark.parametrize(("machine", "gpus", "expected"), [
    ("x86_64", (), "x86-vm"), ("aarch64", (), "arm64-vm"), ("arm64", (), "arm64-vm"),
    ("x86_64", (H100,), "nvidia-h100-sxm-80gb"), ("x86_64", ("NVIDIA GeForce RTX 2060",), "x86-vm"),
])
def test_the_profile_with_a_sensor_is_preferred_where_it_fits(
    machine: str, gpus: tuple[str, ...], expected: str, device: Any
) -> None:
    device(machine, gpus)
    assert hardware.resolve(None).id == expected


def test_a_machine_that_fits_no_profile_is_told_what_to_do(device: Any) -> None:
    device("riscv64", (), "Some RISC-V")
    with pytest.raises(HardwareError, match="riscv64") as caught:
        hardware.resolve(None)
    assert "profile of your own" in (caught.value.remedy or "")


@pytest.mark.parametrize(("ident", "machine", "gpus", "field"), [
    ("arm64-vm", "x86_64", (), "machine"),
    ("x86-vm", "aarch64", (), "machine"),
    ("nvidia-h100-sxm-80gb", "x86_64", (), "count"),
    ("nvidia-h100-sxm-80gb", "x86_64", ("NVIDIA A100-SXM4-80GB",), "device_pattern"),
    ("nvidia-h100-sxm-80gb", "x86_64", (f"{H100} MIG 1g.10gb",), "device_pattern"),
])
def test_a_profile_that_does_not_fit_is_refused_by_field(
    ident: str, machine: str, gpus: tuple[str, ...], field: str, device: Any
) -> None:
    device(machine, gpus)
    with pytest.raises(HardwareError) as caught:
        hardware.resolve(ident)
    assert caught.value.field == field
    assert (caught.value.file or "").endswith(f"{ident}.yaml")


def test_a_profile_that_fits_is_taken_although_another_one_is_better(device: Any) -> None:
    device("x86_64", (H100,))
    assert hardware.resolve("x86-vm").id == "x86-vm"


def test_an_unknown_profile_gets_the_nearest_names() -> None:
    with pytest.raises(PlanError) as caught:
        hardware.resolve("nvidia-h100")
    assert "nvidia-h100-sxm-80gb" in (caught.value.remedy or "")


def test_every_device_that_a_profile_counts_must_match(device: Any) -> None:
    two = profile("nvidia-h100-sxm-80gb", count=2)
    device("x86_64", (H100, H100))
    assert hardware.mismatch(two) is None
    device("x86_64", (H100, "NVIDIA T4"))
    assert "'NVIDIA T4'" in (hardware.mismatch(two) or "")
    device("x86_64", (H100,))
    assert "2 device(s), 1 found" in (hardware.mismatch(two) or "")
    device("x86_64", (H100, "NVIDIA T4"))
    assert hardware.mismatch(profile("nvidia-h100-sxm-80gb")) is None


def test_a_profile_of_the_processor_is_held_against_the_processors_name(device: Any) -> None:
    device("x86_64", (H100,), "AMD EPYC 7B13")
    assert hardware.mismatch(profile(device_pattern="EPYC")) is None
    assert "AMD EPYC 7B13" in (hardware.mismatch(profile(device_pattern="Xeon")) or "")
    assert hardware.device_names(profile()) == ("AMD EPYC 7B13",)
    assert hardware.device_names(profile("nvidia-h100-sxm-80gb")) == (H100,)


def test_a_pattern_that_is_no_regular_expression_is_named_and_no_traceback(device: Any) -> None:
    device("x86_64")
    assert "no regular expression" in (hardware.mismatch(profile(device_pattern="([")) or "")


def test_a_profile_without_a_list_of_machines_fits_any(device: Any) -> None:
    device("sparc64")
    assert hardware.mismatch(profile(machine=())) is None
