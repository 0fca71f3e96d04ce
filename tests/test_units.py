"""Worker processes seen from the driver: stand-ins that hang, babble and die, and the real fork server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jouleboard import faults, forking, lineage, protocol, units
from jouleboard.children import Child
from jouleboard.errors import SourceError, StorageError, UnitError
from jouleboard.lineage import OomKills
from jouleboard.units import Limits, Worker, Workforce

MEMORY = protocol.Memory(begin_anew=False)
CANARY = protocol.Canary(device="cpu", threads=1, warmup_s=0.0, window_s=0.0)
SOON_S = 20.0
"""Far longer than anything takes here, far shorter than what is waited for in vain."""
HELLO = '{"type":"MemoryRead","peak_memory_bytes":7}'
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="fork server and /proc")
PRELUDE = """
import json, os, signal, subprocess, sys, time
def hear(): return sys.stdin.buffer.readline()
def say(text): os.write(1, text if isinstance(text, bytes) else text.encode() + b"\\n")
def child(*words, **more):
    made = subprocess.Popen(["sleep", "120"], **more)
    print("child", made.pid, file=sys.stderr, flush=True)
    return made
HELLO = %r
""" % HELLO  # noqa: UP031 - the text is full of braces


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts a worker that runs some lines of Python instead of the real program."""
    forces = []

    def make(text: str, name: str = "one", **limits: float) -> Worker:
        program = (sys.executable, "-c", PRELUDE + textwrap.dedent(text))
        forces.append(Workforce(threads=1, limits=Limits(**{"patience_s": SOON_S, **limits}), modules=None, program=program))
        return forces[-1].start(name, tmp_path / "logs" / f"{name}.log")

    make.forces = forces
    yield make
    for force in forces:
        force.close()


def ask(worker: Worker, **more) -> int:
    return worker.ask(MEMORY, protocol.MemoryRead, **more).peak_memory_bytes


def failure(worker: Worker, request: protocol.Request = MEMORY, expected: type = protocol.MemoryRead, **more) -> UnitError:
    with pytest.raises(UnitError) as caught:
        worker.ask(request, expected, **more)
    return caught.value


def noted(worker: Worker, word: str = "child") -> int:
    """A process id that a stand-in wrote into its log."""
    return int(eventually(lambda: [line.split()[1] for line in worker.log_tail().splitlines() if line.startswith(word)])[-1])


def eventually(look: Callable[[], object], limit_s: float = SOON_S):
    until_s = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.01)
    return found


