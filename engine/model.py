"""The decoder: embedding, layers of attention and MLP, final norm, head. One model for all of `engine/families.py`.

All arithmetic that is worth a kernel goes through the ops table; MLPs are `engine/feed_forward.py`. Tokens come packed,
[num_tokens], without padding; which of them belong together is in the attention metadata. Knows no files, no sequence
and no sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.families import Activation, Norm, Residual
from engine.feed_forward import Experts, FeedForward, Linear, Mlp
from engine.kv_pool import KVPool
from engine.model_config import ModelConfig
from engine.rotation import Rotation
from engine.tensor_parallel import WHOLE, Communicator, ModelSlice, SingleRank
from kernels.decoder_step import DecoderStep, StepDecoder, StepLayer, StepLinear, StepRows
from kernels.ops import Ops, PrefillMeta
from kernels.panels import PanelMatrix


@dataclass(frozen=True, slots=True)
class DecodeMeta:
    """The sequences of a decode step, one new token each."""

    block_tables: Tensor  # int32 [num_seqs, max_blocks], padded with blocks of the same sequence
    seq_lens: Tensor  # int32 [num_seqs], the new token included


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: Tensor  # [hidden]
    qkv: Linear  # hidden -> (num_heads + 2 * num_kv_heads) * head_dim: queries, keys, values; the rank's heads
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    output: Linear  # num_heads * head_dim -> hidden; of several ranks the parts of a sum, and so with the MLP
    post_norm: Tensor  # [hidden], before the MLP
    mlp: Mlp | Experts
    input_norm_bias: Tensor | None = None
    post_norm_bias: Tensor | None = None
    attention_norm: Tensor | None = None  # [hidden], of what attention gives
    mlp_norm: Tensor | None = None  # [hidden], of what the MLP gives


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Everything that is loaded."""

    embedding: Tensor  # [vocab, hidden], whole in every rank
    layers: list[LayerWeights]
    final_norm: Tensor  # [hidden]
    # One, to the rank's part of the vocabulary; a reward model's: one or two, to one number, whole in every rank.
    head: tuple[Linear, ...]
    final_norm_bias: Tensor | None = None
    positions: Tensor | None = None  # [max_position_embeddings, hidden], where they are learned


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
        ropes = [rope for rope in (config.rope, config.local_rope) if rope is not None]
        self._rotations = [Rotation(rope, config.head_dim, dtype, device) for rope in ropes]
        # By layer: which of them it rotates by.
        self._rotation_of = [1 if window is not None and len(ropes) == 2 else 0 for window in config.sliding_windows]
        # Rounded as the embedding is: the model was trained with that.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype).item()
        self._feed_forward = FeedForward(config, ops)
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

    @property
    def can_be_recorded(self) -> bool:
        """Whether what `forward` launches for a decode step is the same for every batch of a size."""
        return self.config.experts is None

    def step(self, rows: StepRows, pool: KVPool) -> tuple[Tensor, Tensor | None]:
        """Compute tokens and write their KV, all in one call.

        -> [wanted, hidden], before the final norm; float32 [num_answered, vocab], or None for a reward model
        """
        assert self._whole_step is not None, "not every model has whole steps"
        cos, sin = self._rotations[0].up_to(max(rows.positions))
        return self._whole_step(rows, cos, sin, pool.tensor)

    def largest_of_step(self, rows: StepRows, pool: KVPool) -> tuple[list[int], list[float]]:
        """`step`, and of the logits only each row's largest: -> its id, the first of equals, and its log-softmax."""
        assert self._whole_step is not None, "not every model has whole steps"
        cos, sin = self._rotations[0].up_to(max(rows.positions))
        return self._whole_step.largest(rows, cos, sin, pool.tensor)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64 [T] -> [T, hidden], a tensor of its own, in which other features may be put"""
        embedded = self._weights.embedding[token_ids]
        return embedded if self._embedding_scale == 1.0 else embedded * self._embedding_scale

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Compute tokens and write their KV.

        token_ids, positions, slot_mapping: int64 [T]; slot = block_id * block_size + place in the block.
        embedded: [T, hidden], of `embed`; None: what it makes of `token_ids`.
        -> [T, hidden], before the final norm.
        """
        is_parallel = self.config.residual is Residual.PARALLEL
        complete, feed_forward = self.communicator.all_reduce, self._feed_forward
        rotations = [rotation.of(positions) for rotation in self._rotations]
        residual = self.embed(token_ids) if embedded is None else embedded
        if self._weights.positions is not None:
            residual = residual + self._weights.positions[positions]
        added: Tensor | None = None  # what the last block gives to the residual stream
        for index, layer in enumerate(self._weights.layers):
            normed, residual = self._add_norm(added, residual, layer.input_norm, layer.input_norm_bias)
            attended = self._attention(index, normed, rotations, slot_mapping, meta, pool)
            if is_parallel:
                normed = self._norm(residual, layer.post_norm, layer.post_norm_bias)
                added = complete(attended + feed_forward(normed, layer.mlp))
                continue
            attended = complete(attended)
            if layer.attention_norm is not None:
                attended = self._norm(attended, layer.attention_norm)
            normed, residual = self._add_norm(attended, residual, layer.post_norm, layer.post_norm_bias)
            added = complete(feed_forward(normed, layer.mlp))
            if layer.mlp_norm is not None:
                added = self._norm(added, layer.mlp_norm)
        assert added is not None, "a model has layers"
        return residual + added

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden: [N, hidden] of `forward`, of tokens whose successor is wanted -> float32 [N, vocab], or into `out`"""
        assert not self.is_reward, "a reward model has no language head"
        part = self._linear(self._final_norm(hidden), self._weights.head[0])
        logits = self.communicator.all_gather(part)[:, : self.config.vocab_size]
        cap = self.config.logit_cap
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits.float() if out is None else out.copy_(logits)

    def score(self, hidden: Tensor) -> Tensor:
        """hidden: [N, hidden] of `forward`, of last tokens -> float32 [N], the reward head's raw output"""
        assert self.is_reward, "only a reward model scores"
        first, *second = self._weights.head
        out = self._linear(self._final_norm(hidden), first)
        for linear in second:
            out = self._linear(F.relu(out), linear)
        return out.squeeze(-1).float()

    def _find_whole_step(self) -> DecoderStep | None:
        """The ops table's, where it has one for a model like this, whole in this process and its weights in panels."""
        make, weights, config = self._ops.whole_step, self._weights, self.config
        if make is None or self.communicator.shard != WHOLE or not _is_plain(config):
            return None
        layers = []
        for layer, window in zip(weights.layers, config.sliding_windows, strict=True):
            assert isinstance(layer.mlp, Mlp), "a plain model has no experts"
            linears = [_in_panels(linear) for linear in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)]
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
                rms_norm_eps=config.norm_eps,
                scale=config.attention_scale,
            )
        )

    def _attention(
        self,
        index: int,
        normed: Tensor,
        rotations: list[tuple[Tensor, Tensor]],
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
    ) -> Tensor:
        """normed: [T, hidden], of layer `index` -> [T, hidden], the rank's part of it"""
        config, ops, layer = self.config, self._ops, self._weights.layers[index]
        heads = [len(self._slice.heads), self.num_kv_heads, self.num_kv_heads]
        qkv = self._linear(normed, layer.qkv).view(-1, sum(heads), config.head_dim)
        q, k, v = torch.split(qkv, heads, dim=1)
        if rotations:
            cos, sin = rotations[self._rotation_of[index]]
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = ops.norm_rope(q, k, layer.q_norm, layer.k_norm, config.norm_eps, cos, sin)
            else:
                q, k = ops.rope(q, k, cos, sin)
        keys, values = pool.layer(index)
        ops.kv_write(k, v, keys, values, slot_mapping)
        scale, window, cap = config.attention_scale, config.sliding_windows[index], config.attention_cap
        if isinstance(meta, PrefillMeta):
            attended = ops.attention_prefill(q, k, v, keys, values, meta, scale, window, cap)
        else:
            attended = ops.attention_decode(q, keys, values, meta.block_tables, meta.seq_lens, scale, window, cap)
        return self._linear(attended.reshape(attended.shape[0], -1), layer.output)

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            return F.layer_norm(x, weight.shape, weight, bias, self.config.norm_eps)
        return self._ops.rms_norm(x, weight, self.config.norm_eps)

    def _add_norm(
        self, added: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(norm of the new residual, the new residual); there is nothing to add before the first layer."""
        if added is None:
            return self._norm(residual, weight, bias), residual
        if bias is None:
            return self._ops.add_rms_norm(added, residual, weight, self.config.norm_eps)
        residual = residual + added
        return self._norm(residual, weight, bias), residual

    def _final_norm(self, hidden: Tensor) -> Tensor:
        return self._norm(hidden, self._weights.final_norm, self._weights.final_norm_bias)

    def _linear(self, x: Tensor, linear: Linear) -> Tensor:
        return self._ops.linear(x, linear.weight, linear.bias)


def _is_plain(config: ModelConfig) -> bool:
    """Whether a whole step computes all of it: a Llama with or without biases, windows and norms of heads."""
    return (
        config.norm is Norm.RMS
        and config.residual is Residual.SEQUENTIAL
        and config.activation is Activation.SILU
        and config.is_gated
        and config.experts is None
        and config.rope is not None
        and config.local_rope is None
        and config.attention_cap is None
        and config.logit_cap is None
        and config.embedding_scale == 1.0
    )


def _in_panels(linear: Linear) -> StepLinear | None:
    return StepLinear(linear.weight, linear.bias) if isinstance(linear.weight, PanelMatrix) else None


LoadProgress = Callable[[float], None]  # is told the share of the weights that is loaded, 0..1
