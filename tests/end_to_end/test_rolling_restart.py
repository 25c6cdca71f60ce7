"""Every worker is replaced under load; no request fails and no stream notices."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from messages import Role
from tests.end_to_end.cluster import running_cluster, wait_until

NUM_CLIENTS = 4
NUM_TOKENS = 150
LONGEST_GAP_S = 10.0


def test_replacing_every_worker_under_load_fails_nothing(tmp_path: Path, redis_url: str, tiny_dir: Path) -> None:
    # With leases this long a job that is left behind stalls its stream far beyond the longest gap.
    env = {"PDQ_QUEUE__LEASE_S": "60", "PDQ_QUEUE__HEARTBEAT_S": "0.25"}
    with running_cluster(tmp_path, redis_url, tiny_dir, env) as running:
        prompts = [[(31 * number + place) % 250 for place in range(60)] for number in range(NUM_CLIENTS)]
        parameters = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
        expected = [[f["token"]["id"] for f in running.stream(prompt, **parameters)] for prompt in prompts]
        is_over = threading.Event()
        gaps: list[float] = []

        def stream_on(number: int) -> int:
            """Streams until it is over; how many."""
            num_streams = 0
            while not is_over.is_set():
                ids, heard = [], time.monotonic()
                for frame in running.stream(prompts[number], **parameters):
                    gaps.append(time.monotonic() - heard)
                    heard = time.monotonic()
                    ids.append(frame["token"]["id"])
                assert ids == expected[number]
                num_streams += 1
            return num_streams

        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            streams = [clients.submit(stream_on, number) for number in range(NUM_CLIENTS)]
            try:
                for role in Role:
                    running.start(role)
                wait_until(lambda: running.num_ready() == 4, 60, "the new ones are ready")
                for role in Role:
                    running.busy_process(role)
                    assert running.stop(f"{role}-0") == 0
                    del running.processes[f"{role}-0"]
                time.sleep(0.5)  # streams that began before the last one went
            finally:
                is_over.set()
            assert min(stream.result(60) for stream in streams) > 0
        assert max(gaps) < LONGEST_GAP_S
        wait_until(running.all_blocks_are_free, 5, "every block is free")
        assert {status.pid for status in running.workers()} == {
            running.processes[f"{role}-1"].pid for role in Role
        }  # who went is off the registry
