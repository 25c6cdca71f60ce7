"""What comes over HTTP through queues and a KV handoff is what one process computes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from engine.block_space import BlockSpace
from engine.generator import Generator
from engine.kv_pool import KVLayout, KVPool
from engine.model_runner import ModelRunner
from engine.weights import load_model
from messages.request import SamplingParams
from tests.end_to_end.cluster import Cluster

PROMPTS = [[100 + 7 * place + number for place in range(3 + 29 * number)] for number in range(6)]
NUM_TOKENS = 20


def one_process(demo_dir: Path) -> list[list[int]]:
    model = load_model(demo_dir, torch.float32, torch.device("cpu"))
    layout = KVLayout(model.config.num_layers, model.config.num_kv_heads, 16, model.config.head_dim, model.dtype)
    runner = ModelRunner(model, KVPool.allocate(layout, 256, torch.device("cpu")))
    generator = Generator(runner, BlockSpace(256, 16, prefix_cache=True), runner.eos_token_ids)
    params = [SamplingParams(seed=0, max_new_tokens=NUM_TOKENS, ignore_eos=True)] * len(PROMPTS)
    return [generated.token_ids for generated in generator.generate(PROMPTS, params)]


def test_concurrent_streams_equal_one_process(demo: Cluster, demo_dir: Path) -> None:
    def token_ids(prompt: list[int]) -> list[int]:
        frames = demo.stream(prompt, max_new_tokens=NUM_TOKENS, ignore_eos=True)
        return [frame["token"]["id"] for frame in frames]

    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        streamed = list(clients.map(token_ids, PROMPTS))
    assert streamed == one_process(demo_dir)
