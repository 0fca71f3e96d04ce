"""Tasks of every kind through lm-eval with a tiny random model: what is asked, scored, recorded and refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import scores
from jouleboard.declared import HubSource
from jouleboard.declared_tasks import LmEval, Task
from jouleboard.errors import DataFileError, UnitError

NOWHERE = HubSource(repo="none/none", revision="0" * 40)


def declared(definition: str, folder: str, split: str = "test", **fields: Any) -> Task:
    return Task(**({
        "id": "tried", "title": "", "description": "", "kind": "generation", "lm_eval": LmEval(task=definition, folder=folder, split=split),
        "metrics": ("exact_match",), "primary_metric": "exact_match", "source": NOWHERE, "licence": "MIT", "max_output_tokens": 12,
    } | fields))


GSM = declared("gsm8k", "gsm8k")
SUMS = [{"question": f"What is {index} and {index}?", "answer": f"It is twice. #### {1000 + index:,}", "kind": index % 2} for index in range(6)]


@pytest.fixture(scope="module")
def tokenizer(dense_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(dense_model)


@pytest.fixture(scope="module")
def lm(tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from jouleboard.engines.reference import ReferenceLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=49152,
        max_position_embeddings=2048, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )).float().eval()
    return ReferenceLM(model, tokenizer, batch_size=4, max_length=1024)


def load(task: Task, docs: list[dict[str, Any]], folder: Path, seed: int = 0):
    from jouleboard import harness

    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return harness.load(task, path, seed=seed)


def evaluate(lm, task: Task, docs: list[dict[str, Any]], folder: Path, indices: list[int] | None = None, **words: Any):
    from jouleboard import harness

    return harness.evaluate(lm, load(task, docs, folder), indices, **words)


def say(lm, monkeypatch, answers: dict[str, str]) -> None:
    """Let the engine answer prompts that hold a text with a given answer; counts stay those of the real path."""
    from jouleboard.engines.generation import Written

    def generate_until(requests, disable_tqdm=False):  # noqa: FBT002
        texts = [next(answer for held, answer in answers.items() if held in request.args[0]) for request in requests]
        lm.tally.request_tokens += [(9, 3)] * len(texts)
        lm.tally.written += [Written(tokens=(5, 6, 7), text=text, stopped="stop") for text in texts]
        return texts

    monkeypatch.setattr(lm, "generate_until", generate_until)


# --- generation -------------------------------------------------------------------------------------------------------


def test_answers_in_text_are_recorded_whole(lm, tmp_path):
    made = evaluate(lm, GSM, SUMS, tmp_path)
    assert [item.item for item in made.items] == list(range(6))
    for item, doc in zip(made.items, SUMS, strict=True):
        assert item.gold is None
        assert item.loglikelihoods == item.choice_chars == ()
        assert item.text_bytes is None
        assert item.response_sha256 == hashlib.sha256(item.response.encode()).hexdigest()
        # What is compared: after lm-eval's filter, and its flags (commas and all before "#### " are left out).
        assert item.targets == (doc["answer"].split("#### ")[1].replace(",", ""),)
        assert item.extracted == "[invalid]"
        assert item.stopped in {"stop", "length"}
        assert item.prompt_tokens == len(lm.tok_encode(f"Question: {doc['question']}\nAnswer:"))
        assert 1 <= item.output_tokens <= 12
        assert item.scores == {"exact_match": 0.0}
    assert made.prefill_tokens + made.decode_tokens == made.computed_tokens
    assert made.fed_tokens == sum(item.prompt_tokens + item.output_tokens - 1 for item in made.items)
    assert made.first_ids == tuple(lm.tok_encode("Question: What is 0 and 0?\nAnswer:")[:8])
    assert (made.template, made.template_sha256, made.sandbox) == ("plain", None, ())


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_answers_and_scores_are_those_of_lm_eval_with_its_hf_model(lm, tokenizer, tmp_path, chat):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    made = evaluate(lm, GSM, SUMS, tmp_path, chat=chat)
    theirs = lm_eval.evaluate(
        HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=4, max_length=1024), bootstrap_iters=0, log_samples=True,
        task_dict={"tasks": {"gsm8k": load(GSM, SUMS, tmp_path).lm_eval_task}, "groups": {}, "group_map": {}},
        apply_chat_template=chat, fewshot_as_multiturn=chat)
    rows = [row for row in theirs["samples"]["gsm8k"] if row["filter"] == "strict-match"]
    assert [item.response for item in made.items] == [row["resps"][0][0] for row in rows]
    assert [item.prompt_sha256 for item in made.items] == [row["prompt_hash"] for row in rows]
    assert scores.aggregate(made.items, "exact_match").value == theirs["results"]["gsm8k"]["exact_match,strict-match"]


def test_what_is_compared_is_what_lm_evals_first_filter_and_flags_leave(lm, tmp_path, monkeypatch):
    say(lm, monkeypatch, {"0 and 0": "Well. #### 1,000", "1 and 1": "1001", "2 and 2": "#### 7 #### 1002", "3 and": "#### 1003.", "4": "", "5": "X"})
    made = evaluate(lm, GSM, SUMS, tmp_path)
    # Its first filter is strict-match: the second one would find 1001.
    assert [item.extracted for item in made.items] == ["1000", "[invalid]", "7", "1003", "[invalid]", "[invalid]"]
    assert [item.scores["exact_match"] for item in made.items] == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert all(scores.recompute(item, "exact_match") == item.scores["exact_match"] for item in made.items)


def test_items_that_may_not_be_published_keep_their_scores_and_digests_alone(lm, tmp_path):
    whole = evaluate(lm, GSM, SUMS, tmp_path)
    kept = evaluate(lm, msgspec.structs.replace(GSM, publish_items=False), SUMS, tmp_path)
    for item, other in zip(kept.items, whole.items, strict=True):
        assert (item.response, item.extracted, item.targets) == (None, None, ())
        assert item.response_sha256 == other.response_sha256
        assert item.scores == other.scores
        assert item.digest != other.digest
    text = msgspec.json.encode(kept.items).decode()
    assert not any(item.response in text for item in whole.items if len(item.response) > 3)


def test_several_right_answers_are_all_right(lm, tmp_path, monkeypatch):
    docs = [{"question": "who", "answer": {"aliases": ["Ann", "The Anna"]}}, {"question": "when", "answer": {"aliases": ["noon", "12"]}}]
    task = declared("triviaqa", "triviaqa", "validation")
    say(lm, monkeypatch, {"who": " the anna!", "when": " midnight"})
    made = evaluate(lm, task, docs, tmp_path)
    assert [item.scores["exact_match"] for item in made.items] == [1.0, 0.0]
    assert made.items[0].extracted == "the anna"
    assert made.items[0].targets == ("ann", "the anna")


def test_items_of_a_sample_are_the_asked_ones(lm, tmp_path):
    whole, some = evaluate(lm, GSM, SUMS, tmp_path), evaluate(lm, GSM, SUMS, tmp_path, [1, 4])
    assert [item.item for item in some.items] == [1, 4]
    for item in some.items:
        twin = whole.items[item.item]
        assert (item.prompt_sha256, item.doc_sha256, item.targets) == (twin.prompt_sha256, twin.doc_sha256, twin.targets)


def test_a_longest_answer_is_the_declared_one(lm, tmp_path):
    made = evaluate(lm, msgspec.structs.replace(GSM, max_output_tokens=3), SUMS, tmp_path)
    assert max(item.output_tokens for item in made.items) == 3


def test_translations_get_the_score_of_the_corpus(lm, tmp_path, monkeypatch):
    folder = tmp_path / "lm_eval"
    folder.mkdir()
    (folder / "translate.yaml").write_text(
        'task: translate\noutput_type: generate_until\ntest_split: test\ndoc_to_text: "{{source}}"\ndoc_to_target: "{{wanted}}"\n'
        "generation_kwargs: {until: []}\nmetric_list:\n  - {metric: bleu}\n  - {metric: chrf}\nmetadata: {version: 1.0}\n")
    from jouleboard import harness_tasks

    monkeypatch.setattr(harness_tasks.lm_eval, "__file__", str(tmp_path / "x.py"))
    (tmp_path / "tasks").symlink_to(tmp_path)
    docs = [{"source": "le chat", "wanted": "the cat sat on the mat"}, {"source": "le chien", "wanted": "a dog barks at the moon"}]
    say(lm, monkeypatch, {"le chat": "the cat is on the mat", "le chien": "a dog barks"})
    task = declared("translate", "lm_eval", metrics=("bleu", "chrf"), primary_metric="chrf")
    made = evaluate(lm, task, docs, tmp_path)
    import sacrebleu

    texts, wanted = ["the cat is on the mat", "a dog barks"], [[doc["wanted"] for doc in docs]]
    assert scores.aggregate(made.items, "bleu").value == pytest.approx(sacrebleu.corpus_bleu(texts, wanted).score / 100)
    assert scores.aggregate(made.items, "chrf").value == pytest.approx(sacrebleu.corpus_chrf(texts, wanted).score / 100)
    assert [item.extracted for item in made.items] == texts


def test_an_answer_to_several_instructions_is_scored_by_each_of_them():
    """As lm-eval's IFEval logs it: one truth value for each instruction."""
    from types import SimpleNamespace

    from jouleboard import harness_items
    from jouleboard.engines.generation import Written

    metrics = ("prompt_level_strict_acc", "inst_level_strict_acc")
    task = declared("ifeval", "ifeval", metrics=metrics, primary_metric=metrics[0])
    made = []
    for index, follows in enumerate(([True, False, True], [True])):
        row = {"doc_id": index, "doc_hash": "0" * 64, "prompt_hash": "0" * 64, "doc": {"instruction_id_list": ["a:b"] * len(follows)},
               "target": 0, "filtered_resps": ["Yes."], metrics[0]: all(follows), metrics[1]: follows}
        made.append(harness_items.item(task, SimpleNamespace(config=SimpleNamespace(doc_to_choice=None)), harness_items.Answered(
            row=row, gold=None, correct=(), counts=[(3, 2)], written=Written(tokens=(1, 2), text="Yes.", stopped="stop"))))
    assert [item.scores[metrics[0]] for item in made] == [0.0, 1.0]
    assert made[0].scores[metrics[1]] == pytest.approx(2 / 3)
    assert [len(item.targets) for item in made] == [3, 1]
    assert scores.aggregate(made, metrics[1]).value == pytest.approx(3 / 4)


