"""2:4 sparse weights in the hardware's own format, multiplied by its sparse kernels (Mishra et al. 2021): NVIDIA GPUs from Ampere on.

This step packs weights that are zero in the pattern already; `prune-wanda` with `pattern: "2:4"` makes them so. It was never run:
it was written from PyTorch's documentation and its source, on a machine without such a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Sparse24(Declaration, tag="sparse-2-4", tag_field="step", frozen=True, kw_only=True):
    """Pack every body linear: half of its values and two bits for the place of each; products skip the zeros."""

    about: ClassVar[About] = About(stage="live", changes=("memory", "work"), device="cuda", capability=(8, 0))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Make sure that every weight fits the format, then pack them all."""
        from torch import nn  # noqa: PLC0415 - torch is imported only where tokens are computed

        _require_device(model.device)
        count = require_divisible(model, 1)
        kind = _kind()
        for name, linear in body_linears(model):
            _require_fit(name, linear.weight, kind)
        for _, linear in body_linears(model):
            packed = kind.from_dense(linear.weight.detach().contiguous())
            linear.weight = nn.Parameter(packed, requires_grad=False)
        return {"claimed_quantised_tensors": count, "claimed_tensor_class": kind.__name__, "claimed_pattern": "2:4"}


def _require_device(device: torch.device) -> None:
    import torch  # noqa: PLC0415

    least = Sparse24.about.capability
    if device.type != "cuda" or torch.version.hip is not None:
        raise RecipeError(f"2:4 kernels run on NVIDIA GPUs only, and this model is on {device}", field="steps",
                          remedy="without them use the control wanda-2-4, which saves nothing")
    found = torch.cuda.get_device_capability(device)
    if least is not None and found < least:
        raise RecipeError(f"2:4 kernels need compute capability {least[0]}.{least[1]}, this GPU has {found[0]}.{found[1]}",
                          field="steps", remedy="use an Ampere GPU or a later one")


def _kind() -> Any:
    """Return the class of packed weights: cuSPARSELt's where this torch was built with it, else CUTLASS's."""
    import torch  # noqa: PLC0415
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS  # noqa: PLC0415

    return SparseSemiStructuredTensorCUSPARSELT if torch.backends.cusparselt.is_available() else SparseSemiStructuredTensorCUTLASS


def _require_fit(name: str, weight: torch.Tensor, kind: Any) -> None:
    """Refuse a weight that the format does not hold."""
    import torch  # noqa: PLC0415

    if weight.dtype not in {torch.bfloat16, torch.float16}:
        raise RecipeError(f"{name} is {weight.dtype}: the kernels multiply bfloat16 and float16", field="dtype",
                          remedy="use dtype: bfloat16")
    block = kind._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]  # noqa: SLF001 - torch has no public name for it
    rows, columns = weight.shape
    if rows % block.sparse_min_rows or columns % block.sparse_min_cols:
        raise RecipeError(f"{name} has the shape {rows} x {columns}, not multiples of {block.sparse_min_rows} x {block.sparse_min_cols}",
                          field="steps", remedy="use a model whose widths are such multiples")
    if int((weight.detach().view(rows, -1, 4) != 0).sum(-1).max()) > 2:  # noqa: PLR2004 - 2:4
        raise RecipeError(f"{name} has more than two non-zero weights among four neighbours", field="steps",
                          remedy='put prune-wanda with pattern: "2:4" before this step')
