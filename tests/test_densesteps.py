"""Steps that give dense weights are applied once, in windows of their own, and their bill stays with what they gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import yaml

from jouleboard import bills, check, densesteps, paths, store
from jouleboard.windows import Energy, Window
from tests.survival import BASE, CHOICE, MODEL, TEXT, Ground, Place, write_checkout, write_plan

PRUNED = "pruned-int8"


@pytest.fixture
def own(place: Place) -> Place:
    """A place whose plan has a variant of a dense step and a quantiser."""
    place.checkout = place.folder / "checkout"
    write_checkout(place.checkout)
    recipe = {"id": PRUNED, "title": "Pruned, then int8", "description": "A test.", "dtype": "bfloat16",
              "steps": [{"step": "drop-layers", "count": 1}, {"step": "torchao-int8-weight-only"}]}
    (place.checkout / "suite" / "recipes" / f"{PRUNED}.yaml").write_text(yaml.safe_dump(recipe))
    place.plan = write_plan(place.checkout / "plan.yaml", recipes=[BASE, PRUNED])
    return place


def window(duration_s: float, cpu_s: float | None, joules: float | None) -> Window:
    energy = Energy(method="gpu_counter", boundary="gpu", measured_j=joules, domains_j={} if joules is None else {"gpu0": joules},
                    estimate_j=None, estimate_relative_uncertainty=None)
    return Window(name="build", started_utc="2026-01-01T00:00:00Z", duration_s=duration_s, cpu_s=cpu_s, energy=energy)


def test_windows_are_added_and_what_is_unknown_of_one_is_unknown_of_all():
    found = bills.of_windows([window(2.0, 1.5, 300.0), window(3.0, 2.5, 500.0)])
    assert (found.duration_s, found.cpu_s, found.energy.measured_j, found.energy.domains_j) == (5.0, 4.0, 800.0, {"gpu0": 800.0})
    found = bills.of_windows([window(2.0, None, 300.0), window(3.0, 2.5, None)])
    assert (found.cpu_s, found.energy.measured_j, found.energy.domains_j) == (None, None, {})


def test_a_variants_bill_holds_the_steps_that_were_applied_before_and_none_twice():
    before = {"step": "a", "bill": {**msgspec.to_builtins(bills.of_windows([window(7.0, 6.0, 100.0)])), "pieces": 1, "tokens": 3,
                                    "peak_memory_bytes": 5}}
    inside = {"step": "b", "bill": {"begun_s": 0.5, "duration_s": 1.0, "cpu_s": 1.0, "tokens": 0, "peak_memory_bytes": 5}}
    whole = bills.whole(window(2.0, 1.5, 50.0), [before, inside])
    assert (whole.duration_s, whole.cpu_s, whole.energy.measured_j) == (9.0, 7.5, 150.0)


@pytest.mark.slow
def test_a_pruned_variant_is_made_once_and_its_bill_is_kept(own: Place):
    done = own.run("--limit", "2")
    assert done.code == 0, done.text
    first = own.reports()[PRUNED]
    dense, live = first.build.steps
    assert [step["step"] for step in first.build.steps] == ["drop-layers", "torchao-int8-weight-only"]
    assert {"2 layers are left", "14 weights are Int8Tensor"} <= set(first.realised.claims)
    assert dense["bill"]["pieces"] == 1
    assert dense["bill"]["tokens"] > 100
    assert min(dense["bill"][name] for name in ("duration_s", "cpu_s", "peak_memory_bytes")) > 0
    assert dense["bill"]["energy"]["estimate_j"] > 0
    assert live["bill"]["energy"]["estimate_j"] > 0
    assert first.build.duration_s > dense["bill"]["duration_s"] + live["bill"]["duration_s"]
    assert first.build.energy.estimate_j > dense["bill"]["energy"]["estimate_j"]
    assert check.check_paths([own.out]).problems == []

    shutil.rmtree(own.out)
    done = own.run("--limit", "2")
    assert "drop-layers is in the cache, with its bill" in done.text
    again = own.reports()[PRUNED]
    assert again.build.steps[0] == dense
    assert again.realised == first.realised
    assert check.check_paths([own.out]).problems == []

    # A damaged file of the weights is found by its digest, and they are made again.
    [home] = (own.cache / "variants").iterdir()
    with (home / "weights" / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\1\2\3")
    shutil.rmtree(own.out)
    done = own.run("--limit", "2")
    assert done.code == 0, done.text
    assert "is in the cache" not in done.text
    assert own.reports()[PRUNED].realised == first.realised


    # A bill that was made smaller does not follow from its seconds.
    report = own.reports()[PRUNED]
    cheap = msgspec.to_builtins(report.build.steps)
    cheap[0]["bill"]["energy"]["estimate_j"] /= 2
    store.write_report(own.out / MODEL / PRUNED, msgspec.structs.replace(
        report, build=msgspec.structs.replace(report.build, steps=tuple(cheap))))
    found = check.check_paths([own.out]).problems
    assert [problem.field for problem in found] == ["build.steps[0].bill.energy.estimate_j"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"step": {}, "claims": [], "weights_sha256": "a", "pieces": [{"tokens": -1}]}'])
def test_a_step_whose_note_cannot_be_read_is_not_there(tmp_path: Path, text: bytes):
    (tmp_path / densesteps.STEP).write_bytes(text)
    assert densesteps._read(tmp_path) is None


def test_a_step_without_its_weights_is_not_there(tmp_path: Path):
    kept = densesteps.Kept(step={"step": "drop-layers"}, claims=(), weights_sha256="a" * 64, pieces=(
        densesteps.Piece(window=window(1.0, 1.0, None), peak_memory_bytes=1),))
    (tmp_path / densesteps.STEP).write_bytes(msgspec.json.encode(kept))
    assert densesteps._read(tmp_path) is None


@pytest.mark.slow
def test_a_recipe_that_cannot_run_here_is_a_failed_entry_that_says_what_it_needs(own: Place):
    recipe = {"id": "odd", "title": "Odd", "description": "A test.", "dtype": "bfloat16",
              "steps": [{"step": "drop-layers", "count": 7}]}
    (own.checkout / "suite" / "recipes" / "odd.yaml").write_text(yaml.safe_dump(recipe))
    write_plan(own.plan, recipes=[BASE, "odd"])
    done = own.run("--limit", "2")
    assert done.code == 1
    report = store.read_report(own.out / MODEL / "odd" / "report.json")
    assert (report.failure.phase, report.failure.code) == ("build", "unsupported")
    assert "7 cannot be dropped" in report.failure.reason
    assert own.reports()[BASE].status == "complete"
    own.nothing_left()


SHORT_PIECES = """
import jouleboard.densesteps
jouleboard.densesteps.PIECE_S = 0.5
"""


def pipeline(own: Place) -> None:
    """Declare prune, distil, quantise as one recipe, and a corpus of one kind of text."""
    from jouleboard import corpora, sources

    [part, *_] = corpora.load("mixed-prose").parts
    there = sources.package_file(part.source, used_by="a test")
    target = own.cache / there.relative_to(paths.cache_folder())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(there, target)
    for path in (own.checkout / "tasks").glob("*.yaml"):
        if path.stem not in {CHOICE, TEXT}:
            path.unlink()
    (own.checkout / "suite" / "corpora" / "short.yaml").write_text(yaml.safe_dump({
        "id": "short", "title": "t", "description": "d", "language": "en", "parts": [msgspec.to_builtins(part)]}))
    recipe = {"id": PRUNED, "title": "t", "description": "d", "dtype": "bfloat16", "steps": [
        {"step": "drop-layers", "count": 1},
        {"step": "distil", "corpus": "short", "steps": 30, "batch_size": 2, "sequence_tokens": 32, "learning_rate": 1e-3},
        {"step": "torchao-int8-weight-only"}]}
    (own.checkout / "suite" / "recipes" / f"{PRUNED}.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.slow
def test_prune_distil_quantise_goes_on_where_it_was_killed_with_the_same_weights_and_an_exact_bill(
    own: Place, ground: Ground, tmp_path: Path
):
    pipeline(own)
    calm = Place(ground=ground, folder=tmp_path / "calm", cache=tmp_path / "calm-cache")
    shutil.copytree(own.cache, calm.cache)
    calm.checkout, calm.plan = own.checkout, own.plan
    done = calm.run("--limit", "2")
    assert done.code == 0, done.text
    wanted = calm.reports()[PRUNED]
    assert [step["step"] for step in wanted.build.steps] == ["drop-layers", "distil", "torchao-int8-weight-only"]
    assert wanted.build.steps[1]["bill"]["pieces"] == 1

    hook = own.hook(SHORT_PIECES)
    for pieces in (1, 2):
        run = own.start("--limit", "2", PYTHONPATH=hook)
        run.until(lambda pieces=pieces: _pieces(own) >= pieces)
        run.kill()
        own.nothing_runs()
    done = own.run("--limit", "2", PYTHONPATH=hook)
    assert done.code == 0, done.text
    found = own.reports()[PRUNED]
    assert found.realised == wanted.realised
    bill, calm_bill = found.build.steps[1]["bill"], wanted.build.steps[1]["bill"]
    assert bill["pieces"] >= 3
    assert bill["tokens"] == calm_bill["tokens"]
    assert check.check_paths([own.out]).problems == []
    own.nothing_left()


def _pieces(own: Place) -> int:
    return max((len(json.loads(path.read_bytes())) for path in (own.cache / "variants").glob("*/state/pieces.json")), default=0)
