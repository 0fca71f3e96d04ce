"""Ready-made checkpoints: the published, quantised weights of the same model take the place of the base's.

Example of a step::

    - step: checkpoint
      format: gptq
      bits: 4
      source: {kind: hub, repo: SOME/MODEL-GPTQ, revision: 0123456789abcdef0123456789abcdef01234567}

Only safetensors and GGUF are read, and no program of a repository is ever run. The base gives tokenizer, generation settings
and the measure of what is the same model. The files are fetched by whoever runs the recipe, before a step is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from jouleboard.declared import HubSource, PathSource, Sha256
from jouleboard.errors import RecipeError
from jouleboard.recipes import checkpointfiles
from jouleboard.recipes.bitsandbytes import CpuKernel, choose_cpu_kernel
from jouleboard.recipes.checkpointfiles import Facts, refused
from jouleboard.recipes.interface import About, CheckpointSource, Declaration, is_installed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from jouleboard.recipes.interface import Context

PACKAGES = {"awq": ("gptqmodel",), "gptq": ("gptqmodel", "optimum.gptq"), "bitsandbytes": ("bitsandbytes",)}
"""What transformers 5 loads each format with, as Python imports it. gptqmodel is built against the torch that is there, so no
extra installs it."""


class _Ready(Declaration, frozen=True, kw_only=True):
    """What all formats declare, and how their weights take the base's place."""

    source: CheckpointSource
    bits: Annotated[int, msgspec.Meta(ge=1, le=16)]
    """A weight, of the coarsest weights; held against what the checkpoint says of itself."""
    weights_sha256: Sha256 | None = None
    """Digest of the weights' files (see `checkpointfiles.Facts`); None: they are trusted as they lie there."""

    def __post_init__(self) -> None:
        """Refuse what only data sets have."""
        if isinstance(self.source, HubSource) and self.source.subset is not None:
            raise ValueError("a checkpoint has no subset")

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return self.bits

    @property
    def needs_source(self) -> CheckpointSource | None:
        """The checkpoint."""
        return self.source

    def _require_declared(self, facts: Facts, method: str, place: Path) -> None:
        """Refuse a checkpoint that is not what the step says of it."""
        for field, found, wanted in (("format", facts.method, method), ("bits", facts.bits, self.bits),
                                     ("weights_sha256", facts.weights_sha256, self.weights_sha256 or facts.weights_sha256)):
            if found != wanted:
                raise RecipeError(f"the checkpoint's is {found}, declared is {wanted}", file=place.name, field=f"steps.{field}",
                                  remedy="declare what it is, or name the right checkpoint")

    def _found(self, facts: Facts, taken: dict[str, Any]) -> dict[str, Any]:
        """Return what is recorded: of a path only its last part, and the digest of the very weights."""
        source = self.source
        named = msgspec.structs.replace(source, path=Path(source.path).name) if isinstance(source, PathSource) else source
        return {"source": msgspec.to_builtins(named), "weights_sha256": facts.weights_sha256} | taken


class Checkpoint(_Ready, tag="checkpoint", tag_field="step", frozen=True, kw_only=True):
    """Quantised weights that are computed as they were published, by the kernels of the package that made their format.

    bitsandbytes: saved by transformers, of 4 or 8 bits (these round activations too, see `LlmInt8`). AWQ and GPTQ go through gptqmodel, which does not install beside the
    torch that is pinned here: without it they are refused.
    """

    about: ClassVar[About] = About(stage="live", changes=("memory",))

    format: Literal["awq", "bitsandbytes", "gptq"]
    cpu_kernel: CpuKernel = "dequantise"
    """Of 4-bit weights of bitsandbytes (see `bitsandbytes.Nf4`)."""

    def missing(self, device: str) -> str | None:
        """Say what is missing for the format."""
        absent = [name for name in PACKAGES[self.format] if not is_installed(name)]
        if absent:
            package = absent[0].partition(".")[0]
            return f"the package {package} is not installed (pip install {package}), and {self.format} checkpoints are loaded with it"
        return super().missing(device)

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Load the checkpoint and let it take the model's place."""
        folder = _fetched(context)
        facts = checkpointfiles.of_folder(folder)
        self._require_declared(facts, self.format, folder)
        taken = take_place(model, _load(folder, model, {}), _tokenizer(folder, {}), context, folder)
        choose_cpu_kernel(model, self.cpu_kernel)
        return self._found(facts, taken | self._claims(facts, model))

    def _claims(self, facts: Facts, model: PreTrainedModel) -> dict[str, Any]:
        if self.format == "bitsandbytes":
            ending, kind = (".weight.absmax", "Params4bit") if self.bits == 4 else (".SCB", "Int8Params")  # noqa: PLR2004 - its two kinds
        else:
            held = [type(module).__name__ for module in model.modules() if hasattr(module, "qweight")]
            ending, kind = ".qweight", next(iter(held), "module with codes")
        return {"claimed_quantised_tensors": sum(name.endswith(ending) for name in facts.names), "claimed_tensor_class": kind}


