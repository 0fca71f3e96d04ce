"""Sparse attention: each token sees the last tokens and the first few (StreamingLLM, Xiao et al. 2024, arXiv:2309.17453)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from jouleboard.declared import Count
from jouleboard.recipes.interface import About, Declaration
from jouleboard.runtime import Runtime, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class SlidingWindow(Declaration, tag="sliding-window", tag_field="step", frozen=True, kw_only=True):
    """Attention to the last `window` tokens, itself among them, and the first `sinks`; positions stay what they are.

    The cache keeps no others, and prefills of more than the window are computed in blocks against what they can see. Texts that
    are no longer than the window are computed as before.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("memory", "work"), sets="window")

    window: Annotated[int, msgspec.Meta(ge=2)]
    sinks: Count = 0

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:  # noqa: ARG002 - follows from the fields
        """Set the window."""
        return runtime.replaced(window=Window(tokens=self.window, sinks=self.sinks))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Claim the window; it is put in when the model is finished."""
        return {"claimed_config": {"sliding_window": self.window}}
