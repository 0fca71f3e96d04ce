"""A wall meter's log: read strictly, laid over the windows of a run, and never mixed with what the run's own sensor said."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import msgspec
import pytest

from jouleboard import check, cli, powerlog, store, wall
from jouleboard.errors import DataFileError
from jouleboard.records import Report
from jouleboard.windows import Trial
from tests import factory
from tests.conftest import jouleboard

START = dt.datetime(2030, 1, 1, 0, 0, tzinfo=dt.UTC).timestamp()
STEP_S, LENGTH_S = 30.0, 20.0
WORK_W, IDLE_W = 500.0, 120.0


def later(seconds: float) -> str:
    return dt.datetime.fromtimestamp(START + seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def placed(report: Report, first: int = 0) -> tuple[Report, int]:
    """Give each window a time of its own, 20 s long and 10 s apart; return how many there are in all."""
    place = first

    def put(window, kind="w"):
        nonlocal place
        place += 1
        energy = factory.energy(LENGTH_S, 19.0, measured_w=None if report.method == "model" else 300.0)
        if report.method != "model" and place == first + 1:
            # The trace of this window (see `trace`) has 6,000 J; another clock's edges may give one more.
            energy = msgspec.structs.replace(energy, integral_j=6001.0)
        return msgspec.structs.replace(window, host_j={"package-0": 5.0}, started_utc=later((place - 1) * STEP_S + 10), duration_s=LENGTH_S,
                                       wall_s=LENGTH_S, cpu_s=19.0, energy=energy, name=f"{kind}-{place}")

    def each(rows, kind="w"):
        return tuple(msgspec.structs.replace(one, window=put(one.window, kind)) for one in rows)

    made = msgspec.structs.replace(report, trials=each(report.trials), probes=each(report.probes),
                                   idle=each(report.idle, "idle"))
    return made, place


def run_folder(folder: Path, *, measured_w: float | None = 300.0, specs: int = 2, **changes) -> dict[str, Report]:
    """Write a run whose windows lie one behind the other, and return its reports."""
    found, place = {}, 0
    for spec in factory.SPECS[:specs]:
        own = factory.spec_items(spec, 20)
        made, place = placed(factory.report(own, spec=spec, measured_w=measured_w), place)
        made = msgspec.structs.replace(made, **changes)
        target = folder / factory.MODEL / spec.recipe
        files = {store.ITEMS: store.write_items(target, own),
                 store.TRACE: store.write_lines(target / store.TRACE, trace(made.trials[0].window.name))}
        found[spec.recipe] = store.write_report(target, msgspec.structs.replace(made, files=files))
    return found


def trace(name: str) -> list[bytes]:
    """Return what the GPU's sensor saw of one window."""
    return [factory.traces.HEADER, *(f"{name},{at},,{watts},,50,1980,2619,700,0,0".encode()
                                     for at, watts in ((0, 290), (10, 310)))]


def log_lines(reports, *, until_s: float | None = None, step_s: float = 1.0, skip=(), shift_s: float = 0.0) -> list[str]:
    """Return a log of 500 W inside windows and 120 W outside, from 30 s before the first window."""
    spans = [wall.span(window) for report in reports.values() for window in wall.windows(report)]
    end = max(one.end_s for one in spans) + 30 if until_s is None else START + until_s
    lines, at = ["time,watts"], START - 30.0
    while at <= end:
        if not any(low <= at - START < high for low, high in skip):
            work = any(one.start_s <= at < one.end_s for one in spans)
            lines.append(f"{at + shift_s},{WORK_W if work else IDLE_W}")
        at += step_s
    return lines


def write(path: Path, lines) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_is_read_in_every_form_that_is_promised(tmp_path):
    wanted = powerlog.PowerLog(times_s=(START, START + 1.5), powers_w=(412.5, 0.0))
    for text in (
        "time,watts\n2030-01-01T00:00:00Z,412.5\n2030-01-01T00:00:01.5Z,0\n",
        "time;power_w\n2030-01-01T02:00:00+02:00;412.5\n2030-01-01T02:00:01.500+02:00;0.0\n",
        f"Time,volts,Watts\n{START},230,4.125e2\n{START + 1.5},230,.0\n",
        f"\ufefftime ; watts\r\n{START} ; 412.5\r\n\r\n{START + 1.5};0\r\n\r\n",
        '"time","watts"\n"2030-01-01 00:00:00Z","412.5"\n"2030-01-01 00:00:01.5+00:00","0."\n',
    ):
        path = tmp_path / "wall.csv"
        path.write_bytes(text.encode())
        assert powerlog.read(path) == wanted, text


