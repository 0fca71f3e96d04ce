"""A journal gives back what was computed or nothing: never anything else, whatever became of its file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jouleboard import journal as module
from jouleboard import storage, store
from jouleboard.errors import StorageError, UnitError
from jouleboard.journal import Answer, Journal

OF = hashlib.sha256(b"unit").hexdigest()
BATCHES = [[(-31.5, False), (-24.25, True)], [(-1e-300, True)], [(-0.0, False), (-1.2345678901234567e-5, False)], [(-7.0, True)]]


def asked(batch: int) -> str:
    return hashlib.sha256(f"batch {batch}".encode()).hexdigest()


def answers(batch: int) -> tuple[Answer, ...]:
    return tuple(Answer(loglikelihood=value, greedy=greedy) for value, greedy in BATCHES[batch])


def written(path: Path, *, count: int = len(BATCHES), of: str = OF) -> bytes:
    made = Journal(path, of)
    for batch in range(len(made), count):
        made.append(asked(batch), answers(batch))
    made.close()
    return path.read_bytes()


def usable(path: Path) -> int:
    """How many batches can be used; each must be the one that was written."""
    found = Journal(path, OF)
    for batch in range(len(found)):
        got = found.answers(batch, asked(batch))
        assert got == answers(batch)
        # Equal numbers could still differ in the sign of a zero.
        assert [math.copysign(1, one.loglikelihood) for one in got] == [math.copysign(1, value) for value, _ in BATCHES[batch]]
    return len(found)


def goes_on(path: Path) -> None:
    """Whatever was there: what is missing is written behind it, and the file begins as that of an undisturbed run."""
    undisturbed = path.with_name("undisturbed")
    undisturbed.unlink(missing_ok=True)
    assert written(path).startswith(written(undisturbed))
    assert usable(path) == len(BATCHES)


def test_nothing_is_written_before_the_first_batch(tmp_path):
    Journal(tmp_path / "j", OF).close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_comes_back_to_the_last_bit(tmp_path):
    data = written(tmp_path / "j")
    assert usable(tmp_path / "j") == len(BATCHES)
    lines = [json.loads(line) for line in data.splitlines()]
    assert lines[0]["body"] == {"journal": 1, "of": OF}
    assert [line["body"]["batch"] for line in lines[1:]] == list(range(len(BATCHES)))


@given(values=st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False, max_value=0.0), st.booleans()), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_finite_number_comes_back_to_the_last_bit(tmp_path, values):
    (tmp_path / "j").unlink(missing_ok=True)
    one = Journal(tmp_path / "j", OF)
    one.append(asked(0), [Answer(loglikelihood=value, greedy=greedy) for value, greedy in values])
    one.close()
    back = Journal(tmp_path / "j", OF).answers(0, asked(0))
    assert [(row.loglikelihood.hex(), row.greedy) for row in back] == [(value.hex(), greedy) for value, greedy in values]


def test_cut_at_every_byte_it_gives_the_whole_lines_before_the_cut_and_goes_on(tmp_path):
    data, path = written(tmp_path / "whole"), tmp_path / "j"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert usable(path) == max(data[:cut].count(b"\n") - 1, 0), cut
    for cut in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        path.write_bytes(data[:cut])
        goes_on(path)


def test_a_flipped_bit_anywhere_ends_the_usable_part_before_its_line_at_the_latest(tmp_path):
    data, path = written(tmp_path / "whole"), tmp_path / "j"
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert usable(path) <= max(data[:place].count(b"\n") - 1, 0), place
    goes_on(path)


@given(order=st.lists(st.integers(0, len(BATCHES)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_lines_in_any_order_and_number_give_only_a_beginning_that_is_in_order(tmp_path, order):
    lines = written(tmp_path / "whole").splitlines()
    (tmp_path / "j").write_bytes(store.joined(lines[number] for number in order))
    right = next((place for place, number in enumerate(order) if number != place), len(order))
    assert usable(tmp_path / "j") == max(right - 1, 0)


@given(data=st.binary(max_size=200), keep=st.integers(0, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_any_bytes_behind_whole_lines_are_dropped(tmp_path, data, keep):
    lines = written(tmp_path / "whole").splitlines()[:keep]
    (tmp_path / "j").write_bytes(store.joined(lines) + data)
    assert usable(tmp_path / "j") == max(len(lines) - 1, 0)
    goes_on(tmp_path / "j")


def test_a_line_from_another_unit_does_not_fit(tmp_path):
    mine, other = written(tmp_path / "mine"), written(tmp_path / "other", of=hashlib.sha256(b"other").hexdigest())
    (tmp_path / "j").write_bytes(b"\n".join([*mine.splitlines()[:2], *other.splitlines()[2:]]) + b"\n")
    assert usable(tmp_path / "j") == 1


def test_the_journal_of_another_unit_is_discarded_and_replaced(tmp_path):
    written(tmp_path / "j", of=hashlib.sha256(b"other").hexdigest())
    assert usable(tmp_path / "j") == 0
    goes_on(tmp_path / "j")


def test_a_batch_of_other_requests_is_given_up_with_all_behind_it(tmp_path):
    written(tmp_path / "j")
    found = Journal(tmp_path / "j", OF)
    assert found.answers(0, asked(0)) == answers(0)
    assert found.answers(1, asked(99)) is None
    assert found.answers(2, asked(2)) is None
    found.append(asked(99), answers(3))
    found.close()
    again = Journal(tmp_path / "j", OF)
    assert len(again) == 2
    assert again.answers(1, asked(99)) == answers(3)


def test_it_is_synced_about_once_a_second_and_at_the_end(tmp_path, monkeypatch):
    path, now, synced = tmp_path / "j", [0.0], []
    one = Journal(path, OF, now_s=lambda: now[0])
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink() == path:
            synced.append(now[0])
        real(handle)

    monkeypatch.setattr(module.os, "fsync", fsync)
    for batch, at in enumerate((0.1, 0.9, 1.2, 1.3)):
        now[0] = at
        one.append(asked(batch), answers(batch))
        assert usable(path) == batch + 1, "what is appended is there at once"
    now[0] = 1.4
    one.close()
    assert synced == [1.2, 1.4]


def test_a_full_disk_is_named_and_what_was_kept_stays(tmp_path):
    one = Journal(tmp_path / "j", OF)
    one.append(asked(0), answers(0))
    one._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123 - the journal closes it
    with pytest.raises(StorageError, match="No space left") as caught:
        one.append(asked(1), answers(1))
    assert caught.value.file == str(tmp_path / "j")
    assert "free" in caught.value.remedy
    assert usable(tmp_path / "j") == 1


def test_a_write_that_was_cut_short_is_a_full_disk(tmp_path):
    one = Journal(tmp_path / "j", OF)
    one.append(asked(0), answers(0))
    one._file = SimpleNamespace(write=lambda data: len(data) // 2)
    with pytest.raises(StorageError, match=storage.WORDS[0]):
        one.append(asked(1), answers(1))


# --- through the engine -----------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """A process that ends here: nothing is tidied up."""


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate([*found, "<end>"])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    named = dict.fromkeys(("bos_token", "eos_token"), "<end>")
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def engine(letters, dtype: str, on_batch=lambda _done: None):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from jouleboard.engines.reference import ReferenceLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=257, max_position_embeddings=128, eos_token_id=256, bos_token_id=256,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    return ReferenceLM(model, letters, batch_size=3, max_length=48, on_batch=on_batch)


CHOICES = [
    *[("Where is it?", choice) for choice in (" a", " b", " c", " dd", " dx")],
    *[(f"Question {number}: how much is {number} and {number}?", f" {2 * number}") for number in range(6)],
    # Longer than the context: fed from the left end cut off, so that rows fall together.
    ("x" * 70, " y"), ("z" * 70, " y"), ("x" * 90, " z"),
    ("The same", " twice"), ("The same", " twice"), ("", " nothing before"),
]
TEXTS = ["A text that is longer than the context is fed in windows, each of them once. " * 3, "Short.", "Short.", "The end of it."]


def ask(lm, kind: str, journal: Journal | None):
    """What lm-eval gets, and everything that is counted."""
    import torch

    tally = lm.start_tally(journal)
    with torch.inference_mode():
        if kind == "choice":
            found = lm.loglikelihood([SimpleNamespace(args=pair) for pair in CHOICES], disable_tqdm=True)
        else:
            found = lm.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in TEXTS], disable_tqdm=True)
    return found, tally


def counted(tally) -> bytes:
    return msgspec.json.encode((tally.batches, tally.request_tokens, tally.computed_tokens))


@pytest.mark.parametrize("kind", ["choice", "text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_and_answers_are_those_of_lm_evals_own_model_in_one_go(letters, dtype, kind):
    from lm_eval.models.huggingface import HFLM

    lm, fed = engine(letters, dtype), []
    found, tally = ask(lm, kind, None)

    class Plain(HFLM):
        def _model_call(self, inps, *words, **more):
            fed.append(inps.tolist())
            return super()._model_call(inps, *words, **more)

    plain = Plain(pretrained=lm.model, tokenizer=letters, batch_size=3, max_length=48, softmax_dtype="float32")
    plain.start_tally = lambda _journal: None
    theirs, _ = ask(plain, kind, None)
    assert found == theirs
    width = [max(len(row.tokens) for row in batch) for batch in tally.batches]
    assert fed == [[[*row.tokens, *[0] * (most - len(row.tokens))] for row in batch]
                   for batch, most in zip(tally.batches, width, strict=True)]
    assert len(fed) >= 3


@pytest.mark.parametrize("kind", ["choice", "text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_at_each_batch_it_goes_on_and_every_byte_is_that_of_an_undisturbed_run(letters, dtype, kind, tmp_path):
    whole, tally = ask(engine(letters, dtype), kind, None)
    expected = counted(tally)
    total = len(tally.batches)
    for stop in range(1, total + 1):
        path, done, computed = tmp_path / f"{stop}", [0], []

        def end(_done: int, done=done, stop=stop) -> None:
            done[0] += 1
            if done[0] == stop:
                raise KilledError

        with pytest.raises(KilledError):
            ask(engine(letters, dtype, end), kind, Journal(path, OF))
        if stop % 2:
            # The next line was being written.
            with path.open("ab") as file:
                file.write(b'{"body":{"batch":')
        lm = engine(letters, dtype)
        real = lm.model.forward
        lm.model.forward = lambda *words, real=real, computed=computed, **more: (computed.append(1), real(*words, **more))[1]
        again = Journal(path, OF)
        found, tally = ask(lm, kind, again)
        again.close()
        assert found == whole
        assert counted(tally) == expected
        assert tally.resumed_batches == stop
        assert len(computed) == total - stop, "only what was missing is computed"
        assert len(Journal(path, OF)) == total


def test_many_kills_on_the_way_change_nothing(letters, tmp_path):
    whole, tally = ask(engine(letters, "float32"), "choice", None)
    expected, tries = counted(tally), 0

    def end(_done: int) -> None:
        calls[0] += 1
        if calls[0] > before + 1:
            raise KilledError

    while True:
        calls, again = [0], Journal(tmp_path / "j", OF)
        before = len(again)
        tries += 1
        try:
            found, tally = ask(engine(letters, "float32", end), "choice", again)
        except KilledError:
            continue
        break
    assert tries > 2
    assert (found, counted(tally)) == (whole, expected)


def test_other_requests_do_not_get_the_answers_of_these(letters, tmp_path):
    """The journal is sound and of the same digest, yet the plan is another: what was fed decides."""
    ask(engine(letters, "float32"), "text", Journal(tmp_path / "j", OF))
    whole, tally = ask(engine(letters, "float32"), "choice", None)
    found, again = ask(engine(letters, "float32"), "choice", Journal(tmp_path / "j", OF))
    assert again.resumed_batches == 0
    assert (found, counted(again)) == (whole, counted(tally))


def test_without_a_journal_nothing_is_kept_from_the_unit_before(letters, tmp_path):
    lm = engine(letters, "float32")
    ask(lm, "choice", Journal(tmp_path / "j", OF))
    before = (tmp_path / "j").read_bytes()
    _, tally = ask(lm, "choice", None)
    assert tally.resumed_batches == 0
    assert (tmp_path / "j").read_bytes() == before


def test_numbers_that_are_not_finite_fail_the_unit_by_name_and_are_not_kept(letters, tmp_path):
    import torch

    lm = engine(letters, "float32")
    real, calls = lm.model.forward, []

    def broken(*words, **more):
        calls.append(1)
        found = real(*words, **more)
        if len(calls) == 3:
            found.logits = found.logits * torch.nan
        return found

    lm.model.forward = broken
    journal = Journal(tmp_path / "j", OF)
    with pytest.raises(UnitError, match="not finite") as caught:
        ask(lm, "choice", journal)
    assert caught.value.kind == "non-finite"
    journal.close()
    assert len(Journal(tmp_path / "j", OF)) == 2


def test_a_batch_that_lm_eval_makes_otherwise_is_an_error_and_no_wrong_figure(letters, monkeypatch):
    from jouleboard.engines import reference

    lm = engine(letters, "float32")
    monkeypatch.setattr(reference, "_longest_first", lambda request: (len(request[1]), tuple(request[1] + request[2])))
    with pytest.raises(UnitError, match="another batch than was planned"):
        ask(lm, "choice", None)
