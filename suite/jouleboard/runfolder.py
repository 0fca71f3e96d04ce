"""A run's folder: one folder a variant in the shape of a published entry, and what is needed to go on after a stop.

Layout::

    OUT/<model>/<recipe>/report.json, items.jsonl.gz, trace.csv.gz     the entry, whole at any moment
    OUT/.work/<model>/<recipe>/<task>.items.jsonl, .batches.json       working files
    OUT/.work/<model>/logs/<recipe>.log                                what the worker printed
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from jouleboard import environment, gates, plan, protocol, scores, store, traces
from jouleboard.declared import Model
from jouleboard.errors import DataFileError, PlanError
from jouleboard.plan import Family
from jouleboard.recipes import Recipe
from jouleboard.records import (
    RULES_VERSION,
    Build,
    Engine,
    Environment,
    Failure,
    Item,
    Report,
    TaskResult,
    Window,
)
from jouleboard.sessionfile import Held, SessionFile, SessionState


@dataclass(slots=True, kw_only=True)
class Progressed:
    """What one variant has so far; grows while the run goes on."""

    recipe: Recipe
    results: list[TaskResult] = field(default_factory=list)
    quality_done: bool = False
    complete: bool = False
    built: protocol.Built | None = None
    build_window: Window | None = None
    weights_sha256: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFiles:
    """Working files of one task of one variant."""

    items: Path
    batches: Path


class RunFolder:
    """Reads what a folder holds and writes entries into it."""

    def __init__(self, root: Path, family: Family) -> None:
        """Name the folder; nothing is written yet."""
        self.root = root
        self._family = family
        self._work = root / ".work" / family.model.id
        self.logs = self._work / "logs"
        self.session = SessionFile(self._work)
        self._described: Environment | None = None

    def entry(self, recipe: Recipe) -> Path:
        """Return the folder of a variant's entry."""
        return self.root / self._family.model.id / recipe.id

    def work_files(self, recipe: Recipe, task: str) -> WorkFiles:
        """Return the working files of one task of one variant."""
        folder = self._work / recipe.id
        return WorkFiles(items=folder / f"{task}.items.jsonl", batches=folder / f"{task}.batches.json")

    @property
    def replay_file(self) -> Path:
        """The batches that every variant's energy trials compute."""
        return self._work / "replay.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; the kernel gives the lock back when the process ends, however it ends."""
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            file = (self._work / "lock").open("w")
        except OSError as error:
            raise PlanError(f"cannot be written ({error.strerror})", file=self.root, field="--out",
                            remedy="name a folder that you may write to") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PlanError("another `jouleboard run` works in this folder", file=self.root, field="--out",
                                remedy="wait for it, or name another folder") from None
            yield

    def existing(self) -> dict[str, Progressed]:
        """Return what each variant has of this very configuration.

        Raises:
            PlanError: the folder holds a run of another configuration; the differing fields are named.
        """
        found = {}
        for recipe in self._family.recipes:
            found[recipe.id] = self._existing(recipe)
        base = self._family.base
        if not all(self.work_files(base, row.task.id).batches.is_file() for row in self._family.tasks) and any(
            not state.complete for state in found.values()
        ):
            # The recorded batches are what the energy trials compute.
            found[base.id] = Progressed(recipe=base)
        return found

    def _existing(self, recipe: Recipe) -> Progressed:
        state = Progressed(recipe=recipe)
        store.recover_folder(self.entry(recipe))
        wanted = plan.configuration(self._family, recipe)
        note = self._work / recipe.id / "configuration.json"
        if note.is_file() and any(True for _ in store.find_reports(self.root / self._family.model.id)):
            self._require_same(wanted, note)
        if not note.is_file() or note.read_bytes() != store.canonical(wanted):
            store.write_atomic(note, store.canonical(wanted))
        path = self.entry(recipe) / store.REPORT
        if not path.is_file():
            return state
        report = store.read_report(path)
        if report.configuration_sha256 != store.digest(wanted):
            raise PlanError("holds an entry of another configuration", file=path, field="configuration_sha256",
                            remedy="name another folder with --out, or delete this one")
        scored = [result.task for result in report.tasks] == [row.task.id for row in self._family.tasks]
        if not scored or store.report_digest(report) != report.digest:
            return state
        self._restore_items(recipe, report)
        state.results = list(report.tasks)
        state.quality_done = True
        state.weights_sha256 = report.model_weights_sha256
        state.complete = report.status == "complete" and self._trace_is_whole(recipe, report)
        return state

    def _trace_is_whole(self, recipe: Recipe, report: Report) -> bool:
        try:
            lines = store.read_lines(self.entry(recipe) / store.TRACE)
        except DataFileError:
            return False
        return store.lines_sha256(lines) == report.files[store.TRACE].sha256

    def require_same_inputs(self, found: Mapping[str, Progressed], weights_sha256: str, data: Mapping[str, str]) -> None:
        """Refuse to go on where weights or items are not those that the folder's entries were made with.

        Args:
            found: from `existing`.
            weights_sha256: fingerprint of the base's dense weights now.
            data: digest of each task's documents now.

        Raises:
            PlanError: naming what changed.
        """
        for state in found.values():
            changed = [f"items of {result.task}" for result in state.results if data[result.task] != result.data_sha256]
            if state.weights_sha256 not in {None, weights_sha256}:
                changed.append(f"weights of {self._family.model.id}")
            if changed:
                raise PlanError(f"holds entries made with other inputs: {', '.join(changed)}", file=self.root,
                                field="--out", remedy="name another folder with --out, or delete this one")

    def _restore_items(self, recipe: Recipe, report: Report) -> None:
        """Check the stored items before they are used again, and lay them out as working files where missing."""
        folder = self.entry(recipe)
        items = store.read_items(folder)
        for item in items:
            if item.digest != store.item_digest(item):
                raise DataFileError("the item was changed after it was measured", file=folder / store.ITEMS,
                                    field=f"{item.task} item {item.item}", remedy="delete the entry and run again")
        lines = [store.canonical(item) for item in items]
        if store.ITEMS not in report.files or store.lines_sha256(lines) != report.files[store.ITEMS].sha256:
            raise DataFileError("these are not the items that the report names", file=folder / store.ITEMS,
                                field=store.ITEMS, remedy="delete the entry and run again")
        for result in report.tasks:
            target = self.work_files(recipe, result.task).items
            if not target.is_file():
                mine = [store.canonical(item) for item in items if item.task == result.task]
                store.write_atomic(target, store.joined(mine))

    def _require_same(self, wanted: dict[str, Any], note: Path) -> None:
        try:
            held = json.loads(note.read_bytes())
        except ValueError:
            held = None
        held = held if isinstance(held, dict) else {}
        # Through JSON and back, so that tuples and lists compare equal.
        now = json.loads(store.canonical(wanted))
        changed = sorted(key for key in now.keys() | held.keys() if now.get(key) != held.get(key))
        if changed:
            raise PlanError(f"holds a run with another configuration; these differ: {', '.join(changed)}",
                            file=self.root, field="--out",
                            remedy="name another folder with --out, or delete this one to measure anew")

    def write(self, state: Progressed, session: SessionState | None) -> None:
        """Write a variant's entry, with its gates evaluated, into a folder of its own and put it in place whole.

        Args:
            state: what the variant is and how it scored.
            session: the session of trials, if it has begun.
        """
        target = self.entry(state.recipe)
        store.recover_folder(target)
        folder = target.with_name(f".{target.name}.new")
        measured = self._report(state, session)
        samples = self._samples(measured)
        files = {store.ITEMS: store.write_items(folder, self._items(state)),
                 store.TRACE: store.write_lines(folder / store.TRACE, [traces.HEADER, *map(traces.encode, samples)])}
        report = msgspec.structs.replace(gates.apply(measured, samples), files=files)
        store.write_report(folder, report)
        store.replace_folder(folder, target)

    def _items(self, state: Progressed) -> Iterator[Item]:
        for result in state.results:
            path = self.work_files(state.recipe, result.task).items
            for line in path.read_bytes().splitlines():
                yield msgspec.json.decode(line, type=Item)

    def _environment(self) -> Environment:
        """Describe machine and software once a run: a device that is lost meanwhile stays the one that was there."""
        if self._described is None:
            self._described = environment.describe(self._family.hardware, None)
        return self._described

    def _samples(self, report: Report) -> list[traces.Sample]:
        """Return the trace of every window of a report: of the session's first, then of the variant's own."""
        shared = [*(one.window.name for one in report.idle), *(one.window.name for one in report.canary)]
        own = [*(one.window.name for one in report.trials), *([report.live.window.name] if report.live else []),
               *(one.window.name for one in report.probes)]
        return [*self.session.traces("session", shared), *self.session.traces(report.recipe, own)]

    def _report(self, state: Progressed, session: SessionState | None) -> Report:
        family, recipe = self._family, state.recipe
        held = Held() if session is None else session.held.get(recipe.id, Held())
        built = state.built
        model, hardware = family.model, family.hardware
        return Report(
            format="jouleboard-report", format_version=2, rules_version=RULES_VERSION, status=_status(state),
            created_utc=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), plan=family.plan.id,
            configuration_sha256=plan.configuration_sha256(family, recipe), provisional=family.plan.provisional,
            model=model.id, model_title=model.title, model_source=_public_source(model),
            model_licence=model.licence, model_weights_sha256=state.weights_sha256,
            prior_quantisation=None if model.prior_quantisation is None else model.prior_quantisation.scheme,
            recipe=recipe.id, recipe_title=recipe.title, recipe_sha256=store.digest(recipe),
            is_base=recipe.id == family.base.id, base=family.base.id,
            hardware=hardware.id, hardware_title=hardware.title, hardware_sha256=store.digest(hardware),
            method=hardware.method, boundary=hardware.boundary, power_model=hardware.power_model,
            profile=hardware, energy_plan=family.plan.energy,
            session=session.name if session and held.trials else None,
            replay_sha256=session.replay_sha256 if session and held.trials else None,
            environment=msgspec.structs.replace(
                self._environment(), torch_cpu_capability=built.torch_cpu_capability if built else None),
            engine=built.engine if built else _unbuilt(family, recipe),
            build=_build(state), realised=built.realised if built else None,
            tasks=tuple(state.results), trials=held.trials, live=held.live, probes=held.probes,
            skipped_probes=held.skipped_probes, idle=() if session is None else session.idle,
            canary=() if session is None else session.canary, peak_memory_bytes=held.peak_memory_bytes, gates=(), failure=state.failure, files={}, digest="0" * 64,
        )


