"""Runs that are killed with SIGKILL at random moments until they are finished: the engine of the tests of that name.

A story is one run folder. Its command is started again and again; meanwhile processes of it are killed, each at a random
moment of a random phase, until there were enough, and then it is left alone. Whatever was finished at one kill must be there,
unchanged, at the next; and in the end the quality results are those of a run that nobody disturbed.

`JOULEBOARD_KILLS` and `JOULEBOARD_KILL_SEED` set how many kills there are and what is drawn. The same seed draws the same
victims and moments again; what a process does at that moment still differs a little from time to time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from jouleboard import store
from jouleboard.errors import DataFileError
from jouleboard.records import Report
from jouleboard.windows import Trial
from tests import survival
from tests.survival import Ground, Place, Run

KILLS, SEED = "JOULEBOARD_KILLS", "JOULEBOARD_KILL_SEED"
PHASES = ("start", "prepare", "build", "quality", "energy", "probes")
"""The parts of a run, in their order; all but the first announce themselves in what the command prints."""
START_S = 0.6
"""About how long the command takes before it announces its first phase."""
LATER = 0.5
"""How often the next kill of a life is awaited in a phase that may be a later one, and not just a random while later."""
SHARE = 0.8
"""Of a phase's time when nobody disturbs it: a disturbed one has less to do."""
A_STORY = 17
"""Kills after which a run is left alone: more would only repeat its early phases."""
MANY = 40
"""Of so many kills some must hit each phase, and each kind of process."""
AGAIN = 4
"""A run that is left alone and is not finished after so many tries never will be: one may be needed for each variant."""
Victim = Literal["driver", "worker", "fork server", "meter", "everything"]
VARIANTS = (survival.BASE, survival.VARIANT)
FATAL: frozenset[Victim] = frozenset({"driver", "everything"})


def wanted(share: float) -> int:
    """Return how many kills a test makes: its share of all."""
    return round(int(os.environ.get(KILLS, "80")) * share)


def seed() -> int:
    """Return the seed and print it: the one that is given, a new one where that is `random`, else always the same draws."""
    given = os.environ.get(SEED, "20261122")
    given = str(secrets.randbelow(10**9)) if given == "random" else given
    print(f"{SEED}={given}")
    return int(given)


def durations(text: str) -> dict[str, float]:
    """Return how long the phases of a run took, by what it printed at its end."""
    found = {name: float(value) for name, value in re.findall(r"^  (\w+) +([\d.]+) s$", text, re.MULTILINE)}
    assert set(PHASES) - {"start"} <= set(found), text
    return {"start": START_S, **found}


@dataclass(frozen=True, slots=True)
class Finished:
    """What is finished in a run folder at a moment; values are digests."""

    records: Mapping[str, str]
    """Unit records, and each item of each entry."""
    under_way: Mapping[str, str]
    """Trials of the session that is on disk."""
    measured: Mapping[str, str]
    """Trials in entries."""
    complete: frozenset[str]
    """Variants with a complete entry."""

    def require(self, place: Place) -> Finished:
        """Make sure that all of it is still there and the same, and return what there is now."""
        now = finished(place)
        lost = [*_lost(self.records, now.records), *_lost(self.under_way, {**now.measured, **now.under_way}),
                *(f"{recipe} was complete" for recipe in sorted(self.complete - now.complete))]
        assert not lost, lost
        return now


