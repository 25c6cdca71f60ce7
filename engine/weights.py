"""From a checkpoint's tensors to the model's: names, fusing, InternLM2's layout, types. Knows how families name things.

Queries, keys and values become one matrix, gate and up another: two large products in place of five. A rank of a
tensor-parallel worker reads its own part of every matrix and nothing else of it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.gguf_codes import CodesFile
from engine.model import LayerWeights, Linear, LoadProgress, Model, ModelWeights
from engine.model_config import ModelConfig, RewardHead, TensorNames
from engine.packed_weights import SMALLEST_BYTES, PackedWeights
from engine.quantization import WeightFormat
from engine.quantized_weights import is_quantized, take_quantized
from engine.tensor_parallel import Communicator, ModelSlice, SingleRank
from kernels.ops import Ops, select_ops
from kernels.panels import Codes, Kind, quantize
from kernels.quantized_linear import QuantizedWeight, concatenated, dequantize
from messages import ConfigError, ModelError

# Buffers that old transformers wrote; we compute them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rope.inv_freq")


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
    if name.endswith(IGNORED_SUFFIXES):
        return True
    if config.quantization is not None and config.quantization.format is WeightFormat.GPTQ and name.endswith(".bias"):
        # Some tools write a bias of zeros where the model has none.
        return not checkpoint.take(name, checkpoint.shape(name)).any()
    # A reward model may carry the language head it was trained from, and a tied head may be stored all the same.
    return name in ("lm_head.weight", "output.weight") and (config.is_reward or config.tie_word_embeddings)


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
        self.is_internlm2 = config.names is TensorNames.INTERNLM2
        self.slice = ModelSlice.of(config, communicator.shard)
        self.is_first_rank, self.num_ranks = communicator.shard.rank == 0, communicator.shard.num_ranks
        self.head_rows = _elements(self.slice.heads, config.head_dim)  # of the queries; columns of the output

    def load(self) -> ModelWeights:
        config = self.config
        embedding_name = "model.tok_embeddings.weight" if self.is_internlm2 else "model.embed_tokens.weight"
        embedding = self.vector(embedding_name, config.vocab_size, config.hidden_size)
        layers = []
        for index in range(config.num_layers):
            layers.append(self.internlm2_layer(index) if self.is_internlm2 else self.llama_layer(index))
            self.progress(self.checkpoint.share_taken)
        final_norm = self.vector("model.norm.weight", config.hidden_size)
        return ModelWeights(embedding, layers, final_norm, self.head(embedding))

    def llama_layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}"
        hidden, head_dim = config.hidden_size, config.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        kv_rows = [_elements(self.slice.kv_heads, head_dim)]
        return LayerWeights(
            input_norm=self.vector(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self.fused(
                [
                    (f"{attention}.q_proj", q_size, [self.head_rows]),
                    (f"{attention}.k_proj", kv_size, kv_rows),
                    (f"{attention}.v_proj", kv_size, kv_rows),
                ],
                config.qkv_bias,
            ),
            q_norm=self.vector(f"{attention}.q_norm.weight", head_dim) if config.qk_norm else None,
            k_norm=self.vector(f"{attention}.k_norm.weight", head_dim) if config.qk_norm else None,
            output=self.summand(f"{attention}.o_proj", q_size, self.head_rows, config.output_bias),
            post_norm=self.vector(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self.gate_up(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=self.summand(f"{mlp}.down_proj", config.intermediate_size, self.slice.intermediate, config.mlp_bias),
        )

    def internlm2_layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}"
        hidden, head_dim = config.hidden_size, config.head_dim
        qkv_size = (config.num_heads + 2 * config.num_kv_heads) * head_dim
        attention, mlp = f"{prefix}.attention", f"{prefix}.feed_forward"
        qkv_rows = wqkv_rows(
            self.slice.heads, self.slice.kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
        )
        return LayerWeights(
            input_norm=self.vector(f"{prefix}.attention_norm.weight", hidden),
            qkv=self.fused([(f"{attention}.wqkv", qkv_size, qkv_rows)], config.qkv_bias),
            q_norm=None,
            k_norm=None,
            output=self.summand(f"{attention}.wo", config.num_heads * head_dim, self.head_rows, config.output_bias),
            post_norm=self.vector(f"{prefix}.ffn_norm.weight", hidden),
            gate_up=self.gate_up(f"{mlp}.w1", f"{mlp}.w3"),
            down=self.summand(f"{mlp}.w2", config.intermediate_size, self.slice.intermediate, config.mlp_bias),
        )

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
                name = "model.tok_embeddings" if self.is_internlm2 else "model.embed_tokens"
                return (self.language_head(name, embedding[vocab.start : vocab.stop]),)
            case None:
                name = "output" if self.is_internlm2 else "lm_head"
                quantized = self.quantized([(name, config.vocab_size)], hidden)
                if quantized is not None:
                    return (Linear(quantized),)
                rows = self.matrix(name, (config.vocab_size, hidden), self.slice.vocab)
                return (self.language_head(name, rows.clone()),)

    def fused(self, parts: Sequence[tuple[str, int, Sequence[range]]], bias: bool) -> Linear:
        """One linear of the hidden state, outputs in the order given. parts: name, all its outputs, which of them."""
        hidden = self.config.hidden_size
        joined = None
        if bias:
            joined = torch.cat(
                [self.checkpoint.take(f"{name}.bias", (size,), rows) for name, size, ranges in parts for rows in ranges]
            )
        quantized = self.quantized([(name, size) for name, size, _ in parts], hidden)
        if quantized is not None:
            return Linear(quantized, None if joined is None else joined.to(self.device, self.dtype))
        weight = [self.matrix(name, (size, hidden), rows) for name, size, ranges in parts for rows in ranges]
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
        self, name: str, shape: tuple[int, int], rows: range | None = None, columns: range | None = None
    ) -> Tensor:
        """The weight of a linear, or some of its rows or columns; dequantized where it is quantized."""
        quantization = self.config.quantization
        if quantization is None or not is_quantized(self.checkpoint, quantization, name):
            return self.checkpoint.take(f"{name}.weight", shape, rows, columns)
        weight = dequantize(take_quantized(self.checkpoint, quantization, name, *shape, self.device), self.dtype)
        rows, columns = rows or range(shape[0]), columns or range(shape[1])
        return weight[rows.start : rows.stop, columns.start : columns.stop]

    def gate_up(self, gate: str, up: str) -> Linear:
        size, rows = self.config.intermediate_size, [self.slice.intermediate]
        return self.fused([(gate, size, rows), (up, size, rows)], self.config.mlp_bias)

    def summand(self, name: str, in_size: int, columns: range, bias: bool) -> Linear:
        """The part of a linear to the hidden state that takes these inputs; all ranks' parts add up to it."""
        hidden = self.config.hidden_size
        whole_bias = self.checkpoint.take(f"{name}.bias", (hidden,)) if bias else None
        quantized = self.quantized([(name, hidden)], in_size)
        if quantized is not None:
            return Linear(quantized, None if whole_bias is None else whole_bias.to(self.device, self.dtype))
        weight = self.matrix(name, (hidden, in_size), columns=columns)
        places = [(name, range(hidden), columns)]
        return self.linear(weight.clone(), whole_bias if self.is_first_rank else None, places)  # added once

    def whole(self, name: str, size: int, bias: bool) -> Linear:
        """A linear of the hidden state that every rank has whole."""
        return self.fused([(name, size, [range(size)])], bias)

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


def wqkv_rows(heads: range, kv_heads: range, queries_per_group: int, head_dim: int) -> list[range]:
    """Where queries, keys and values of these heads, in this order, lie in InternLM2's wqkv.

    It has each key-value head beside the queries that share it: per group q ... q k v, of `head_dim` rows each.
    """

    def rows(group: int, first: int, count: int = 1) -> range:
        begin = group * (queries_per_group + 2) + first
        return range(begin * head_dim, (begin + count) * head_dim)

    queries = []
    for group in kv_heads:
        first = max(heads.start, group * queries_per_group)
        stop = min(heads.stop, (group + 1) * queries_per_group)
        queries.append(rows(group, first - group * queries_per_group, stop - first))
    keys = [rows(group, queries_per_group) for group in kv_heads]
    values = [rows(group, queries_per_group + 1) for group in kv_heads]
    return queries + keys + values


def _elements(heads: range, head_dim: int) -> range:
    """The rows, or columns, of these heads."""
    return range(heads.start * head_dim, heads.stop * head_dim)
