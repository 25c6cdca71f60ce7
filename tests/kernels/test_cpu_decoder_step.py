"""The whole step as one call against its twin: the model over the plain ops table, on the same weights."""

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.decode_rows import DecodeRows
from engine.feed_forward import Linear, Mlp
from engine.kv_pool import KVLayout, KVPool
from engine.model import LayerWeights, Model, ModelWeights
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner, PrefillChunk
from engine.prefill_rows import PrefillRows
from engine.sequence import Sequence
from engine.step import DecodeStep, PrefillStep
from kernels import cpu_build
from kernels.greedy import fused_greedy
from kernels.ops import cpu_ops, plain_ops
from messages.request import SamplingParams

CPU = torch.device("cpu")


def _shape(hidden: int, intermediate: int, heads: tuple[int, int], **others: Any) -> dict[str, Any]:
    """heads: of queries, of keys and values"""
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate}
    return sizes | {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], **others}


SHAPES = {
    "demo": _shape(576, 1536, (9, 3)),
    "odd": _shape(60, 101, (6, 2), head_dim=16),
    "one_kv_head": _shape(96, 96, (10, 1), head_dim=48),
    "as_many_kv_heads": _shape(128, 160, (4, 4), head_dim=80),
    "wide_heads": _shape(130, 64, (4, 2), head_dim=128),
    "biased": _shape(64, 96, (4, 2), attention_bias=True, mlp_bias=True),
    "windowed": _shape(64, 96, (4, 2), sliding_window=70),
    "query_key_norm": _shape(64, 96, (4, 2), head_dim=32),
}
STEMS = {"windowed": "Mistral", "query_key_norm": "Qwen3"}
VOCAB_SIZE = 259


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = cpu_build.load()
    if found is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return found


@pytest.fixture
def threads(library: ctypes.CDLL) -> Iterator[Any]:
    """Sets the team's number."""
    yield library.pdq_set_threads
    library.pdq_set_threads(torch.get_num_threads())


class Twins:
    """A random bfloat16 model as one call, in torch's own bfloat16, and in float32."""

    def __init__(self, library: ctypes.CDLL, shape: str, directory: Path) -> None:
        config = {
            "architectures": [f"{STEMS.get(shape, 'Llama')}ForCausalLM"],
            "vocab_size": VOCAB_SIZE,
            "num_hidden_layers": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "eos_token_id": 2,
            **SHAPES[shape],
        }
        (directory / "config.json").write_text(json.dumps(config))
        self.config = ModelConfig.from_dir(directory)
        weights = self._weights()
        self.ours = self._runner(weights, cpu_ops(library, torch.bfloat16), torch.bfloat16)
        self.plain = self._runner(weights, plain_ops(CPU, torch.bfloat16), torch.bfloat16)
        self.exact = self._runner(weights, plain_ops(CPU, torch.float32), torch.float32)

    def _weights(self) -> ModelWeights:
        config, generator = self.config, torch.Generator().manual_seed(3)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).bfloat16()

        def linear(ins: int, outs: int, bias: bool) -> Linear:
            return Linear(random(outs, ins, scale=ins**-0.5), random(outs) if bias else None)

        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, size = config.hidden_size, config.intermediate_size
        layers = [
            LayerWeights(
                input_norm=random(hidden),
                qkv=linear(hidden, q + 2 * kv, config.qkv_bias),
                q_norm=random(config.head_dim) if config.qk_norm else None,
                k_norm=random(config.head_dim) if config.qk_norm else None,
                output=linear(q, hidden, config.output_bias),
                post_norm=random(hidden),
                mlp=Mlp(linear(hidden, 2 * size, config.mlp_bias), linear(size, hidden, config.mlp_bias)),
            )
            for _ in range(config.num_layers)
        ]
        return ModelWeights(random(VOCAB_SIZE, hidden), layers, random(hidden), (linear(hidden, VOCAB_SIZE, False),))

    def _runner(self, weights: ModelWeights, ops: Any, dtype: torch.dtype) -> ModelRunner:
        def linear(one: Linear) -> Linear:
            assert isinstance(one.weight, Tensor)
            return Linear(ops.pack_linear(one.weight.to(dtype)), None if one.bias is None else one.bias.to(dtype))

        def vector(one: Tensor | None) -> Tensor | None:
            return None if one is None else one.to(dtype)

        layers = [
            LayerWeights(
                input_norm=layer.input_norm.to(dtype),
                qkv=linear(layer.qkv),
                q_norm=vector(layer.q_norm),
                k_norm=vector(layer.k_norm),
                output=linear(layer.output),
                post_norm=layer.post_norm.to(dtype),
                mlp=Mlp(linear(layer.mlp.gate_up), linear(layer.mlp.down)),
            )
            for layer in weights.layers
            if isinstance(layer.mlp, Mlp)
        ]
        packed = ModelWeights(
            weights.embedding.to(dtype), layers, weights.final_norm.to(dtype), tuple(map(linear, weights.head))
        )
        model = Model(self.config, packed, ops, dtype, CPU, "random")
        layout = KVLayout(self.config.num_layers, self.config.num_kv_heads, 16, self.config.head_dim, dtype)
        pool = KVPool.allocate(layout, 160)
        if model.has_whole_steps:
            pool.tensor.fill_(torch.nan)  # nothing is read that was not written
        return ModelRunner(model, pool)


