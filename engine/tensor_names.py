"""What the tensors of a checkpoint are called, and how queries, keys and values lie in them. Data; knows no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.families import TensorNames


@dataclass(frozen=True, slots=True)
class Layout:
    """Names in one kind of checkpoint, those of a layer without its prefix. All of them lack ".weight"."""

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    layer: str = "model.layers.{}"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    input_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # three, or one with all
    is_grouped: bool = False  # the one has each key-value head beside its queries, not all queries first
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    attention_norm: str | None = None  # of what attention gives
    post_norm: str = "post_attention_layernorm"  # before the MLP
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # two, one with both, or only up
    down: str = "mlp.down_proj"
    mlp_norm: str | None = None  # of what the MLP gives
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{}"
    expert_gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    shared_expert: str = "mlp.shared_expert"
    shared_gate: str = "mlp.shared_expert_gate"
    is_transposed: bool = False  # linears of layers are stored [in, out]
    optional_prefix: str = ""  # what checkpoints of the bare trunk leave away
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)  # endings of buffers that old transformers wrote


LAYOUTS = {
    TensorNames.LLAMA: Layout(),
    TensorNames.INTERNLM2: Layout(
        embedding="model.tok_embeddings",
        head="output",
        input_norm="attention_norm",
        qkv=("attention.wqkv",),
        is_grouped=True,
        output="attention.wo",
        post_norm="ffn_norm",
        gate_up=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
        ignored=(".rotary_emb.inv_freq", ".rope.inv_freq"),
    ),
    TensorNames.GEMMA: Layout(
        attention_norm="post_attention_layernorm",
        post_norm="pre_feedforward_layernorm",
        mlp_norm="post_feedforward_layernorm",
    ),
    TensorNames.PHI3: Layout(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
    TensorNames.GPT_NEOX: Layout(
        embedding="gpt_neox.embed_in",
        layer="gpt_neox.layers.{}",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        qkv=("attention.query_key_value",),
        is_grouped=True,
        output="attention.dense",
        gate_up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        ignored=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    ),
    TensorNames.GPT2: Layout(
        embedding="transformer.wte",
        positions="transformer.wpe",
        layer="transformer.h.{}",
        final_norm="transformer.ln_f",
        input_norm="ln_1",
        qkv=("attn.c_attn",),
        output="attn.c_proj",
        post_norm="ln_2",
        gate_up=("mlp.c_fc",),
        down="mlp.c_proj",
        is_transposed=True,
        optional_prefix="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    TensorNames.MIXTRAL: Layout(
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{}",
        expert_gate_up=("w1", "w3"),
        expert_down="w2",
    ),
    TensorNames.IDEFICS3: Layout(
        embedding="model.text_model.embed_tokens",
        layer="model.text_model.layers.{}",
        final_norm="model.text_model.norm",
    ),
}


def elements(heads: range, head_dim: int) -> range:
    """The rows, or columns, of these heads."""
    return range(heads.start * head_dim, heads.stop * head_dim)


def wqkv_rows(heads: range, kv_heads: range, queries_per_group: int, head_dim: int) -> list[range]:
    """Where queries, keys and values of these heads, in this order, lie in a grouped matrix (InternLM2, GPT-NeoX).

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


def rotated_halves(ranges: Sequence[range], head_dim: int, rotary_dim: int) -> list[range]:
    """The rows of whole heads in an order in which the model may rotate all of a head, half against half.

    A family that rotates only the first `rotary_dim` dimensions pairs i with i + rotary_dim / 2. Here every i is put
    `head_dim` / 2 before its partner, and the rest, which turns by no angle, behind both. Queries and keys are ordered
    alike, so that their products stay what they are.
    """
    if rotary_dim == head_dim:
        return list(ranges)
    turned, rest = rotary_dim // 2, (head_dim - rotary_dim) // 2
    ordered = []
    for rows in ranges:
        for first in range(rows.start, rows.stop, head_dim):
            still = first + rotary_dim
            ordered += [
                range(first, first + turned),
                range(still, still + rest),
                range(first + turned, still),
                range(still + rest, first + head_dim),
            ]
    return ordered