@pytest.mark.parametrize(("text", "field", "words"), [
    ("", "line 1", "0 columns `time`"),
    ("time,watts\n", None, "holds no sample"),
    ("when,watts\n1893456000,1\n", "line 1", "0 columns `time`"),
    ("time,time,watts\n1893456000,1893456000,1\n", "line 1", "2 columns `time`"),
    ("time,power\n1893456000,1\n", "line 1", "0 columns named"),
    ("time,watts,power_w\n1893456000,1,1\n", "line 1", "2 columns named"),
    ("time,watts\n1893456000,1\n1893456001\n", "line 3", "1 fields, the header has 2"),
    ("time,watts\n1893456000,1,2\n", "line 2", "3 fields"),
    ("time;watts\n1893456000;412,5\n", "line 2: power", "'412,5' is no number"),
    ("time,watts\n1893456000,-1\n", "line 2: power", "-1 W cannot be true"),
    ("time,watts\n1893456000,1e7\n", "line 2: power", "1e7 W cannot be true"),
    ("time,watts\n1893456000,nan\n", "line 2: power", "'nan' is no number"),
    ("time,watts\n1893456000,inf\n", "line 2: power", "is no number"),
    ("time,watts\n1893456000,1_000\n", "line 2: power", "is no number"),
    ("time,watts\n1893456000,\n", "line 2: power", "'' is no number"),
    ("time,watts\n1893456000,5 W\n", "line 2: power", "is no number"),
    ("time,watts\n1893456000,\u0661\n", "line 2: power", "is no number"),
    (f"time,watts\n1893456000,{'9' * 500}\n", "line 2: power", "is no number"),
    ("time,watts\n2030-01-01T00:00:00,1\n", "line 2: time", "has no time zone"),
    ("time,watts\n1893456000000,1\n", "line 2: time", "no Unix seconds"),
    ("time,watts\n20300101,1\n", "line 2: time", "no Unix seconds"),
    (f"time,watts\n{'1' * 5000},1\n", "line 2: time", "no Unix seconds"),
    ("time,watts\nyesterday,1\n", "line 2: time", "'yesterday' is no time"),
    ("time,watts\n01/02/2030 00:00:00,1\n", "line 2: time", "is no time"),
    ("time,watts\n1893456001,1\n1893456000,1\n", "line 3: time", "lies before the line above"),
    ('time,watts\n"1893456000,1\n', "line 2", "is no CSV"),
])
def test_a_log_that_is_not_quite_right_is_refused_by_line_and_field(tmp_path, text, field, words):
    path = tmp_path / "wall.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError) as caught:
        powerlog.read(path)
    assert words in caught.value.problem
    assert caught.value.field == field
    assert caught.value.file == str(path)
    assert caught.value.remedy