def lives(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_soon(*pids: int) -> None:
    eventually(lambda: not any(lives(pid) for pid in pids))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_worker_answers_again_and_again(start):
    worker = start("while hear(): say(HELLO)")
    assert [ask(worker) for _ in range(3)] == [7, 7, 7]


def test_a_reply_in_pieces_is_put_together_and_two_at_once_are_taken_apart(start):
    worker = start("""
        hear()
        for byte in HELLO.encode() + b"\\n": os.write(1, bytes([byte])); time.sleep(0.002)
        hear()
        say('{"type":"Progress","done":1,"of":2}\\n{"type":"Progress","done":2,"of":2}\\n' + HELLO)
        time.sleep(60)
    """)
    seen: list[tuple[int, int]] = []
    assert ask(worker) == 7
    assert ask(worker, progress=lambda *step: seen.append(step)) == 7
    assert seen == [(1, 2), (2, 2)]


def test_a_reply_far_larger_than_a_pipe_arrives_whole(start):
    worker = start("""
        hear(); out = os.fdopen(1, "w")
        out.write('{"type":"Failed","reason":"' + "x" * 9_000_000 + '","remedy":null}\\n'); out.flush()
        hear(); out.write(HELLO + "\\n"); out.flush(); time.sleep(60)
    """)
    assert len(failure(worker).problem) == 9_000_000
    assert ask(worker) == 7


def test_a_request_far_larger_than_a_pipe_arrives_whole(start):
    worker = start("time.sleep(0.3); say('{\"type\":\"MemoryRead\",\"peak_memory_bytes\":%d}' % len(hear()))")
    big = protocol.Canary(device="x" * 3_000_000, threads=1, warmup_s=0.0, window_s=0.0)
    assert worker.ask(big, protocol.MemoryRead).peak_memory_bytes > 3_000_000


def test_work_begins_when_the_worker_is_ready_and_no_earlier(start):
    worker = start("""
        hear(); say('{"type":"Ready"}')
        assert b'"Go"' in hear()
        say(HELLO); time.sleep(60)
    """)
    order: list[str] = []
    done = worker.measure(MEMORY, protocol.MemoryRead, meter=None, before=lambda: order.append("before"),
                          opened=lambda: order.append("opened"))
    assert (done.reply.peak_memory_bytes, order) == (7, ["before", "opened"])


def test_a_flood_on_standard_error_neither_blocks_nor_fills_the_memory(start):
    worker = start("""
        hear()
        for _ in range(3000): os.write(2, b"noise " * 1000 + b"\\n")
        os.write(2, b"the last words\\n"); say(HELLO); time.sleep(60)
    """)
    assert ask(worker) == 7
    assert worker.log.stat().st_size > 15_000_000
    assert len(worker.log_tail()) <= 4000
    assert worker.log_tail().endswith("the last words\n")


# --- hangs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hear(); time.sleep(90)", "hear(); say(b'half a li'); time.sleep(90)",
                                  "hear(); os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_worker_that_says_nothing_is_ended_with_its_group(start, text):
    worker = start("child();" + text, patience_s=0.8)
    inner = noted(worker)
    error = failure(worker)
    assert error.kind == "time-out"
    assert "--patience" in error.remedy
    assert str(worker.log) in error.remedy
    assert not lives(worker.pid)
    assert not lives(inner)
    assert failure(worker).kind == "time-out", "whatever it is asked later has the same answer"


def test_a_worker_that_takes_no_request_is_ended(start):
    worker = start("time.sleep(90)", patience_s=0.5)
    error = failure(worker, protocol.Canary(device="x" * 1_000_000, threads=1, warmup_s=0.0, window_s=0.0))
    assert error.kind == "time-out"
    assert not lives(worker.pid)


def test_patience_begins_anew_with_each_word(start):
    worker = start("""
        hear()
        for step in range(4): time.sleep(0.5); say('{"type":"Progress","done":%d,"of":6}' % step)
        say(HELLO); time.sleep(60)
    """, patience_s=1.5)
    assert ask(worker) == 7


@pytest.mark.parametrize(("request_", "more"), [
    (MEMORY, {"quiet_s": 60.0}), (CANARY, {"quiet_s": 60.0}),
    (protocol.Canary(device="cpu", threads=1, warmup_s=30.0, window_s=0.0), {}),
    (protocol.Canary(device="cpu", threads=1, warmup_s=0.0, window_s=30.0), {}),
])
def test_silence_by_design_is_no_hang(start, request_, more):
    worker = start("hear(); time.sleep(1.2); say(HELLO); time.sleep(60)", patience_s=0.3)
    assert worker.ask(request_, protocol.MemoryRead, **more).peak_memory_bytes == 7


def test_the_silence_of_one_request_is_not_granted_to_the_next(start):
    worker = start("hear(); say(HELLO); hear(); time.sleep(90)", patience_s=0.5)
    assert ask(worker, quiet_s=SOON_S) == 7
    assert failure(worker).kind == "time-out"


def test_waiting_costs_no_processor_time(start):
    worker = start("hear(); time.sleep(1.5); say(HELLO); time.sleep(60)")
    before_s = time.thread_time()
    assert ask(worker) == 7
    assert time.thread_time() - before_s < 0.1


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    "memory allocation of 632 bytes failed", "terminate called after throwing an instance of 'std::bad_alloc'",
])
def test_native_code_that_gives_up_for_memory_ran_out_of_memory(start, words):
    worker = start(f"hear(); os.write(2, {words!r}.encode() + b'\\n'); os.abort()")
    error = failure(worker)
    assert (error.kind, "SIGABRT" in error.problem) == ("out-of-memory", True)
    assert faults.MEMORY_REMEDY in error.remedy


