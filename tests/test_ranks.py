"""Several workers used like one, with stand-ins in the place of processes; and how real ones would be launched."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from jouleboard import catalogue, plan, protocol, turns
from jouleboard import ranks as ranks_module
from jouleboard.engines import place
from jouleboard.engines.place import RankPlace
from jouleboard.errors import HardwareError, JouleboardError, StorageError, TooLargeError, UnitError
from jouleboard.meters.interface import Reading
from jouleboard.ranks import Ranks
from jouleboard.records import Engine, Realised
from jouleboard.turns import Measured
from jouleboard.windows import Energy

SERVE = protocol.Serve(prompt_tokens=8, output_tokens=4, batch=1, text="t", warmup_s=0.0, window_s=0.0)
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Ranks that hang here hang for good: nothing is gained by waiting for them."""
    monkeypatch.setattr(ranks_module, "GRACE_S", 0.1)


def worked(**changed: object) -> protocol.Worked:
    return msgspec.structs.replace(
        protocol.Worked(loops=3, loop_ends_s=(1.0, 2.0, 3.0), output_sha256="a" * 64, loops_changed=0, first_token_s=(0.1,),
                        cached_tokens=0), **changed)


class Meter:
    """Writes down when its window is open."""

    method, boundary = "simulated", "gpu"

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def begin(self, name: str) -> None:
        self.said.append(f"open {name}")

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        self.said.append("closed" if cpu_s is not None else "abandoned")
        return Reading(energy=Energy(method="simulated", boundary="gpu", measured_j=1.0, domains_j={"gpu0": 1.0},
                                     estimate_j=None, estimate_relative_uncertainty=None))


class Standin:
    """A worker whose every answer is a function: called with `before`, returns a reply or raises."""

    def __init__(self, said: list[str], rank: int, *answers: Callable[[Standin, Callable[[], None]], object]) -> None:
        self.said, self.rank, self.answers = said, rank, list(answers)
        self.log = Path(f"rank{rank}.log")
        self.clock = SimpleNamespace(cpu_s=lambda: 10.0 * (rank + 1))
        self.closed = threading.Event()
        self.requests: list[protocol.Request] = []
        self.progress: Callable[[int, int], None] | None = None

    def measure(self, request, expected, *, meter, before, progress, quiet_s=0.0) -> Measured:
        assert meter is None
        self.requests.append(request)
        self.progress = progress
        found = self.answers.pop(0)(self, before)
        if isinstance(found, BaseException):
            raise found
        return Measured(reply=found, window=None)

    def close(self) -> None:
        self.closed.set()

    def log_tail(self) -> str:
        return f"tail of rank {self.rank}"


def ready(reply: object, then: Callable[[Standin], None] = lambda _worker: None):
    """An answer that waits for its window, does `then` in it, and gives the reply."""

    def answer(worker: Standin, before: Callable[[], None]) -> object:
        before()
        worker.said.append(f"go {worker.rank}")
        then(worker)
        worker.said.append(f"done {worker.rank}")
        return reply

    return answer


def at_once(reply: object):
    return lambda _worker, _before: reply


def hangs(worker: Standin) -> None:
    """Wait for the others in an operation that they never reach, until this process is killed."""
    assert worker.closed.wait(PATIENCE_S), "a rank that waits for a dead one was left alone"
    raise UnitError("the worker process died: SIGKILL", kind="crash")


def stuck(_reply: object = None):
    return ready(None, hangs)


def group(tmp_path: Path, *answers) -> tuple[Ranks, list[Standin], list[str]]:
    """Ranks over stand-ins, one for each list of answers."""
    said: list[str] = []
    workers = [Standin(said, rank, *(mine if isinstance(mine, tuple) else (mine,))) for rank, mine in enumerate(answers)]
    (tmp_path / "meet").write_text("")
    return Ranks("two", workers, tmp_path / "meet"), workers, said


def measure(ranks: Ranks, said: list[str], **words) -> Measured:
    return ranks.measure(SERVE, protocol.Worked, meter=Meter(said), name="trial-1", **words)


def ended(workers: list[Standin], tmp_path: Path) -> bool:
    return all(worker.closed.is_set() for worker in workers) and not (tmp_path / "meet").exists()


