"""What does not fit together is refused with the reason, and nothing that is there is touched."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.survival import BASE, MODEL, VARIANT, Place, flip, tree, write_plan

pytestmark = pytest.mark.slow


def test_a_changed_configuration_is_refused_with_the_difference_and_nothing_is_touched(place: Place):
    place.finished()
    before = tree(place.out)
    place.plan = write_plan(place.folder / "plan.yaml", batch_size=8)
    for words in ((), ("--resume",), ("--limit", 3)):
        done = place.run(*words)
        assert done.code == 2, done.text
        assert "holds a run with another configuration; these differ: " in done.text
        assert "batch_size: 4 -> 8" in done.text
        assert "remedy: name another folder with --out" in done.text
        place.nothing_left()
        after = tree(place.out)
        assert {name: after[name] for name in before if "progress.json" not in name} == {
            name: before[name] for name in before if "progress.json" not in name}


def test_a_second_runner_is_refused_and_does_not_disturb_the_first(place: Place):
    run = place.start()
    run.until(lambda: place.journal(BASE) >= 3)
    second = place.run()
    assert run.process.poll() is None, "the first has ended too early for this test"
    assert second.code == 2
    assert "another `jouleboard run` works in this folder" in second.text
    assert str(run.process.pid) in second.text
    assert "remedy: wait for it" in second.text
    assert run.wait().code == 0
    place.nothing_left()
    place.sound(place.ground.undisturbed)


def test_an_entry_whose_items_were_changed_is_refused_and_can_be_measured_again(place: Place):
    place.finished()
    flip(place.out / MODEL / VARIANT / "items.jsonl.gz")
    before = tree(place.out / MODEL)
    done = place.run()
    assert done.code == 2
    assert str(place.out / MODEL / VARIANT / "items.jsonl.gz") in done.text
    assert "remedy: " in done.text
    assert tree(place.out / MODEL) == before
    shutil.rmtree(place.out / MODEL / VARIANT)
    place.survives()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short"])
def test_weights_that_were_damaged_meanwhile_are_refused(place: Place, damage: str):
    place.finished()
    before = tree(place.out / MODEL)
    damaged = place.folder / "damaged"
    shutil.copytree(place.model, damaged)
    weights = damaged / "model.safetensors"
    if damage == "a flipped bit":
        flip(weights)
    else:
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    # Other runs use the model's folder at the same time, so the damaged one is laid over it for this run only.
    over = ("unshare", "--mount", "sh", "-c", f'mount --bind "{damaged}" "{place.model}" && exec "$@"', "sh")
    if subprocess.run([*over, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mounting here")
    done = place.run(within=over)
    assert done.code == 2, done.text
    wanted = {"a flipped bit": "holds entries made with other inputs: weights of tiny-random-local",
              "cut short": f"the safetensors in {place.model} are damaged"}
    assert wanted[damage] in done.text
    assert "remedy: " in done.text
    assert "Traceback" not in done.text
    assert tree(place.out / MODEL) == before
    place.nothing_left()