def test_what_an_earlier_worker_said_of_memory_does_not_explain_a_later_death(start):
    assert failure(start("hear(); os.write(2, b'memory allocation of 632 bytes failed\\n'); os.abort()")).kind == "out-of-memory"
    assert failure(start("hear(); os.abort()")).kind == "crash"


@pytest.mark.parametrize("line", ["say('no json')", "say('{}')", "say('{\"type\":\"Nobody\"}')", "say(b'\\xff\\xfe\\n')",
                                  "say('{\"type\":\"MemoryRead\",\"peak_memory_bytes\":\"many\"}')", "say(b'\\n')"])
def test_nonsense_is_a_crash_and_ends_the_worker(start, line):
    worker = start(f"hear(); {line}; time.sleep(90)")
    error = failure(worker)
    assert error.kind == "crash"
    assert "nonsense" in error.problem
    assert not lives(worker.pid)


def test_another_reply_than_the_expected_is_a_crash(start):
    worker = start("hear(); say('{\"type\":\"CanaryDone\",\"model\":\"m\",\"tokens\":1,\"output_sha256\":\"0\"}'); time.sleep(90)")
    assert "CanaryDone in the place of MemoryRead" in failure(worker).problem


@pytest.mark.parametrize("text", ["sys.exit(7)", "hear(); sys.exit(7)", "hear(); say(b'half a li'); sys.exit(7)",
                                  "hear(); say('{\"type\":\"Ready\"}'); hear(); sys.exit(7)"])
def test_a_death_at_any_step_gives_its_exit_code(start, text):
    error = failure(start(text))
    assert error.kind == "crash"
    assert "exit code 7" in error.problem
    assert "see " in error.remedy