# --- one window over all ---------------------------------------------------------------------------------------------


def test_the_window_opens_when_all_are_ready_and_closes_when_all_have_answered(tmp_path):
    first_done = threading.Event()

    def late(worker: Standin, before: Callable[[], None]) -> object:
        worker.said.append("late")
        before()
        assert first_done.wait(PATIENCE_S)
        worker.said.append("go 1")
        worker.said.append("done 1")
        return worked()

    ranks, _, said = group(tmp_path, ready(worked(), lambda _worker: first_done.set()), late)
    done = measure(ranks, said, before=lambda: said.append("before"), opened=lambda: said.append("opened"))
    assert said.index("late") < said.index("before") < said.index("open trial-1") < said.index("opened") < said.index("go 0")
    assert said[-1] == "closed"
    assert {"done 0", "done 1"} <= set(said[:-1])
    assert done.there().energy.measured_j == 1.0


def test_the_reply_of_rank_0_counts_and_times_may_differ(tmp_path):
    ranks, workers, said = group(tmp_path, ready(worked()), ready(worked(loop_ends_s=(1.5, 2.5, 3.5), first_token_s=(0.2,))))
    assert measure(ranks, said).reply == worked()
    assert not any(worker.closed.is_set() for worker in workers)


def test_work_without_a_window_has_none(tmp_path):
    ranks, _, said = group(tmp_path, ready(worked()), ready(worked()))
    assert ranks.ask(SERVE, protocol.Worked) == worked()
    assert not [word for word in said if word.startswith("open")]


def test_cpu_seconds_peaks_and_canary_tokens_are_added(tmp_path):
    ranks, _, _ = group(
        tmp_path,
        (at_once(protocol.MemoryRead(peak_memory_bytes=5)), ready(protocol.CanaryDone(model="c", tokens=64, output_sha256="b"))),
        (at_once(protocol.MemoryRead(peak_memory_bytes=7)), ready(protocol.CanaryDone(model="c", tokens=128, output_sha256="b"))),
    )
    assert ranks.clock.cpu_s() == 30.0
    assert ranks.ask(protocol.Memory(begin_anew=False), protocol.MemoryRead).peak_memory_bytes == 12
    canary = protocol.Canary(device="cuda:0", threads=1, warmup_s=0, window_s=0)
    assert ranks.ask(canary, protocol.CanaryDone).tokens == 192


def built(*steps: dict[str, object]) -> protocol.Built:
    realised = Realised(
        weight_bytes=2, parameters=1, dtypes={}, tensor_classes={}, module_classes={}, quantised_tensors=0, nonzero_share=1.0,
        layers=1, weights_sha256="a" * 64, claims=())
    engine = Engine(name="e", version="1", device="cuda", threads=1, batch_size=1, dtype="bfloat16", softmax_dtype="float32",
                    attention="sdpa")
    return protocol.Built(realised=realised, engine=engine, steps=steps, torch_cpu_capability="AVX2")


def test_a_step_took_as_long_as_the_slowest_rank_and_the_cpu_time_and_memory_of_all(tmp_path):
    bill = {"begun_s": 0.5, "duration_s": 2.0, "cpu_s": 1.0, "tokens": 8, "peak_memory_bytes": 5}
    later = bill | {"begun_s": 0.6, "duration_s": 3.0, "cpu_s": 1.5, "peak_memory_bytes": 7}
    ranks, _, _ = group(tmp_path, at_once(built({"step": "drop-layers", "bill": bill})),
                        at_once(built({"step": "drop-layers", "bill": later})))
    (one,) = ranks.ask(SERVE, protocol.Built).steps
    assert one["bill"] == {"begun_s": 0.5, "duration_s": 3.0, "cpu_s": 2.5, "tokens": 8, "peak_memory_bytes": 12}


