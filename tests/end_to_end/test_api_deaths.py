"""An API process is killed in the middle of streams; their clients go on at another, and miss or repeat nothing."""

import json
import signal
import socket
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
    """A cluster with a second API process. Tests may kill either, if they start another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.first = "api-0"
        self.start_second()

    def start_first(self) -> None:
        self.first = self.cluster.start("api")
        wait_until(lambda: is_ready(self.cluster.url), 60, "the first API is ready")

    def start_second(self) -> None:
        port = free_port()
        self.second, self.second_url = self.cluster.start("api", PDQ_API__PORT=str(port)), f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(self.second_url), 60, "the second API is ready")

    def request(self, request_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.cluster.url}/requests/{request_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def phase(self, request_id: str) -> str:
        answer = httpx.get(f"{self.cluster.url}/requests/{request_id}")
        return str(answer.json()["choices"][0]["phase"]) if answer.status_code == 200 else "unknown"


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/readiness").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def pair(shared_pair: ApiPair) -> ApiPair:
    """Both processes run, whatever became of the test before."""
    for name, start in ((shared_pair.first, shared_pair.start_first), (shared_pair.second, shared_pair.start_second)):
        if shared_pair.cluster.processes[name].poll() is not None:
            start()
    return shared_pair


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[ApiPair]:
    env = {
        "PDQ_STREAM__RECONNECT_S": "2",
        "PDQ_API__DRAIN_S": "1",
        "PDQ_QUEUE__HEARTBEAT_S": "0.05",  # by which a test learns what is free
        "PDQ_PREFILL__TOKEN_BUDGET": "64",  # a long prompt takes many steps
    }
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
    assert begun + rest.content == undisturbed
    assert ids_of(begun + rest.content) == list(range(ids_of(undisturbed)[-1] + 1))
    finished = json.loads(undisturbed.rstrip().rsplit(b"data:")[-1])
    assert finished["finish_reason"] == ("stop" if case == "stop" else "length")
    after_all = {"Last-Event-ID": str(ids_of(undisturbed)[-1])}
    assert httpx.get(f"{pair.cluster.url}/requests/{request_id}/stream", headers=after_all).status_code == 204


def test_what_nobody_comes_back_for_is_cancelled_though_every_api_died(pair: ApiPair) -> None:
    body = body_of(max_new_tokens=7000)
    with httpx.Client(timeout=60) as client:
        streams = []
        for number, url in enumerate((pair.cluster.url, pair.second_url)):
            headers = {"X-Request-Id": f"orphan-{number}"} | ({"X-Detached": "true"} if number else {})
            request = client.build_request("POST", url + "/generate_stream", json=body, headers=headers)
            streams.append(client.send(request, stream=True).iter_raw())
            next(streams[-1])
        for name in (pair.first, pair.second):
            pair.cluster.kill(name)
        streams.clear()
    pair.start_first()
    assert pair.phase("orphan-0") == "decoding"  # its client would still be in time
    wait_until(lambda: pair.phase("orphan-0") == "finished", 8, "the orphan is cancelled")
    assert pair.request("orphan-0")["choices"][0]["finish_reason"] == "abort"
    assert pair.phase("orphan-1") == "decoding"  # which is detached
    assert httpx.delete(f"{pair.cluster.url}/requests/orphan-1").json()["cancelled_choices"] == [0]
    wait_until(pair.cluster.all_blocks_are_free, 2, "every block is free")


def test_a_process_that_is_stopped_passes_its_streams_on(pair: ApiPair) -> None:
    headers = {"X-SSE-Ids": "true"}
    body = body_of(max_new_tokens=1500)
    undisturbed = httpx.post(pair.cluster.url + "/generate_stream", json=body, headers=headers, timeout=60).content
    with httpx.stream("POST", pair.second_url + "/generate_stream", json=body, headers=headers, timeout=60) as answer:
        request_id = answer.headers["x-request-id"]
        chunks = answer.iter_raw()
        begun = next(chunks)
        pair.cluster.kill(pair.second, signal.SIGTERM)
        wait_until(lambda: not is_ready(pair.second_url), 0.5, "not ready")
        assert httpx.get(pair.second_url + "/readiness").status_code == 503
        begun += b"".join(chunks)  # to the end of a whole answer
    assert pair.cluster.processes[pair.second].wait(5) == 0
    assert len(ids_of(begun)) > 10 and b"error" not in begun
    after = {"Last-Event-ID": str(ids_of(begun)[-1])}
    rest = httpx.get(f"{pair.cluster.url}/requests/{request_id}/stream", headers=after, timeout=60)
    assert begun + rest.content == undisturbed


@pytest.mark.parametrize(
    ("way", "phase"),
    [
        ("delete", "prefill_queued"),
        ("delete", "prefilling"),
        ("delete", "decode_queued"),
        ("delete", "decoding"),
        ("disconnect", "prefilling"),
        ("disconnect", "decoding"),
    ],
)
def test_a_cancel_frees_the_blocks_within_half_a_second(pair: ApiPair, way: str, phase: str) -> None:
    cluster, request_id = pair.cluster, f"{phase}-{way}"
    stopped = {"prefill_queued": "prefill-0", "decode_queued": "decode-0"}.get(phase)
    waits = stopped == "prefill-0"
    # Seven thousand tokens of which no prefix is cached.
    step = 31 if way == "delete" else 37
    prompt = [place * step % 250 for place in range(7000)] if phase == "prefilling" else PROMPT
    body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": 1000, "ignore_eos": True}})
    head = f"POST /generate_stream HTTP/1.1\r\nHost: test\r\nX-Request-Id: {request_id}\r\nContent-Length: {len(body)}"
    if stopped:
        cluster.kill(stopped, signal.SIGSTOP)
    try:
        with socket.create_connection(("127.0.0.1", cluster.port)) as client:
            client.sendall(f"{head}\r\n\r\n{body}".encode())
            wait_until(lambda: pair.phase(request_id) == phase, 5, f"the request is {phase}")
            wait_until(lambda: waits or not cluster.all_blocks_are_free(), 1, "it holds blocks")
            if way == "delete":
                answer = httpx.delete(f"{pair.second_url}/requests/{request_id}")
                assert answer.json() == {"request_id": request_id, "cancelled_choices": [0]}
        # Half a second, and what a beat and asking for it take here.
        wait_until(
            lambda: cluster.all_blocks_are_free() and pair.phase(request_id) == "finished", 0.8, "blocks are free"
        )
    finally:
        if stopped:
            cluster.kill(stopped, signal.SIGCONT)
    assert pair.request(request_id)["choices"][0]["finish_reason"] == "abort"
    wait_until(lambda: not any(status.num_running for status in cluster.workers()), 1, "nobody works on it")
    assert cluster.generate(PROMPT, max_new_tokens=5, ignore_eos=True)["count_output_tokens"] == 5
    wait_until(cluster.all_blocks_are_free, 2, "every block is free")
