"""A corpus becomes sequences of one length, in an order that the seed decides."""

from __future__ import annotations

import json

import pytest

from jouleboard.errors import RecipeError
from jouleboard.training.text import sequences


class Letters:
    eos_token_id = 99

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, texts, *, add_special_tokens):
        assert not add_special_tokens
        self.seen += len(texts)
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": chr(0x400 + number) * 3}) + "\n" for number in range(1000)))
    return file


def test_texts_are_laid_one_behind_another_with_an_end_between(corpus):
    found = sequences(corpus, Letters(), count=4, tokens=6, seed=0).flatten().tolist()
    ends = [place for place, token in enumerate(found) if token == 99]
    assert ends == [3, 7, 11, 15, 19, 23]
    assert all(len(set(found[start : start + 3])) == 1 for start in range(0, 24, 4))


def test_the_seed_decides_the_order_and_no_text_comes_twice(corpus):
    one, same, other = (sequences(corpus, Letters(), count=900, tokens=4, seed=seed) for seed in (0, 0, 1))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    assert len({row[0] for row in one.tolist()}) == 900


def test_no_more_is_tokenised_than_is_needed(corpus):
    tokenizer = Letters()
    sequences(corpus, tokenizer, count=10, tokens=8, seed=0)
    assert tokenizer.seen == 256


def test_fewer_sequences_than_asked_for_are_all_that_there_are(corpus):
    assert sequences(corpus, Letters(), count=10**6, tokens=8, seed=0).shape == (500, 8)


def test_not_even_one_sequence_is_an_error(corpus):
    with pytest.raises(RecipeError, match="the corpus has 4000 tokens, less than one sequence of 5000"):
        sequences(corpus, Letters(), count=1, tokens=5000, seed=0)