@pytest.mark.parametrize("other", [
    ({"step": "drop-layers", "dropped_layers": [2], "bill": {"duration_s": 1.0, "cpu_s": 1.0, "peak_memory_bytes": 1}},),
    ({"step": "drop-layers", "dropped_layers": [1]},),
    (),
])
def test_ranks_whose_steps_found_out_different_things_are_ended(tmp_path, other):
    mine = {"step": "drop-layers", "dropped_layers": [1], "bill": {"duration_s": 1.0, "cpu_s": 1.0, "peak_memory_bytes": 1}}
    ranks, workers, _ = group(tmp_path, at_once(built(mine)), at_once(built(*other)))
    with pytest.raises(UnitError, match="the field steps of Built is not the same"):
        ranks.ask(SERVE, protocol.Built)
    assert ended(workers, tmp_path)


def test_progress_is_that_of_rank_0(tmp_path):
    told: list[tuple[int, int]] = []
    ranks, workers, _ = group(tmp_path, at_once(worked()), at_once(worked()))
    ranks.ask(SERVE, protocol.Worked, progress=lambda done, of: told.append((done, of)))
    for worker in workers:
        worker.progress(worker.rank + 1, 9)
    assert told == [(1, 9)]


def test_each_rank_builds_at_its_own_place_on_its_own_device(tmp_path):
    ranks, workers, _ = group(tmp_path, at_once(worked()), at_once(worked()))
    request = protocol.Build(model=catalogue.model("smollm2-135m-instruct-q4wheel"), folder="f", recipe={}, calibration="c",
                             threads=1, batch_size=1, device="cuda:0")
    ranks.ask(request, protocol.Worked)
    sent = [worker.requests[0] for worker in workers]
    assert [one.device for one in sent] == ["cuda:0", "cuda:1"]
    assert [(one.ranks.rank, one.ranks.world) for one in sent] == [(0, 2), (1, 2)]
    assert {one.ranks.rendezvous for one in sent} == {str(tmp_path / "meet")}


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"loops": 4}, {"output_sha256": "b" * 64}, {"loops_changed": 1}, {"cached_tokens": 8}])
def test_another_answer_of_a_rank_is_found_and_all_are_ended(tmp_path, changed):
    ranks, workers, said = group(tmp_path, ready(worked()), ready(worked(**changed)))
    with pytest.raises(UnitError, match=f"different answers.*{next(iter(changed))}") as caught:
        measure(ranks, said)
    assert "rank1.log" in str(caught.value.remedy)
    assert ended(workers, tmp_path)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_answers_without_a_window_is_found(tmp_path, silent):
    answers = [ready(worked()), ready(worked())]
    answers[silent] = at_once(worked())
    ranks, workers, said = group(tmp_path, *answers)
    with pytest.raises(UnitError, match="waits for its window"):
        measure(ranks, said)
    assert ended(workers, tmp_path)
    assert not [word for word in said if word.startswith(("open", "go"))]


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_dies_in_the_window_the_others_are_ended_and_the_window_is_given_up(tmp_path, dead):
    answers = [stuck(), stuck()]
    answers[dead] = ready(UnitError("the worker process died: SIGSEGV", kind="crash"))
    ranks, workers, said = group(tmp_path, *answers)
    with pytest.raises(UnitError, match=f"rank {dead} of 2.*SIGSEGV") as caught:
        measure(ranks, said)
    assert caught.value.kind == "crash"
    assert ended(workers, tmp_path)
    assert said[-1] == "abandoned" or "abandoned" in said
    assert ranks.log_tail() == f"tail of rank {dead}"


def test_when_one_fails_before_it_is_ready_no_window_opens(tmp_path):
    ranks, workers, said = group(tmp_path, ready(worked()), at_once(UnitError("no", kind="unsupported")))
    with pytest.raises(UnitError, match="rank 1 of 2: no") as caught:
        measure(ranks, said, before=lambda: said.append("before"))
    assert caught.value.kind == "unsupported"
    assert said == []
    assert ended(workers, tmp_path)


def test_the_cause_is_named_and_not_what_followed_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "GRACE_S", PATIENCE_S)
    failed = threading.Event()

    def follows(worker: Standin, before: Callable[[], None]) -> object:
        before()
        failed.set()
        return UnitError("RuntimeError: Connection closed by peer", kind="error")

    def dies(worker: Standin, before: Callable[[], None]) -> object:
        before()
        assert failed.wait(PATIENCE_S)
        return UnitError("the kernel killed the worker process: the machine was out of memory", kind="out-of-memory")

    ranks, _, said = group(tmp_path, follows, dies)
    with pytest.raises(UnitError, match="rank 1 of 2: the kernel killed") as caught:
        measure(ranks, said)
    assert caught.value.kind == "out-of-memory"


