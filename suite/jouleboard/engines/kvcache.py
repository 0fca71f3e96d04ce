"""Key-value caches: one of the kind that a runtime asks for, what a token takes in it, and the way back to where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer

from jouleboard.engines.caches import held_tokens
from jouleboard.engines.quantised import Codes, QuantisedLayer
from jouleboard.engines.windowed import WindowLayer
from jouleboard.errors import RecipeError, UnitError
from jouleboard.runtime import PLAIN, Draft, Fixed, Quantised, Runtime

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEYS_AND_VALUES = 2
UNCUT = (DynamicSlidingWindowLayer, QuantisedLayer)
"""Layers that forget or round what they held, and so cannot be cut; they make new tensors and leave the old ones as they were."""


def new(model: PreTrainedModel, runtime: Runtime = PLAIN, *, tokens: int = 0, padding: int = 0) -> Cache:
    """Make an empty cache.

    Args:
        model: the built variant.
        runtime: says of which kind; by default the one that the model would make for itself.
        tokens: of each sequence at most, prompt and output; only a cache of fixed length heeds it.
        padding: slots on the left of the most padded sequence; only a window with sinks heeds it.
    """
    kind = runtime.cache
    if isinstance(kind, Fixed):
        return StaticCache(config=model.config, max_cache_len=tokens)
    count = int(model.config.get_text_config().num_hidden_layers)
    if isinstance(kind, Quantised):
        return Cache(layers=[QuantisedLayer(bits=kind.bits, group_size=kind.group_size, recent=kind.recent) for _ in range(count)])
    if runtime.window is not None:
        return Cache(layers=[WindowLayer(window=runtime.window, padding=padding) for _ in range(count)])
    return DynamicCache(config=model.config)


def require_fit(model: PreTrainedModel, runtime: Runtime) -> None:
    """Refuse a kind of cache that the model cannot fill.

    Raises:
        RecipeError: the model has other layers than full attention, or heads that do not divide into groups.
    """
    kind, config = runtime.cache, model.config.get_text_config()
    if not isinstance(kind, Fixed | Quantised):
        return
    others = sorted({type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {"DynamicLayer"})
    if others or getattr(model, "_is_stateful", False):
        raise RecipeError(f"the model keeps more than keys and values of all tokens ({', '.join(others) or 'a state'})",
                          field="steps", remedy="leave steps that change the cache out for this model")
    if isinstance(kind, Quantised) and head_width(config) % kind.group_size:
        raise RecipeError(f"heads of {head_width(config)} do not divide into groups of {kind.group_size}", field="steps.group_size",
                          remedy="choose a group size that divides the head dimension")


def initialise(model: PreTrainedModel, cache: StaticCache, rows: int) -> None:
    """Allocate a cache of fixed length for so many rows, where that has not happened yet."""
    if not cache.is_initialized:
        config = model.config.get_text_config()
        cache.early_initialization(rows, key_value_heads(config), head_width(config), model.dtype, model.device)


def key_value_heads(config: PretrainedConfig) -> int:
    """Return how many heads have keys and values of their own."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_width(config: PretrainedConfig) -> int:
    """Return the width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def bytes_a_token(config: PretrainedConfig, dtype: torch.dtype, runtime: Runtime = PLAIN) -> int:
    """Return what one token that is not among the newest takes in the cache, in bytes.

    Args:
        config: of the text model.
        dtype: of the model.
        runtime: says how tokens are held.
    """
    kind, width = runtime.cache, head_width(config)
    if isinstance(kind, Quantised):
        a_head = width * kind.bits // 8 + KEYS_AND_VALUES * width // kind.group_size * dtype.itemsize
    else:
        a_head = width * dtype.itemsize
    return KEYS_AND_VALUES * int(config.num_hidden_layers) * key_value_heads(config) * a_head


def need_bytes(config: PretrainedConfig, dtype: torch.dtype, runtime: Runtime, *, batch: int, tokens: int) -> int:
    """Return what a cache takes that holds so many tokens of each sequence, in bytes."""
    older, whole = bytes_a_token(config, dtype, runtime), bytes_a_token(config, dtype)
    if isinstance(runtime.cache, Quantised):
        recent = min(tokens, runtime.cache.recent)
        # Keys and values of one layer are unpacked at a time.
        return batch * (older * (tokens - recent) + whole * recent + whole * tokens // int(config.num_hidden_layers))
    held = batch * whole * (tokens if runtime.window is None else min(tokens, runtime.window.kept))
    if isinstance(runtime.speculation, Draft):
        # The draft's own cache, of the layers that it has.
        held += held * (int(config.num_hidden_layers) - len(runtime.speculation.dropped)) // int(config.num_hidden_layers)
    return held


def held_bytes(cache: Cache) -> int:
    """Return the bytes of all tensors that a cache holds on to, each once; of a view the whole that it is a view of."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for layer in cache.layers for value in vars(layer).values() for tensor in _tensors(value) if tensor.dim()}
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Codes):
        yield from (value.packed, value.scale, value.least)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


class Mark:
    """Where a cache stands, to go back to when more has been added."""

    def __init__(self, cache: Cache) -> None:
        """Remember it.

        Args:
            cache: filled with a prompt.
        """
        self._cache = cache
        self._tokens = held_tokens(cache)
        self._layers = [_way_back(layer) for layer in cache.layers]

    def restore(self) -> None:
        """Go back.

        Raises:
            UnitError: this kind of cache cannot.
        """
        more = held_tokens(self._cache) - self._tokens
        if more > 0:
            try:
                for back in self._layers:
                    back(more)
            except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
                raise self._refused(str(error)) from error
        if held_tokens(self._cache) != self._tokens:
            raise self._refused("it holds another number of tokens than the prompt")

    def _refused(self, why: str) -> UnitError:
        kinds = sorted({type(layer).__name__ for layer in self._cache.layers})
        return UnitError(f"the key-value cache of this model ({', '.join(kinds)}) cannot be cut back to the prompt: {why}",
                         field="decode", remedy="leave this model out of the decode probes")


def _way_back(layer: Any) -> Callable[[int], None]:
    """Return what takes so many tokens off a layer that holds more than now."""
    if isinstance(layer, UNCUT):
        # A slice of a longer tensor would hold on to the whole of it.
        kept = {name: value.clone() if name in {"keys", "values"} else _apart(value) for name, value in vars(layer).items()}
        return lambda _more: layer.__dict__.update({name: _apart(value) for name, value in kept.items()})
    if type(layer) is StaticLayer:
        tokens = int(layer.cumulative_length)
        # What stands behind this place is overwritten before it is seen.
        return lambda _more: layer.cumulative_length.fill_(tokens)
    # A negative number is how many tokens go, in transformers 5.17 as in 5.23; a positive one changed its meaning.
    return lambda more: layer.crop(-more)


def _apart(value: Any) -> Any:
    """Return what will not change with it: dictionaries are written into, tensors are not."""
    return dict(value) if isinstance(value, dict) else value