class CompressedTensors(_Ready, tag="checkpoint-compressed-tensors", tag_field="step", frozen=True, kw_only=True):
    """Weights that were saved by compressed-tensors (llm-compressor), unpacked at once.

    transformers has no kernels for them but on some GPUs: it would unpack all weights in the first forward pass. Activations
    that the checkpoint quantises are rounded as it says and multiplied densely.
    """

    about: ClassVar[About] = About(
        stage="live", changes=(), packages=("compressed_tensors",), extra="checkpoints",
        control="weights are unpacked to the recipe's dtype and multiplied densely, so it costs what the base costs or more")

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory: as many as the base's."""
        return None

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Load the checkpoint, unpack it and let it take the model's place."""
        folder = _fetched(context)
        facts = checkpointfiles.of_folder(folder)
        self._require_declared(facts, "compressed-tensors", folder)
        _require_plain(facts.quantisation, folder)
        loaded = _load(folder, model, {})
        unpacked, rounded = _unpack(loaded)
        wanted = sum(name.endswith(".weight_scale") for name in facts.names)
        if unpacked != wanted:
            raise refused(folder, f"{unpacked} of its {wanted} quantised layers were recognised", "name another checkpoint")
        taken = take_place(model, loaded, _tokenizer(folder, {}), context, folder)
        return self._found(facts, taken | {"unpacked_layers": unpacked, "layers_with_rounded_activations": rounded})


class Gguf(_Ready, tag="checkpoint-gguf", tag_field="step", frozen=True, kw_only=True):
    """Weights of a GGUF file (llama.cpp), dequantised: transformers has kernels for its blocks only as programs from the hub."""

    about: ClassVar[About] = About(
        stage="dense", changes=(), packages=("gguf",),
        control="weights are dequantised to the recipe's dtype and multiplied densely, so it costs what the base costs")

    def __post_init__(self) -> None:
        """Refuse a source that names no GGUF file."""
        named = {HubSource: "file", PathSource: "path"}.get(type(self.source), "member")
        if not str(getattr(self.source, named)).endswith(".gguf"):
            raise ValueError(f"`source.{named}` names no .gguf file")
        super().__post_init__()

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory: as many as the base's."""
        return None

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Load the file densely and let it take the model's place."""
        from transformers import GgufConfig  # noqa: PLC0415

        file = _fetched(context)
        facts = checkpointfiles.of_gguf(file)
        self._require_declared(facts, "gguf", file)
        named = {"gguf_file": file.name}
        loaded = _load(file.parent, model, named | {"quantization_config": GgufConfig(dequantize=True)})
        return self._found(facts, take_place(model, loaded, _tokenizer(file.parent, named), context, file))


def _fetched(context: Context) -> Path:
    if context.checkpoint is None:
        raise RecipeError("the checkpoint was not fetched", field="steps.source", remedy="this is a bug: please report it")
    return context.checkpoint


