"""What measuring costs: `tox run -e bench`, or `python tests/bench/measuring.py`. Prints figures and judges none.

(a) CPU time of the meter's process over wall time while a window is open, at 10 Hz, as a share of one core.
(b) Tokens per second of a decode loop of the default model with the meter polling over those without, in pairs of turns
    that change their order, with the 95 % interval of the geometric mean (Student's t over the logarithms).

Both on the GPU that is here, or else on the SIMULATED one with the model on the processor; every line says which.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import scipy.stats
import torch
from tests.simulated_gpu import Gpu, SimulatedGpu, square
from transformers import AutoModelForCausalLM

from jouleboard import catalogue, hardware, meters, models, workloads
from jouleboard.declared import Hardware
from jouleboard.engines import convert
from jouleboard.errors import JouleboardError
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.process import ProcessMeter

MODEL = "smollm2-135m-instruct-q4wheel"
PROMPT_TOKENS = 64
STEPS = 8
LIMIT = 0.005
"""What polling may cost, as a share of one core."""


def device() -> tuple[Hardware, str]:
    """Return the profile of the GPU that is here and its name, or those of the SIMULATED one."""
    try:
        found = hardware.resolve(None)
    except JouleboardError:
        found = None
    if found is not None and found.method in {"gpu_counter", "gpu_integral"}:
        return found, found.title
    return catalogue.hardware("simulated-gpu"), "SIMULATED device"


def decode_loop(place: str) -> Callable[[], float]:
    """Return a function that decodes once and returns tokens per second."""
    declared = catalogue.model(MODEL)
    helper = models.Helper(
        convert=lambda source, target: convert.to_dense(source, target, declared),
        fingerprint=lambda folder: convert.check_dense(folder, declared),
    )
    folder = models.prepare(declared, lambda: helper, say=print).folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, use_safetensors=True).to(place).eval()
    work = workloads.Decode(model, workloads.probe_ids(model, 1, PROMPT_TOKENS), STEPS)

    def once() -> float:
        started_s = time.perf_counter()
        with torch.inference_mode():
            for _ in work.loop():
                pass
        workloads.synchronise(model.device)
        return STEPS / (time.perf_counter() - started_s)

    return once


def cost(meter: ProcessMeter, seconds: float) -> float:
    """Return the meter's CPU time over wall time while it polls."""
    if meter.pid is None:
        raise SystemExit("the meter has ended")
    clock = ProcessClock(meter.pid)
    meter.begin("bench")
    cpu_s, start_s = clock.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    share = (clock.cpu_s() - cpu_s) / (time.perf_counter() - start_s)
    reading = meter.end(duration_s=seconds, cpu_s=None)
    print(f"    {len(reading.samples) / seconds:.1f} samples a second, {reading.void or 'reading good'}")
    return share


def ratio(meter: ProcessMeter, once: Callable[[], float], pairs: int, turn_s: float) -> tuple[float, float, float]:
    """Return the geometric mean ratio of speeds, measured over unmeasured, and the ends of its 95 % interval."""

    def turn(*, measuring: bool) -> float:
        if measuring:
            meter.begin("bench")
        speeds, until_s = [], time.perf_counter() + turn_s
        while time.perf_counter() < until_s:
            speeds.append(once())
        if measuring:
            meter.end(duration_s=turn_s, cpu_s=None)
        return statistics.harmonic_mean(speeds)

    turn(measuring=True)
    ratios = []
    for number in range(pairs):
        # A B, B A, A B, ...: what drifts evenly falls out.
        first = turn(measuring=number % 2 == 0)
        second = turn(measuring=number % 2 == 1)
        ratios.append(first / second if number % 2 == 0 else second / first)
    logs = [math.log(value) for value in ratios]
    half = statistics.stdev(logs) / len(logs) ** 0.5 * float(scipy.stats.t.ppf(0.975, len(logs) - 1))
    middle = statistics.mean(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def main() -> None:
    """Print both figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seconds", type=float, default=60.0, help="length of the window of (a)")
    words.add_argument("--pairs", type=int, default=12, help="pairs of turns of (b)")
    words.add_argument("--turn", type=float, default=5.0, help="seconds of each turn of (b)")
    asked = words.parse_args()
    profile, name = device()
    with tempfile.TemporaryDirectory() as folder:
        if profile.method == "simulated":
            simulated = SimulatedGpu(Path(folder), Gpu(trace=square(high_w=500, low_w=100, period_s=0.7)))
            os.environ.update(simulated.environment())
        meter = meters.choose(profile)
        if not isinstance(meter, ProcessMeter):
            raise SystemExit(f"{profile.id}: no meter of its own process")
        try:
            print(f"(a) {name}: one window of {asked.seconds:g} s")
            share = cost(meter, asked.seconds)
            print(f"    the meter's process uses {100 * share:.3f} % of one core (limit {100 * LIMIT:g} %)")
            once = decode_loop("cpu" if profile.method == "simulated" else "cuda")
            print(f"(b) {name}: decode of {MODEL}, batch 1, {asked.pairs} pairs of turns of {asked.turn:g} s")
            mean, low, high = ratio(meter, once, asked.pairs, asked.turn)
            print(f"    tokens/s with the meter over without: {mean:.4f}, 95 % interval {low:.4f} to {high:.4f}")
        finally:
            meter.close()


if __name__ == "__main__":
    main()