def test_a_log_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "wall.csv").write_bytes(b"time,watts\n\xff\xfe,1\n")
    for path in (tmp_path / "wall.csv", tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(DataFileError):
            powerlog.read(path)


def power_log(times, powers):
    return powerlog.PowerLog(times_s=tuple(START + one for one in times), powers_w=tuple(powers))


def test_the_energy_of_a_window_holds_each_sample_until_the_next():
    log = power_log(range(31), [100.0] * 10 + [300.0] * 21)
    # 9.5 s x 100 W from 0.5 to 10, then 300 W.
    assert log.energy_j(START + 0.5, START + 20.5) == pytest.approx(9.5 * 100 + 10.5 * 300)
    assert log.void(START + 0.5, START + 20.5) is None


def test_a_window_is_void_when_the_log_does_not_tell():
    full = power_log(range(31), [100.0] * 31)
    assert full.void(START - 0.001, START + 20).startswith("wall-not-covered: ")
    assert full.void(START + 20, START + 30.001).startswith("wall-not-covered: ")
    assert full.void(START, START + 30) is None
    gap = power_log([*range(11), *range(16, 31)], [100.0] * 26)
    assert gap.void(START, START + 30).startswith("wall-gap: 6.0 s")
    assert power_log([*range(11), *range(15, 31)], [100.0] * 27).void(START, START + 30) is None, "5 s is allowed"
    # A gap counts at the window's edge too, where it reaches in; and not where it lies outside.
    assert gap.void(START + 15.5, START + 30).startswith("wall-gap: ")
    assert gap.void(START + 16, START + 30) is None
    assert gap.void(START, START + 12).startswith("wall-gap: ")
    assert gap.void(START, START + 10) is None
    assert full.void(START + 10, START + 19) is None, "ten samples"
    assert full.void(START + 10.1, START + 19.1).startswith("wall-few-samples: 9 ")
    off = power_log(range(31), [5.0] * 5 + [0.0] * 26)
    assert off.void(START + 6, START + 29).startswith("wall-zero: ")
    assert off.void(START + 3, START + 29) is None


# --- the import -------------------------------------------------------------------------------------------------------


def test_every_entry_gets_a_counterpart_measured_at_the_wall(tmp_path, capsys):
    reports = run_folder(tmp_path / "run")
    before = digests(tmp_path / "run")
    log = write(tmp_path / "wall.csv", log_lines(reports))
    assert cli.main(["import-power", str(tmp_path / "run"), str(log), "--out", str(tmp_path / "out")]) == 0
    assert digests(tmp_path / "run") == before, "the run was changed"
    for recipe, source in reports.items():
        folder = tmp_path / "out" / factory.MODEL / recipe
        made = store.read_report(folder / store.REPORT)
        assert (made.method, made.boundary, made.power_model) == ("wall", "wall", None)
        assert (made.profile.method, made.profile.boundary, made.profile.sensor) == ("wall", "wall", "none")
        assert made.hardware_sha256 == store.digest(made.profile) != source.hardware_sha256
        assert made.digest == store.report_digest(made)
        assert made.tasks == source.tasks
        assert made.session == source.session
        assert made.files == source.files
        for name in (store.ITEMS, store.TRACE):
            assert (folder / name).read_bytes() == (tmp_path / "run" / factory.MODEL / recipe / name).read_bytes()
        for window in wall.windows(made):
            assert window.energy.measured_j == pytest.approx(WORK_W * LENGTH_S)
            assert window.energy.domains_j == {"wall": window.energy.measured_j}
            assert window.energy.estimate_j is None
            assert window.void is None
            assert window.host_j == {}, "the host is inside the wall"
        assert made.trials[0].window.energy.integral_j == 6001.0, "the trace's integral is still the trace's"
        assert (made.profile.idle_w, made.profile.power_limit_w, made.profile.counter_tick_s) == (None, None, None)
        assert "limit is 700" in made.profile.description
        assert made.build is None or made.build.energy is None
        assert made.gates
    out = capsys.readouterr().out
    assert "500.0 W inside windows of work" in out
    assert "120.0 W outside" not in out, "idle windows lie outside the work, at 500 W in this log"
    assert "correlation 0." in out


def test_what_was_imported_passes_every_check_and_is_on_a_board_of_its_own(tmp_path):
    """Also where the source is an estimate, or a reading of its own failed while the trace has power."""
    for name, measured_w in (("measured", 300.0), ("model", None)):
        reports = run_folder(tmp_path / name, measured_w=measured_w)
        log = write(tmp_path / "wall.csv", log_lines(reports))
        wall.run(tmp_path / name, log, tmp_path / f"{name}-out")
        found = check.check_paths([tmp_path / f"{name}-out"])
        energy = [one for one in found.problems if one.code in {
            "energy", "gates", "void", "integral", "trace", "profile", "digest", "files", "unreadable"}]
        assert energy == []
        imported = store.read_report(next(store.find_reports(tmp_path / f"{name}-out")))
        source = next(iter(reports.values()))
        assert {(one.method, one.boundary) for one in (imported, source)} == {
            ("wall", "wall"), (source.method, source.boundary)}
        assert imported.hardware_sha256 != source.hardware_sha256, "the board's key"


def test_the_boards_limit_is_no_limit_at_the_wall(tmp_path):
    """A machine with a board of 700 W may draw 900 W; its own idle power at the wall is what bounds it from below."""
    reports = run_folder(tmp_path / "run", specs=1)
    idle = [wall.span(one.window) for one in next(iter(reports.values())).idle]
    lines = []
    for line in log_lines(reports):
        at, _, watts = line.partition(",")
        if at != "time":
            quiet = any(one.start_s <= float(at) < one.end_s for one in idle)
            watts = "120" if quiet else str(float(watts) * 1.8)
        lines.append(f"{at},{watts}")
    wall.run(tmp_path / "run", write(tmp_path / "wall.csv", lines), tmp_path / "out")
    made = store.read_report(next(store.find_reports(tmp_path / "out")))
    assert [trial.window.energy.measured_j for trial in made.trials] == [pytest.approx(900 * LENGTH_S)] * len(made.trials)
    assert {trial.void for trial in made.trials} == {None}
    assert {gate.status for gate in made.gates if gate.name == "bounds" and gate.subject.startswith("w-")} == {"pass"}


def test_a_window_that_the_log_does_not_cover_is_void_and_the_others_count(tmp_path, capsys):
    reports = run_folder(tmp_path / "run", specs=1)
    names = [window.name for window in wall.windows(next(iter(reports.values())))]
    # The log ends inside the fourth window, and was interrupted in the second.
    log = write(tmp_path / "wall.csv", log_lines(reports, until_s=3 * STEP_S + 15, skip=((STEP_S + 12, STEP_S + 19),)))
    assert wall.run(tmp_path / "run", log, tmp_path / "out") == 0
    made = store.read_report(next(store.find_reports(tmp_path / "out")))
    codes = {window.name: (window.void or "").partition(":")[0] for window in wall.windows(made)}
    assert [codes[name] for name in names[:4]] == ["", "wall-gap", "", "wall-not-covered"]
    assert {codes[name] for name in names[4:]} == {"wall-not-covered"}
    for window in wall.windows(made):
        assert (window.energy.measured_j is None) == (window.void is not None)
    trials = {trial.window.name: trial for trial in made.trials}
    assert trials[names[0]].void is None
    assert trials[names[1]].void == trials[names[1]].window.void, "the trial is void with its window"
    assert f"{names[1]} is void: wall-gap: 8.0 s" in capsys.readouterr().out
    assert made.tasks == next(iter(reports.values())).tasks, "the accuracy is kept"


def test_the_offset_moves_a_meter_whose_clock_is_off(tmp_path, capsys):
    reports = run_folder(tmp_path / "run", specs=1, idle=())
    log = write(tmp_path / "wall.csv", log_lines(reports, shift_s=15.0))
    options = [str(tmp_path / "run"), str(log), "--out"]
    assert cli.main(["import-power", *options, str(tmp_path / "late")]) == 0
    told = capsys.readouterr().out
    assert cli.main(["import-power", *options, str(tmp_path / "right"), "--offset-s", "-15"]) == 0
    right = store.read_report(next(store.find_reports(tmp_path / "right")))
    late = store.read_report(next(store.find_reports(tmp_path / "late")))
    assert {window.energy.measured_j for window in wall.windows(right)} == {WORK_W * LENGTH_S}
    assert all(window.energy.measured_j < 0.8 * WORK_W * LENGTH_S for window in wall.windows(late) if not window.void)
    assert "correlation 1.00" in capsys.readouterr().out
    assert "warning  power is not higher inside the windows" in told


def test_a_trial_that_was_void_for_its_reading_counts_at_the_wall_and_others_stay_void(tmp_path):
    def made_void(report, code):
        first, *rest = report.trials
        window = first.window
        void = f"{code}: words"
        if code == "rapl-denied":
            energy = msgspec.structs.replace(window.energy, measured_j=None, domains_j={})
            window = msgspec.structs.replace(window, void=void, energy=energy)
        return (msgspec.structs.replace(first, window=window, void=void), *rest)

    found = {}
    for code in ("rapl-denied", "limit-changed", "worker-died"):
        run_folder(tmp_path / code, specs=1)
        path = next(store.find_reports(tmp_path / code))
        report = store.read_report(path)
        store.write_report(path.parent, msgspec.structs.replace(report, trials=made_void(report, code)))
        log = write(tmp_path / "wall.csv", log_lines({"one": report}))
        wall.run(tmp_path / code, log, tmp_path / f"{code}-out")
        trial: Trial = store.read_report(next(store.find_reports(tmp_path / f"{code}-out"))).trials[0]
        assert trial.window.energy.measured_j == WORK_W * LENGTH_S
        found[code] = trial.void
    assert found == {"rapl-denied": None, "limit-changed": "source-limit-changed: words", "worker-died": "worker-died: words"}


def test_simulated_entries_failed_ones_and_imports_are_left_out(tmp_path, capsys):
    reports = run_folder(tmp_path / "run", specs=1)
    log = write(tmp_path / "wall.csv", log_lines(reports))
    report = next(iter(reports.values()))
    folder = tmp_path / "run" / factory.MODEL
    for name, changes in (
        ("simulated", {"method": "simulated"}),
        ("device", {"environment": factory.environment(devices=("SIMULATED GPU",))}),
        ("walled", {"method": "wall"}),
        ("old", {"profile": None}),
    ):
        store.write_report(folder / name, msgspec.structs.replace(report, **changes))
    store.write_report(folder / "failed", factory.failed())
    assert wall.run(tmp_path / "run", log, tmp_path / "out") == 0
    assert [path.parent.name for path in store.find_reports(tmp_path / "out")] == [report.recipe]
    out = capsys.readouterr().out
    for words in ("its method is `simulated`", "its device is SIMULATED", "its method is `wall`", "(format 1)",
                  "it holds no windows"):
        assert words in out


def test_a_log_of_another_day_is_an_error_that_says_when_it_was_kept(tmp_path, capsys):
    reports = run_folder(tmp_path / "run", specs=1)
    log = write(tmp_path / "wall.csv", log_lines(reports, shift_s=86400.0 * 3))
    assert cli.main(["import-power", str(tmp_path / "run"), str(log), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "covers no window below" in told.err
    assert "2030-01-03T23:59:30Z" in told.err
    assert "--offset-s" in told.err
    assert not (tmp_path / "out").exists()


def test_an_entry_of_another_kind_is_never_written_over(tmp_path):
    reports = run_folder(tmp_path / "run", specs=1)
    log = write(tmp_path / "wall.csv", log_lines(reports))
    before = digests(tmp_path / "run")
    with pytest.raises(DataFileError, match="holds another entry"):
        wall.run(tmp_path / "run", log, tmp_path / "run")
    recipe = next(iter(reports))
    with pytest.raises(DataFileError, match="holds another entry"):
        wall.run(tmp_path / "run" / factory.MODEL / recipe, log, tmp_path / "run")
    other = tmp_path / "full" / factory.MODEL / recipe
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(DataFileError, match="no entry"):
        wall.run(tmp_path / "run", log, tmp_path / "full")
    assert digests(tmp_path / "run") == before
    assert (other / "thesis.txt").read_text() == "mine"


def test_importing_again_replaces_the_import_whole(tmp_path):
    reports = run_folder(tmp_path / "run", specs=1)
    lines = log_lines(reports)
    wall.run(tmp_path / "run", write(tmp_path / "wall.csv", lines), tmp_path / "out")
    doubled = [lines[0], *(f"{line.split(',')[0]},{2 * float(line.split(',')[1])}" for line in lines[1:])]
    wall.run(tmp_path / "run", write(tmp_path / "wall.csv", doubled), tmp_path / "out")
    made = store.read_report(next(store.find_reports(tmp_path / "out")))
    assert {window.energy.measured_j for window in wall.windows(made)} == {2 * WORK_W * LENGTH_S}
    assert not list((tmp_path / "out").rglob(".*")), "leftovers"


@pytest.mark.parametrize("broken", ["report", "items", "trace"])
def test_an_entry_that_was_changed_is_refused_and_nothing_is_written(tmp_path, broken):
    reports = run_folder(tmp_path / "run", specs=2)
    log = write(tmp_path / "wall.csv", log_lines(reports))
    path = list(store.find_reports(tmp_path / "run"))[-1]
    if broken == "report":
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"plan": "quick"', '"plan": "other"'), encoding="utf-8")
    elif broken == "items":
        store.write_items(path.parent, factory.spec_items(factory.SPECS[0], 21))
    else:
        store.write_lines(path.parent / store.TRACE, trace("w-1")[:2])
    with pytest.raises(DataFileError):
        wall.run(tmp_path / "run", log, tmp_path / "out")
    assert not list(tmp_path.glob("out/**/report.json"))


def test_overlapping_windows_count_once_in_the_contrast():
    spans = [wall.Span(start_s=5, end_s=9), wall.Span(start_s=0, end_s=6), wall.Span(start_s=10, end_s=11)]
    assert wall.merged(spans) == [wall.Span(start_s=0, end_s=9), wall.Span(start_s=10, end_s=11)]


def test_the_help_shows_a_log(capsys):
    with pytest.raises(SystemExit):
        cli.main(["import-power", "--help"])
    out = capsys.readouterr().out
    example = "time,watts\n  2030-01-01T00:10:00.0Z,412.5\n"
    assert example in out
    assert "--offset-s" in out


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "1e12"])
def test_an_offset_that_is_no_time_is_wrong_usage(value, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["import-power", "run", "wall.csv", "--out", "out", "--offset-s", value])
    assert caught.value.code == 2
    assert "is no number of seconds" in capsys.readouterr().err


def test_the_command_names_the_line_of_a_bad_log_and_exits_with_2(tmp_path):
    run_folder(tmp_path / "run", specs=1)
    log = write(tmp_path / "wall.csv", ["time,watts", "1893456000,much"])
    done = jouleboard("import-power", tmp_path / "run", log, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "line 2: power: 'much' is no number of watts" in done.stderr
    assert "Traceback" not in done.stderr
