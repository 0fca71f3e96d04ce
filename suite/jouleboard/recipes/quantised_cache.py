"""A key-value cache in few bits (KIVI, Liu et al. 2024, arXiv:2402.02750, with groups along the head only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.declared import Count, Positive
from jouleboard.recipes.interface import About, Declaration
from jouleboard.runtime import Quantised, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class QuantisedCache(Declaration, tag="quantised-kv-cache", tag_field="step", frozen=True, kw_only=True):
    """Keys and values in 2, 4 or 8 bits, in groups of `group_size` along each head; the newest `recent` tokens stay as they are.

    Saves memory, not time: what is held is unpacked for every step. Given texts are scored without a cache, so the quality of
    choices and perplexity is that of the same recipe without this step; texts that the model writes are what it changes.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("memory",), sets="cache")

    bits: Literal[2, 4, 8]
    group_size: Positive = 32
    recent: Count = 64

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:  # noqa: ARG002 - follows from the fields
        """Set the cache."""
        return runtime.replaced(cache=Quantised(bits=self.bits, group_size=self.group_size, recent=self.recent))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - changes how the model is run
        """Leave the model as it is."""
        return {}