def _load(folder: Path, base: PreTrainedModel, words: dict[str, Any]) -> PreTrainedModel:
    """Load a checkpoint beside the base, on its device in its dtype.

    Raises:
        RecipeError: it cannot be loaded, or lacks weights.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=base.dtype, device_map={"": base.device}, use_safetensors=True, trust_remote_code=False,
            attn_implementation=base.config._attn_implementation,  # noqa: SLF001 - transformers has no public name for it
            output_loading_info=True, **words)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise refused(folder, f"it cannot be loaded ({first})", "name one whose format and architecture the installed packages know") from None
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        # They would have random values.
        raise refused(folder, f"it lacks {len(lacking)} tensors, {lacking[0]} among them", "name a whole checkpoint")
    return loaded.eval().requires_grad_(requires_grad=False)


def _tokenizer(folder: Path, words: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **words)
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise refused(folder, f"its tokenizer cannot be read ({first})", "name a checkpoint that has its tokenizer beside it") from None


def take_place(
    model: PreTrainedModel, loaded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context, place: Path
) -> dict[str, Any]:
    """Turn the base into a loaded checkpoint, in place, after making sure that it is the same model.

    Args:
        model: the base; afterwards it has all that the checkpoint has, but keeps its generation settings.
        loaded: the checkpoint; not to be used afterwards.
        tokenizer: the checkpoint's.
        context: with the base's tokenizer, and a text.
        place: of the checkpoint.

    Returns:
        What both have in common: the digest of the vocabulary, and how many dense tensors are the very same.

    Raises:
        RecipeError: it is another model.
    """
    if context.tokenizer is None:
        raise RecipeError("the base's tokenizer is not known, so nothing says that the checkpoint's is the same", field="steps.source",
                          remedy="this is a bug: please report it")
    checkpointfiles.require_same_model(model, loaded, place)
    vocabulary = checkpointfiles.require_same_tokenizer(context.tokenizer, tokenizer, context.calibration_ids, place)
    before = dict(model.named_parameters())
    dense = [name for name, tensor in loaded.named_parameters() if _is_dense(before.get(name), tensor)]
    same = sum(bool((before[name] == loaded.get_parameter(name)).all()) for name in dense)
    loaded.generation_config = model.generation_config
    loaded.name_or_path = loaded.config._name_or_path = model.name_or_path  # noqa: SLF001 - transformers has no public name for it
    vars(model).clear()
    vars(model).update(vars(loaded))
    return {"vocabulary_sha256": vocabulary, "dense_tensors": len(dense), "dense_tensors_as_in_base": same}


def _is_dense(before: torch.Tensor | None, after: torch.Tensor) -> bool:
    return before is not None and type(before) is type(after) and (before.dtype, before.shape) == (after.dtype, after.shape)


def _require_plain(quantisation: Mapping[str, Any], folder: Path) -> None:
    """Refuse what transformers leaves out in silence, or unpacks wrongly.

    Raises:
        RecipeError: naming it.
    """
    status = quantisation.get("quantization_status")
    if status != "compressed":
        raise refused(folder, f"its quantization_status is {status}: transformers would take its codes for weights", "name one that is `compressed`")
    sparse = (quantisation.get("sparsity_config") or {}).get("format", "dense") != "dense"
    for field, what in (("kv_cache_scheme", "a quantised key-value cache"), ("transform_config", "transformed weights"),
                        ("sparsity_config", "a sparse format")):
        if sparse if field == "sparsity_config" else quantisation.get(field):
            raise refused(folder, f"it has {what} ({field}), which transformers would leave out in silence", "name another checkpoint")


def _unpack(model: PreTrainedModel) -> tuple[int, int]:
    """Unpack every layer of compressed-tensors; where only weights were quantised it becomes an ordinary layer.

    Returns:
        How many were unpacked, and how many of them round their inputs or outputs.
    """
    from compressed_tensors.compressors.base import decompress_module  # noqa: PLC0415 - an extra

    unpacked = rounded = 0
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        unpacked += 1
        rounds = bool(scheme.input_activations or scheme.output_activations)
        decompress_module(module, leave_decompressed=rounds)
        if rounds:
            rounded += 1
            for name in [name for name in module._parameters if name.startswith("weight_")]:  # noqa: SLF001 - to delete them
                delattr(module, name)
    # Else it would unpack once more before the first forward pass.
    model.ct_decompress_hook.remove()
    del model.ct_decompress_hook
    return unpacked, rounded
