"""While it checks, the checker imports nothing that computes, unpickles nothing, opens no socket, starts no process and follows no link."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jouleboard import store
from tests.attacks import entry
from tests.attacks.files import ATTACKS

WATCHED = """
import json, sys
seen = {"sockets": [], "pickles": [], "processes": [], "opened": []}
def hook(event, arguments):
    if event.startswith("socket."):
        seen["sockets"].append(event)
    elif event == "pickle.find_class":
        seen["pickles"].append([str(one) for one in arguments])
    elif event in {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"}:
        seen["processes"].append([event, *map(str, arguments[:2])])
    elif event == "open" and isinstance(arguments[0], (str, bytes)):
        seen["opened"].append(str(arguments[0]))
sys.addaudithook(hook)
from jouleboard import cli
seen["opened"].clear()
seen["code"] = cli.main(["check", *sys.argv[1:]])
heavy = {"torch", "transformers", "lm_eval", "datasets", "zeus", "pynvml", "huggingface_hub", "safetensors", "gguf", "requests", "httpx", "pandas"}
seen["heavy"] = sorted(heavy & set(sys.modules))
print("SEEN" + json.dumps(seen))
"""


class Bomb:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch unpickled",)


def watched(where: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", WATCHED, *words, str(where)], capture_output=True, text=True, check=True, cwd=where)
    return dict(json.loads(done.stdout.partition("SEEN")[2]))


@pytest.fixture
def hostile(copied, tmp_path: Path) -> Path:
    """A folder of entries with pickles, YAML, links and forged records in it, beside a genuine one."""
    folder = copied()
    copied("cpu")
    found = entry.read(folder)
    found.raw["model_source"] = {"kind": "hub", "repo": "evil/model", "revision": "0" * 40, "file": "http://127.0.0.1:9/weights.bin"}
    found.raw["environment"]["packages"]["os"] = "__import__('os').system('touch imported')"
    folder = entry.seal(found)
    (folder.parent / "weights.pkl").write_bytes(pickle.dumps(Bomb()))
    (folder.parent / "report.yaml").write_text("!!python/object/apply:os.system ['touch loaded']\n")
    (tmp_path / "secret.txt").write_text("a secret")
    linked = folder.with_name("20260501t000000z-00000000")
    shutil.copytree(folder, linked)
    (linked / store.REPORT).unlink()
    (linked / store.REPORT).symlink_to(tmp_path / "secret.txt")
    return tmp_path


def test_hostile_entries_make_the_checker_do_nothing_else(hostile: Path) -> None:
    seen = watched(hostile)
    assert seen["code"] == 1
    assert (seen["sockets"], seen["pickles"], seen["processes"], seen["heavy"]) == ([], [], [], [])
    assert not [path for path in seen["opened"] if path.endswith(("secret.txt", ".pkl", "report.yaml"))]
    assert not [name for name in ("unpickled", "loaded", "imported") if (hostile / name).exists()]


def test_a_branch_is_compared_by_git_and_by_nothing_else(hostile: Path) -> None:
    for words in (["init", "-q", "-b", "main"], ["-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(hostile), *words], check=True)
    seen = watched(hostile, "--base", "main")
    assert seen["code"] == 1
    assert (seen["sockets"], seen["pickles"], seen["heavy"]) == ([], [], [])
    assert {Path(arguments[1]).name for arguments in seen["processes"] if arguments[0] == "subprocess.Popen"} == {"git"}
    assert not any("fetch" in part or "clone" in part for arguments in seen["processes"] for part in arguments)


@pytest.mark.parametrize("name", ["a_pickle_in_the_place_of_a_report", "yaml_in_the_place_of_a_report", "items_that_are_a_device", "a_report_that_is_a_link"])
def test_what_is_no_record_is_not_interpreted(name: str, copied, tmp_path: Path) -> None:
    ATTACKS[name].change(copied())
    seen = watched(tmp_path / "reports")
    assert seen["code"] in {1, 2}
    assert (seen["sockets"], seen["pickles"], seen["processes"]) == ([], [], [])
    assert not [path for path in seen["opened"] if path in {"/dev/zero", str(tmp_path / "outside.json")}]


def test_the_checker_is_imported_without_anything_that_computes() -> None:
    code = "import sys; from jouleboard import check, branch, reader; print(sorted({'torch', 'lm_eval', 'transformers', 'pickle5', 'zeus'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