def sequences(lengths: list[int]) -> list[Sequence]:
    """Sequences of random tokens on scattered blocks."""
    generator = torch.Generator().manual_seed(7)
    blocks = torch.randperm(160, generator=generator).tolist()
    made = []
    for length in lengths:
        ids = torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
        table = [blocks.pop() for _ in range(length // 16 + 2)]
        made.append(Sequence(f"{length}", ids, length, SamplingParams(max_new_tokens=9, seed=1), 0, table))
    return made


@torch.inference_mode()
def prefill(runner: ModelRunner, some: list[Sequence], chunk: int = 4096) -> Tensor:
    """Every sequence's last logits, its prompt computed in chunks."""
    last = {}
    while left := [one for one in some if one.num_computed_tokens < one.num_tokens]:
        chunks = [PrefillChunk(one, min(chunk, one.num_tokens - one.num_computed_tokens)) for one in left]
        logits = runner.compute(PrefillStep(PrefillRows.of(chunks, 16), list(range(len(chunks)))))
        for row, one in zip(logits, chunks, strict=True):
            one.sequence.num_computed_tokens += one.num_tokens
            last[id(one.sequence)] = row
    return torch.stack([last[id(one)] for one in some])


@torch.inference_mode()
def decode(runner: ModelRunner, some: list[Sequence], token_id: int) -> Tensor:
    for one in some:
        one.token_ids.append(token_id)
    logits = runner.compute(DecodeStep(DecodeRows.of(some, 16)))
    for one in some:
        one.num_computed_tokens += 1
    return logits


def error(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_near_to_float32_as_torchs_own_bfloat16(library: ctypes.CDLL, shape: str, tmp_path: Path) -> None:
    twins = Twins(library, shape, tmp_path)
    assert twins.ours.model.has_whole_steps and not twins.plain.model.has_whole_steps
    lengths = [1, 5, 64, 131, 300]
    ours, plain, exact = (
        [prefill(runner, some), *(decode(runner, some, token_id) for token_id in (3, 70, 200))]
        for runner, some in ((runner, sequences(lengths)) for runner in (twins.ours, twins.plain, twins.exact))
    )
    for mine, theirs, right in zip(ours, plain, exact, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == right.shape
        for row in range(len(lengths)):
            bound = max(0.02, 1.5 * error(theirs[row], right[row]))
            assert error(mine[row], right[row]) <= bound


@pytest.mark.parametrize("shape", ["demo", "windowed", "odd"])
def test_a_row_has_the_same_bits_in_any_company_chunk_and_number_of_threads(
    library: ctypes.CDLL, threads: Any, shape: str, tmp_path: Path
) -> None:
    runner = Twins(library, shape, tmp_path).ours
    lengths = [2, 33, 270, 600]
    threads(1)
    some = sequences(lengths)
    first = prefill(runner, some)
    after = decode(runner, some, 9)
    threads(3)
    for chunk in (4096, 37):
        again = sequences(lengths)
        assert torch.equal(prefill(runner, again, chunk), first), chunk
        assert torch.equal(decode(runner, again, 9), after), chunk
    alone = sequences(lengths)
    for row, one in enumerate(alone):
        assert torch.equal(prefill(runner, [one])[0], first[row])
        assert torch.equal(decode(runner, [one], 9)[0], after[row])


@pytest.mark.parametrize("shape", ["demo", "odd"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_largest_alone_is_what_greedy_finds_in_the_logits(
    library: ctypes.CDLL, threads: Any, shape: str, num_threads: int, tmp_path: Path
) -> None:
    runner = Twins(library, shape, tmp_path).ours
    threads(num_threads)
    some, again = sequences([2, 33, 270]), sequences([2, 33, 270])
    prefill(runner, some)
    ids, logprobs = fused_greedy(library, decode(runner, some, 9))
    prefill(runner, again)
    for one in again:
        one.token_ids.append(9)
    sampled = runner.decode(again)
    assert [one.token_id for one in sampled] == ids.tolist()
    assert [one.logprob for one in sampled] == logprobs.tolist()  # to the bit


def test_greedy_steps_write_no_logits_and_others_do(
    library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Twins(library, "demo", tmp_path).ours
    some = sequences([2, 33])
    prefill(runner, some)
    taken: list[str] = []

    def noted(name: str) -> Any:
        behind = getattr(runner.model, name)
        return lambda *those: [taken.append(name), behind(*those)][1]  # type: ignore[func-returns-value]

    for name in ("step", "largest_of_step"):
        monkeypatch.setattr(runner.model, name, noted(name))
    chosen = []
    several: list[dict[str, Any]] = [{}, {"num_top_logprobs": 2}, {"min_new_tokens": 9}]
    for params in several:
        some[1].sampling = SamplingParams(max_new_tokens=9, seed=1, **params)
        for one in some:
            one.token_ids[one.num_computed_tokens :] = [5]
        chosen.append(runner.decode(some)[0])
        for one in some:
            one.num_computed_tokens -= 1
    assert taken == ["largest_of_step", "step", "step"]
    assert chosen[0] == chosen[1] == chosen[2]  # of whom the others ask for nothing, to the bit


def test_only_the_slots_of_new_tokens_are_written(library: ctypes.CDLL, tmp_path: Path) -> None:
    runner = Twins(library, "odd", tmp_path).ours
    (one,) = sequences([20])
    prefill(runner, [one])
    written = ~runner.pool.tensor.isnan().all(dim=(1, 2, 3, 5))  # [block, place]
    wanted = torch.zeros_like(written)
    wanted[one.block_table[0]] = True
    wanted[one.block_table[1], :4] = True
    assert torch.equal(written, wanted)


def test_positions_beyond_the_first_table_of_angles(library: ctypes.CDLL, tmp_path: Path) -> None:
    twins = Twins(library, "odd", tmp_path)
    results = []
    for runner in (twins.ours, twins.exact):
        (one,) = sequences([1500])
        results.append(torch.cat((prefill(runner, [one], 700), decode(runner, [one], 4))))
    assert error(*results) < 0.05
