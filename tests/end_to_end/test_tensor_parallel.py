"""Workers that are cut into ranks serve the same text as whole ones, and are replaced as a whole."""

from pathlib import Path

import psutil

from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until
from tests.tiny_models import greedy, tiny_model, tiny_runner

PROMPTS = [[3 + 5 * place + number for place in range(5 + 40 * number)] for number in range(3)]
NUM_TOKENS = 12


def token_ids(cluster: Cluster, prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    frames = cluster.stream([one % 256 for one in prompt], max_new_tokens=num_tokens, ignore_eos=True)
    return [frame["token"]["id"] for frame in frames]


def test_cut_workers_say_what_one_process_does_and_a_lost_rank_costs_no_request(tmp_path: Path, redis_url: str) -> None:
    path = tiny_model("llama_even").path
    expected = greedy(tiny_runner(path), [[one % 256 for one in prompt] for prompt in PROMPTS], NUM_TOKENS)
    env = {"PDQ_PREFILL__TENSOR_PARALLEL": "2", "PDQ_DECODE__TENSOR_PARALLEL": "2"}
    with running_cluster(tmp_path, redis_url, path, env) as cluster:
        assert [token_ids(cluster, prompt) for prompt in PROMPTS] == expected
        # A decode worker that is whole, beside a prefill worker that is not.
        whole = cluster.start("decode", PDQ_DECODE__TENSOR_PARALLEL="1")
        wait_until(lambda: cluster.num_ready() == 3, 60, "the whole decode worker is there")
        cut = cluster.processes["decode-0"]
        (rank,) = psutil.Process(cut.pid).children()
        rank.kill()
        wait_until(lambda: cut.poll() is not None, 10, "a worker that has lost a rank ends")
        assert cut.returncode == 1
        assert "was killed by SIGKILL" in cluster.log("decode-0")
        assert [token_ids(cluster, prompt) for prompt in PROMPTS] == expected
        assert len(cluster.workers(Role.DECODE)) == 1
        wait_until(cluster.all_blocks_are_free, 10, "no block is left over")
        assert cluster.stop("prefill-0") == 0
        assert cluster.stop(whole) == 0
        cluster.processes.pop("decode-0")
