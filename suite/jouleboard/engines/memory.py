"""Memory of a worker: whether work would fit, and the peak that it took."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jouleboard import hostmemory
from jouleboard.engines import kvcache
from jouleboard.runtime import PLAIN, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPARE = 0.2
"""Share of the available memory that is left alone."""
HIDDEN_COPIES, INTERMEDIATE_COPIES, FLOAT32_COPIES = 8, 3, 3
"""Tensors of one layer that are alive at once in a forward pass, in the model's dtype: residual, normed, query, key and value
repeated for all heads, attention's output, its projection, the sum; gate, up and their product. The norm computes in float32."""
FLOAT32_BYTES = 4
CPU_SLACK = 2
"""Times the activations on a CPU, whose allocator keeps about as much again in pieces. Measured with the default model in
bfloat16 and int8 at 2,048 to 8,192 tokens: the whole estimate was 1.04 to 1.63 times the growth of the resident set. On a GPU
running out of memory can be caught, on a CPU the kernel ends the process."""
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says of it in errors that are plain `RuntimeError`s: the allocator of the CPU, and cuBLAS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Estimated bytes of a prefill and the decoding behind it, the weights not counted."""

    cache_bytes: int
    logits_bytes: int
    activation_bytes: int
    scratch_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.cache_bytes + self.logits_bytes + self.activation_bytes + self.scratch_bytes


def need(
    model: PreTrainedModel, dtype: torch.dtype, *, batch: int, prompt_tokens: int, output_tokens: int, ranks: int = 1,
    runtime: Runtime = PLAIN,
) -> Need:
    """Estimate what one forward pass over a batch of prompts and the decoding behind it need.

    - cache: 2 (keys and values) x layers x key-value heads x head dimension x dtype bytes x batch x (prompt + output), unless it is
      of another kind (`kvcache.need_bytes`);
    - logits: batch x vocabulary x (dtype bytes + 4), for the last position only;
    - activations of one layer: batch x prompt x ((8 hidden + 3 intermediate) x dtype bytes + 3 hidden x 4), and with eager
      attention its scores, batch x heads x prompt x prompt x (dtype bytes + 4); twice that on a CPU (see `CPU_SLACK`);
    - scratch: the largest weight in float32, for kernels that repack or dequantise it: vocabulary x hidden x 4.

    Of several ranks each holds its share of the heads: of the cache, the intermediate layer, the scores and the scratch.

    Args:
        model: the built variant.
        dtype: in which it computes.
        batch: number of sequences.
        prompt_tokens: per sequence.
        output_tokens: per sequence.
        ranks: how many share the model; what one of them needs is returned.
        runtime: how the model is run.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    intermediate = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    per_token = (
        (HIDDEN_COPIES * config.hidden_size + INTERMEDIATE_COPIES * intermediate / ranks) * dtype.itemsize
        + FLOAT32_COPIES * config.hidden_size * FLOAT32_BYTES
    )
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    scores = batch * heads * prompt_tokens**2 * (dtype.itemsize + FLOAT32_BYTES) / ranks if eager else 0
    return Need(
        cache_bytes=kvcache.need_bytes(config, dtype, runtime, batch=batch, tokens=prompt_tokens + output_tokens) // ranks,
        logits_bytes=batch * config.vocab_size * (dtype.itemsize + FLOAT32_BYTES),
        activation_bytes=int(batch * prompt_tokens * per_token + scores) * (1 if model.device.type == "cuda" else CPU_SLACK),
        scratch_bytes=config.vocab_size * config.hidden_size * FLOAT32_BYTES // ranks,
    )


def refusal(wanted: Need, device: torch.device, *, ranks: int = 1) -> str | None:
    """Say with figures why work does not fit into the memory that is available now; None when it fits.

    Args:
        wanted: what this process needs.
        device: where.
        ranks: how many processes want as much at once; on a CPU they share its memory, else each has a device of its own.
    """
    available = available_bytes(device) // (1 if device.type == "cuda" else ranks)
    if wanted.total_bytes <= (1 - SPARE) * available:
        return None
    return (
        f"needs about {wanted.total_bytes} bytes (key-value cache {wanted.cache_bytes}, activations "
        f"{wanted.activation_bytes}, logits {wanted.logits_bytes}, scratch {wanted.scratch_bytes}), available on {device.type} are {available}, of which "
        f"{SPARE:.0%} are left alone"
    )


def available_bytes(device: torch.device) -> int:
    """Return how many bytes can be allocated on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for later use counts as taken for the driver, and is free for us.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return hostmemory.available_bytes()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell an error of allocation from every other one."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


class Peak:
    """The highest memory use of a worker, in stretches: allocated on the device on a GPU, else the resident set."""

    def __init__(self, device: torch.device) -> None:
        """Begin where the process stands."""
        self._device = device
        self._earlier_bytes = 0
        self._seen_bytes = 0

    def begin(self) -> None:
        """Begin a new stretch, and keep the peak of those before."""
        self._earlier_bytes = self.overall_bytes()
        self._forget()

    def begin_anew(self) -> None:
        """Begin a new stretch, and forget those before."""
        self._earlier_bytes = 0
        self._forget()

    def stretch_bytes(self) -> int:
        """Return the peak since the last beginning."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        # The kernel sums up its counters in batches: a later reading can be some pages below an earlier one.
        self._seen_bytes = max(self._seen_bytes, _resident_peak_bytes())
        return self._seen_bytes

    def overall_bytes(self) -> int:
        """Return the peak over all stretches that are not forgotten."""
        return max(self._earlier_bytes, self.stretch_bytes())

    def _forget(self) -> None:
        self._seen_bytes = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        # What was freed stays resident until the C library gives it back, and would count for the next stretch too.
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            # proc(5): 5 resets the peak of the resident set (VmHWM) to what it is now.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            print("the peak of the resident set includes what was done before", file=sys.stderr)


def _resident_peak_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