@pytest.mark.parametrize(("name", "words"), [
    ("SIGSEGV", "SIGSEGV (signal 11)"), ("SIGILL", "unsupported instruction"), ("SIGABRT", "SIGABRT (signal 6)"),
    ("SIGKILL", "somebody ended it"), ("SIGTERM", "SIGTERM (signal 15)"), ("SIGRTMIN", "signal 34"),
])
def test_a_signal_is_named(start, name, words):
    error = failure(start(f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); hear(); os.kill(os.getpid(), signal.{name})"))
    assert error.kind == "crash"
    assert words in error.problem


def test_a_kill_that_the_kernel_counts_is_out_of_memory_once(start, tmp_path):
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 3\noom_kill 3\n")
    kills = OomKills((tmp_path / "missing", counter))
    first, second = [start("hear(); time.sleep(90)", name=name) for name in ("first", "second")]
    for worker in (first, second):
        worker._kills = kills
        os.kill(worker.pid, signal.SIGKILL)
    counter.write_text("low 0\noom 4\noom_kill 4\n")
    error = failure(first)
    assert error.kind == "out-of-memory"
    assert "smaller batch" in error.remedy
    assert failure(second).kind == "crash", "one kill explains one death"


def test_this_machine_counts_its_kills():
    assert any(file.is_file() for file in lineage._counters())
    assert not OomKills().explains()


def test_a_death_is_seen_although_a_child_holds_the_pipe(start):
    worker = start("hear(); child(); os._exit(3)", patience_s=600)
    assert "exit code 3" in failure(worker).problem
    assert not lives(noted(worker))


def test_what_a_killed_worker_started_dies_with_it_although_nobody_asks(start):
    worker = start("child(); hear(); time.sleep(90)")
    inner = noted(worker)
    os.kill(worker.pid, signal.SIGKILL)
    gone_soon(inner)


def test_a_reply_before_a_death_is_not_lost(start):
    worker = start("hear(); say(HELLO); os._exit(9)")
    worker._pipes.send(b"anything\n", time.monotonic() + SOON_S)
    eventually(lambda: not lives(worker.pid))
    assert worker._pipes.receive(time.monotonic() + SOON_S).decode() == HELLO
    assert "exit code 9" in failure(worker).problem


# --- replies that are failures ----------------------------------------------------------------------------------------


def test_a_failed_unit_keeps_its_code_and_remedy_and_the_worker_lives(start):
    worker = start("""
        hear(); say('{"type":"Failed","reason":"no kernel","remedy":"another","code":"unsupported"}')
        hear(); say(HELLO); time.sleep(60)
    """)
    error = failure(worker)
    assert (error.problem, error.remedy, error.kind) == ("no kernel", "another", "unsupported")
    assert ask(worker) == 7


def test_a_file_that_cannot_be_written_is_no_failure_of_the_variant(start):
    worker = start("""
        hear(); say('{"type":"Failed","reason":"No space","remedy":"free some","storage":true,"file":"/a/b"}'); time.sleep(60)
    """)
    with pytest.raises(StorageError) as caught:
        ask(worker)
    assert (caught.value.file, caught.value.remedy) == ("/a/b", "free some")


@pytest.mark.parametrize(("error", "code"), [
    (MemoryError(), "out-of-memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"), "out-of-memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out-of-memory"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory"),
    (OSError(12, "Cannot allocate memory"), "out-of-memory"),
    (RuntimeError('"addmm_impl_cpu_" not implemented for \'Half\''), "unsupported"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "unsupported"),
    (NotImplementedError("Could not run 'aten::x'"), "unsupported"), (ModuleNotFoundError("No module named 'triton'"), "unsupported"),
    (SourceError("not the declared weights"), "data"),
    (type("SafetensorError", (Exception,), {})("incomplete metadata, file not fully covered"), "data"), (RuntimeError("shapes do not match"), "error"),
    (ValueError("out of memory is no word of a ValueError"), "error"), (FileNotFoundError(2, "none", "x"), "error"),
])
def test_an_error_is_told_by_its_kind(error, code):
    reply = faults.failed(error)
    assert (reply.code, reply.storage) == (code, False)
    assert reply.remedy or code in {"error", "data"}


def test_an_error_of_writing_is_about_storage(tmp_path):
    readable = tmp_path / "there"
    readable.write_text("x")
    for error in [OSError(28, "No space left on device", "/a/b"), OSError(30, "Read-only file system", "/a/b"),
                  OSError(122, "Disk quota exceeded", "/a/b"), OSError(5, "Input/output error"),
                  PermissionError(13, "Permission denied", str(tmp_path / "none")), PermissionError(13, "Permission denied", readable),
                  RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'),
                  StorageError("full", file="/a/b", remedy="free some")]:
        reply = faults.failed(error)
        assert reply.storage, error
        assert reply.remedy
        if isinstance(error, OSError) and error.filename:
            assert reply.file == str(error.filename)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_closing_ends_the_whole_group_and_leaves_no_zombie(start):
    before = set(psutil.Process().children(recursive=True))
    workers = [start("inner = child(); child(); inner.kill(); hear(); time.sleep(90)", name=str(at)) for at in range(3)]
    inner = [noted(worker) for worker in workers]
    for force in start.forces:
        force.close()
    assert not any(lives(pid) for pid in [*inner, *(worker.pid for worker in workers)])
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_child_that_leads_no_group_yet_is_ended_alone():
    popen = subprocess.Popen(["sleep", "120"])
    assert os.getpgid(popen.pid) == os.getpgrp()
    child = Child(popen.pid, popen)
    assert (child.end(), child.end(), popen.returncode) == (-signal.SIGKILL,) * 3
    child.forget()


@LINUX
def test_closing_finds_what_left_the_group(start):
    worker = start("child(start_new_session=True, close_fds=True); hear(); time.sleep(90)")
    inner = noted(worker)
    worker.close()
    assert lives(inner), "it is in another session"
    for force in start.forces:
        force.close()
    assert not lives(inner)
    assert inner not in psutil.pids(), "not even as a zombie"


def test_closing_frees_a_thread_that_waits(start):
    worker = start("hear(); time.sleep(90)", patience_s=600)
    caught: list[UnitError] = []
    waiting = threading.Thread(target=lambda: caught.append(failure(worker)))
    waiting.start()
    time.sleep(0.3)
    worker.close()
    waiting.join(SOON_S)
    assert not waiting.is_alive()
    assert len(caught) == 1
    worker.close()


def test_a_closed_worker_answers_with_an_error(start):
    worker = start("while hear(): say(HELLO)")
    worker.close()
    assert failure(worker).kind == "crash"


def test_no_descriptor_and_no_thread_is_left(start):
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = count(), threading.active_count()
    for at in range(3):
        ask(start("while hear(): say(HELLO)", name=str(at)))
    for force in start.forces:
        force.close()
    assert (count(), threading.active_count()) == (before, threads)


@LINUX
def test_this_process_adopts_orphans_during_a_run_only(start):
    assert not lineage.adopts_orphans()
    start("hear()")
    start("hear()", name="two")
    start.forces[0].close()
    assert lineage.adopts_orphans(), "another run still goes on"
    start.forces[1].close()
    assert not lineage.adopts_orphans()


def test_a_log_that_cannot_be_written_is_about_storage(tmp_path):
    (tmp_path / "logs").write_text("a file in the place of the folder")
    force = Workforce(threads=1, modules=None, program=("true",))
    with pytest.raises(StorageError) as caught:
        force.start("one", tmp_path / "logs" / "one.log")
    assert caught.value.remedy
    force.close()


def test_the_environment_counts_threads_and_keeps_the_network_out(start, tmp_path):
    worker = start("hear(); print('env', json.dumps(dict(os.environ)), file=sys.stderr, flush=True); say(HELLO); time.sleep(60)",
                   memory_bytes=5)
    ask(worker)
    seen = json.loads(worker.log.read_text().partition("env ")[2])
    assert {seen[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"1"}
    assert (seen["HF_HUB_OFFLINE"], seen["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    assert seen[forking.MEMORY_VARIABLE] == "5"


# --- the fork server, with stand-ins ----------------------------------------------------------------------------------

STANDIN = """
import jouleboard.worker

print("the module is imported", flush=True)

def work():
    exec(open(__file__.replace("standin.py", "work.py")).read(), {"__name__": "work"})

jouleboard.worker.work = work
"""


@pytest.fixture
def forked(tmp_path, monkeypatch) -> Iterator[Callable[..., Workforce]]:
    """A workforce whose fork server imports a stand-in, and whose workers run some lines of Python."""
    forces = []

    def make(text: str, *, extra: str = "", threads: int = 1) -> Workforce:
        (tmp_path / "standin.py").write_text(STANDIN + extra)
        (tmp_path / "work.py").write_text(PRELUDE + textwrap.dedent(text))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
        program = (sys.executable, "-c", PRELUDE + textwrap.dedent(text))
        forces.append(Workforce(threads=threads, limits=Limits(patience_s=SOON_S), modules=("standin",), program=program))
        return forces[-1]

    yield make
    for force in forces:
        force.close()


ECHO = "while hear(): say(HELLO)"


@LINUX
def test_workers_are_forked_from_one_import_and_are_children_of_the_driver(forked, tmp_path):
    force = forked(ECHO)
    workers = [force.start(str(at), tmp_path / f"{at}.log") for at in range(3)]
    assert [ask(worker) for worker in workers] == [7, 7, 7]
    assert (tmp_path / "forkserver.log").read_text().count("the module is imported") == 1
    for worker in workers:
        process = psutil.Process(worker.pid)
        assert process.ppid() == os.getpid()
        assert os.getpgid(worker.pid) == os.getsid(worker.pid) == worker.pid
        assert "forkserver" in " ".join(process.cmdline())


@LINUX
def test_a_worker_holds_no_descriptor_of_another_nor_of_the_server(forked, tmp_path):
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        force = forked(ECHO)
        workers = [force.start(str(at), tmp_path / f"{at}.log") for at in range(3)]
        assert [ask(worker) for worker in workers] == [7, 7, 7]
        held = [{file.name: str(file.readlink()) for file in Path(f"/proc/{worker.pid}/fd").iterdir()} for worker in workers]
        assert [sorted(one) for one in held] == [["0", "1", "2"]] * 3
        assert len({target for one in held for target in one.values()}) == 9
    finally:
        os.close(reading)
        os.close(writing)


@LINUX
def test_a_killed_server_touches_no_worker_and_the_next_start_has_a_new_one(forked, tmp_path):
    force = forked(ECHO)
    first = force.start("first", tmp_path / "first.log")
    assert ask(first) == 7
    server = force._server.child.pid
    os.kill(server, signal.SIGKILL)
    gone_soon(server)
    assert ask(first) == 7
    second = force.start("second", tmp_path / "second.log")
    assert (ask(first), ask(second)) == (7, 7)
    assert force._server.child.pid != server
    assert psutil.Process(second.pid).ppid() == os.getpid()
    force.close()
    assert psutil.Process().children() == []


@LINUX
@pytest.mark.parametrize(("extra", "words"), [
    ("import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()", "1 thread"),
    ("import types, sys; sys.modules['torch'] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True))", "CUDA"),
])
def test_a_server_that_must_not_fork_says_why_and_workers_start_afresh(forked, tmp_path, extra, words):
    force = forked(ECHO, extra=extra)
    workers = [force.start(str(at), tmp_path / f"{at}.log") for at in range(2)]
    assert [ask(worker) for worker in workers] == [7, 7]
    log = (tmp_path / "forkserver.log").read_text()
    assert words in log
    assert log.count("the module is imported") == 1, "it is not asked again"
    assert force._server is None


@LINUX
@pytest.mark.parametrize("extra", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "raise ImportError('no such thing')"])
def test_workers_start_afresh_where_the_server_dies_of_its_imports(forked, tmp_path, extra):
    force = forked(ECHO, extra=extra)
    assert [ask(force.start(name, tmp_path / f"{name}.log")) for name in ("one", "two")] == [7, 7]
    assert (tmp_path / "forkserver.log").read_text().count("the module is imported") == 2, "once more, and no further"


@LINUX
def test_a_fork_has_the_threads_and_variables_that_a_fresh_one_has(forked, tmp_path, monkeypatch):
    monkeypatch.delenv("JE_ARROW_MALLOC_CONF", raising=False)
    force = forked("""
        import threadpoolctl
        hear()
        counts = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        print("env", json.dumps([dict(os.environ), counts]), file=sys.stderr, flush=True)
        say(HELLO); time.sleep(60)
    """, extra="import numpy", threads=2)
    worker = force.start("one", tmp_path / "one.log")
    ask(worker)
    seen, counts = json.loads(worker.log.read_text().partition("env ")[2])
    assert {seen[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"2"}
    assert counts
    assert set(counts) == {2}
    assert "JE_ARROW_MALLOC_CONF" not in seen
    assert "ready to fork" in (tmp_path / "forkserver.log").read_text()


@LINUX
def test_a_worker_ignores_ctrl_c_and_goes_first_when_memory_is_short(forked, tmp_path):
    force = forked("import gc; import jouleboard.lineage; jouleboard.lineage.first_to_go()\nassert gc.get_freeze_count()\n" + ECHO)
    worker = force.start("one", tmp_path / "one.log")
    os.kill(worker.pid, signal.SIGINT)
    assert ask(worker) == 7
    assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())


def test_a_fork_that_dies_keeps_its_exit_code(forked, tmp_path):
    force = forked("hear(); os._exit(5)")
    assert "exit code 5" in failure(force.start("one", tmp_path / "one.log")).problem
    force = forked("hear(); raise ValueError('words of it')")
    worker = force.start("two", tmp_path / "two.log")
    assert "exit code 1" in failure(worker).problem
    assert "words of it" in worker.log_tail()


# --- the driver's own death -------------------------------------------------------------------------------------------

DRIVER = """
import signal, sys, time
from pathlib import Path
from jouleboard import interrupts, protocol
from jouleboard.units import Workforce

interrupts.listen()
root = Path(sys.argv[1])
modules = ("standin",) if sys.argv[2] == "forked" else None
force = Workforce(threads=1, modules=modules, program=(sys.executable, str(root / "work.py")))
try:
    for name in ("one", "two"):
        force.start(name, root / f"{name}.log").ask(protocol.Memory(begin_anew=False), protocol.MemoryRead)
    print("up", flush=True)
    time.sleep(120)
except KeyboardInterrupt as stop:
    print("cleaning", flush=True)
    if sys.argv[3] == "slowly":
        time.sleep(120)
    force.close()
    print("closed", flush=True)
    sys.exit(interrupts.farewell(stop))
"""


@contextlib.contextmanager
def driven(tmp_path: Path, how: str, manner: str = "quickly", **more) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A driver with two workers that each have two children, one of them in a session of its own; and all their ids."""
    (tmp_path / "standin.py").write_text(STANDIN)
    (tmp_path / "work.py").write_text(PRELUDE + textwrap.dedent("""
        from jouleboard import lineage
        lineage.die_with_parent(); signal.signal(signal.SIGINT, signal.SIG_IGN)
        hear(); child(); child(start_new_session=True); say(HELLO); time.sleep(120)
    """))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    running = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), how, manner], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment, **more)
    try:
        assert running.stdout.readline() == "up\n", running.stderr.read()
        family = psutil.Process(running.pid).children(recursive=True)
        inner = [int(line.split()[1]) for name in ("one", "two") for line in (tmp_path / f"{name}.log").read_text().splitlines()
                 if line.startswith("child")]
        assert len(inner) == 4
        yield running, [*{*(process.pid for process in family), *inner}]
    finally:
        running.kill()
        running.communicate()


@LINUX
def test_nothing_lives_on_when_the_driver_is_killed(tmp_path):
    with driven(tmp_path, "forked") as (running, pids):
        assert len(pids) == 1 + 2 + 4
        running.kill()
        running.wait()
        gone_soon(*pids)


@LINUX
def test_fresh_workers_die_with_the_driver(tmp_path):
    with driven(tmp_path, "fresh") as (running, pids):
        workers = [process.pid for process in psutil.Process(running.pid).children()]
        assert len(workers) == 2
        running.kill()
        running.wait()
        gone_soon(*workers)
        for pid in set(pids) - set(workers):
            # Without a server nobody is left to end these.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_ends_in_good_order(tmp_path, number, code):
    with driven(tmp_path, "forked", preexec_fn=_hear_signals) as (running, pids):
        running.send_signal(number)
        running.send_signal(number)
        out, err = running.communicate(timeout=SOON_S)
        assert out == "cleaning\nclosed\n", "a repeat that comes with it is the same signal"
        assert (running.returncode, err) == (code, "\njouleboard: interrupted; what was finished is kept\n")
        assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_at_once_without_orphans(tmp_path, number, code):
    with driven(tmp_path, "forked", "slowly", preexec_fn=_hear_signals) as (running, pids):
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == "cleaning\n"
        time.sleep(0.7)
        running.send_signal(number)
        _, err = running.communicate(timeout=SOON_S)
        assert (running.returncode, err) == (code, "\njouleboard: ended at once; what was finished is kept\n")
        gone_soon(*pids)


def test_a_signal_that_was_ignored_stays_ignored(tmp_path):
    with driven(tmp_path, "fresh", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (running, _pids):
        running.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert running.poll() is None


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@LINUX
def test_the_real_server_imports_once_touches_no_gpu_and_a_capped_worker_lives_on(tmp_path):
    from tests.test_worker import build, make_model

    tiny, large = make_model(tmp_path / "tiny"), make_model(tmp_path / "large", hidden_size=1024, intermediate_size=4096)
    force = Workforce(threads=1, limits=Limits(memory_bytes=60_000_000))
    try:
        worker, other = [force.start(name, tmp_path / f"{name}.log") for name in ("one", "two")]
        log = (tmp_path / "forkserver.log").read_text()
        assert "ready to fork" in log, log
        server = force._server.child.pid
        maps = Path(f"/proc/{server}/maps").read_text()
        assert "libtorch" in maps
        assert "libcuda.so" not in maps
        assert "libnvidia-ml" not in maps
        assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1
        error = failure(worker, build(large), protocol.Built)
        assert error.kind == "out-of-memory", error
        assert "--worker-memory" in error.remedy
        for one in (worker, other):
            assert one.ask(build(tiny), protocol.Built).realised.weight_bytes > 0
        assert (tmp_path / "forkserver.log").read_text().count("imported") == 1
    finally:
        force.close()
    assert psutil.Process().children(recursive=True) == []


def test_units_names_what_others_import():
    assert {"Limits", "Measured", "Worker", "Workforce", "at_once"} <= set(units.__all__)
