"""The most likely token, as long as it is one: logits that are no numbers have none."""

from __future__ import annotations

import torch

from jouleboard.errors import UnitError


def best(logits: torch.Tensor) -> torch.Tensor:
    """Return the most likely token of each row.

    Args:
        logits: shape [rows, vocabulary].

    Returns:
        Tokens, shape [rows, 1].

    Raises:
        UnitError: a row's logits are not finite.
    """
    found = logits.max(dim=-1, keepdim=True)
    # One comparison a row: a NaN anywhere in a row is its maximum.
    if not bool(torch.isfinite(found.values).all()):
        raise UnitError("the model's logits are not finite", field="quality", kind="non-finite",
                        remedy="the recipe broke the model: use a gentler one, or another dtype")
    return found.indices