def test_a_failure_that_all_share_is_told_as_that_of_one(tmp_path):
    ranks, workers, said = group(tmp_path, *(ready(UnitError("not finite", kind="non-finite")) for _ in range(2)))
    with pytest.raises(UnitError, match=r"^not finite$") as caught:
        measure(ranks, said)
    assert caught.value.kind == "non-finite"
    assert ended(workers, tmp_path)


def test_a_file_that_cannot_be_written_stays_what_it_is(tmp_path):
    ranks, workers, said = group(tmp_path, ready(StorageError("no space left", file="f")), stuck())
    with pytest.raises(StorageError, match="no space left"):
        measure(ranks, said)
    assert ended(workers, tmp_path)


def test_work_that_all_refuse_for_memory_leaves_them_as_they_were(tmp_path):
    refuse = at_once(TooLargeError("needs 9 bytes"))
    ranks, workers, said = group(tmp_path, (refuse, ready(worked())), (refuse, ready(worked())))
    with pytest.raises(TooLargeError, match="needs 9 bytes"):
        measure(ranks, said)
    assert not any(worker.closed.is_set() for worker in workers)
    assert measure(ranks, said).reply == worked()


def test_memory_that_one_alone_lacks_is_a_failure(tmp_path):
    ranks, workers, said = group(tmp_path, stuck(), ready(TooLargeError("ran out")))
    with pytest.raises(UnitError, match="rank 1 of 2 alone lacks memory: ran out") as caught:
        measure(ranks, said)
    assert not isinstance(caught.value, TooLargeError)
    assert caught.value.kind == "out-of-memory"
    assert ended(workers, tmp_path)


def test_ranks_that_were_ended_say_so_again_and_are_not_asked(tmp_path):
    ranks, workers, said = group(tmp_path, ready(UnitError("it hangs", kind="time-out")), stuck())
    for _ in range(2):
        with pytest.raises(UnitError, match="it hangs"):
            measure(ranks, said)
    assert [len(worker.requests) for worker in workers] == [1, 1]


@pytest.mark.parametrize("where", ["before", "opened"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), JouleboardError("the sensor is gone")])
def test_an_interruption_around_the_window_ends_all_at_once(tmp_path, where, error):
    def interrupt() -> None:
        raise error

    ranks, workers, said = group(tmp_path, stuck(), stuck())
    with pytest.raises(type(error)):
        measure(ranks, said, **{where: interrupt})
    assert ended(workers, tmp_path)
    assert not [word for word in said if word.startswith("go")]
    assert ("abandoned" in said) == (where == "opened")
    assert threading.active_count() == 1 or not [one for one in threading.enumerate() if one.name.startswith("two-rank")]


def test_a_bug_in_a_thread_is_raised_with_its_own_class(tmp_path):
    ranks, workers, said = group(tmp_path, ready(ZeroDivisionError("bug")), stuck())
    with pytest.raises(ZeroDivisionError):
        measure(ranks, said)
    assert ended(workers, tmp_path)


def test_ranks_offer_what_a_worker_offers():
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")} - {"pid"}

    assert public(turns.Worker) <= public(Ranks)
    for name in public(turns.Worker):
        ours, theirs = inspect.signature(getattr(Ranks, name)), inspect.signature(getattr(turns.Worker, name))
        assert list(ours.parameters) == list(theirs.parameters), name
        assert [one.default for one in ours.parameters.values()] == [one.default for one in theirs.parameters.values()], name


# --- the launch ------------------------------------------------------------------------------------------------------


def at(rank: int, world: int = 2) -> RankPlace:
    return RankPlace(rank=rank, world=world, rendezvous="/nowhere")


