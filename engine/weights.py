"""From a checkpoint's tensors to the model's: fusing, order of rows, types. Names are `engine/tensor_names.py`'s.

Queries, keys and values become one matrix, gate and up another: two large products in place of five. A rank of a
tensor-parallel worker reads its own part of every matrix and nothing else of it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.families import Norm
from engine.feed_forward import Experts, Linear, Mlp
from engine.gguf_codes import CodesFile
from engine.model import LayerWeights, LoadProgress, Model, ModelWeights
from engine.model_config import ExpertShape, ModelConfig, RewardHead
from engine.packed_weights import SMALLEST_BYTES, PackedWeights
from engine.quantization import WeightFormat
from engine.quantized_weights import is_quantized, take_quantized
from engine.tensor_names import LAYOUTS, elements, rotated_halves, wqkv_rows
from engine.tensor_parallel import Communicator, ModelSlice, SingleRank
from kernels.ops import Ops, select_ops
from kernels.panels import Codes, Kind, quantize
from kernels.quantized_linear import QuantizedWeight, concatenated, dequantize
from messages import ConfigError, ModelError

VISION_PREFIXES = ("model.vision_model.", "model.connector.")  # of Idefics3 and SmolVLM


def load_model(
    model_dir: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    progress: LoadProgress | None = None,
    communicator: Communicator | None = None,
    kind: Kind | None = None,
    packed: PackedWeights | None = None,
) -> Model:
    """Read the model of a Hugging Face directory, or `communicator`'s part of it. `dtype` None: the checkpoint's own.

    `kind` is what linears are quantized to; None: not at all. `packed`: where packed weights are shared with other
    workers of this host.

    `progress` is told the share that is loaded, ending with 1.0. Raises ModelError when the model is not supported,
    or when a tensor is missing, unexpected or of the wrong shape; ConfigError when it cannot be cut into these parts.
    """
    config = ModelConfig.from_dir(model_dir)
    if config.is_foreign:
        raise ModelError(f"{config.architecture} runs through transformers; it has no weights of pdq's own decoder")
    dtype = dtype or getattr(torch, config.dtype)
    communicator = communicator or SingleRank()
    with torch.inference_mode():
        checkpoint = Checkpoint(model_dir)
        loader = _Loader(
            config,
            checkpoint,
            select_ops(device, dtype),
            dtype,
            device,
            progress or (lambda share: None),
            communicator,
            kind,
        )

        def make() -> ModelWeights:
            weights = loader.load()
            unexpected = [name for name in checkpoint.untaken() if not _may_be_ignored(name, config, checkpoint)]
            if unexpected:
                raise ModelError(
                    f"{model_dir} holds tensors that {config.architecture} has no use for: {unexpected[:5]}"
                )
            return weights

        # Weights of another kind are another model: KV of one is not to be decoded by the other.
        model_hash = checkpoint.hash() if kind is None else f"{kind.name.lower()}-{checkpoint.hash()}"
        layout = loader.ops.weights_layout
        if packed is None or not layout or checkpoint.num_bytes < SMALLEST_BYTES:
            weights = make()
        else:
            key = f"{layout} {dtype} {communicator.shard} {model_hash} {checkpoint.identity()}"
            weights = packed.get(key, make)
            loader.ops = select_ops(device, dtype)  # whose packer holds no memory, as the one that packed does
    if progress is not None:
        progress(1.0)
    return Model(config, weights, loader.ops, dtype, device, model_hash, communicator)


def _may_be_ignored(name: str, config: ModelConfig, checkpoint: Checkpoint) -> bool:
    layout = LAYOUTS[config.names]
    if name.endswith(layout.ignored):
        return True
    if config.reads_images and name.startswith(VISION_PREFIXES):
        return True  # `engine/image_encoder.py` takes them, in the processes that have one
    if config.quantization is not None and config.quantization.format is WeightFormat.GPTQ and name.endswith(".bias"):
        # Some tools write a bias of zeros where the model has none.
        return not checkpoint.take(name, checkpoint.shape(name)).any()
    # A reward model may carry the language head it was trained from, and a tied head may be stored all the same.
    return name == f"{layout.head}.weight" and (config.is_reward or config.tie_word_embeddings)


class _Loader:
    """One load: what every step of it needs."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
        progress: LoadProgress,
        communicator: Communicator,
        kind: Kind | None,
    ) -> None:
        if kind is not None and ops.packer is None:
            raise ConfigError(
                f"PDQ_MODEL__WEIGHTS={kind.name.lower()} needs a CPU with AVX2, a C++ compiler and dtype bfloat16; "
                f"this is {dtype} on {device.type}"
            )
        self.kind, self.codes = kind, CodesFile(checkpoint.model_dir)
        self.config, self.checkpoint, self.ops = config, checkpoint, ops
        self.dtype, self.device, self.progress = dtype, device, progress
        self.layout = LAYOUTS[config.names]
        self.slice = ModelSlice.of(config, communicator.shard)
        self.shard = communicator.shard
        self.is_first_rank, self.num_ranks = communicator.shard.rank == 0, communicator.shard.num_ranks
        self.head_rows = elements(self.slice.heads, config.head_dim)  # of the queries; columns of the output

    def load(self) -> ModelWeights:
        config, layout, hidden = self.config, self.layout, self.config.hidden_size
        embedding = self.vector(f"{self.trunk(layout.embedding)}.weight", config.vocab_size, hidden)
        positions = None
        if layout.positions is not None:
            shape = (config.max_position_embeddings, hidden)
            positions = self.vector(f"{self.trunk(layout.positions)}.weight", *shape)
        layers = []
        for index in range(config.num_layers):
            layers.append(self.layer(index, self.trunk(layout.layer.format(index))))
            self.progress(self.checkpoint.share_taken)
        final_norm, final_norm_bias = self.norm(self.trunk(layout.final_norm), hidden)
        return ModelWeights(embedding, layers, final_norm, self.head(embedding), final_norm_bias, positions)

    def trunk(self, name: str) -> str:
        """The name as this checkpoint has it."""
        prefix = self.layout.optional_prefix
        if prefix and f"{self.layout.embedding}.weight" not in self.checkpoint:
            return name.removeprefix(prefix)
        return name

    def layer(self, index: int, prefix: str) -> LayerWeights:
        config, layout, hidden = self.config, self.layout, self.config.hidden_size
        input_norm, input_norm_bias = self.norm(f"{prefix}.{layout.input_norm}", hidden)
        post_norm, post_norm_bias = self.norm(f"{prefix}.{layout.post_norm}", hidden)
        q_size = config.num_heads * config.head_dim
        if config.experts is not None and index in config.experts.layers:
            mlp: Mlp | Experts = self.experts(prefix, config.experts)
        else:
            gate_up = [f"{prefix}.{name}" for name in layout.gate_up]
            mlp = self.mlp(gate_up, f"{prefix}.{layout.down}", config.intermediate_size, config.mlp_bias)

        def weight(name: str | None, size: int) -> Tensor | None:
            return None if name is None else self.norm(f"{prefix}.{name}", size)[0]

        return LayerWeights(
            input_norm=input_norm,
            input_norm_bias=input_norm_bias,
            qkv=self.qkv(prefix),
            q_norm=weight(layout.q_norm if config.qk_norm else None, config.head_dim),
            k_norm=weight(layout.k_norm if config.qk_norm else None, config.head_dim),
            output=self.summand(f"{prefix}.{layout.output}", q_size, self.head_rows, config.output_bias),
            attention_norm=weight(layout.attention_norm, hidden),
            post_norm=post_norm,
            post_norm_bias=post_norm_bias,
            mlp=mlp,
            mlp_norm=weight(layout.mlp_norm, hidden),
        )

    def qkv(self, prefix: str) -> Linear:
        config, layout, head_dim = self.config, self.layout, self.config.head_dim
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        names = [f"{prefix}.{name}" for name in layout.qkv]
        kv_rows = elements(self.slice.kv_heads, head_dim)
        if len(names) == 3:
            return self.fused(
                [
                    (names[0], q_size, self.rotated([self.head_rows])),
                    (names[1], kv_size, self.rotated([kv_rows])),
                    (names[2], kv_size, [kv_rows]),
                ],
                config.qkv_bias,
            )
        if layout.is_grouped:
            per_group = config.num_heads // config.num_kv_heads
            rows = wqkv_rows(self.slice.heads, self.slice.kv_heads, per_group, head_dim)
            count = len(self.slice.kv_heads)
            ordered = self.rotated(rows[:-count]) + rows[-count:]
        else:
            ordered = self.rotated([self.head_rows, _moved(kv_rows, q_size)]) + [_moved(kv_rows, q_size + kv_size)]
        return self.fused([(names[0], q_size + 2 * kv_size, ordered)], config.qkv_bias)

    def rotated(self, heads: Sequence[range]) -> list[range]:
        return rotated_halves(heads, self.config.head_dim, self.config.rotary_dim)

    def mlp(self, gate_up: Sequence[str], down: str, size: int, bias: bool) -> Mlp:
        rows = self.shard.part(size)
        parts: list[tuple[str, int, list[range]]] = [(name, size, [rows]) for name in gate_up]
        if self.config.is_gated and len(gate_up) == 1:
            parts = [(gate_up[0], 2 * size, [rows, _moved(rows, size)])]
        return Mlp(self.fused(parts, bias), self.summand(down, size, rows, bias))

    def experts(self, prefix: str, shape: ExpertShape) -> Experts:
        layout = self.layout

        def expert(name: str, size: int, gate_up: Sequence[str], down: str) -> Mlp:
            return self.mlp(
                [f"{prefix}.{name}.{part}" for part in gate_up], f"{prefix}.{name}.{down}", size, bias=False
            )

        shared_size = shape.shared_intermediate_size
        return Experts(
            router=self.exact(f"{prefix}.{layout.router}", shape.num_experts),
            experts=[
                expert(layout.expert.format(index), shape.intermediate_size, layout.expert_gate_up, layout.expert_down)
                for index in range(shape.num_experts)
            ],
            shared=expert(layout.shared_expert, shared_size, layout.expert_gate_up, layout.expert_down)
            if shared_size
            else None,
            shared_gate=self.exact(f"{prefix}.{layout.shared_gate}", 1) if shared_size else None,
        )

    def norm(self, name: str, size: int) -> tuple[Tensor, Tensor | None]:
        """Weight and, where the family's norms have one, bias."""
        weight = self.vector(f"{name}.weight", size)
        match self.config.norm:
            case Norm.RMS:
                return weight, None
            case Norm.RMS_PLUS_ONE:
                # One plus a small number would lose its last digits in 16 bits.
                return self.checkpoint.take(f"{name}.weight", (size,)).to(self.device, torch.float32) + 1, None
            case Norm.LAYER:
                return weight, self.vector(f"{name}.bias", size)

    def head(self, embedding: Tensor) -> tuple[Linear, ...]:
        config, hidden = self.config, self.config.hidden_size
        match config.reward_head:
            case RewardHead.LINEAR:
                return (self.whole("score", 1, bias=False),)
            case RewardHead.VALUE:
                return (self.whole("v_head", 1, bias=False),)
            case RewardHead.TWO_LAYER:
                return self.whole("score.0", hidden, bias=True), self.whole("score.2", 1, bias=True)
            case None if config.tie_word_embeddings:
                vocab = self.slice.vocab
                name = self.trunk(self.layout.embedding)
                return (self.language_head(name, embedding[vocab.start : vocab.stop]),)
            case None:
                name = self.layout.head
                quantized = self.quantized([(name, config.vocab_size)], hidden)
                if quantized is not None:
                    return (Linear(quantized),)
                rows = self.matrix(name, (config.vocab_size, hidden), self.slice.vocab)
                return (self.language_head(name, rows.clone()),)

    def fused(
        self, parts: Sequence[tuple[str, int, Sequence[range]]], bias: bool, transposed: bool | None = None
    ) -> Linear:
        """One linear of the hidden state, outputs in the order given. parts: name, all its outputs, which of them."""
        transposed = self.layout.is_transposed if transposed is None else transposed
        hidden = self.config.hidden_size
        joined = None
        if bias:
            joined = torch.cat(
                [self.checkpoint.take(f"{name}.bias", (size,), rows) for name, size, ranges in parts for rows in ranges]
            )
        quantized = self.quantized([(name, size) for name, size, _ in parts], hidden)
        if quantized is not None:
            return Linear(quantized, None if joined is None else joined.to(self.device, self.dtype))
        weight = [
            self.matrix(name, (size, hidden), rows, transposed=transposed)
            for name, size, ranges in parts
            for rows in ranges
        ]
        places = [(name, rows, range(hidden)) for name, _, ranges in parts for rows in ranges]
        return self.linear(torch.cat(weight), joined, places)

    def quantized(self, parts: Sequence[tuple[str, int]], in_size: int) -> QuantizedWeight | None:
        """One linear of the named ones as kernels multiply by it; None where one is not quantized, or no kernel does.

        parts: name, outputs.
        """
        quantization = self.config.quantization
        if quantization is None or not self.ops.takes_quantized:
            return None
        if not all(is_quantized(self.checkpoint, quantization, name) for name, _ in parts):
            return None
        if self.num_ranks > 1:
            raise ModelError(
                f"{quantization.format} weights cannot be cut into ranks on a GPU; set TENSOR_PARALLEL to 1"
            )
        return concatenated(
            [take_quantized(self.checkpoint, quantization, name, size, in_size, self.device) for name, size in parts]
        )

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        rows: range | None = None,
        columns: range | None = None,
        transposed: bool = False,
    ) -> Tensor:
        """The weight of a linear, or some of its rows or columns; dequantized where it is quantized.

        `transposed`: the checkpoint has it [in, out].
        """
        if transposed:
            return self.checkpoint.take(f"{name}.weight", (shape[1], shape[0]), columns, rows).T
        quantization = self.config.quantization
        if quantization is None or not is_quantized(self.checkpoint, quantization, name):
            return self.checkpoint.take(f"{name}.weight", shape, rows, columns)
        weight = dequantize(take_quantized(self.checkpoint, quantization, name, *shape, self.device), self.dtype)
        rows, columns = rows or range(shape[0]), columns or range(shape[1])
        return weight[rows.start : rows.stop, columns.start : columns.stop]

    def summand(self, name: str, in_size: int, columns: range, bias: bool) -> Linear:
        """The part of a linear to the hidden state that takes these inputs; all ranks' parts add up to it."""
        hidden = self.config.hidden_size
        whole_bias = self.checkpoint.take(f"{name}.bias", (hidden,)) if bias else None
        quantized = self.quantized([(name, hidden)], in_size)
        if quantized is not None:
            return Linear(quantized, None if whole_bias is None else whole_bias.to(self.device, self.dtype))
        weight = self.matrix(name, (hidden, in_size), columns=columns, transposed=self.layout.is_transposed)
        places = [(name, range(hidden), columns)]
        return self.linear(weight.clone(), whole_bias if self.is_first_rank else None, places)  # added once

    def whole(self, name: str, size: int, bias: bool) -> Linear:
        """A linear of the hidden state that every rank has whole."""
        return self.fused([(name, size, [range(size)])], bias, transposed=False)

    def exact(self, name: str, size: int) -> Linear:
        """A small linear of the hidden state that decides something: never quantized, whole in every rank."""
        weight = self.matrix(name, (size, self.config.hidden_size))
        return Linear(self.ops.pack_linear(weight.to(self.device, self.dtype)))

    def language_head(self, name: str, weight: Tensor) -> Linear:
        """weight: our rows; every rank gets equally many, so that their logits can be gathered."""
        places = [(name, self.slice.vocab, range(weight.shape[1]))]
        missing = self.slice.vocab_rows - weight.shape[0]
        if missing:
            return self.linear(F.pad(weight, (0, 0, 0, missing)), None, [], Kind.INT8)
        return self.linear(weight, None, places, Kind.INT8)

    def linear(
        self,
        weight: Tensor,
        bias: Tensor | None,
        places: Sequence[tuple[str, range, range]],
        least: Kind | None = None,
    ) -> Linear:
        """places: the name, rows and columns that `weight` is made of.

        `least`: no kind of fewer bits than it, unless a GGUF has that one.
        """
        # A bias of its own: a view would keep the file mapped.
        bias = None if bias is None else bias.to(self.device, self.dtype, copy=True)
        if self.kind is None or self.ops.packer is None:
            return Linear(self.ops.pack_linear(weight.to(self.device, self.dtype)), bias)
        codes = self.known_codes(places, self.kind)
        if least is not None:
            codes = codes or self.known_codes(places, least)
        codes = codes or quantize(weight, least or self.kind)
        return Linear(self.ops.packer.pack_codes(codes), bias)

    def known_codes(self, places: Sequence[tuple[str, range, range]], kind: Kind) -> Codes | None:
        """What a GGUF has for all of these, if it is of this kind."""
        found = [self.codes.of(*place) for place in places]
        parts = [part for part in found if part is not None and (part.minima is None) == (kind is Kind.INT8)]
        if not parts or len(parts) < len(places):
            return None
        minima = [part.minima for part in parts if part.minima is not None]
        return Codes(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat(minima) if minima else None,
        )

    def vector(self, name: str, *shape: int) -> Tensor:
        # A tensor of its own: a view would keep the file mapped and page in on first use.
        return self.checkpoint.take(name, shape).to(self.device, self.dtype, copy=True)


def _moved(rows: range, offset: int) -> range:
    return range(rows.start + offset, rows.stop + offset)
