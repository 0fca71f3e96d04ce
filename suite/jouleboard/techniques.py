"""Which kind of compression an entry is, from the steps that its report says were applied: what boards are filtered by. Pure.

A recipe of `drop-layers`, `distil` and `torchao-int8-weight-only` is `("depth", "distilled", "quantised")`.
"""

from __future__ import annotations

from typing import Literal

from jouleboard.records import Report

Technique = Literal["none", "quantised", "pruned", "depth", "low-rank", "distilled", "tuned", "cache", "runtime", "speculative", "other"]

OF_STEP: dict[str, Technique] = {
    "torchao-int8-weight-only": "quantised", "torchao-int4-weight-only": "quantised", "torchao-int8-dynamic": "quantised",
    "torchao-int4-tile-packed": "quantised", "torchao-int4-unpacked": "quantised", "torchao-float8-dynamic": "quantised",
    "torchao-float8-weight-only": "quantised", "bitsandbytes-nf4": "quantised", "bitsandbytes-int8": "quantised",
    "torch-dynamic-int8": "quantised", "linear-min-max": "quantised", "nonlinear": "quantised", "quanto-int8": "quantised",
    "checkpoint": "quantised", "checkpoint-compressed-tensors": "quantised", "checkpoint-gguf": "quantised",
    "prune-magnitude": "pruned", "prune-wanda": "pruned", "sparse-2-4": "pruned", "prune-mlp-width": "pruned", "prune-heads": "pruned",
    "drop-layers": "depth", "share-layers": "depth", "low-rank": "low-rank",
    "distil": "distilled", "student": "distilled", "lora-recovery": "tuned", "adapters": "tuned", "prompt-tuning": "tuned",
    "sliding-window": "cache", "static-cache": "cache", "quantised-kv-cache": "cache",
    "compile": "runtime", "autocast": "runtime", "ctranslate2": "runtime", "llama-cpp": "runtime", "onnx-genai": "runtime",
    "openvino": "runtime", "prompt-lookup": "speculative", "assisted": "speculative",
}
"""By the step's name in a recipe."""


def techniques(report: Report) -> tuple[Technique, ...]:
    """Return the kinds of compression of an entry, each once, in the order of its steps; `none` for dense weights as published."""
    names = [str(step.get("step", "")) for step in report.build.steps] if report.build is not None else []
    found = tuple(dict.fromkeys(OF_STEP.get(name, "other") for name in names if name))
    return found or (("none",) if report.is_base else ("other",))
