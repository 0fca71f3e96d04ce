"""Variants that two processes compute together on the CPU, over gloo, held against one process that computes alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from jouleboard import catalogue, protocol, recipes, tasks, units
from jouleboard.engines import place
from jouleboard.errors import TooLargeError, UnitError
from jouleboard.ranks import Ranks
from jouleboard.records import ReplayRow
from jouleboard.turns import Limits
from tests import test_worker
from tests.test_worker import TEXT, build, probe, serve

folder = test_worker.folder
SHARES = "2 devices hold 50.2%, 50.2% of the weights"


class Pair:
    """One worker alone, and two ranks."""

    def __init__(self, force: units.Workforce, where: Path, model: Path, recipe: recipes.Recipe | None = None, *,
                 alone: bool = True, kind: type[Ranks] = Ranks) -> None:
        self.where = where
        self.alone = force.start("alone", where / "alone.log") if alone else None
        self.ranks = force.start("two", where / "two.log", ranks=2)
        self.workers = self.ranks._workers
        self.ranks.__class__ = kind
        self.request = build(model, recipe)

    def build(self) -> list[protocol.Built]:
        both = [self.ranks] if self.alone is None else [self.alone, self.ranks]
        return [worker.measure(self.request, protocol.Built, meter=None).reply for worker in both]

    def ask(self, request: protocol.Request, expected: type) -> list:
        """Ask both, and give both answers."""
        return [self.alone.ask(request, expected), self.ranks.ask(request, expected)]

    def close(self) -> None:
        self.ranks.close()
        if self.alone is not None:
            self.alone.close()


@pytest.fixture(scope="module")
def force() -> Iterator[units.Workforce]:
    """Imports once for all workers."""
    made = units.Workforce(threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def impatient(force) -> Iterator[units.Workforce]:
    made = units.Workforce(threads=1, limits=Limits(patience_s=3.0))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(force, folder, tmp_path_factory) -> Iterator[Pair]:
    made = Pair(force, tmp_path_factory.mktemp("pair"), folder)
    made.built = made.build()
    yield made
    made.close()


@pytest.fixture
def recorded(tmp_path) -> Path:
    file = tmp_path / "batches.json"
    rows = [[ReplayRow(tokens=tuple(range(start, start + length)), requests=1, prompt_tokens=length, output_tokens=1)
             for start, length in batch] for batch in ([(3, 20), (9, 12)], [(40, 30)])]
    file.write_bytes(msgspec.json.encode(rows))
    return file


def evaluate(where: Path, name: str, **changed: object) -> protocol.Evaluate:
    task = catalogue.task("home_agent_easy")
    prepared = tasks.prepare(task)
    return msgspec.structs.replace(protocol.Evaluate(
        task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed), limit=16,
        seed=7, withheld=None, items=str(where / f"{name}.jsonl"), batches=str(where / f"{name}.json")), **changed)


def items(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def none_is_left(made: Pair) -> bool:
    return not any(psutil.pid_exists(worker.pid) for worker in made.workers) and not list(made.where.glob(".ranks-*"))


# --- the same as one process ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_two_ranks_hold_is_the_whole_model_and_each_holds_half(pair):
    alone, together = pair.built
    assert together.realised == msgspec.structs.replace(alone.realised, claims=(SHARES,))
    assert together.engine == msgspec.structs.replace(alone.engine, device="cpu,cpu")
    assert alone.engine.device == "cpu"
    assert together.device is None


@pytest.mark.slow
def test_scores_are_those_of_one_process_and_log_likelihoods_within_rounding(pair, tmp_path):
    results = [worker.measure(evaluate(tmp_path, name), protocol.Evaluated, meter=None).reply.result
               for worker, name in ((pair.alone, "alone"), (pair.ranks, "two"))]
    assert results[0] == results[1]
    alone, together = items(tmp_path / "alone.jsonl"), items(tmp_path / "two.jsonl")
    assert len(alone) == len(together) == 16
    for one, other in zip(alone, together, strict=True):
        assert one["scores"] == other["scores"]
        assert one["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-4)
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.slow
def test_rank_0_alone_writes_files(pair, tmp_path, monkeypatch):
    theirs = evaluate(tmp_path, "theirs", journal=str(tmp_path / "theirs.journal"), origin_sha256="0" * 64)
    monkeypatch.setattr(pair.ranks, "_for_rank", lambda request, rank: theirs if rank else request)
    pair.ranks.ask(evaluate(tmp_path, "ours", journal=str(tmp_path / "ours.journal"), origin_sha256="0" * 64), protocol.Evaluated)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours.journal", "ours.json", "ours.jsonl"]


@pytest.mark.slow
def test_a_stop_costs_ranks_one_batch_too_and_rank_0_alone_keeps_the_journal(pair, tmp_path):
    journal = tmp_path / "unit.journal"
    request = evaluate(tmp_path, "first", journal=str(journal), origin_sha256="0" * 64)
    first = pair.ranks.ask(request, protocol.Evaluated)
    assert first.resumed_batches == 0
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = len(lines) // 2
    # Half of it, and one line torn.
    journal.write_bytes(b"".join(lines[: kept + 1]) + lines[kept + 1][:20])
    again = pair.ranks.ask(msgspec.structs.replace(request, items=str(tmp_path / "again.jsonl")), protocol.Evaluated)
    assert again.resumed_batches == kept
    assert again.result == first.result
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()
    assert journal.read_bytes() == b"".join(lines)


@pytest.mark.slow
def test_serving_and_replay_end_on_both_ranks_after_the_same_loops_with_the_tokens_of_one_process(pair, recorded):
    for request in (serve(warmup_s=0.1, window_s=0.5), protocol.Replay(batches=str(recorded), warmup_s=0.1, window_s=0.5)):
        alone, together = pair.ask(request, protocol.Worked)
        # The driver holds the loops of both ranks against each other.
        assert together.loops == len(together.loop_ends_s) > 1
        assert together.loop_ends_s[-1] >= 0.5
        assert together.loop_ends_s[-2] < 0.5
        assert together.output_sha256 == alone.output_sha256
        assert (together.loops_changed, together.cached_tokens) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_probes_end_on_both_ranks_and_the_memory_of_both_counts(pair, kind):
    alone, together = pair.ask(probe(kind, warmup_s=0.1, window_s=0.3), protocol.Probed)
    assert together.loops >= 1
    assert len(together.step_s) == len(alone.step_s)
    assert (together.first_token_s is None) == (kind == "decode")
    assert together.peak_memory_bytes > 1.5 * alone.peak_memory_bytes


@pytest.mark.slow
def test_more_than_the_context_holds_is_refused_by_all_and_they_live(pair):
    with pytest.raises(TooLargeError, match="context of 512"):
        pair.ranks.ask(serve(prompt_tokens=600), protocol.Worked)
    assert pair.ranks.ask(serve(), protocol.Worked).loops == 1


@pytest.mark.slow
def test_the_same_layers_are_dropped_as_by_one_process(force, folder, tmp_path):
    recipe = msgspec.convert({"id": "drop", "title": "t", "description": "d", "dtype": "bfloat16",
                              "steps": [{"step": "drop-layers", "count": 1}]}, recipes.Recipe)
    made = Pair(force, tmp_path, folder, recipe)
    try:
        alone, together = made.build()
        assert [step["dropped_layers"] for step in together.steps] == [step["dropped_layers"] for step in alone.steps]
        assert together.realised.layers == alone.realised.layers == 2
        assert together.realised.weights_sha256 == alone.realised.weights_sha256
        assert together.realised.claims[0] == "2 layers are left"
        assert made.ranks.ask(serve(), protocol.Worked).loops == 1
    finally:
        made.close()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-weight-only", "nf4"])
def test_quantised_recipes_are_refused_before_anything_is_loaded(force, folder, tmp_path, name):
    made = Pair(force, tmp_path, folder, recipes.load(name), alone=False)
    try:
        with pytest.raises(UnitError, match="quantised weights are not split over 2 devices") as caught:
            made.build()
        assert caught.value.kind == "unsupported"
        assert none_is_left(made)
    finally:
        made.close()


def stub(world: int, others: object = None):
    """A group of which only this rank is here; the others say what they are told to."""
    from jouleboard.engines.parallel import Group

    class Stub(Group):
        def gather(self, mine):
            return [mine, *[others] * (world - 1)]

    return Stub(place.RankPlace(rank=0, world=world, rendezvous="/nowhere"))


@pytest.mark.parametrize(("world", "what"), [(3, "4 attention heads"), (4, "2 key-value heads")])
def test_heads_that_devices_cannot_share_are_refused(folder, world, what):
    import torch

    from jouleboard.engines import parallel

    with pytest.raises(UnitError, match=f"{what} cannot be shared by {world} devices") as caught:
        parallel.load(str(folder), torch.float32, stub(world))
    assert caught.value.kind == "unsupported"


def test_a_model_that_was_not_split_is_found(folder):
    from transformers import AutoModelForCausalLM

    from jouleboard.engines import parallel

    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(UnitError, match="not split over 2 devices: rank 0 holds 100%"):
        parallel.require_split(model, stub(2, others=0.5))
    # Half-way between an even share and the whole is where it ends.
    with pytest.raises(UnitError, match="rank 1 holds 80%"):
        parallel.require_split(torch_free_half(model), stub(2, others=0.8))
    parallel.require_split(torch_free_half(model), stub(2, others=0.75))


def torch_free_half(model):
    """The model with weights of which this rank says that it holds half."""
    class Half:
        def parameters(self):
            return [HalfWeight(weight) for weight in model.parameters()]

        def get_input_embeddings(self):
            return None

        get_output_embeddings = get_input_embeddings

    class HalfWeight:
        def __init__(self, weight):
            self._weight = weight

        def numel(self):
            return self._weight.numel()

        def element_size(self):
            return self._weight.element_size()

        def to_local(self):
            return self._weight.flatten()[: self._weight.numel() // 2]

    return Half()


def test_what_one_rank_lacks_memory_for_none_begins(folder):
    from jouleboard.variant import Variant

    variant = Variant(build(folder))
    assert variant._too_large(serve()) is None
    variant._group = stub(2, others="needs about 9 bytes")
    assert variant._too_large(serve()) == "needs about 9 bytes"


def test_ranks_that_built_different_variants_say_so():
    group = stub(3, others=hashlib.sha256(b"(2,)").hexdigest())
    group.require_same("weights", (2,))
    with pytest.raises(UnitError, match="rank 1 of 3 has other weights"):
        group.require_same("weights", (1,))


# --- what depends on a clock ------------------------------------------------------------------------------------------


def ten_at_most():
    """A loop that fails the eleventh time: whoever goes by his own clock would not end."""
    import torch

    begun: list[int] = []

    def loop():
        begun.append(1)
        assert len(begun) <= 10, "the answer of the ranks was not heeded"
        yield torch.zeros(1, 1, dtype=torch.int64)

    return begun, loop


def answers(*given: bool):
    asked: list[bool] = []
    left = iter(given)

    def decide(mine: bool) -> bool:  # noqa: FBT001
        asked.append(mine)
        return next(left)

    return asked, decide


def test_loops_go_on_and_end_by_the_answer_of_the_ranks_and_not_by_the_clock():
    import torch

    from jouleboard import workloads

    begun, loop = ten_at_most()
    asked, decide = answers(True, True, False)
    done = workloads.run(loop, torch.device("cpu"), go=lambda: None, window_s=1e9, decide=decide)
    assert len(begun) == len(done.loop_ends_s) == 3
    assert asked == [True, True, True]
    # And the other way round: this rank's own time is up, the others go on.
    begun, loop = ten_at_most()
    asked, decide = answers(True, False)
    workloads.run(loop, torch.device("cpu"), go=lambda: None, window_s=0.0, decide=decide)
    assert (len(begun), asked) == (2, [False, False])


def test_a_warm_up_ends_by_the_answer_of_the_ranks():
    import torch

    from jouleboard import workloads

    begun, loop = ten_at_most()
    _, decide = answers(True, False, True, True)
    # Go on; not done within the loop; go on; done within the next one; and then no more.
    with pytest.raises(StopIteration):
        workloads.warm_up(loop, torch.device("cpu"), seconds=1e9, whole=False, decide=decide)
    assert len(begun) == 2
    begun, loop = ten_at_most()
    _, decide = answers(False)
    workloads.warm_up(loop, torch.device("cpu"), seconds=1e9, whole=False, decide=decide)
    assert begun == []


def test_a_prefill_is_timed_as_often_as_the_ranks_say():
    import torch

    from jouleboard import workloads

    begun, loop = ten_at_most()
    _, decide = answers(True, False)
    workloads.first_token_s(loop, torch.device("cpu"), decide=decide)
    assert len(begun) == 1


def test_each_of_several_ranks_needs_its_share_of_cache_and_heads(tiny_model):
    import torch

    from jouleboard.engines import memory

    words = {"batch": 2, "prompt_tokens": 64, "output_tokens": 8}
    one = memory.need(tiny_model, torch.float32, **words)
    half = memory.need(tiny_model, torch.float32, **words, ranks=2)
    assert half.cache_bytes * 2 == one.cache_bytes
    assert half.scratch_bytes * 2 == one.scratch_bytes
    assert one.activation_bytes / 2 < half.activation_bytes < one.activation_bytes
    # All ranks hold all logits.
    assert half.logits_bytes == one.logits_bytes


def test_ranks_on_one_cpu_share_its_memory_and_ranks_on_gpus_do_not(monkeypatch):
    import torch

    from jouleboard.engines import memory

    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    wanted = memory.Need(cache_bytes=500, logits_bytes=0, activation_bytes=0, scratch_bytes=0)
    assert memory.refusal(wanted, torch.device("cpu")) is None
    assert "available on cpu are 500" in memory.refusal(wanted, torch.device("cpu"), ranks=2)
    assert memory.refusal(wanted, torch.device("cuda:0"), ranks=2) is None


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_is_killed_in_the_middle_ends_the_request_and_all(force, folder, tmp_path, dead):
    made = Pair(force, tmp_path, folder, alone=False)
    try:
        made.build()
        victim = made.workers[dead]

        def kill_at_work() -> None:
            begun_s = victim.clock.cpu_s()
            while victim.clock.cpu_s() < begun_s + 0.2:
                time.sleep(0.01)
            os.kill(victim.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_at_work)
        with pytest.raises(UnitError, match=rf"rank {dead} of 2: the worker process died: SIGKILL") as caught:
            made.ranks.measure(serve(window_s=600.0), protocol.Worked, meter=None, opened=killer.start)
        killer.join()
        assert caught.value.kind == "crash"
        assert none_is_left(made)
    finally:
        made.close()


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_request_and_all(impatient, folder, tmp_path):
    made = Pair(impatient, tmp_path, folder, alone=False)
    try:
        made.build()
        os.kill(made.workers[1].pid, signal.SIGSTOP)
        with pytest.raises(UnitError, match="has said nothing for") as caught:
            made.ranks.ask(serve(), protocol.Worked)
        assert caught.value.kind == "time-out"
        assert none_is_left(made)
    finally:
        made.close()


class Unlike(Ranks):
    """Rank 1 is given other work than rank 0."""

    changed: dict[str, object]

    def _for_rank(self, request: protocol.Request, rank: int) -> protocol.Request:
        request = super()._for_rank(request, rank)
        return msgspec.structs.replace(request, **self.changed) if rank and isinstance(request, protocol.Serve) else request


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "how"), [({"text": "other"}, "rank 1 of 2 has other prompts"),
                                              ({"output_tokens": 4}, "has said nothing for")], ids=["other-text", "fewer-steps"])
def test_ranks_that_do_different_work_never_give_a_result(impatient, folder, tmp_path, changed, how):
    """Other prompts give the same tokens on both, of nothing anybody asked for; fewer steps leave the other rank waiting."""
    made = Pair(impatient, tmp_path, folder, alone=False, kind=Unlike)
    try:
        made.build()
        if "text" in changed:
            other = tmp_path / "other.txt"
            other.write_text(Path(TEXT).read_text(encoding="utf-8")[::-1], encoding="utf-8")
            changed = {"text": str(other)}
        made.ranks.changed = changed
        with pytest.raises(UnitError, match=how):
            made.ranks.ask(serve(), protocol.Worked)
        assert none_is_left(made)
    finally:
        made.close()


@pytest.mark.slow
def test_a_group_whose_other_rank_never_comes_is_ended_by_the_driver(impatient, folder, tmp_path):
    made = Pair(impatient, tmp_path, folder, alone=False)
    try:
        os.kill(made.workers[1].pid, signal.SIGSTOP)
        with pytest.raises(UnitError, match="for 3 s"):
            made.build()
        assert none_is_left(made)
    finally:
        made.close()