def _lost(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [f"{name} is {'gone' if name not in now else 'another'}" for name, digest in before.items() if now.get(name) != digest]


def finished(place: Place) -> Finished:
    """Look at a run folder, whether somebody works in it or not."""
    # The session first: it goes away after its trials are in the entries.
    session, records, measured, complete = place.session(), {}, {}, set()
    for name, data in place.units().items():
        records[name] = hashlib.sha256(data).hexdigest()
    for recipe in VARIANTS:
        found = _entry(place.out / survival.MODEL / recipe)
        if found is None:
            continue
        report, lines = found
        for line in lines:
            item = msgspec.json.decode(line)
            records[f"{recipe}/{item['task']} item {item['item']}"] = hashlib.sha256(line).hexdigest()
        for trial in report.trials:
            measured[f"{report.session}/{recipe}/{trial.order}"] = _digest(trial)
        if report.status == "complete":
            complete.add(recipe)
    under_way = {} if session is None else {
        f"{session.name}/{recipe}/{trial.order}": _digest(trial)
        for recipe, held in session.held.items() for trial in held.trials}
    return Finished(records, under_way, measured, frozenset(complete))


def _digest(trial: Trial) -> str:
    # The gates, which look at a session as a whole, may void a trial when its entry is written.
    return store.digest(msgspec.structs.replace(trial, void=None))


def _entry(folder: Path) -> tuple[Report, list[bytes]] | None:
    """Read an entry, or the one that was set aside while another takes its place."""
    aside = folder.with_name(f".{folder.name}.old")
    for _ in range(20):
        for one in (folder, aside):
            with contextlib.suppress(DataFileError):
                report, lines = store.read_report(one / store.REPORT), store.read_lines(one / store.ITEMS)
                # Between the two reads another entry may have come.
                if store.lines_sha256(lines) == report.files[store.ITEMS].sha256:
                    return report, lines
        if not folder.exists() and not aside.exists():
            return None
        time.sleep(0.005)
    raise AssertionError(f"{folder} is no whole entry")


@dataclass(slots=True, kw_only=True)
class Kill:
    """One kill, for the account at the end."""

    victim: Victim
    phase: str


@dataclass(slots=True, kw_only=True)
class Killer:
    """Kills processes of one story after another."""

    draw: random.Random
    ground: Ground
    folder: Path
    words: tuple[str, ...]
    """Further words of the command."""
    victims: Mapping[Victim, int]
    """Who may be hit, and how often."""
    codes: frozenset[int]
    """Exit codes of a run that was left alone."""
    took_s: Mapping[str, float]
    """How long each phase takes."""
    kills: list[Kill] = field(default_factory=list)
    lives: int = 0

    def stories(self, kills: int) -> None:
        """Make so many kills, in as many stories as that takes."""
        number = 0
        while len(self.kills) < kills:
            number += 1
            place = Place(ground=self.ground, folder=self.folder / f"story-{number}")
            self._story(place, min(kills, len(self.kills) + A_STORY))
            print(f"{number} stories: {len(self.kills)} kills in {self.lives} lives: {self.account()}", flush=True)
        if kills >= MANY:
            missed = {*self.victims, *PHASES} - {one.victim for one in self.kills} - {one.phase for one in self.kills}
            # A short phase may escape by chance; two say that the moments are not spread.
            assert len(missed) < 2, f"never hit: {missed}; {self.account()}"

    def account(self) -> str:
        """Say who was killed, and in which phases."""
        who, when = Counter(one.victim for one in self.kills), Counter(one.phase for one in self.kills)
        return ", ".join(f"{name} {count}" for name, count in [*sorted(who.items()), *((phase, when[phase]) for phase in PHASES)])

    def _story(self, place: Place, until: int) -> None:
        before, alone = finished(place), 0
        while alone < AGAIN:
            self.lives += 1
            kills, run = len(self.kills), place.start(*self.words)
            code = self._disturbed(run, before, until)
            alone = alone + 1 if len(self.kills) == kills else 0
            before = before.require(place)
            if code is not None:
                place.nothing_left()
            if code in self.codes and len(before.complete) == len(VARIANTS):
                assert list(place.cache.glob("simulated-gpu/machines/*")) == []
                place.sound(self.ground.undisturbed)
                return
        raise AssertionError(f"left alone it does not finish:\n{run.text}")

    def _disturbed(self, run: Run, before: Finished, until: int) -> int | None:
        """Kill processes of one life.

        Returns:
            Its exit code; None where it was killed.
        """
        # Once everything is scored nothing can be hit while it is, so that is sought before.
        scored = len(run.place.units()) == len(VARIANTS) * len(survival.PLAN["tasks"])
        (phase,) = self.draw.choices(range(len(PHASES)), [4 if name == "quality" and not scored else 1 for name in PHASES])
        while len(self.kills) < until:
            if not self._await(run, phase):
                break
            victim, pids = self._victim(run)
            hit = [pid for pid in pids if _kill(pid)]
            if not hit:
                continue
            self.kills.append(Kill(victim=victim, phase=_phase(run.text)))
            if victim in FATAL:
                run.wait()
                run.place.nothing_runs()
                assert "Traceback" not in run.text, run.text
                before.require(run.place)
                return None
            before = before.require(run.place)
            if self.draw.random() < LATER:
                phase = self.draw.randrange(phase, len(PHASES))
        done = run.wait()
        assert "Traceback" not in done.text, done.text
        before.require(run.place)
        return done.code

    def _await(self, run: Run, phase: int) -> bool:
        """Wait until a random moment of a phase; False where the run ends before."""
        name = PHASES[phase]
        while name != "start" and f"\n{name}: " not in run.text:
            if run.process.poll() is not None:
                return False
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(self.draw.uniform(0, SHARE * self.took_s[name]))
        return run.process.poll() is None

    def _victim(self, run: Run) -> tuple[Victim, list[int]]:
        """Choose who is killed, among those that are there."""
        pids = run.place.processes()
        driver = run.process.pid
        meter, server = run.meter(), run.fork_server()
        workers = [pid for pid in pids if (survival.opens(pid) or "").removesuffix(".log") in
                   {*VARIANTS, "convert"}]
        there: dict[Victim, list[int]] = {
            "driver": [driver], "worker": workers and [self.draw.choice(workers)], "fork server": [server] if server else [],
            "meter": [meter] if meter else [], "everything": self.draw.sample(pids, len(pids)),
        }
        names: list[Victim] = [name for name in self.victims if there[name]]
        (victim,) = self.draw.choices(names, [self.victims[name] for name in names])
        return victim, there[victim]


def _kill(pid: int) -> bool:
    """Kill a process; False where it has ended before."""
    if survival.state(pid) == "Z":
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _phase(text: str) -> str:
    """Return the phase that a run has announced last."""
    return max(PHASES, key=lambda name: text.rfind(f"\n{name}: "))
