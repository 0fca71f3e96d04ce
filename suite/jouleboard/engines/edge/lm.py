"""lm-eval's `hf` model over an engine outside of torch: planned, counted, kept and recorded as the reference engine does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from jouleboard.engines.decoding import Joins, Stays, processors
from jouleboard.engines.reference import ReferenceLM
from jouleboard.errors import UnitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jouleboard.engines.edge.model import EdgeModel
    from jouleboard.engines.running import Running


class EdgeLM(ReferenceLM):
    """Scores in the same batches as the reference engine; decodes by what the engine has for it."""

    takes_in = False

    def __init__(
        self,
        model: EdgeModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        on_batch: Callable[[int], None] = lambda _rows: None,
        running: Running | None = None,
    ) -> None:
        """Wrap a model whose place an engine has taken; no step that says how torch runs it can stand beside it."""
        super().__init__(model, tokenizer, batch_size=batch_size, max_length=max_length, on_batch=on_batch, running=running)
        self.engine_name = model.computed_by

    def decode(self, prompts: Sequence[Sequence[int]], *, joins: Joins, stays: Stays, most: int) -> Iterator[torch.Tensor]:
        """Decode rows; those that wait begin when all that were there have ended.

        Raises:
            UnitError: the model's own settings ask for more than the most likely token.
        """
        if processors(self.model):
            raise UnitError(f"the model's generation settings ask for a repetition penalty, which {self.model.computed_by} is not given",
                            field="generation_config.json", kind="unsupported", remedy="leave generation tasks out for this model")
        begun = passes = 0
        while begun < len(prompts):
            first, count = begun, joins(passes, 0, len(prompts) - begun)
            begun += count

            def goes(row: int, token: int, first: int = first) -> bool:
                return bool(stays([first + row], torch.tensor([[token]]))[0])

            for newest in self.model.runs.write(prompts[first:begun], goes, most):
                passes += 1
                yield newest
