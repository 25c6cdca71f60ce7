"""Decode through recorded steps says what decode launched kernel by kernel says.

The kernels are our Triton ones under the interpreter, as padding needs slots of -1 and lengths of 0. The backend is a
recorder that is as strict as a capture: whatever would wait for the device, or bring values of the host there, raises.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.kernels import interpreter
from engine.decode_graphs import DecodeGraphs
from engine.decode_inputs import DecodeInputs
from engine.decode_rows import DecodeRows
from engine.kv_pool import KVLayout, KVPool
from engine.model import Model
from engine.model_runner import ModelRunner
from engine.weights import load_model
from kernels.gpu.table import gpu_ops
from tests.tiny_models import greedy, prompts, sequences_for, tiny_model, transformers_greedy

NUM_TOKENS = 3
PROMPTS = prompts(count=3, longest=20)


class NotCapturable(Exception):
    """A graph cannot record this."""


class _CaptureRules(TorchDispatchMode):  # type: ignore[no-untyped-call]
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in self.FORBIDDEN:
            raise NotCapturable(name)
        return func(*args, **(kwargs or {}))


class Recorder:
    """A GraphBackend: what it has captured is run again, on the same memory, by the same rules."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            with _CaptureRules():  # type: ignore[no-untyped-call]
                run()

        replay()
        self.num_replayed -= 1
        return replay

    def host_buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    interpreter.install()
    monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype: gpu_ops())
    return load_model(tiny_model("mistral").path, torch.float32, torch.device("cpu"))


def pool_for(model: Model) -> KVPool:
    config = model.config
    pool = KVPool.allocate(KVLayout(config.num_layers, config.num_kv_heads, 16, config.head_dim, model.dtype), 12)
    pool.tensor.fill_(torch.nan)  # what no sequence wrote must not matter
    return pool


def test_the_same_tokens_for_every_batch_size(model: Model) -> None:
    pool, recorder = pool_for(model), Recorder()
    said: list[str] = []
    graphs = DecodeGraphs(model, pool, 2, 48, recorder, said.append)
    assert recorder.num_captured == 2 and said[-1] == "capturing CUDA graphs 2/2"
    assert pool.tensor.isnan().all(), "capturing touches no block"
    # Three sequences are one more than the largest graph holds; they are launched one by one.
    for count, replays in ((1, NUM_TOKENS - 1), (2, NUM_TOKENS - 1), (3, 0)):
        before = recorder.num_replayed
        recorded = greedy(ModelRunner(model, pool, graphs=graphs), PROMPTS[:count], NUM_TOKENS)
        assert recorder.num_replayed - before == replays
        assert recorded == greedy(ModelRunner(model, pool), PROMPTS[:count], NUM_TOKENS)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_other_families_are_recorded_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.install()
    monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype: gpu_ops())
    model = load_model(tiny_model(name).path, torch.float32, torch.device("cpu"))
    pool, recorder = pool_for(model), Recorder()
    graphs = DecodeGraphs(model, pool, 1, 48, recorder, lambda text: None)
    prompt = prompts(count=2, longest=33)[1]
    recorded = greedy(ModelRunner(model, pool, graphs=graphs), [prompt], NUM_TOKENS)
    assert recorder.num_replayed == NUM_TOKENS - 1
    assert recorded == [transformers_greedy(tiny_model(name).path, prompt, NUM_TOKENS)]


def test_a_mixture_of_experts_cannot_be_recorded() -> None:
    model = load_model(tiny_model("mixtral").path, torch.float32, torch.device("cpu"))
    assert not model.can_be_recorded
    assert load_model(tiny_model("gpt2").path, torch.float32, torch.device("cpu")).can_be_recorded


def test_padding_writes_nothing_and_a_longer_sequence_is_launched(model: Model) -> None:
    pool, recorder = pool_for(model), Recorder()
    graphs = DecodeGraphs(model, pool, 3, 32, recorder, lambda text: None)
    sequences = sequences_for(ModelRunner(model, pool), PROMPTS, NUM_TOKENS)
    for sequence in sequences:
        sequence.num_computed_tokens = sequence.num_tokens - 1
    rows = DecodeRows.of(sequences, 16)
    assert graphs.can_run(rows)
    assert graphs.run(rows).shape == (3, model.config.vocab_size)
    written = (~pool.tensor[:, 0, 0, 0].isnan()).any(dim=-1)  # [blocks, block_size]
    assert sorted(written.flatten().nonzero().flatten().tolist()) == sorted(rows.slots)
    long = DecodeRows([1], [32], [0], [[0, 1, 2]])
    assert not graphs.can_run(long)


def test_stale_tables_are_still_blocks_of_the_pool() -> None:
    inputs = DecodeInputs(3, 4, torch.device("cpu"), Recorder().host_buffer)
    inputs.fill(DecodeRows([5, 6, 7], [33, 17, 2], [33, 49, 2], [[1, 2, 3], [4, 5], [6]]), 3)
    assert inputs.block_tables.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0], [6, 0, 0, 0]]
    inputs.fill(DecodeRows([9], [3], [115], [[7]]), 2)
    assert inputs.token_ids[:2].tolist() == [9, 0] and inputs.positions[:2].tolist() == [3, 0]
    assert inputs.slot_mapping[:2].tolist() == [115, -1] and inputs.seq_lens[:2].tolist() == [4, 0]
    assert inputs.block_tables.tolist() == [[7, 2, 3, 0], [0, 5, 0, 0], [6, 0, 0, 0]]
    assert all(part.data_ptr() % 16 == 0 for part in (inputs.token_ids, inputs.positions, inputs.seq_lens))


def test_a_step_that_asks_the_device_is_refused() -> None:
    def run() -> None:
        torch.ones(1).item()

    with pytest.raises(NotCapturable, match="_local_scalar_dense"):
        Recorder().capture(run)
