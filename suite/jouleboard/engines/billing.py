"""What one step of a recipe took, by the worker's own clocks; the joules are added by who holds the meter (`bills`).

with Billing(device) as billing:
    found = step.apply(model, context)
found | {"bill": billing.bill(tokens=found.get("tokens", 0))}
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, Self

import torch

from jouleboard.engines import memory


class Billing:
    """Times a stretch of work and takes its peak memory."""

    def __init__(self, device: torch.device, *, opened_s: float | None = None) -> None:
        """Begin nothing yet.

        Args:
            device: that computes.
            opened_s: when the window opened, by `time.perf_counter`; None: the stretch is a window of its own.
        """
        self._device = device
        self._opened_s = opened_s
        self._peak = memory.Peak(device)
        self._begun_s = self._duration_s = self._cpu_s = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._peak.begin_anew()
        self._cpu_s, self._begun_s = _cpu_s(), time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the device, and end."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._duration_s = time.perf_counter() - self._begun_s
        self._cpu_s = _cpu_s() - self._cpu_s

    @property
    def peak_memory_bytes(self) -> int:
        """Peak of the stretch, the model included."""
        return self._peak.stretch_bytes()

    def bill(self, *, tokens: int) -> dict[str, Any]:
        """Return the bill as plain JSON values.

        Args:
            tokens: that went through a model for the step.
        """
        begun = {} if self._opened_s is None else {"begun_s": round(max(0.0, self._begun_s - self._opened_s), 6)}
        return {**begun, "duration_s": round(self._duration_s, 6), "cpu_s": round(self._cpu_s, 6), "tokens": tokens,
                "peak_memory_bytes": self.peak_memory_bytes}


def added(bill: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return a step's bill with that of another stretch of work on the same step, which followed it."""
    return bill | {name: bill[name] + more[name] for name in ("duration_s", "cpu_s", "tokens")} | {
        "peak_memory_bytes": max(bill["peak_memory_bytes"], more["peak_memory_bytes"])}


def _cpu_s() -> float:
    """CPU time of this process and of those that it waited for, such as compilers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
