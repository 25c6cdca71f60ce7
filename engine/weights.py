"""From a checkpoint's tensors to the model's: names, fusing, InternLM2's layout, types. Knows how families name things.

Queries, keys and values become one matrix, gate and up another: two large products in place of five.
"""

from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.model import LayerWeights, Linear, LoadProgress, Model, ModelWeights
from engine.model_config import ModelConfig, RewardHead, TensorNames
from kernels.ops import Ops, select_ops
from messages import ModelError

# Buffers that old transformers wrote; we compute them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rope.inv_freq")


def load_model(
    model_dir: Path, dtype: torch.dtype | None, device: torch.device, progress: LoadProgress | None = None
) -> Model:
    """Read the model of a Hugging Face directory. `dtype` None: the checkpoint's own.

    `progress` is told the share that is loaded, ending with 1.0. Raises ModelError when the model is not supported,
    or when a tensor is missing, unexpected or of the wrong shape.
    """
    config = ModelConfig.from_dir(model_dir)
    dtype = dtype or getattr(torch, config.dtype)
    with torch.inference_mode():
        checkpoint = Checkpoint(model_dir)
        loader = _Loader(config, checkpoint, select_ops(device, dtype), dtype, device, progress or (lambda share: None))
        weights = loader.load()
    unexpected = [name for name in checkpoint.untaken() if not _may_be_ignored(name, config)]
    if unexpected:
        raise ModelError(f"{model_dir} holds tensors that {config.architecture} has no use for: {unexpected[:5]}")
    if progress is not None:
        progress(1.0)
    return Model(config, weights, loader.ops, dtype, device, checkpoint.hash())


def _may_be_ignored(name: str, config: ModelConfig) -> bool:
    if name.endswith(IGNORED_SUFFIXES):
        return True
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
    ) -> None:
        self.config, self.checkpoint, self.ops = config, checkpoint, ops
        self.dtype, self.device, self.progress = dtype, device, progress
        self.is_internlm2 = config.names is TensorNames.INTERNLM2

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
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        return LayerWeights(
            input_norm=self.vector(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self.fused(
                {f"{attention}.q_proj": q_size, f"{attention}.k_proj": kv_size, f"{attention}.v_proj": kv_size},
                hidden,
                config.qkv_bias,
            ),
            q_norm=self.vector(f"{attention}.q_norm.weight", head_dim) if config.qk_norm else None,
            k_norm=self.vector(f"{attention}.k_norm.weight", head_dim) if config.qk_norm else None,
            output=self.fused({f"{attention}.o_proj": hidden}, q_size, config.output_bias),
            post_norm=self.vector(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self.fused(
                {f"{mlp}.gate_proj": config.intermediate_size, f"{mlp}.up_proj": config.intermediate_size},
                hidden,
                config.mlp_bias,
            ),
            down=self.fused({f"{mlp}.down_proj": hidden}, config.intermediate_size, config.mlp_bias),
        )

    def internlm2_layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}"
        hidden, head_dim = config.hidden_size, config.head_dim
        qkv_size = (config.num_heads + 2 * config.num_kv_heads) * head_dim
        attention, mlp = f"{prefix}.attention", f"{prefix}.feed_forward"
        wqkv = self.checkpoint.take(f"{attention}.wqkv.weight", (qkv_size, hidden))
        bias = self.checkpoint.take(f"{attention}.wqkv.bias", (qkv_size,)) if config.qkv_bias else None
        return LayerWeights(
            input_norm=self.vector(f"{prefix}.attention_norm.weight", hidden),
            qkv=self.linear(
                deinterleave_wqkv(wqkv, config.num_heads, config.num_kv_heads, head_dim),
                None if bias is None else deinterleave_wqkv(bias, config.num_heads, config.num_kv_heads, head_dim),
            ),
            q_norm=None,
            k_norm=None,
            output=self.fused({f"{attention}.wo": hidden}, config.num_heads * head_dim, config.output_bias),
            post_norm=self.vector(f"{prefix}.ffn_norm.weight", hidden),
            gate_up=self.fused(
                {f"{mlp}.w1": config.intermediate_size, f"{mlp}.w3": config.intermediate_size}, hidden, bias=False
            ),
            down=self.fused({f"{mlp}.w2": hidden}, config.intermediate_size, bias=False),
        )

    def head(self, embedding: Tensor) -> tuple[Linear, ...]:
        config, hidden = self.config, self.config.hidden_size
        match config.reward_head:
            case RewardHead.LINEAR:
                return (self.fused({"score": 1}, hidden, bias=False),)
            case RewardHead.VALUE:
                return (self.fused({"v_head": 1}, hidden, bias=False),)
            case RewardHead.TWO_LAYER:
                return self.fused({"score.0": hidden}, hidden, bias=True), self.fused({"score.2": 1}, hidden, bias=True)
            case None if config.tie_word_embeddings:
                return (self.linear(embedding, None),)
            case None:
                name = "output" if self.is_internlm2 else "lm_head"
                return (self.fused({name: config.vocab_size}, hidden, bias=False),)

    def fused(self, parts: dict[str, int], in_size: int, bias: bool) -> Linear:
        """One linear of the named ones, outputs in that order. parts: name -> outputs."""
        weight = torch.cat([self.checkpoint.take(f"{name}.weight", (size, in_size)) for name, size in parts.items()])
        if not bias:
            return self.linear(weight, None)
        return self.linear(
            weight, torch.cat([self.checkpoint.take(f"{name}.bias", (size,)) for name, size in parts.items()])
        )

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        packed = self.ops.pack_linear(weight.to(self.device, self.dtype))
        return Linear(packed, None if bias is None else bias.to(self.device, self.dtype))

    def vector(self, name: str, *shape: int) -> Tensor:
        # A tensor of its own: a view would keep the file mapped and page in on first use.
        return self.checkpoint.take(name, shape).to(self.device, self.dtype, copy=True)


def deinterleave_wqkv(wqkv: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """InternLM2 lays each KV head beside the queries that share it: per group q ... q k v. -> queries, keys, values.

    wqkv: [(num_heads + 2 * num_kv_heads) * head_dim, ...], the same shape comes back.
    """
    queries_per_group = num_heads // num_kv_heads
    groups = wqkv.view(num_kv_heads, queries_per_group + 2, head_dim, *wqkv.shape[1:])
    parts = groups[:, :queries_per_group], groups[:, -2], groups[:, -1]
    return torch.cat([part.reshape(-1, *wqkv.shape[1:]) for part in parts])