# --- programs ---------------------------------------------------------------------------------------------------------


HUMANEVAL = declared("humaneval", "humaneval", metrics=("pass@1",), primary_metric="pass@1", code=True)
PROBLEMS = [
    {"task_id": f"t/{index}", "prompt": f"def f{index}(x):\n    '''Add {index}.'''\n", "entry_point": f"f{index}", "canonical_solution": "",
     "test": f"def check(candidate):\n    assert candidate(1) == {index + 1}\n"} for index in range(4)
]


def test_programs_are_run_in_the_sandbox_and_nothing_is_downloaded(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    say(lm, monkeypatch, {"def f0": "    return x", "def f1": "    return x + 2", "def f2": "    import os\n    os._exit(0)",
                          "def f3": "    return x + 3\n"})
    made = evaluate(lm, HUMANEVAL, PROBLEMS, tmp_path)
    assert [item.scores["pass@1"] for item in made.items] == [1.0, 0.0, 0.0, 1.0]
    assert made.items[3].extracted == PROBLEMS[3]["prompt"] + "    return x + 3\n"
    assert made.items[3].targets == ()
    assert {"limits"} < set(made.sandbox)


def test_a_second_task_of_the_same_definition_has_a_record_of_its_own_guards(lm, tmp_path, monkeypatch):
    """lm-eval keeps the functions of a definition, and with them what the first task ran its programs with."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    say(lm, monkeypatch, {"def f": "    return 0"})
    first = evaluate(lm, HUMANEVAL, PROBLEMS[:1], tmp_path)
    second = evaluate(lm, msgspec.structs.replace(HUMANEVAL, id="another"), PROBLEMS[:1], tmp_path)
    assert first.sandbox == second.sandbox
    assert {"limits"} < set(second.sandbox)


def test_a_definition_that_runs_programs_must_be_declared_so(tmp_path):
    with pytest.raises(DataFileError, match="executes what the model writes") as caught:
        load(msgspec.structs.replace(HUMANEVAL, code=False), PROBLEMS, tmp_path)
    assert caught.value.field == "code"


# --- choices ----------------------------------------------------------------------------------------------------------


MC2 = declared("truthfulqa_mc2", "truthfulqa", "validation", kind="choice", metrics=("mc2",), primary_metric="mc2", max_output_tokens=None)
TRUTHS = [{"question": f"Is {index} even?", "mc1_targets": {"choices": ["a"], "labels": [1]},
           "mc2_targets": {"choices": ["Yes.", "No.", "It may be.", "Odd."], "labels": [1, index % 2, 1, 0]}} for index in range(5)]


def test_of_several_right_choices_the_share_of_probability_counts(lm, tmp_path):
    made = evaluate(lm, MC2, TRUTHS, tmp_path)
    for index, item in enumerate(made.items):
        assert item.gold is None
        assert item.correct == ((0, 1, 2) if index % 2 else (0, 2))
        assert 0 < item.scores["mc2"] < 1
    loaded = load(MC2, TRUTHS, tmp_path)
    assert loaded.chance.source == "mean share of right choices"
    assert loaded.chance.value == pytest.approx((3 * 0.5 + 2 * 0.75) / 5)


def test_pairs_of_sentences_are_compared(lm, tmp_path):
    task = declared("crows_pairs_english", "crows_pairs", kind="choice", metrics=("pct_stereotype", "likelihood_diff"),
                    primary_metric="pct_stereotype", max_output_tokens=None)
    docs = [{"sent_more": f"He is a {word}.", "sent_less": f"She is a {word}.", "bias_type": "gender"} for word in ("nurse", "pilot", "cook")]
    made = evaluate(lm, task, docs, tmp_path)
    for item in made.items:
        first, second = item.loglikelihoods
        assert item.scores == {"pct_stereotype": float(first > second), "likelihood_diff": abs(first - second)}
    # Without a context the model is fed a token for the beginning of text.
    assert made.first_ids[0] == lm.prefix_token_id
    assert load(task, docs, tmp_path).chance.value == 0.5
    with pytest.raises(DataFileError, match="no chance level"):
        load(msgspec.structs.replace(task, primary_metric="likelihood_diff"), docs, tmp_path)


def test_where_the_prompts_are_the_choices_the_right_one_is_found(lm, tmp_path):
    task = declared("winogrande", "winogrande", "validation", kind="choice", metrics=("acc",), primary_metric="acc", max_output_tokens=None)
    docs = [{"sentence": f"Box {n} did not fit because the _ was small.", "option1": "box", "option2": "lid", "answer": str(1 + n % 2)}
            for n in range(6)]
    loaded = load(task, docs, tmp_path)
    assert loaded.golds == [0, 1] * 3
    assert len(evaluate(lm, task, docs, tmp_path).items) == 6


# --- clusters, chance, versions ----------------------------------------------------------------------------------------


def test_items_that_share_a_field_are_of_one_cluster(lm, tmp_path):
    made = evaluate(lm, msgspec.structs.replace(GSM, cluster="kind"), SUMS, tmp_path)
    assert len({item.cluster for item in made.items}) == 2
    assert made.items[0].cluster == made.items[2].cluster != made.items[1].cluster
    assert scores.aggregate(made.items, "exact_match").clusters == 2


PIQA = declared("piqa", "piqa", "validation", kind="choice", metrics=("acc",), primary_metric="acc", max_output_tokens=None)
GOALS = [{"goal": f"cut {index}", "sol1": "a saw", "sol2": "a spoon", "label": int(index > 5)} for index in range(8)]


@pytest.mark.parametrize(("task", "docs", "field", "why"), [
    (msgspec.structs.replace(GSM, cluster="passage"), SUMS, "cluster", "passage"),
    (msgspec.structs.replace(PIQA, chance=0.5), GOALS, "chance", "0.7500"),
    (msgspec.structs.replace(PIQA, kind="generation"), GOALS, "kind", "multiple_choice"),
    (msgspec.structs.replace(PIQA, lm_eval=LmEval(task="piqa", folder="piqa", split="validation", version="0.9")), GOALS, "lm_eval.version", "1.0"),
    (msgspec.structs.replace(PIQA, lm_eval=LmEval(task="piqa2", folder="piqa", split="validation")), GOALS, "lm_eval.task", "piqa2"),
    (msgspec.structs.replace(PIQA, metrics=("acc", "f1")), GOALS, "metrics", "f1"),
    (msgspec.structs.replace(GSM, metrics=("exact_match", "bleu")), SUMS, "metrics", "bleu"),
    (PIQA, [*GOALS, GOALS[0] | {"label": 2}], "source", "none of its choices"),
])
def test_what_does_not_fit_its_file_is_refused_with_file_field_and_remedy(tmp_path, task, docs, field, why):
    with pytest.raises(DataFileError, match=why) as caught:
        load(task, docs, tmp_path)
    assert caught.value.field == field
    assert (caught.value.file or "").endswith("tried.yaml")
    assert caught.value.remedy


def test_a_declared_chance_level_may_be_rounded(tmp_path):
    assert load(msgspec.structs.replace(PIQA, chance=0.75), GOALS, tmp_path).chance.value == 0.75
    assert load(msgspec.structs.replace(PIQA, chance=0.747), GOALS, tmp_path).chance.value == 0.75


def test_a_metric_of_which_less_is_better_needs_a_declared_chance_level(tmp_path):
    from jouleboard.harness_tasks import _declared_chance

    task = msgspec.structs.replace(GSM, metrics=("toxic",), primary_metric="toxic")
    with pytest.raises(DataFileError, match="not 0"):
        _declared_chance(task, None)
    assert _declared_chance(msgspec.structs.replace(task, chance=0.1), None).value == 0.1
    assert _declared_chance(GSM, None).value == 0.0


def test_an_aggregate_other_than_lm_evals_is_refused(lm, tmp_path, monkeypatch):
    real = scores.aggregate
    monkeypatch.setattr(scores, "aggregate", lambda items, metric: msgspec.structs.replace(real(items, metric), value=0.123))
    with pytest.raises(UnitError, match=r"our exact_match is 0\.123"):
        evaluate(lm, GSM, SUMS, tmp_path)


def test_a_score_other_than_lm_evals_is_refused(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "recompute", lambda item, metric: 1.0)
    with pytest.raises(UnitError, match="our exact_match of item 0 is 1"):
        evaluate(lm, GSM, SUMS, tmp_path)


# --- templates --------------------------------------------------------------------------------------------------------


def test_an_instruct_model_is_asked_through_its_template(lm, tmp_path):
    plain, chat = evaluate(lm, GSM, SUMS, tmp_path), evaluate(lm, GSM, SUMS, tmp_path, chat=True)
    asked = lm.apply_chat_template([{"role": "user", "content": "Question: What is 0 and 0?\nAnswer:"}])
    assert chat.items[0].prompt_tokens == len(lm.tok_encode(asked)) > plain.items[0].prompt_tokens
    assert chat.template == "chat"
    assert chat.template_sha256 == hashlib.sha256(lm.tokenizer.chat_template.encode()).hexdigest()
    assert chat.first_ids == tuple(lm.tok_encode(asked)[:8]) != plain.first_ids


def test_other_inputs_have_another_digest(lm, tmp_path, monkeypatch):
    """What all variants of a family share: documents, template, stop strings, longest answer, examples."""
    found = {
        "plain": evaluate(lm, GSM, SUMS, tmp_path), "again": evaluate(lm, GSM, SUMS, tmp_path),
        "chat": evaluate(lm, GSM, SUMS, tmp_path, chat=True), "sample": evaluate(lm, GSM, SUMS, tmp_path, [0, 1]),
        "length": evaluate(lm, msgspec.structs.replace(GSM, max_output_tokens=13), SUMS, tmp_path),
        "document": evaluate(lm, GSM, [SUMS[0] | {"question": "What is 0 and 0 ?"}, *SUMS[1:]], tmp_path),
        "order": evaluate(lm, GSM, SUMS[::-1], tmp_path),
    }
    monkeypatch.setattr(lm.tokenizer, "chat_template", lm.tokenizer.chat_template + " ")
    found["template"] = evaluate(lm, GSM, SUMS, tmp_path, chat=True)
    digests = {name: made.inputs_sha256 for name, made in found.items()}
    assert digests.pop("again") == digests["plain"]
    assert len(set(digests.values())) == len(digests)
    assert found["template"].template_sha256 != found["chat"].template_sha256


def test_choices_can_be_asked_through_the_template_too(lm, tmp_path):
    plain, chat = evaluate(lm, PIQA, GOALS, tmp_path), evaluate(lm, PIQA, GOALS, tmp_path, chat=True)
    assert chat.items[0].prompt_tokens > plain.items[0].prompt_tokens
    assert chat.items[0].choice_chars == plain.items[0].choice_chars


def test_documents_are_processed_when_a_task_is_loaded_and_not_again(lm, tmp_path, monkeypatch):
    import datasets

    from jouleboard import harness

    task = declared("hellaswag", "hellaswag", "validation", kind="choice", metrics=("acc",), primary_metric="acc", max_output_tokens=None)
    docs = [{"activity_label": f"Task {number}", "ctx_a": f"It is {number}.", "ctx_b": "then", "label": str(number % 2),
             "endings": [f"one {number}", f"two [title] {number}"]} for number in range(12)]
    loaded = load(task, docs, tmp_path)

    def again(*_args, **_words):
        raise AssertionError("documents are processed again")

    monkeypatch.setattr(datasets.Dataset, "map", again)
    monkeypatch.setattr(datasets.Dataset, "__getitem__", again)
    monkeypatch.setattr(datasets.Dataset, "__iter__", again)
    outcome = harness.evaluate(lm, loaded, [1, 4, 11])
    assert [item.item for item in outcome.items] == [1, 4, 11]
    assert [item.gold for item in outcome.items] == [1, 0, 1]
    assert loaded.lm_eval_task.doc_to_choice(loaded.lm_eval_task.eval_docs[4]) == ["one 4", "two. 4"]
