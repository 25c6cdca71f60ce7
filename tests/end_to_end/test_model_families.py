"""Models unlike a Llama are served like one: prefilled by one worker, decoded by another."""

from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_cluster
from tests.tiny_models import prompts, tiny_model, transformers_greedy

NUM_TOKENS = 12


@pytest.mark.parametrize("name", ["gemma2", "olmo3"])  # ours; transformers'
def test_the_text_is_that_of_transformers(name: str, tmp_path: Path, redis_url: str) -> None:
    path = tiny_model(name).path
    with running_cluster(tmp_path, redis_url, path, {"PDQ_PREFILL__TOKEN_BUDGET": "32"}) as cluster:
        for prompt in prompts(count=3, longest=45):
            frames = list(cluster.stream(prompt, max_new_tokens=NUM_TOKENS, ignore_eos=True))
            assert [frame["token"]["id"] for frame in frames] == transformers_greedy(path, prompt, NUM_TOKENS)
        said = "model_runs_through_transformers" in cluster.log("decode-0")
        assert said == (name == "olmo3")