def _public_source(model: Model) -> dict[str, Any]:
    """Return where the weights came from, without a path of this machine."""
    source: dict[str, Any] = msgspec.to_builtins(model.source)
    source.pop("path", None)
    return source


def _status(state: Progressed) -> Literal["complete", "quality-only", "failed"]:
    if state.failure is not None:
        return "failed"
    return "complete" if state.complete else "quality-only"


def _unbuilt(family: Family, recipe: Recipe) -> Engine:
    """Name the engine of a variant that never came to be."""
    return Engine(name="transformers", version=plan.versions().get("transformers", "not installed"), device="none",
                  threads=family.plan.threads, batch_size=family.plan.batch_size, dtype=recipe.dtype,
                  softmax_dtype="float32", attention="none")


def _build(state: Progressed) -> Build | None:
    if state.built is None or state.build_window is None:
        return None
    window = state.build_window
    return Build(duration_s=window.duration_s, cpu_s=window.cpu_s, energy=window.energy, steps=state.built.steps,
                 calibration="tasks/data/calibration.txt" if state.built.steps else None)


def summary(results: Sequence[TaskResult]) -> str:
    """Return a variant's scores in one line for the terminal."""
    parts = []
    for result in results:
        score = result.scores[result.primary_metric]
        if score is None:
            parts.append(f"{result.task} withheld ({result.withheld})")
            continue
        low, high = scores.interval(score, result.primary_metric)
        mark = "" if result.above_chance else ", no signal"
        parts.append(f"{result.task} {score.value:.3f} [{low:.3f}, {high:.3f}{mark}]")
    return "; ".join(parts)
