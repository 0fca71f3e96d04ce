"""Low-rank factorisation: each chosen matrix becomes a product of two smaller ones, by a truncated SVD.

All weightings are one formula. With inputs X (tokens by features) and some S with S S^T near X^T X, let U_r be the first r left
singular vectors of W S. Then W' = U_r (U_r^T W) is the matrix of rank r that least changes W S; as S S^T = X^T X, that is the
output on the calibration text. Sources: plain SVD (S = 1); ASVD (Yuan et al. 2023): S = diag(mean |X_j|^0.5), here with the root
mean square in the place of the mean; SVD-LLM (Wang et al. 2024): S S^T = X^T X, with layers factorised one after the other, here damped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard import structure
from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.activations import gram, layer_by_layer, squares
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, parameters
from jouleboard.recipes.magnitude import Rate

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

BLOCKS = {"mlp": ("mlp",), "attention": ("self_attn",), "all": ("mlp", "self_attn")}
DAMPING = 0.3
"""Share of its own sum of squares that whitening adds to every input: a short calibration text shows correlations that are not there.
Chosen by the perplexity on the second half of our calibration text after calibration on the first, with rank 352."""
ASVD_POWER = 0.5


class LowRank(Declaration, tag="low-rank", tag_field="step", frozen=True, kw_only=True):
    """Factorise the linear layers of MLPs, of attention, or of both, to a rank or to a share of their weights."""

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    which: Literal["mlp", "attention", "all"]
    rank: Positive | None = None
    """Width between the two matrices, the same for all."""
    keep: Rate | None = None
    """Share of each matrix's weights that the two have together; the rank follows from it."""
    weighting: Literal["none", "scale", "whiten"]
    """What the error is weighted with: nothing, each input's size (ASVD), or all inputs' covariance (SVD-LLM)."""

    def __post_init__(self) -> None:
        """Make sure that one size is asked for.

        Raises:
            ValueError: both or none of rank and keep are given.
        """
        if (self.rank is None) == (self.keep is None):
            raise ValueError("name either a rank or the share of weights to keep")

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Factorise layer by layer; what is calibrated sees the factorised layers before it."""
        left, ranks = parameters(model), self._ranks(model)
        held = structure.own_modules(model).get("LowRankLinear", 0)
        for linear, rank in ranks.items():
            left -= linear.weight.numel() - rank * (linear.in_features + linear.out_features)

        def factorise(index: int, _layer: nn.Module, linears: dict[str, nn.Linear], found: dict[str, torch.Tensor]) -> None:
            for name, linear in linears.items():
                if linear in ranks:
                    _replace(model, structure.LowRank(layer=index, module=name, rank=ranks[linear]), linear, self._root(found, name))

        tokens = 0
        if self.weighting == "none":
            for index, layer in enumerate(structure.layers(model)):
                factorise(index, layer, dict(body_linears(layer)), {})
        else:
            tokens = layer_by_layer(model, context.calibration_ids, gram if self.weighting == "whiten" else squares, factorise)
        return {"tokens": tokens, "ranks": sorted(set(ranks.values())), "claimed_parameters": left,
                "claimed_modules": {"LowRankLinear": held + len(ranks)}}

    def _ranks(self, model: PreTrainedModel) -> dict[nn.Linear, int]:
        """Return the layers to factorise, each with its rank; refuse where it would save nothing."""
        from jouleboard.structure_modules import LowRankLinear  # noqa: PLC0415 - imports torch

        found: dict[nn.Linear, int] = {}
        for index, layer in enumerate(structure.layers(model)):
            for name, linear in body_linears(layer):
                if name.partition(".")[0] not in BLOCKS[self.which]:
                    continue
                if isinstance(layer.get_submodule(name.rpartition(".")[0]), LowRankLinear):
                    raise RecipeError(f"layer {index}: {name.rpartition('.')[0]} is factorised already", field="steps.which",
                                      remedy="factorise each layer once")
                width = linear.in_features + linear.out_features
                found[linear] = rank = self.rank or int((self.keep or 0.0) * linear.weight.numel() / width)
                if not 0 < rank * width < linear.weight.numel():
                    raise RecipeError(f"layer {index}: {name} of {linear.out_features} x {linear.in_features} is not smaller at rank "
                                      f"{rank}", field="steps.rank",
                                      remedy=f"use ranks from 1 to {(linear.weight.numel() - 1) // width} here, or `keep`")
        if not found:
            raise RecipeError(f"{type(model).__name__} has no dense linear layer in {' or '.join(BLOCKS[self.which])}", field="steps.which",
                              remedy="use this step on models built as Llama is, before their weights are quantised")
        return found

    def _root(self, found: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
        """Return S, shape [in, in], or None for the identity."""
        import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

        if self.weighting == "none":
            return None
        if self.weighting == "scale":
            scale = found[name].sqrt().pow(ASVD_POWER)
            return torch.diag(scale.clamp_min(scale.mean() * 1e-6))
        own = found[name].diagonal()
        # An input that is always zero would leave the matrix singular.
        root: torch.Tensor = torch.linalg.cholesky(found[name] + torch.diag(DAMPING * own + 1e-9 * own.mean()))
        return root


def _replace(model: PreTrainedModel, edit: structure.LowRank, linear: nn.Linear, root: torch.Tensor | None) -> None:
    """Put the two factors into the place of a linear layer.

    Args:
        model: changed in place.
        edit: where, and which rank.
        linear: the layer that stands there.
        root: S, shape [in, in]; None: the identity.
    """
    import torch  # noqa: PLC0415

    structure.make(model, edit)
    factors: Any = structure.layers(model)[edit.layer].get_submodule(edit.module)
    with torch.no_grad():
        weight = linear.weight.detach().double()
        basis = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False).U[:, : edit.rank]
        factors.first.weight.copy_(basis.T @ weight)
        factors.second.weight.copy_(basis)
        if linear.bias is not None:
            factors.second.bias.copy_(linear.bias)
