"""Key-value caches with room: the same keys, values and tokens as those of transformers, whatever is done to them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from jouleboard.engines import decoding, keyvalues
from jouleboard.engines.decoding import Rows
from jouleboard.engines.keyvalues import RoomyLayer


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """Room for three tokens, so that it is used up soon."""
    torch.set_num_threads(1)
    monkeypatch.setattr(keyvalues, "ROOM_TOKENS", 3)


def states(rows: int, tokens: int, width: int = 4) -> torch.Tensor:
    return torch.randn((rows, 2, tokens, width))


def both(layers: list[DynamicLayer], keys: torch.Tensor, values: torch.Tensor) -> None:
    """Give both layers the same, and make sure that they hand on the same."""
    given = [layer.update(keys, values) for layer in layers]
    for one, other in zip(*given, strict=True):
        assert torch.equal(one, other)
    assert layers[0].get_seq_length() == layers[1].get_seq_length() == given[0][0].shape[2]
    assert layers[0].get_mask_sizes(1) == layers[1].get_mask_sizes(1)


def pair(rows: int = 3, tokens: int = 5) -> list[DynamicLayer]:
    layers = [RoomyLayer(), DynamicLayer()]
    both(layers, states(rows, tokens), states(rows, tokens, 6))
    return layers


def test_a_layer_with_room_hands_on_what_a_dynamic_one_does():
    layers = pair()
    for new in (1, 1, 1, 1, 2, 1, 7, 1):
        both(layers, states(3, new), states(3, new, 6))


def test_where_there_is_room_nothing_that_is_held_is_copied():
    layer = RoomyLayer()
    layer.update(states(2, 5), states(2, 5))
    places = set()
    for _ in range(3):
        layer.update(states(2, 1), states(2, 1))
        places.add(layer.keys.data_ptr())
    assert len(places) == 1
    layer.update(states(2, 1), states(2, 1))
    assert layer.keys.data_ptr() not in places


@pytest.mark.parametrize("change", [
    lambda layer: layer.reorder_cache(torch.tensor([2, 0])), lambda layer: layer.batch_select_indices(torch.tensor([1, 2])),
    lambda layer: layer.crop(-2), lambda layer: layer.batch_repeat_interleave(2),
])
def test_a_layer_that_was_changed_goes_on_with_what_it_holds(change):
    layers = pair()
    for _ in range(2):
        for layer in layers:
            change(layer)
        rows = len(layers[1].keys)
        for new in (1, 1, 4):
            both(layers, states(rows, new), states(rows, new, 6))
        if rows < 3:
            return


def test_a_layer_that_was_reset_begins_anew_with_any_number_of_rows():
    layers = pair()
    for layer in layers:
        layer.reset()
    for new in (2, 1, 1, 1, 1):
        both(layers, states(5, new), states(5, new, 6))


@pytest.mark.parametrize(("mine", "theirs", "length"), [(5, 9, 9), (9, 5, 9), (9, 5, 7), (5, 9, 6), (4, 4, 4)])
def test_rows_that_join_end_where_the_others_end_with_zeros_before_them(mine, theirs, length):
    one, other = RoomyLayer(), RoomyLayer()
    held = [(one, states(2, mine)), (other, states(3, theirs))]
    for layer, keys in held:
        layer.update(keys, 2 * keys)
    one.join(other, length=length)
    wanted = torch.cat([torch.nn.functional.pad(keys, (0, 0, max(length - keys.shape[2], 0), 0))[:, :, -length:] for _, keys in held])
    assert torch.equal(one.keys, wanted)
    assert torch.equal(one.values, 2 * wanted)
    assert not other.is_initialized
    before, new = one.keys.data_ptr(), states(5, 1)
    keys, values = one.update(new, new)
    assert keys.data_ptr() == before
    assert torch.equal(keys, torch.cat([wanted, new], dim=2))
    assert torch.equal(values, torch.cat([2 * wanted, new], dim=2))


# --- whole models ------------------------------------------------------------------------------------------------------


def mixed(**words):
    """A random model that writes many different tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    return MistralForCausalLM(MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=200,
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0, **words,
    )).float().eval()


PROMPTS = [(5, 6, 7, 8, 9, 10), (11, 12), (13, 14, 15, 16), (17, 18, 19), (20, 21, 22, 23, 24, 25, 26, 27, 28)]


def written(model, at_once: int) -> tuple[list[list[int]], bool]:
    """Write answers of several lengths; rows join as soon as there is a place, where they can."""
    most, rows = (4, 9, 6, 12, 7), Rows(model, pad=0)
    tokens: list[list[int]] = [[] for _ in PROMPTS]

    def joins(_passes: int, here: int, waiting: int) -> int:
        return 0 if here and not rows.can_grow() else min(at_once - here, waiting)

    def stays(places, newest) -> list[bool]:
        for place, token in zip(places, newest[:, 0].tolist(), strict=True):
            tokens[place].append(token)
        return [len(tokens[place]) < most[place] for place in places]

    with torch.inference_mode():
        for _ in decoding.decode(rows, PROMPTS, joins=joins, stays=stays):
            pass
    return tokens, rows.can_grow()


def recomputed(model, prompt: tuple[int, ...], steps: int) -> list[int]:
    """Write by whole forward passes without any cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("words", "grows"), [({"sliding_window": None}, True), ({"sliding_window": 5}, False)])
def test_rows_that_join_step_and_leave_write_what_they_would_write_alone_without_a_cache(words, grows):
    model = mixed(**words)
    tokens, can_grow = written(model, at_once=3)
    assert can_grow is grows
    assert tokens == [recomputed(model, prompt, len(found)) for prompt, found in zip(PROMPTS, tokens, strict=True)]
    assert len({token for found in tokens for token in found}) > 10


def test_steps_with_room_have_the_logits_of_steps_with_transformers_cache():
    model = mixed(sliding_window=None)
    caches = [keyvalues.new_cache(model), DynamicCache(config=model.config)]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (4, 17), generator=generator)
    mask = torch.ones((4, 17), dtype=torch.long)
    mask[0, :3] = mask[2, :1] = 0
    with torch.inference_mode():
        for begin, end in ((0, 6), *((place, place + 1) for place in range(6, 17))):
            logits = [model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits for cache in caches]
            torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_layers_of_windows_and_of_linear_attention_stay_what_they_are():
    from transformers import Lfm2Config

    windows = keyvalues.new_cache(mixed(sliding_window=5))
    assert {type(layer) for layer in windows.layers} == {DynamicSlidingWindowLayer}
    config = Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"])
    plain, ours = DynamicCache(config=config), keyvalues.new_cache(SimpleNamespace(config=config))
    assert type(plain.layers[1]) is DynamicLayer
    assert [type(layer) for layer in ours.layers] == [type(plain.layers[0]), RoomyLayer]
    assert not any(map(keyvalues.has_room, (windows, ours, plain)))
