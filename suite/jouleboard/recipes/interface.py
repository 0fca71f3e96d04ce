"""What every compression technique has in common.

A technique is a noun whose fields are its parameters, with an `about` that says what it needs and what it changes::

    class DropLayers(Declaration, tag="drop-layers", tag_field="step", frozen=True, kw_only=True):
        about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))
        count: Positive

        def apply(self, model, context): ...        # changes the model in place, returns what was found out
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from jouleboard.declared import HubSource, Noun, PackageSource, PathSource
from jouleboard.runtime import Runtime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Stage = Literal["dense", "live", "runtime"]
"""`dense`: gives plain weights, which are saved, so that later steps and later runs begin with them; `live`: replaces weights or
layers of the model in memory; `runtime`: changes how the finished model is run. A recipe's steps come in this order."""
CheckpointSource = HubSource | PackageSource | PathSource
"""Where a model comes from that was compressed by others."""
Change = Literal["arithmetic", "memory", "work"]
"""What really changes: the kind of arithmetic, the bytes that are held, the number of operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a technique needs, and what it really changes."""

    stage: Stage
    changes: tuple[Change, ...]
    """Empty: nothing is saved (see `control`)."""
    weight_bits: int | None = None
    """Bits a weight, of a quantiser whose bits are no parameter."""
    device: Literal["any", "cpu", "cuda"] = "any"
    capability: tuple[int, int] | None = None
    """Least CUDA compute capability; None: any."""
    packages: tuple[str, ...] = ()
    """Names by which Python imports what is needed besides torch and transformers."""
    extra: str = "run"
    """Extra of this package that installs them."""
    exports: bool = False
    """Whether the finished dense model is handed to another engine than torch, which computes from then on (`engines.edge`): such a
    step is the last one, and only dense ones stand before it."""
    sets: Literal["cache", "window", "compiled", "speculation"] | None = None
    """Of stage `runtime`: the part of `runtime.Runtime` that it sets."""
    control: str | None = None
    """Why this is a labelled control and no saving is expected of it: simulated quantisation, masks without a kernel, ..."""


def _nothing(_done: int, _of: int) -> None:
    """Tell nobody."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a step may need besides the model."""

    calibration_ids: torch.Tensor
    """Token ids of the calibration text, shape [sequences, tokens], int64; never taken from eval items."""
    tokenizer: PreTrainedTokenizerBase | None = None
    base: Callable[[], PreTrainedModel] | None = None
    """Loads the base's dense weights afresh, on the model's device in its dtype: the teacher of a distillation."""
    corpus: Path | None = None
    """Training text that the step's `corpus` names: JSON lines with the field `text`; checked against all eval items."""
    checkpoint: Path | None = None
    """Folder or file of the ready-made checkpoint that the step's `needs_source` names, fetched by the driver."""
    state: Path | None = None
    """Folder for what a long step needs to go on after it was stopped; None: it cannot be stopped."""
    pause: Callable[[], bool] = _never
    """Asked after each optimiser step: True means to write the state and raise `Paused`; the step is applied again later."""
    progress: Callable[[int, int], None] = _nothing
    """Told how much is done, of how much."""


class Paused(Exception):  # noqa: N818 - no error: the step goes on later
    """A long step wrote its state and stopped, as it was asked to; applied again to the same model, it goes on."""

    def __init__(self, *, tokens: int) -> None:
        """Keep the count.

        Args:
            tokens: that went through the model in this piece.
        """
        super().__init__(f"{tokens} tokens in this piece")
        self.tokens = tokens


class Declaration(Noun, frozen=True, kw_only=True):
    """Base of every technique: what most of them do not say."""

    about: ClassVar[About]

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight after this step, or None where weights are not quantised."""
        return self.about.weight_bits

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory after this step, or None where it is as dense as before; as a rule `weight_bits`."""
        return self.weight_bits

    @property
    def needs_source(self) -> CheckpointSource | None:
        """What the driver must fetch for this step, or None. Such a step replaces the model, so it is a recipe's first."""
        return None

    @property
    def trains_on(self) -> str | None:
        """Id of the corpus that the step is trained on (`suite/corpora`), or None."""
        return None

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:  # noqa: ARG002 - for steps of stage `runtime`
        """Say how the finished model is run after this step; most steps change the model and not how it is run.

        Args:
            runtime: as the steps before it leave it.
            found: what `apply` found out; empty before the model is built.
        """
        return runtime

    def missing(self, device: str) -> str | None:
        """Say what is missing for the step to run on a device (`cpu`, `cuda:0`), without loading torch; None: nothing."""
        about = self.about
        kind = device.partition(":")[0]
        if about.device not in {"any", kind}:
            return f"it runs on {about.device.upper().replace('CPU', 'CPUs')} only, and this device is {device}"
        absent = [name for name in about.packages if not is_installed(name)]
        if absent:
            return f"the package {absent[0]} is not installed (pip install 'jouleboard[{about.extra}]')"
        return None


def is_installed(name: str) -> bool:
    """Tell whether Python finds a package, without importing it; of a dotted name the parent may be missing, too."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Technique(Protocol):
    """One compression step: parameters are its fields."""

    about: ClassVar[About]

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight after this step, or None where weights are not quantised."""

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory after this step, or None where it is as dense as before."""

    @property
    def needs_source(self) -> CheckpointSource | None:
        """What the driver must fetch for this step, or None."""

    @property
    def trains_on(self) -> str | None:
        """Id of the corpus that the step is trained on, or None."""

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:
        """Say how the finished model is run after this step."""

    def missing(self, device: str) -> str | None:
        """Say what is missing for the step to run on a device; None: nothing."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Change the model in place and return what was found out, as plain JSON values.

        Claims among them are held against the built model (`engines.inspect`): `claimed_quantised_tensors` with
        `claimed_tensor_class`; `claimed_layers`; `claimed_modules` (class name to count); `claimed_parameters`;
        `claimed_config` (field of the configuration to value); `claimed_zero_share` (least share of zeros in the body's
        linear weights); `claimed_pattern` (`2:4`: non-zero weights among neighbours in a row); `claimed_levels` (most distinct
        values in a unit of the step's `granularity`, of the body's linear weights); `claimed_arithmetic` (dtype that a linear
        layer gives). Of several claims about one thing the last is held against the model, so a step that changes what an earlier
        one claimed (the number of parameters or layers, a field, a count of modules) claims it anew. `tokens` is how many tokens
        went through a model for this step.
        """
