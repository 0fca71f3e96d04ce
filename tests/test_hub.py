"""Models from a hub: found, refused, cut, changed, moved. Against a real server, in processes of their own, from empty caches."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub_server import Changed, Cut, Drop, Html, HubServer, OtherCommit, Short, Slow, Status

pytestmark = pytest.mark.slow

WEIGHTS = bytes(range(256)) * 400
WANTED = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "tokenizer.json": b'{"b": 2}'}
UNWANTED = {"README.md": b"# tiny", "modeling_tiny.py": b"raise SystemExit('it was run')", "pytorch_model.bin": b"pickled",
            "onnx/config.json": b"{}", "consolidated.safetensors": b"the same weights again"}
REPO = "org/tiny"
MEMBER = "a-good-token"
"""Of an account that may read what is gated."""
SOON_S = 25.0
PLACES = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Answer:
    """What a process that fetched said."""

    came: dict
    error: str | None
    problem: str
    remedy: str
    file: str
    said: list[str]
    text: str
    took_s: float


class Place:
    """Empty caches, and the hub that they are filled from."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "JOULEBOARD_HUB"))}
        return {**kept, "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "hf"), "JOULEBOARD_CACHE": str(self.folder / "jb"),
                "HF_HUB_DOWNLOAD_TIMEOUT": "1", "JOULEBOARD_HUB_PATIENCE_S": "3", "NO_PROXY": "*", **more}

    def start(self, *words: str, prepare: Callable[[], None] | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "tests.hub_child", *words], env=self.environment(**more), cwd=PLACES, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=prepare)  # noqa: PLW1509 - sets a limit only

    def end(self, process: subprocess.Popen[str], began_s: float) -> Answer:
        out, err = process.communicate(timeout=100)
        took_s = time.monotonic() - began_s
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["modules"] == [], "the driver imports none of these"
        return Answer(came=found.get("came", {}), error=found.get("error"), problem=found.get("problem", ""),
                      remedy=found.get("remedy", ""), file=found.get("file") or "", said=found["said"], text=out + err, took_s=took_s)

    def ask(self, *words: str, **more: str) -> Answer:
        began_s = time.monotonic()
        return self.end(self.start(*words, **more), began_s)

    def model(self, commit: str, *words: str, **more: str) -> Answer:
        return self.ask("model", REPO, commit, *words, **more)

    def files(self) -> list[str]:
        """What lies below the hub's cache, and may be taken for whole."""
        return sorted(path.name for path in (self.folder / "hf").rglob("*") if not path.is_dir() and path.suffix != ".lock")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def place(hub: HubServer, tmp_path: Path) -> Place:
    return Place(hub, tmp_path)


@pytest.fixture
def commit(hub: HubServer) -> str:
    return hub.add("model", REPO, {**WANTED, **UNWANTED})


