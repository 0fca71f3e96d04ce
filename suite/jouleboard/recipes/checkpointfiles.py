"""What a ready-made checkpoint says of itself, and whether it is the same model, before its weights take the base's place.

Example: a folder whose `config.json` has `"quantization_config": {"quant_method": "gptq", "bits": 4, ...}` and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jouleboard.errors import RecipeError
from jouleboard.sources import file_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Weights in these can run code when they are loaded."""
SAME = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "hidden_act")
"""Fields of the configuration that are the same in two checkpoints of one model."""
MOST_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a checkpoint is."""

    method: str
    bits: int
    """A weight, of its coarsest weights."""
    weights_sha256: str
    """Of a GGUF file its own digest; of a folder what `sha256sum *.safetensors | sha256sum` prints in it (LC_ALL=C)."""
    names: tuple[str, ...]
    """Of its tensors."""
    quantisation: Mapping[str, Any]
    """`quantization_config`; of a GGUF file nothing."""


def of_folder(folder: Path) -> Facts:
    """Read what a folder of safetensors holds.

    Raises:
        RecipeError: it has no safetensors, or does not say how it is quantised.
    """
    from safetensors import safe_open  # noqa: PLC0415 - belongs to what runs models

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES) if folder.is_dir() else []
        held = f"its weights are pickles ({', '.join(pickles)}), which can run code when they are loaded" if pickles else "it has no safetensors"
        raise refused(folder, held, "name a checkpoint in safetensors")
    quantisation = _quantisation(folder)
    names: list[str] = []
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            names += opened.keys()
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    method = str(quantisation.get("quant_method", "bitsandbytes" if BITS["bitsandbytes"](quantisation) else "unknown"))
    read = BITS.get(method)
    bits = None if read is None else read(quantisation)
    if not isinstance(bits, int):
        raise refused(folder, f"it does not say of how many bits its weights are (quant_method: {method})",
                      f"name a checkpoint of: {', '.join(BITS)}")
    return Facts(method=method, bits=bits, weights_sha256=hashlib.sha256(lines.encode()).hexdigest(), names=tuple(names),
                 quantisation=quantisation)


def of_gguf(file: Path) -> Facts:
    """Read what a GGUF file holds.

    Raises:
        RecipeError: it is none.
    """
    from gguf import GGUFReader  # noqa: PLC0415 - belongs to what runs models

    try:
        tensors = GGUFReader(file).tensors
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise refused(file, f"it is no GGUF file ({error})", "name one, or another format") from None
    # The types' names say their bits: F32, Q4_K, IQ3_XXS.
    bits = [int(found[0]) for tensor in tensors if (found := re.search(r"[0-9]+", tensor.tensor_type.name))]
    return Facts(method="gguf", bits=min([*bits, MOST_BITS]), weights_sha256=file_sha256(file),
                 names=tuple(tensor.name for tensor in tensors), quantisation={})


def _quantisation(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_bytes())["quantization_config"])
    except (OSError, ValueError, KeyError, TypeError):
        raise refused(folder, "its config.json has no quantization_config", "name a quantised checkpoint; dense weights are a model "
                      "of their own") from None


def _groups(found: Mapping[str, Any]) -> int | None:
    groups = found.get("config_groups") or {}
    return min((int(group["weights"]["num_bits"]) for group in groups.values() if group.get("weights")), default=None)


def _loaded_in(found: Mapping[str, Any]) -> int | None:
    return next((bits for bits in (4, 8) if found.get(f"load_in_{bits}bit") or found.get(f"_load_in_{bits}bit")), None)


BITS: dict[str, Callable[[Mapping[str, Any]], int | None]] = {
    "awq": lambda found: found.get("bits", found.get("w_bit")),
    "bitsandbytes": _loaded_in,
    "compressed-tensors": _groups,
    "gptq": lambda found: found.get("bits"),
}
"""Where each method says the bits of its weights."""


def require_same_model(base: PreTrainedModel, loaded: PreTrainedModel, place: Path) -> None:
    """Refuse a checkpoint of another architecture or size.

    Raises:
        RecipeError: naming what differs.
    """
    if type(loaded) is not type(base):
        raise refused(place, f"it is a {type(loaded).__name__}, the base is a {type(base).__name__}", ANOTHER)
    for field in SAME:
        found, wanted = getattr(loaded.config, field, None), getattr(base.config, field, None)
        if found != wanted:
            raise refused(place, f"{field} is {found}, the base's is {wanted}", ANOTHER)


def require_same_tokenizer(base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, ids: torch.Tensor, place: Path) -> str:
    """Refuse a checkpoint whose tokens mean something else.

    Args:
        base: the base's tokenizer, which makes the inputs of every variant.
        other: the checkpoint's.
        ids: tokens of some text by the base's, shape [sequences, tokens]: both must split it alike.
        place: of the checkpoint.

    Returns:
        The SHA-256 of the vocabulary that both have.

    Raises:
        RecipeError: they differ.
    """
    digests = [hashlib.sha256(json.dumps(sorted(one.get_vocab().items())).encode()).hexdigest() for one in (base, other)]
    if digests[0] != digests[1]:
        raise refused(place, f"its vocabulary has the digest {digests[1][:16]}, the base's {digests[0][:16]}", ANOTHER)
    text = base.decode(ids[0])
    if base(text)["input_ids"] != other(text)["input_ids"]:
        raise refused(place, "its tokenizer splits a text otherwise than the base's", ANOTHER)
    return digests[0]


ANOTHER = "name a checkpoint that was made from this very model"


def refused(place: Path, why: str, remedy: str) -> RecipeError:
    """Return the error of a checkpoint that is not taken."""
    return RecipeError(f"the checkpoint is not taken: {why}", file=place.name, field="steps.source", remedy=remedy)
