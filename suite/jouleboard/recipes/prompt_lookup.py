"""Speculative decoding with drafts from the text itself (Saxena 2023, prompt lookup decoding)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.declared import Positive
from jouleboard.recipes.interface import About, Declaration
from jouleboard.runtime import Lookup, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class PromptLookup(Declaration, tag="prompt-lookup", tag_field="step", frozen=True, kw_only=True):
    """What followed the last up to `longest` tokens where they stood before is fed together with them, up to `most` tokens.

    Tokens are those of plain greedy decoding; fewer passes are taken where text repeats itself, so the cost depends on the text.
    For one sequence at a time: serving cells of larger batches are left out, and where a task's answers are written several at a
    time they are decoded plainly. Decode probes, which have no text, and prompts that are longer than the text that they are cut
    from, and so repeat it, would say nothing of the cost: they are left out too.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("work",), sets="speculation")

    longest: Positive = 3
    most: Positive = 8

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:  # noqa: ARG002 - follows from the fields
        """Set how drafts are made."""
        return runtime.replaced(speculation=Lookup(longest=self.longest, most=self.most))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - changes how the model is run
        """Leave the model as it is."""
        return {}