def whole(answer: Answer) -> bool:
    assert answer.error is None, (answer.problem, answer.remedy)
    return answer.came["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in WANTED.items()}


def refused(answer: Answer, place: Place, *, without: str = "model.safetensors") -> None:
    """Every refusal names who needs what at which revision, and what to do; nothing is left that looks whole."""
    assert answer.error == "SourceError", answer.text
    assert "model m needs " in answer.problem
    assert f"{REPO} at revision " in answer.problem
    assert "jouleboard run quick" in answer.remedy
    assert "Traceback" not in answer.text
    assert answer.took_s < SOON_S
    assert not any(without in name or "incomplete" in name for name in place.files())


# --- found ------------------------------------------------------------------------------------------------------------


def test_weights_tokenizer_and_configuration_are_fetched_and_nothing_else(place: Place, hub: HubServer, commit: str) -> None:
    answer = place.model(commit)
    assert whole(answer)
    assert not any(hub.asked(name) for name in ("modeling_tiny.py", "pytorch_model.bin", "onnx", "consolidated"))
    assert any("fetching 3 of 3" in line for line in answer.said)
    assert {request.path.split("/")[1] for request in hub.requests} == {"api", "cdn", "org"}
    assert hub.asked("/api/") == hub.asked(f"/api/models/{REPO}/tree/{commit}"), "nothing else is told or asked"


def test_of_a_checkpoint_in_gguf_the_one_file_is_fetched(place: Place, hub: HubServer) -> None:
    commit = hub.add("model", REPO, {**WANTED, "tiny.Q4_0.gguf": b"GGUF" * 100, "tiny.Q8_0.gguf": b"GGUF" * 200})
    answer = place.ask("checkpoint", REPO, commit, "tiny.Q4_0.gguf")
    assert answer.came == {"name": "tiny.Q4_0.gguf", "sha256": hashlib.sha256(b"GGUF" * 100).hexdigest()}, answer.text
    assert hub.asked("tiny.Q4_0.gguf")
    assert not any(hub.asked(name) for name in (*WANTED, "tiny.Q8_0.gguf"))
    hub.stop()
    assert place.ask("checkpoint", REPO, commit, "tiny.Q4_0.gguf").came == answer.came
    missing = place.ask("checkpoint", REPO, commit, "tiny.Q2_K.gguf")
    assert missing.error == "SourceError"
    assert "recipe r needs tiny.Q2_K.gguf" in missing.problem
    assert "has no file of that name" in missing.problem


def test_a_checkpoint_of_no_single_file_is_a_folder_as_a_model_is(place: Place, commit: str) -> None:
    assert place.ask("checkpoint", REPO, commit, "").came == {"name": commit, "sha256": None}


def test_what_was_fetched_once_needs_no_hub_and_says_so(place: Place, hub: HubServer, commit: str) -> None:
    assert whole(place.model(commit))
    hub.stop()
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        answer = place.model(commit, **more)
        assert whole(answer)
        assert answer.said == [f"{REPO}@{commit[:8]}: 3 file(s) in the hub's cache"]


def test_what_another_program_put_into_the_hubs_cache_is_used_without_a_network(place: Place, commit: str) -> None:
    code = f"import huggingface_hub as h; h.snapshot_download({REPO!r}, revision={commit!r})"
    subprocess.run([sys.executable, "-c", code], env=place.environment(), check=True, capture_output=True)
    answer = place.model(commit, HF_HUB_OFFLINE="1")
    assert answer.error is None
    assert {name: answer.came["files"][name] for name in WANTED} == {
        name: hashlib.sha256(data).hexdigest() for name, data in WANTED.items()}
    assert any("going on with what lies in the hub's cache" in line for line in answer.said)


def test_a_part_of_a_model_in_the_cache_is_not_taken_for_the_whole(place: Place, hub: HubServer, commit: str) -> None:
    code = f"import huggingface_hub as h; h.hf_hub_download({REPO!r}, 'config.json', revision={commit!r})"
    subprocess.run([sys.executable, "-c", code], env=place.environment(), check=True, capture_output=True)
    answer = place.model(commit, HF_HUB_OFFLINE="1")
    refused(answer, place)
    assert "needs model.safetensors of" in answer.problem
    assert whole(place.model(commit))


def test_a_token_goes_to_the_hub_and_not_to_the_store_of_large_files(place: Place, hub: HubServer) -> None:
    commit = hub.add("model", REPO, WANTED, gated=True)
    assert whole(place.model(commit, HF_TOKEN=MEMBER))
    tokens = {request.path.split("/")[1]: set() for request in hub.requests}
    for request in hub.requests:
        tokens[request.path.split("/")[1]].add(request.token)
    assert tokens["api"] == {MEMBER}
    assert tokens["cdn"] == {None}


def test_weights_in_several_files_are_those_that_the_index_names(place: Place, hub: HubServer) -> None:
    parts = {f"model-0000{number}-of-00002.safetensors": WEIGHTS[number:] for number in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **parts}
    answer = place.model(hub.add("model", REPO, {**files, "consolidated.safetensors": b"again"}))
    assert answer.error is None
    assert set(answer.came["files"]) == set(files)
    lacking = place.model(hub.add("model", REPO, {name: data for name, data in files.items() if "00002-of" not in name}))
    assert lacking.error == "SourceError"
    assert "model-00002-of-00002.safetensors" in lacking.problem


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "why"), [(None, "no token is set"), ("a-strangers-token", "the account of your token has no access")])
def test_a_gated_model_says_how_to_get_in(place: Place, hub: HubServer, token: str | None, why: str) -> None:
    commit = hub.add("model", REPO, WANTED, gated=True)
    answer = place.model(commit, **({"HF_TOKEN": token} if token else {}))
    refused(answer, place)
    assert "it is gated" in answer.problem
    assert why in answer.problem
    assert f"{hub.url}/{REPO}" in answer.remedy
    assert "HF_TOKEN" in answer.remedy
    assert "accept its conditions" in answer.remedy
    assert hub.asked() < 5, "trying again would change nothing"


def test_a_revision_that_is_gone_is_told_from_a_repository_that_is(place: Place, hub: HubServer, commit: str) -> None:
    hub.add("model", REPO, {**WANTED, "config.json": b"{}"})
    hub.forget("model", REPO, commit)
    gone = place.model(commit)
    refused(gone, place)
    assert commit in gone.problem
    assert "no such revision" in gone.problem
    missing = place.ask("model", "org/none", commit)
    assert "there is no such repository, or it is private" in missing.problem
    assert "org/none" in missing.problem


