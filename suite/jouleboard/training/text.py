"""A corpus as sequences of token ids of one length, in an order that a seed decides."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from jouleboard.errors import RecipeError

TOGETHER = 256
"""Texts that are given to the tokenizer at once."""


def sequences(corpus: Path, tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Return the first sequences of a corpus whose texts are shuffled and laid one behind another.

    Between two texts stands the token that ends a text. A text is cut where a sequence is full; the next one begins with the rest.
    Fewer sequences than were asked for are all that there are.

    Args:
        corpus: JSON lines with the field `text`.
        tokenizer: of the model.
        count: how many are wanted.
        tokens: in each.
        seed: of the order of texts.

    Returns:
        Token ids, shape [sequences, tokens].

    Raises:
        RecipeError: there is not even one.
    """
    texts = [json.loads(line)["text"] for line in corpus.read_bytes().splitlines()]
    # No secret: any order that can be had again does.
    random.Random(seed).shuffle(texts)  # noqa: S311
    end = tokenizer.eos_token_id
    held: list[int] = []
    for start in range(0, len(texts), TOGETHER):
        if len(held) >= count * tokens:
            break
        for ids in tokenizer(texts[start : start + TOGETHER], add_special_tokens=False)["input_ids"]:
            held += ids
            if end is not None:
                held.append(end)
    found = min(count, len(held) // tokens)
    if not found:
        raise RecipeError(f"the corpus has {len(held)} tokens, less than one sequence of {tokens}", file=corpus, field="steps.sequence_tokens",
                          remedy="ask for shorter sequences, or train on a larger corpus")
    return torch.tensor(held[: found * tokens]).reshape(found, tokens)
