"""Frozen manifests are those of the declared data, hold no text, and are made anew byte for byte; samples are drawn by their seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jouleboard import catalogue, cli, manifests, paths, sampling, store
from jouleboard.declared_tasks import Task
from jouleboard.errors import DataFileError

FOLDER = paths.data_folder("tasks") / manifests.FOLDER
NAMES = sorted(path.name.removesuffix(".jsonl.gz") for path in FOLDER.glob("*.jsonl.gz"))


def test_there_is_a_manifest_of_every_task_that_needs_no_hub() -> None:
    offline = {name for name, task in catalogue.load_all(paths.data_folder("tasks"), Task).items() if type(task.source).__name__ != "HubSource"}
    assert set(NAMES) == offline


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_is_of_the_declared_data(name: str) -> None:
    task, found = catalogue.task(name), manifests.read(manifests.path_of(name))
    assert found is not None
    assert (found.about.task, found.about.data_sha256, len(found.items)) == (name, task.data_sha256, task.items)
    assert task.lm_eval.version in {None, found.about.lm_eval_version}
    for item in found.items:
        assert len(item.document) == 16
        assert bool(item.choice_chars) == bool(item.right) == (task.kind == "choice")
        assert (item.text_bytes is not None) == (task.kind == "perplexity")
        assert all(0 <= place < len(item.choice_chars) for place in item.right)
    assert len({item.document for item in found.items}) > 0.9 * len(found.items)


def test_a_manifest_is_made_anew_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(manifests, "path_of", lambda task: tmp_path / f"{task}.jsonl.gz")
    assert cli.main(["tasks", "freeze", "home_agent_easy"]) == 0
    assert "1000 items" in capsys.readouterr().out
    assert (tmp_path / "home_agent_easy.jsonl.gz").read_bytes() == (FOLDER / "home_agent_easy.jsonl.gz").read_bytes()


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    assert manifests.read(tmp_path / "none.jsonl.gz") is None
    store.write_lines(tmp_path / "x.jsonl.gz", [b'{"task": "x"}'])
    with pytest.raises(DataFileError, match="is no manifest"):
        manifests.read(tmp_path / "x.jsonl.gz")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_a_sample_has_each_answer_in_its_share_and_follows_from_the_seed(golds: list[int], data: st.DataObject) -> None:
    limit, seed = data.draw(st.integers(1, len(golds))), data.draw(st.integers(0, 2**31))
    drawn = sampling.sample(len(golds), golds, limit, seed)
    assert drawn == sampling.sample(len(golds), list(golds), limit, seed) == sorted(set(drawn))
    assert len(drawn) == limit
    for gold in set(golds):
        share = limit * golds.count(gold) / len(golds)
        assert abs(sum(golds[index] == gold for index in drawn) - share) < 1
