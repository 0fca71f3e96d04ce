"""A teacher, a student that lost a layer, a tokenizer and a corpus: small enough to be trained in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jouleboard.recipes import Context, DropLayers
from jouleboard.recipes.interface import Paused

WIDTH = 32
CALIBRATION = torch.arange(48).reshape(2, 24)


class Tokenizer:
    """One token a character."""

    eos_token_id = 0

    def __call__(self, texts, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[1 + ord(character) % 60 for character in text] for text in texts]}


def text(number: int) -> str:
    return f"{number} bottles stand on wall {number * 7}; one falls."


UNSEEN = torch.tensor(Tokenizer()([text(number)[:24] for number in (203, 207, 211)], add_special_tokens=False)["input_ids"])
"""Text that no student sees."""


def model(layers: int = 4, width: int = WIDTH, dtype: torch.dtype = torch.float32):
    torch.manual_seed(5)
    config = LlamaConfig(hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=64, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2)
    return LlamaForCausalLM(config).to(dtype).eval()


def student(dtype: torch.dtype = torch.float32):
    found = model(dtype=dtype)
    DropLayers(count=1).apply(found, Context(calibration_ids=CALIBRATION))
    return found


def write_corpus(folder: Path) -> Path:
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text(number)}) + "\n" for number in range(200)))
    return file


def context(corpus: Path, dtype: torch.dtype = torch.float32, **more) -> Context:
    return Context(calibration_ids=CALIBRATION, tokenizer=Tokenizer(), base=lambda: model(dtype=dtype), corpus=corpus, **more)


def distance(found) -> float:
    """Divergence of a student from the teacher on text that it has not seen."""
    with torch.inference_mode():
        wanted = torch.log_softmax(model()(UNSEEN).logits, -1)
        return float((wanted.exp() * (wanted - torch.log_softmax(found(UNSEEN).logits, -1))).sum(-1).mean())


def to_the_end(step, corpus: Path, folder: Path, stop_after: list[int], begin: Callable[[], Any], dtype=torch.bfloat16):
    """Apply again and again to the same weights, as a run does, stopping after given numbers of steps."""
    stops, tokens = iter([*stop_after, 10**9]), []
    while True:
        left, found = next(stops), begin()
        calls = iter(range(1, 10**9))

        def pause(left=left, calls=calls):
            return next(calls) >= left

        try:
            return found, step.apply(found, context(corpus, dtype, state=folder, pause=pause)), tokens
        except Paused as paused:
            tokens.append(paused.tokens)
            (folder / "committed").write_text(str(len(tokens)))
