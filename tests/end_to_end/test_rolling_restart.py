"""Every process is replaced under load; no request fails, and no stream misses or repeats a token."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, free_port, running_cluster, wait_until

NUM_CLIENTS = 2  # of either kind
NUM_TOKENS = 150
NUM_RESUMABLE_TOKENS = 300  # long enough that a stream is cut off when its API process goes
LONGEST_GAP_S = 10.0


@dataclass
class ResumingClient:
    """Asks one address after the other, and comes back for what it has begun."""

    urls: list[str]
    body: dict[str, object]
    number_of_url: int = 0
    num_tokens: int = 0  # of the stream that goes on
    num_resumed: int = 0
    gaps: list[float] = field(default_factory=list)

    def stream(self, request_id: str) -> list[int]:
        """The token ids of one request, by as many connections as it takes."""
        ids: list[int] = []
        is_begun, is_ended, heard = False, False, time.monotonic()
        while not is_ended:
            request: dict[str, Any] = {"headers": {"Last-Event-ID": str(len(ids) - 1)} if ids else {}}
            method, path = "GET", f"/requests/{request_id}/stream"
            if not is_begun:
                request = {"headers": {"X-SSE-Ids": "true", "X-Request-Id": request_id}, "json": self.body}
                method, path = "POST", "/generate_stream"
            try:
                with httpx.stream(method, self.urls[self.number_of_url] + path, timeout=30, **request) as answer:
                    if is_begun and not ids and answer.status_code == 404:
                        is_begun = False  # its first process went before it had created it
                        continue
                    assert answer.status_code == 200, answer.read()
                    for line in answer.iter_lines():
                        if line.startswith("id:"):
                            assert int(line.removeprefix("id:")) == len(ids)
                        elif line.startswith("data:"):
                            frame = json.loads(line.removeprefix("data:"))
                            ids.append(frame["token"]["id"])
                            self.gaps.append(time.monotonic() - heard)
                            heard, is_ended, self.num_tokens = time.monotonic(), frame["finished"], len(ids)
            except httpx.TransportError:
                pass  # a process that goes
            if not is_ended:
                self.number_of_url = (self.number_of_url + 1) % len(self.urls)
                self.num_resumed += bool(ids)
                is_begun = True
        return ids


def wait_for_work(running: Cluster, name: str, role: Role) -> None:
    """Waits until this worker has been given work since it was asked for. These prompts are prefilled in less than a
    heartbeat, so a prefill worker's count tells, not what it runs when it is looked at."""
    pid = running.processes[name].pid

    def count() -> int:
        (status,) = (status for status in running.workers(role) if status.pid == pid)
        return status.prefilled_tokens if role == Role.PREFILL else status.num_running

    before = count() if role == Role.PREFILL else 0
    wait_until(lambda: count() > before, 10, f"{name} is given work")


def test_replacing_everything_under_load_fails_nothing(tmp_path: Path, redis_url: str, tiny_dir: Path) -> None:
    # With leases this long a job that is left behind stalls its stream far beyond the longest gap.
    env = {"PDQ_QUEUE__LEASE_S": "60", "PDQ_QUEUE__HEARTBEAT_S": "0.25", "PDQ_API__DRAIN_S": "0.2"}
    with running_cluster(tmp_path, redis_url, tiny_dir, env) as running:
        prompts = [[(31 * number + place) % 250 for place in range(60)] for number in range(2 * NUM_CLIENTS)]
        lengths = [NUM_TOKENS] * NUM_CLIENTS + [NUM_RESUMABLE_TOKENS] * NUM_CLIENTS
        expected = [
            [frame["token"]["id"] for frame in running.stream(prompt, max_new_tokens=length, ignore_eos=True)]
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        is_api_next, is_over = threading.Event(), threading.Event()
        gaps: list[float] = []
        second_port = free_port()
        urls = [running.url, f"http://127.0.0.1:{second_port}"]
        resuming = [
            ResumingClient(
                urls,
                {"inputs": prompt, "parameters": {"max_new_tokens": NUM_RESUMABLE_TOKENS, "ignore_eos": True}},
            )
            for prompt in prompts[NUM_CLIENTS:]
        ]

        def stream_on(number: int) -> int:
            """Streams on one connection each until API processes are replaced too; how many."""
            num_streams = 0
            while not is_api_next.is_set():
                ids, heard = [], time.monotonic()
                for frame in running.stream(prompts[number], max_new_tokens=NUM_TOKENS, ignore_eos=True):
                    gaps.append(time.monotonic() - heard)
                    heard = time.monotonic()
                    ids.append(frame["token"]["id"])
                assert ids == expected[number]
                num_streams += 1
            return num_streams

        def resume_on(number: int) -> int:
            """Streams until it is over; how many."""
            num_streams = 0
            while not is_over.is_set():
                ids = resuming[number].stream(f"client-{number}-{num_streams}")
                assert ids == expected[NUM_CLIENTS + number]
                num_streams += 1
            return num_streams

        with ThreadPoolExecutor(2 * NUM_CLIENTS) as clients:
            streams = [clients.submit(stream_on, number) for number in range(NUM_CLIENTS)]
            resumed = [clients.submit(resume_on, number) for number in range(NUM_CLIENTS)]
            try:
                running.start("api", PDQ_API__PORT=str(second_port))
                for role in Role:
                    running.start(role)
                wait_until(lambda: running.num_ready() == 4, 60, "the new ones are ready")
                for role in Role:
                    wait_for_work(running, f"{role}-0", role)
                    assert running.stop(f"{role}-0") == 0
                    del running.processes[f"{role}-0"]
                time.sleep(0.5)  # streams that began before the last one went
                is_api_next.set()
                assert min(stream.result(60) for stream in streams) > 0
                wait_until(lambda: 10 < resuming[0].num_tokens < 100, 20, "a stream has begun")
                assert running.stop("api-0") == 0
                del running.processes["api-0"]
                wait_until(lambda: resuming[0].num_resumed > 0, 10, "it is resumed at the other process")
            finally:
                is_api_next.set()
                is_over.set()
            assert min(stream.result(60) for stream in resumed) > 0
        assert max(gaps + [gap for client in resuming for gap in client.gaps]) < LONGEST_GAP_S
        wait_until(running.all_blocks_are_free, 5, "every block is free")
        assert {status.pid for status in running.workers()} == {
            running.processes[f"{role}-1"].pid for role in Role
        }  # who went is off the registry