def test_a_file_that_vanished_after_the_listing_is_named(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("resolve", Status(404, "EntryNotFound", headers=(("X-Repo-Commit", commit),)))
    answer = place.model(commit)
    refused(answer, place)
    assert "needs config.json of" in answer.problem
    assert "there is no such file" in answer.problem


@pytest.mark.parametrize("where", ["/tree/", "model.safetensors"])
def test_a_hub_that_says_nothing_is_given_up_with_the_limits_named(place: Place, hub: HubServer, commit: str, where: str) -> None:
    hub.fail(where, Slow(2.5))
    answer = place.model(commit)
    refused(answer, place)
    assert "says nothing within 1 s" in answer.problem
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in answer.remedy
    assert "JOULEBOARD_HUB_PATIENCE_S" in answer.remedy


def test_a_hub_that_nobody_answers_for_is_given_up_soon(place: Place, hub: HubServer, commit: str) -> None:
    hub.stop()
    answer = place.model(commit, JOULEBOARD_HUB_PATIENCE_S="60")
    refused(answer, place)
    assert "cannot be connected to" in answer.problem
    assert "connect to the hub" in answer.remedy
    assert "HF_ENDPOINT" in answer.remedy
    assert answer.took_s < SOON_S


@pytest.mark.parametrize("where", ["/tree/", "config.json"])
def test_a_page_of_a_proxy_is_not_taken_for_the_hub(place: Place, hub: HubServer, commit: str, where: str) -> None:
    hub.fail(where, Html())
    answer = place.model(commit)
    refused(answer, place)
    assert "does not speak as a hub does" in answer.problem
    assert "HTTPS_PROXY" in answer.remedy


def test_a_page_of_a_proxy_instead_of_the_weights_is_refused(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("model.safetensors", Html(), methods=("GET",))
    answer = place.model(commit)
    refused(answer, place)
    assert "needs model.safetensors of" in answer.problem


@pytest.mark.parametrize(("fault", "words"), [
    (Changed(), "has other bytes than the commit's"),
    (Short(5), "cut short"),
], ids=["right length", "too short"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_wrong_bytes_are_refused_by_the_name_of_the_file(
    place: Place, hub: HubServer, commit: str, name: str, fault: Changed | Short, words: str
) -> None:
    hub.fail(name, fault, methods=("GET",))
    answer = place.model(commit)
    refused(answer, place, without=name)
    assert f"needs {name} of" in answer.problem
    assert words in answer.problem
    assert "nothing of it was kept" in answer.problem


def test_another_commit_than_the_pinned_one_never_slips_in(place: Place, hub: HubServer, commit: str) -> None:
    other = hub.add("model", REPO, {**WANTED, "config.json": b'{"another": 1}'})
    hub.fail("resolve", OtherCommit(other))
    answer = place.model(commit)
    refused(answer, place)
    assert f"it answers with the commit {other} instead" in answer.problem


def test_offline_mode_is_told_from_a_lost_network(place: Place, hub: HubServer, commit: str) -> None:
    answer = place.model(commit, HF_HUB_OFFLINE="1")
    refused(answer, place)
    assert "HF_HUB_OFFLINE forbids" in answer.problem
    assert "connect to the hub and unset HF_HUB_OFFLINE" in answer.remedy
    assert hub.asked() == 0


def test_a_server_that_wants_an_hour_is_not_waited_for(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("/tree/", Status(429, headers=(("Retry-After", "3600"),)))
    answer = place.model(commit)
    refused(answer, place)
    assert "answers 429 and asks to be left alone for 3600 s" in answer.problem
    assert hub.asked() == 1


def test_a_server_that_stays_busy_is_given_up_in_the_stated_time(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("tokenizer.json", Status(503))
    answer = place.model(commit)
    refused(answer, place, without="tokenizer.json")
    assert "answers 503; tried" in answer.problem
    assert any("again in 1 s" in line for line in answer.said)
    assert "JOULEBOARD_HUB_PATIENCE_S" in answer.remedy


def test_a_patience_that_is_no_number_is_named(place: Place, commit: str) -> None:
    answer = place.model(commit, JOULEBOARD_HUB_PATIENCE_S="long")
    assert answer.error == "SourceError"
    assert "'long'" in answer.problem


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "fault", "line"), [
    ("/tree/", Status(503), "answers 503; again in 1 s"),
    ("/tree/", Status(429, headers=(("Retry-After", "2"),)), "answers 429; again in 2 s"),
    ("/tree/", Drop(), "cuts the connection"),
    ("tokenizer.json", Drop(), "cuts the connection"),
    ("model.safetensors", Status(504), "answers 504; again in 1 s"),
    ("config.json", Slow(1.6), "says nothing within 1 s"),
    ("model.safetensors", Cut(5000), None),
    ("model.safetensors", Cut(5000, reset=True), None),
], ids=str)
def test_what_passes_is_borne_and_told(place: Place, hub: HubServer, commit: str, where: str, fault: object, line: str | None) -> None:
    hub.fail(where, fault, times=1, methods=("GET",) if isinstance(fault, Cut) else ("GET", "HEAD"))
    answer = place.model(commit, JOULEBOARD_HUB_PATIENCE_S="20")
    assert whole(answer)
    assert line is None or any(line in said for said in answer.said), answer.said


def test_bytes_that_were_wrong_once_are_fetched_again(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("model.safetensors", Changed(), times=1, methods=("GET",))
    answer = place.model(commit)
    assert whole(answer)
    assert any("model.safetensors has other bytes than the commit's; fetched again" in line for line in answer.said)


@pytest.mark.parametrize("fault", [Cut(11_000_000), Cut(11_000_000, reset=True)], ids=["closed", "reset"])
def test_a_large_file_goes_on_where_the_connection_was_cut(place: Place, hub: HubServer, fault: Cut) -> None:
    big = bytes(range(251)) * 50_000
    commit = hub.add("model", REPO, {"config.json": b"{}", "model.safetensors": big})
    hub.fail("model.safetensors", fault, times=1, methods=("GET",))
    answer = place.model(commit)
    assert answer.came["files"]["model.safetensors"] == hashlib.sha256(big).hexdigest()
    ranges = [request.range for request in hub.requests if request.range is not None]
    if fault.reset and not ranges:
        # What had arrived and was not read yet is lost with the connection, so it may all be sent again.
        return
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) > 10_000_000


def test_a_repository_that_was_renamed_is_found_under_its_old_name(place: Place, hub: HubServer, commit: str) -> None:
    hub.move("model", REPO, "new-org/renamed")
    assert whole(place.model(commit))


def test_a_branch_that_moves_changes_nothing(place: Place, hub: HubServer, commit: str) -> None:
    hub.add("model", REPO, {**WANTED, "model.safetensors": b"other weights"})
    assert whole(place.model(commit))
    hub.add("model", REPO, {**WANTED, "model.safetensors": b"third weights"})
    assert whole(place.model(commit))


# --- the cache --------------------------------------------------------------------------------------------------------


def cached(place: Place, name: str) -> Path:
    return next((place.folder / "hf").rglob(f"snapshots/*/{name}"))


@pytest.mark.parametrize(("damage", "words"), [
    (lambda data: data[:-1], "is cut short"), (lambda data: data[:-1] + b"?", "has other bytes"), (lambda data: data + b"?", "has 102401 bytes"),
], ids=["cut", "changed", "longer"])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    place: Place, commit: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    place.model(commit)
    blob = cached(place, "model.safetensors").resolve()
    blob.write_bytes(damage(WEIGHTS))
    answer = place.model(commit)
    assert whole(answer)
    assert any(words in line for line in answer.said)


def test_a_link_that_leads_nowhere_is_mended(place: Place, commit: str) -> None:
    place.model(commit)
    cached(place, "model.safetensors").resolve().unlink()
    assert whole(place.model(commit))


def test_a_listing_that_was_torn_is_asked_for_again(place: Place, commit: str) -> None:
    place.model(commit)
    note = next((place.folder / "jb" / "hub").rglob("*.json"))
    note.write_bytes(note.read_bytes()[:40])
    assert whole(place.model(commit))


def test_two_processes_at_once_both_get_it(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("model.safetensors", Slow(0.6), methods=("GET",))
    began_s = time.monotonic()
    both = [place.start("model", REPO, commit) for _ in range(2)]
    assert all(whole(place.end(process, began_s)) for process in both)
    assert not any("incomplete" in name for name in place.files())


def test_a_process_that_was_killed_leaves_nothing_that_looks_whole(place: Place, hub: HubServer, commit: str) -> None:
    hub.fail("model.safetensors", Slow(30), times=1, methods=("GET",))
    process = place.start("model", REPO, commit, HF_HUB_DOWNLOAD_TIMEOUT="60")
    until_s = time.monotonic() + SOON_S
    while not hub.asked("/cdn/", "GET"):
        assert time.monotonic() < until_s
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not any(path.name == "model.safetensors" for path in (place.folder / "hf").rglob("*"))
    assert whole(place.model(commit))


def test_a_full_disk_is_told_as_one(place: Place, commit: str) -> None:
    def small() -> None:
        # A stand-in for a full disk: no file of this process may be larger.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    began_s = time.monotonic()
    answer = place.end(place.start("model", REPO, commit, prepare=small), began_s)
    assert answer.error == "StorageError", answer.problem
    assert "free" in answer.remedy
    assert not any("incomplete" in name or name == "model.safetensors" for name in place.files())
    assert whole(place.model(commit))