def test_on_gpus_each_rank_takes_its_own_and_sees_all(monkeypatch):
    monkeypatch.setattr(place.sys, "platform", "linux")
    inherited = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    found = [place.launch(at(rank, 4), place.rank_device("cuda:0", rank), inherited) for rank in range(4)]
    assert {one.backend for one in found} == {"nccl"}
    assert [one.environment["LOCAL_RANK"] for one in found] == ["0", "1", "2", "3"]
    assert [one.environment["RANK"] for one in found] == ["0", "1", "2", "3"]
    assert {one.environment["WORLD_SIZE"] for one in found} == {"4"}
    # The GPUs stay those that the meter counts, in its order.
    assert not any("CUDA_VISIBLE_DEVICES" in one.environment for one in found)


def test_on_a_cpu_no_rank_sees_a_gpu_and_all_meet_over_the_loopback_interface(monkeypatch):
    monkeypatch.setattr(place.sys, "platform", "linux")
    found = place.launch(at(1), place.rank_device("cpu", 1), {})
    assert found.backend == "gloo"
    assert found.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert found.environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_chosen_network_interface_is_kept():
    assert "GLOO_SOCKET_IFNAME" not in place.launch(at(0), "cpu", {"GLOO_SOCKET_IFNAME": "eth0"}).environment


@pytest.mark.parametrize("device", ["mps", "xpu:0"])
def test_devices_without_a_backend_are_refused(device):
    with pytest.raises(UnitError, match="cannot compute one variant") as caught:
        place.launch(at(0), device, {})
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(("seen", "refused"), [(1, True), (2, False)])
def test_a_gpu_that_torch_does_not_see_is_refused_before_the_group_forms(monkeypatch, seen, refused):
    import torch

    from jouleboard.engines import parallel

    taken: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    formed: list[dict] = []
    monkeypatch.setattr(parallel.distributed, "FileStore", lambda *words: words, raising=False)
    monkeypatch.setattr(parallel.distributed, "init_process_group", lambda *words, **named: formed.append({"backend": words[0]} | named))
    monkeypatch.setattr(parallel.distributed, "new_group", lambda **named: formed.append(named))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "before")
    if refused:
        with pytest.raises(UnitError, match=r"cuda:1 is not there: torch sees 1 GPU"):
            parallel.join(at(1), "cuda:1")
        assert formed == []
        return
    joined = parallel.join(at(1), "cuda:1")
    assert (joined.rank, joined.world, joined.first) == (1, 2, False)
    assert taken == [torch.device("cuda:1")]
    assert (formed[0]["backend"], formed[0]["rank"], formed[0]["world_size"]) == ("nccl", 1, 2)
    assert formed[0]["device_id"] == torch.device("cuda:1")
    assert formed[1]["backend"] == "gloo"


def test_the_digest_of_several_gpus_is_the_meter_s(monkeypatch):
    from jouleboard import variant
    from jouleboard.meters.kernel import short_digest

    assert variant._device_digest(["GPU-a", "GPU-b"]) == short_digest("GPU-a,GPU-b")
    assert variant._device_digest(["GPU-a", None]) is None
    assert variant._device_digest(["GPU-a"]) == short_digest("GPU-a")


def test_logs_have_names_of_their_own_and_files_of_killed_runs_go(tmp_path):
    assert [path.name for path in place.logs(tmp_path / "bf16.log", 3)] == ["bf16.log", "bf16.rank1.log", "bf16.rank2.log"]
    left = tmp_path / ".ranks-999999999-ab"
    left.write_text("")
    first = place.rendezvous(tmp_path)
    first.write_text("")
    second = place.rendezvous(tmp_path)
    assert not left.exists()
    assert first.exists()
    assert first != second
    assert not second.exists()


def test_a_profile_of_several_gpus_means_as_many_ranks():
    profile = msgspec.structs.replace(catalogue.hardware("nvidia-h100-sxm-80gb"), count=4)
    assert plan.ranks(profile) == 4
    assert plan.torch_device(profile) == "cuda:0"
    assert plan.ranks(msgspec.structs.replace(profile, count=1)) == 1


@pytest.mark.parametrize("ident", ["amd-mi300x-192gb", "x86-rapl", "apple-m-series"])
def test_several_devices_of_another_kind_are_refused(ident):
    profile = msgspec.structs.replace(catalogue.hardware(ident), count=2)
    for ask in (plan.ranks, plan.torch_device):
        with pytest.raises(HardwareError, match="count"):
            ask(profile)
