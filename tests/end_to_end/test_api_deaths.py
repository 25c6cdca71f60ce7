"""An API process is killed in the middle of streams; their clients go on at another, and miss or repeat nothing."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.cluster import Cluster, free_port, running_cluster, wait_until

PROMPT = "The history of the railway began"
NUM_TOKENS = 300
SEEDED = {
    "do_sample": True,
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 11,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.3,
    "repetition_penalty": 1.1,
}


class ApiPair:
    """A cluster with a second API process. The first is `api-0`, tests may kill the second and start another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.start_second()

    def start_second(self) -> None:
        port = free_port()
        self.second, self.second_url = self.cluster.start("api", PDQ_API__PORT=str(port)), f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(self.second_url), 60, "the second API is ready")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/readiness").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[ApiPair]:
    env = {"PDQ_STREAM__RECONNECT_S": "2", "PDQ_QUEUE__HEARTBEAT_S": "0.05", "PDQ_API__DRAIN_S": "1"}
    with running_cluster(tmp_path_factory.mktemp("api-pair"), redis_url, tiny_dir, env) as running:
        yield ApiPair(running)


def body_of(**parameters: Any) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": NUM_TOKENS, "ignore_eos": True} | parameters}


def read(answer: httpx.Response, count: int = 10**9) -> bytes:
    """The bytes of at most `count` events, and of none in part."""
    got = b""
    for chunk in answer.iter_raw():
        got += chunk
        if got.count(b"\n\n") >= count:
            break
    return got[: got.rindex(b"\n\n") + 2] if b"\n\n" in got else b""


def ids_of(frames: bytes) -> list[int]:
    return [int(line.removeprefix(b"id: ")) for line in frames.split(b"\n") if line.startswith(b"id: ")]


def text_of(frames: bytes) -> list[str]:
    lines = [line for line in frames.split(b"\n") if line.startswith(b"data:")]
    return [json.loads(line.removeprefix(b"data:"))["token"]["text"] for line in lines]


def late_stop(pair: ApiPair) -> str:
    """A text that a greedy run comes to only after two thirds of its tokens."""
    answer = httpx.post(pair.cluster.url + "/generate_stream", json=body_of(), timeout=60)
    texts = text_of(answer.content)
    whole, late = "".join(texts), len("".join(texts[: NUM_TOKENS * 2 // 3]))
    return next(whole[at : at + 6] for at in range(late, len(whole)) if whole.find(whole[at : at + 6]) == at)


@pytest.mark.parametrize("case", ["greedy", "seeded", "stop"])
def test_a_stream_goes_on_at_another_process(pair: ApiPair, case: str) -> None:
    parameters: dict[str, Any] = {"seeded": SEEDED}.get(case, {})
    if case == "stop":
        parameters = {"stop_sequences": [late_stop(pair)]}
    headers = {"X-SSE-Ids": "true"}
    undisturbed = httpx.post(
        pair.cluster.url + "/generate_stream", json=body_of(**parameters), headers=headers, timeout=60
    ).content
    with httpx.stream(
        "POST", pair.second_url + "/generate_stream", json=body_of(**parameters), headers=headers, timeout=60
    ) as answer:
        request_id = answer.headers["x-request-id"]
        begun = read(answer, 60)
        pair.cluster.kill(pair.second, signal.SIGKILL)
    last_seen = ids_of(begun)[-1]
    rest = httpx.get(
        f"{pair.cluster.url}/requests/{request_id}/stream", headers={"Last-Event-ID": str(last_seen)}, timeout=60
    )
    pair.start_second()
    assert begun + rest.content == undisturbed
    assert ids_of(begun + rest.content) == list(range(ids_of(undisturbed)[-1] + 1))
    finished = json.loads(undisturbed.rstrip().rsplit(b"data:")[-1])
    assert finished["finish_reason"] == ("stop" if case == "stop" else "length")
    after_all = {"Last-Event-ID": str(ids_of(undisturbed)[-1])}
    assert httpx.get(f"{pair.second_url}/requests/{request_id}/stream", headers=after_all).status_code == 204
