"""A plain Llama as a graph of OpenVINO's operations, with its keys and values as states of the graph.

OpenVINO's own ways to such a graph do not lead here: its converter does not trace today's transformers, its reader of ONNX Runtime's
attention takes a batch of one row only, and OpenVINO GenAI gives no logits. What it fuses, it finds by these patterns::

    weights    Constant(int8) -> Convert -> Multiply(scale)            -> MatMul
               Constant(uint4, [rows, groups, group]) -> Convert -> Subtract(8) -> Multiply(scale) -> Reshape -> MatMul
    cache      ReadValue -> Gather(beam_idx) -> Concat(new) -> Assign  -> ScaledDotProductAttention
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from jouleboard.engines.edge import plain
from jouleboard.errors import RecipeError

INPUTS = {"input_ids": 2, "attention_mask": 2, "position_ids": 2, "beam_idx": 1, "places": 3}
"""Name and rank; `beam_idx` says which rows of the cache go on, `places` where logits are asked for, shape [rows, wanted, 1]."""
LOGITS = "logits"
SCALE = ".scale"
"""What is added to a weight's name for its scales."""
MIDDLE = 8
"""The four-bit code that stands for zero."""
MASKED = -65504.0


class Graph:
    """Builds the graph; `model` gives it."""

    def __init__(self, dense: Path, config: PreTrainedConfig, *, stored: str, group_size: int) -> None:
        """Read the weights.

        Args:
            dense: folder with float32 safetensors.
            config: of the model.
            stored: of the weights of linear layers and of the embedding: `float32`, `int8` with one scale a row, or `int4` in groups.
            group_size: of int4.

        Raises:
            RecipeError: the model is no plain Llama.
        """
        from openvino import opset15  # noqa: PLC0415 - an optional engine

        plain.require(config, "OpenVINO")
        self._op, self._config, self._stored, self._group_size = opset15, config, stored, group_size
        self._tensors = {name: tensor.float().numpy() for name, tensor in plain.tensors(dense)}
        self._heads, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._width = plain.head_width(config)
        self._sinks: list[Any] = []
        self._inputs = {name: self._parameter(name, rank) for name, rank in INPUTS.items()}
        self._embedding = self._linear("model.embed_tokens.weight")

    def model(self) -> Any:
        """Return the whole graph."""
        import openvino  # noqa: PLC0415

        op, config = self._op, self._config
        hidden = self._embedded()
        self._rotation, self._mask = self._rotary(), self._causal()
        for layer in range(int(config.num_hidden_layers)):
            hidden = self._layer(hidden, f"model.layers.{layer}.")
        wanted = op.gather_nd(self._norm(hidden, "model.norm.weight"), self._inputs["places"], 1)
        head = self._embedding if config.tie_word_embeddings else self._linear("lm_head.weight")
        logits = op.matmul(wanted, head, False, True)
        logits.output(0).tensor.set_names({LOGITS})
        return openvino.Model([op.result(logits)], self._sinks, list(self._inputs.values()), "llama")

    def _parameter(self, name: str, rank: int) -> Any:
        shape = [-1] * (rank - 1) + [1] if name == "places" else [-1] * rank
        made = self._op.parameter(shape, np.int32 if name == "beam_idx" else np.int64, name=name)
        made.output(0).tensor.set_names({name})
        return made

    def _whole(self, *values: int) -> Any:
        return self._op.constant(np.array(values, np.int64))

    def _named(self, array: np.ndarray, name: str) -> Any:
        made = self._op.constant(np.ascontiguousarray(array))
        made.set_friendly_name(name)
        return made

    def _linear(self, name: str) -> Any:
        """Return a matrix as it is multiplied, shape [outputs, inputs]."""
        matrix, op = self._tensors.pop(name), self._op
        if self._stored == "float32":
            return self._named(matrix, name)
        if self._stored == "int4":
            return self._grouped(matrix, name)
        scale = np.maximum(np.abs(matrix).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
        codes = np.rint(matrix / scale).clip(-127, 127).astype(np.int8)
        return op.multiply(op.convert(self._named(codes, name), "f32"), self._named(scale.astype(np.float32), name + SCALE))

    def _grouped(self, matrix: np.ndarray, name: str) -> Any:
        rows, inputs = matrix.shape
        if inputs % self._group_size:
            raise RecipeError(f"{name} has {inputs} inputs, not a multiple of the group size {self._group_size}", field="steps.group_size",
                              remedy="choose a group size that divides every layer's width")
        op, groups = self._op, matrix.reshape(rows, -1, self._group_size)
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
        # The value of the largest magnitude gets the code 0, which is one further from the middle than 15 is.
        scale = np.where(largest == 0, 1.0, largest / -MIDDLE).astype(np.float32)
        codes = (np.rint(groups / scale) + MIDDLE).clip(0, 15).astype(np.uint8)
        held = op.constant(_four_bits(codes))
        held.set_friendly_name(name)
        middle = op.convert(op.constant(_four_bits(np.full((1, 1, 1), MIDDLE, np.uint8))), "f32")
        moved = op.multiply(op.subtract(op.convert(held, "f32"), middle), self._named(scale, name + SCALE))
        return op.reshape(moved, self._whole(rows, inputs), False)

    def _embedded(self) -> Any:
        return self._op.gather(self._embedding, self._inputs["input_ids"], self._whole(0))

    def _norm(self, hidden: Any, name: str) -> Any:
        op = self._op
        mean = op.reduce_mean(op.multiply(hidden, hidden), self._whole(-1), keep_dims=True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self._config.rms_norm_eps))))
        scaled = op.multiply(hidden, op.divide(op.constant(np.float32(1)), root))
        return op.multiply(scaled, self._named(self._tensors.pop(name).reshape(1, 1, -1), name))

    def _rotary(self) -> tuple[Any, Any]:
        op, width = self._op, self._width
        frequencies = (1.0 / plain.rotary_base(self._config) ** (np.arange(0, width, 2) / width)).astype(np.float32)
        angles = op.multiply(op.convert(op.unsqueeze(self._inputs["position_ids"], self._whole(2)), "f32"),
                             op.constant(frequencies.reshape(1, 1, -1)))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), self._whole(1)), op.unsqueeze(op.sin(both), self._whole(1))

    def _rotated(self, heads: Any) -> Any:
        op, half, width = self._op, self._width // 2, self._width
        cosine, sine = self._rotation
        first, second = (op.slice(heads, self._whole(begin), self._whole(end), self._whole(1), self._whole(3))
                         for begin, end in ((0, half), (half, width)))
        return op.add(op.multiply(heads, cosine), op.multiply(op.concat([op.negative(second), first], 3), sine))

    def _causal(self) -> Any:
        """Return what is added to scores, shape [rows, 1, tokens, held tokens]: later tokens and padding are masked."""
        op = self._op
        tokens = op.squeeze(self._size(self._inputs["input_ids"], 1))
        held = op.squeeze(self._size(self._inputs["attention_mask"], 1))
        mine = op.unsqueeze(op.range(op.subtract(held, tokens), held, op.constant(np.int64(1)), output_type="i64"), self._whole(1))
        others = op.unsqueeze(op.range(op.constant(np.int64(0)), held, op.constant(np.int64(1)), output_type="i64"), self._whole(0))
        earlier = op.unsqueeze(op.less_equal(others, mine), self._whole(0, 1))
        kept = op.unsqueeze(op.equal(self._inputs["attention_mask"], op.constant(np.int64(1))), self._whole(1, 2))
        return op.select(op.logical_and(earlier, kept), op.constant(np.float32(0)), op.constant(np.float32(MASKED)))

    def _size(self, node: Any, axis: int) -> Any:
        return self._op.gather(self._op.shape_of(node), self._whole(axis), self._whole(0))

    def _layer(self, hidden: Any, name: str) -> Any:
        op = self._op
        normed = self._norm(hidden, f"{name}input_layernorm.weight")
        query, key, value = (op.matmul(normed, self._linear(f"{name}self_attn.{one}_proj.weight"), False, True) for one in "qkv")
        held = [self._held(new, f"{name}{kind}") for new, kind in (
            (self._rotated(self._split(key, self._kv_heads)), "key"), (self._split(value, self._kv_heads), "value"))]
        mixed = op.scaled_dot_product_attention(
            self._rotated(self._split(query, self._heads)), *(self._repeated(one) for one in held), self._mask)
        joined = op.reshape(op.transpose(mixed, self._whole(0, 2, 1, 3)), self._whole(0, 0, self._heads * self._width), True)
        hidden = op.add(hidden, op.matmul(joined, self._linear(f"{name}self_attn.o_proj.weight"), False, True))
        normed = self._norm(hidden, f"{name}post_attention_layernorm.weight")
        gate, up = (op.matmul(normed, self._linear(f"{name}mlp.{one}_proj.weight"), False, True) for one in ("gate", "up"))
        product = op.multiply(op.swish(gate), up)
        return op.add(hidden, op.matmul(product, self._linear(f"{name}mlp.down_proj.weight"), False, True))

    def _split(self, joined: Any, heads: int) -> Any:
        return self._op.transpose(self._op.reshape(joined, self._whole(0, 0, heads, self._width), True), self._whole(0, 2, 1, 3))

    def _held(self, new: Any, name: str) -> Any:
        """Put new keys or values behind those of the state, shape [rows, heads, tokens, width]."""
        import openvino  # noqa: PLC0415
        from openvino.op import assign, read_value, util  # noqa: PLC0415

        op, words = self._op, util.VariableInfo()
        words.data_shape, words.data_type = openvino.PartialShape([-1, self._kv_heads, -1, self._width]), openvino.Type.f32
        words.variable_id = name
        variable = util.Variable(words)
        rows = self._size(self._inputs["input_ids"], 0)
        empty = op.broadcast(op.constant(np.float32(0)), op.concat([rows, self._whole(self._kv_heads, 0, self._width)], 0))
        going = op.gather(read_value(empty, variable), self._inputs["beam_idx"], self._whole(0))
        longer = op.concat([going, new], 2)
        self._sinks.append(assign(longer, variable))
        return longer

    def _repeated(self, held: Any) -> Any:
        """Give every query head its key or value head."""
        op, each = self._op, self._heads // self._kv_heads
        if each == 1:
            return held
        wide = op.concat([self._size(held, 0), self._whole(self._kv_heads, each), self._size(held, 2), self._whole(self._width)], 0)
        spread = op.broadcast(op.unsqueeze(held, self._whole(2)), wide, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, self._whole(0, self._heads, -1, self._width), True)


def _four_bits(codes: np.ndarray) -> Any:
    """Pack codes two in a byte, the first in the lower half.

    The tensor has memory of its own: one that is made of an array would point to it, and outlive it.
    """
    import openvino  # noqa: PLC0415

    made = openvino.Tensor(openvino.Type.u4, openvino.Shape(list(codes.shape)))
    flat = np.append(codes.ravel(), np.zeros(codes.size % 2, np.uint8))
    made.data.reshape(-1)[:] = flat[0::2] | flat[1::2] << 4
    return made
