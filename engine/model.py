"""The decoder: embedding, layers of attention and gated MLP, final norm, head. One model for every family.

All arithmetic that is worth a kernel goes through the ops table. Tokens come packed, [num_tokens], without padding;
which of them belong together is in the attention metadata. Knows no files, no sequence and no sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kv_pool import KVPool
from engine.model_config import ModelConfig
from engine.tensor_parallel import WHOLE, Communicator, ModelSlice, SingleRank
from kernels.decoder_step import StepDecoder, StepLayer, StepLinear, StepRows
from kernels.ops import LinearWeight, Ops, PrefillMeta
from kernels.panels import PanelMatrix


@dataclass(frozen=True, slots=True)
class DecodeMeta:
    """The sequences of a decode step, one new token each."""

    block_tables: Tensor  # int32 [num_seqs, max_blocks], padded with blocks of the same sequence
    seq_lens: Tensor  # int32 [num_seqs], the new token included


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer whose weight is stored as the ops table wants it."""

    weight: LinearWeight
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: Tensor  # [hidden]
    qkv: Linear  # hidden -> (num_heads + 2 * num_kv_heads) * head_dim: queries, keys, values; the rank's heads
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    output: Linear  # num_heads * head_dim -> hidden; of several ranks the parts of a sum, and so with `down`
    post_norm: Tensor  # [hidden]
    gate_up: Linear  # hidden -> 2 * intermediate: gate, up
    down: Linear  # intermediate -> hidden


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Everything that is loaded."""

    embedding: Tensor  # [vocab, hidden], whole in every rank
    layers: list[LayerWeights]
    final_norm: Tensor  # [hidden]
    # One, to the rank's part of the vocabulary; a reward model's: one or two, to one number, whole in every rank.
    head: tuple[Linear, ...]


class Model:
    """Weights, config and ops table of one model on one device, or of one rank's part of it."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
        model_hash: str,
        communicator: Communicator | None = None,
    ) -> None:
        """`communicator`: to the other parts of the model, when `weights` are not the whole of it."""
        self.config = config  # of the whole model
        self.dtype = dtype  # of activations and KV
        self.device = device
        self.model_hash = model_hash  # hex; equal for equal config and tensors
        self.communicator = communicator or SingleRank()
        self._slice = ModelSlice.of(config, self.communicator.shard)
        self._weights = weights
        self._ops = ops
        self._angles: tuple[Tensor, Tensor] | None = None  # cos and sin of the first positions, for whole steps
        self._inverse_frequencies = config.rope.inverse_frequencies(config.head_dim).to(device)
        self._scale = config.head_dim**-0.5
        self._whole_step = self._find_whole_step()

    @property
    def is_reward(self) -> bool:
        """Whether `score` is what the model answers with; else it is `logits`."""
        return self.config.is_reward

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of the KV pool that the model writes: the rank's own."""
        return len(self._slice.kv_heads)

    @property
    def needs_clean_tails(self) -> bool:
        """Whether the unwritten end of a sequence's last block must hold finite numbers."""
        return self._ops.needs_clean_tails

    @property
    def has_whole_steps(self) -> bool:
        """Whether `step` is how this model computes; else it is `forward` and `logits`."""
        return self._whole_step is not None

    def step(self, rows: StepRows, pool: KVPool) -> tuple[Tensor, Tensor | None]:
        """Compute tokens and write their KV, all in one call.

        -> [wanted, hidden], before the final norm; float32 [num_answered, vocab], or None for a reward model
        """
        assert self._whole_step is not None, "not every model has whole steps"
        cos, sin = self._angles_to(max(rows.positions))
        return self._whole_step(rows, cos, sin, pool.tensor)

    def forward(
        self, token_ids: Tensor, positions: Tensor, slot_mapping: Tensor, meta: PrefillMeta | DecodeMeta, pool: KVPool
    ) -> Tensor:
        """Compute tokens and write their KV.

        token_ids, positions, slot_mapping: int64 [T]; slot = block_id * block_size + place in the block.
        -> [T, hidden], before the final norm.
        """
        config, ops = self.config, self._ops
        heads = [len(self._slice.heads), self.num_kv_heads, self.num_kv_heads]
        complete = self.communicator.all_reduce
        cos, sin = self._rotation(positions)
        residual = self._weights.embedding[token_ids]
        added: Tensor | None = None  # what the last block gives to the residual stream
        for index, layer in enumerate(self._weights.layers):
            normed, residual = self._add_norm(added, residual, layer.input_norm)
            qkv = self._linear(normed, layer.qkv).view(-1, sum(heads), config.head_dim)
            q, k, v = torch.split(qkv, heads, dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = ops.norm_rope(q, k, layer.q_norm, layer.k_norm, config.rms_norm_eps, cos, sin)
            else:
                q, k = ops.rope(q, k, cos, sin)
            attended = self._attention(index, q, k, v, slot_mapping, meta, pool)
            added = complete(self._linear(attended.reshape(attended.shape[0], -1), layer.output))
            normed, residual = self._add_norm(added, residual, layer.post_norm)
            added = complete(self._linear(ops.silu_mul(self._linear(normed, layer.gate_up)), layer.down))
        assert added is not None, "a model has layers"
        return residual + added

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden: [N, hidden] of `forward`, of tokens whose successor is wanted -> float32 [N, vocab], or into `out`"""
        assert not self.is_reward, "a reward model has no language head"
        part = self._linear(self._final_norm(hidden), self._weights.head[0])
        logits = self.communicator.all_gather(part)[:, : self.config.vocab_size]
        return logits.float() if out is None else out.copy_(logits)

    def score(self, hidden: Tensor) -> Tensor:
        """hidden: [N, hidden] of `forward`, of last tokens -> float32 [N], the reward head's raw output"""
        assert self.is_reward, "only a reward model scores"
        first, *second = self._weights.head
        out = self._linear(self._final_norm(hidden), first)
        for linear in second:
            out = self._linear(F.relu(out), linear)
        return out.squeeze(-1).float()

    def _find_whole_step(self) -> Callable[[StepRows, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]] | None:
        """The ops table's, where it has one for a model like this, whole in this process and its weights in panels."""
        make, weights, config = self._ops.whole_step, self._weights, self.config
        if make is None or self.communicator.shard != WHOLE:
            return None
        layers = []
        for layer, window in zip(weights.layers, config.sliding_windows, strict=True):
            linears = [_in_panels(linear) for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
            if any(linear is None for linear in linears):
                return None
            qkv, output, gate_up, down = (linear for linear in linears if linear is not None)
            layers.append(
                StepLayer(
                    input_norm=layer.input_norm,
                    query_norm=layer.q_norm,
                    key_norm=layer.k_norm,
                    post_norm=layer.post_norm,
                    qkv=qkv,
                    output=output,
                    gate_up=gate_up,
                    down=down,
                    sliding_window=window,
                )
            )
        return make(
            StepDecoder(
                layers=layers,
                embedding=weights.embedding,
                final_norm=weights.final_norm,
                head=None if self.is_reward else _in_panels(weights.head[0]),
                hidden_size=config.hidden_size,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                intermediate_size=config.intermediate_size,
                rms_norm_eps=config.rms_norm_eps,
                scale=self._scale,
            )
        )

    def _attention(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
    ) -> Tensor:
        window = self.config.sliding_windows[layer]
        key_cache, value_cache = pool.layer(layer)
        self._ops.kv_write(k, v, key_cache, value_cache, slot_mapping)
        if isinstance(meta, PrefillMeta):
            return self._ops.attention_prefill(q, k, v, key_cache, value_cache, meta, self._scale, window)
        return self._ops.attention_decode(
            q, key_cache, value_cache, meta.block_tables, meta.seq_lens, self._scale, window
        )

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, [T, head_dim] each, both halves of a head alike."""
        half = positions.unsqueeze(1).float() * self._inverse_frequencies
        angles = torch.cat((half, half), dim=-1)
        factor = self.config.rope.attention_factor
        return (angles.cos() * factor).to(self.dtype), (angles.sin() * factor).to(self.dtype)

    def _angles_to(self, position: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 to `position` and more, [positions, head_dim] each."""
        if self._angles is None or len(self._angles[0]) <= position:
            # In powers of two: 256 KB at 1024 positions, 32 MB at 131,072.
            self._angles = self._rotation(torch.arange(max(1024, 1 << position.bit_length())))
        return self._angles

    def _add_norm(self, added: Tensor | None, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the new residual, the new residual); there is nothing to add before the first layer."""
        if added is None:
            return self._ops.rms_norm(residual, weight, self.config.rms_norm_eps), residual
        return self._ops.add_rms_norm(added, residual, weight, self.config.rms_norm_eps)

    def _final_norm(self, hidden: Tensor) -> Tensor:
        return self._ops.rms_norm(hidden, self._weights.final_norm, self.config.rms_norm_eps)

    def _linear(self, x: Tensor, linear: Linear) -> Tensor:
        return self._ops.linear(x, linear.weight, linear.bias)


def _in_panels(linear: Linear) -> StepLinear | None:
    return StepLinear(linear.weight, linear.bias) if isinstance(linear.weight, PanelMatrix) else None


LoadProgress = Callable[[float], None]  # is told the share of the weights that is loaded, 0..1
