"""The load generator against a scripted server: what it sends, what it counts, what it calls a failure."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from bench import lightllm_style
from bench.http_stream import resolve
from bench.load import Load, Outcome, run_workload
from bench.prompts import PromptSource
from bench.workload import Concurrency, Group, Poisson, Workload
from errors import ConfigError
from tests.bench.scripted_server import HEAD, Script, Server, scripted_server

ALL = Group("all", Concurrency(4), prompt_tokens=20, output_tokens=5, num_requests=12)


def run(
    *groups: Group, script: Callable[[int], Script] = lambda index: Script(), idle_timeout_s: float = 30.0
) -> tuple[Outcome, Server]:
    async def main() -> tuple[Outcome, Server]:
        async with scripted_server(script) as server:
            load = Load(await resolve(server.url, lightllm_style.PATH), lightllm_style, PromptSource(1), idle_timeout_s)
            return await run_workload(load, Workload("test", groups), 0, lambda record: None), server

    return asyncio.run(main())


def kinds(outcome: Outcome) -> list[str]:
    return [record.failure.kind if record.failure else "ok" for record in outcome.records]


def run_one(script: Script, idle_timeout_s: float = 30.0) -> Outcome:
    group = Group("all", Concurrency(1), prompt_tokens=20, output_tokens=5, num_requests=1)
    return run(group, script=lambda index: script, idle_timeout_s=idle_timeout_s)[0]


def test_closed_loop_sends_every_request_once_and_never_more_at_a_time() -> None:
    outcome, server = run(ALL)
    assert kinds(outcome) == ["ok"] * 12
    assert sorted(record.index for record in outcome.records) == list(range(12))
    assert server.most_open == 4
    assert len({tuple(body["inputs"]) for body in server.bodies}) == 12
    assert {len(body["inputs"]) for body in server.bodies} == {20}
    assert all(body["parameters"]["ignore_eos"] for body in server.bodies)
    assert server.heads[0].startswith("POST /generate_stream HTTP/1.1\r\nHost: 127.0.0.1:")


def test_every_token_has_its_arrival_in_order() -> None:
    outcome, _ = run(ALL)
    for record in outcome.records:
        assert len(record.arrivals_s) == 5
        assert outcome.start_s <= record.sent_s <= record.arrivals_s[0]
        assert record.arrivals_s == sorted(record.arrivals_s)
        assert record.arrivals_s[-1] <= record.end_s


def test_shared_prefix_is_shared() -> None:
    group = Group("all", Concurrency(1), 20, 2, num_requests=3, shared_prefix_tokens=15)
    _, server = run(group)
    prompts = [body["inputs"] for body in server.bodies]
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 3


def test_open_loop_does_not_wait_for_answers() -> None:
    """No request is answered before all have arrived: a closed loop of any smaller size would never end."""

    async def main() -> list[str]:
        all_here = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.append(writer)
            if len(arrived) == 8:
                all_here.set()
            await all_here.wait()
            writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        arrived: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = Load(await resolve(url, "/generate_stream"), lightllm_style, PromptSource(1), 30.0)
        group = Group("all", Poisson(500.0), 20, 5, num_requests=8)
        outcome = await run_workload(load, Workload("test", (group,)), 0, lambda record: None)
        server.close()
        await server.wait_closed()
        assert all(record.scheduled_s is not None for record in outcome.records)
        assert all(record.sent_s >= (record.scheduled_s or 0.0) - 0.002 for record in outcome.records)
        return kinds(outcome)

    assert asyncio.run(main()) == ["http_503"] * 8


def test_groups_run_at_the_same_time_and_keep_their_names() -> None:
    other = Group("long", Poisson(1000.0), 50, 2, num_requests=3)
    outcome, server = run(ALL, other)
    assert kinds(outcome) == ["ok"] * 15
    assert sum(record.group == "long" for record in outcome.records) == 3
    assert sum(len(body["inputs"]) == 50 for body in server.bodies) == 3


def test_duration_ends_a_closed_loop_and_its_open_requests_are_finished() -> None:
    group = Group("all", Concurrency(2), 20, 5, duration_s=0.05)
    outcome, server = run(group)
    assert len(outcome.records) == len(server.bodies) >= 2
    assert kinds(outcome) == ["ok"] * len(outcome.records)


@pytest.mark.parametrize(
    ("script", "kind", "num_tokens"),
    [
        (Script(status=503), "http_503", 0),
        (Script(status=417), "http_417", 0),
        (Script(cut_after=2), "cut_stream", 2),
        (Script(cut_after=0), "cut_stream", 0),
        (Script(has_end_chunk=False), "cut_stream", 5),
        (Script(raw=b""), "cut_stream", 0),
        (Script(error_after=3), "server_error", 3),
        (Script(num_tokens=4), "short_output", 4),
        (Script(num_tokens=6), "long_output", 6),
        (Script(finish_reason="abort"), "finish_abort", 5),
        (Script(finish_reason="error"), "finish_error", 5),
        (Script(counts=[1, 2, 4, 5]), "token_gap", 5),
        (Script(counts=[1, 2, 2, 3, 4, 5]), "token_repeated", 5),
        (Script(prompt_tokens=21), "wrong_prompt_tokens", 5),
        (Script(raw=b"hello\r\n\r\n"), "bad_response", 0),
        (Script(raw=HEAD + b"6\r\ndata:x\r\n2\r\n\n\n\r\n0\r\n\r\n"), "bad_frame", 0),
    ],
)
def test_what_is_not_a_whole_answer_is_a_failure(script: Script, kind: str, num_tokens: int) -> None:
    outcome = run_one(script)
    assert kinds(outcome) == [kind]
    assert len(outcome.records[0].arrivals_s) == num_tokens


def test_the_servers_words_are_kept() -> None:
    failure = run_one(Script(status=503)).records[0].failure
    assert failure is not None and "Server is busy" in failure.detail
    failure = run_one(Script(error_after=1)).records[0].failure
    assert failure is not None and failure.detail == "worker failed"


def test_a_silent_server_times_out() -> None:
    outcome = run_one(Script(hang_after=2), idle_timeout_s=0.1)
    assert kinds(outcome) == ["timeout"]
    assert len(outcome.records[0].arrivals_s) == 2


def test_refused_connections_are_failures() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port meanwhile
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        async def main() -> Outcome:
            load = Load(await resolve(url, "/generate_stream"), lightllm_style, PromptSource(1), 5.0)
            group = Group("all", Concurrency(3), 20, 5, num_requests=3)
            return await run_workload(load, Workload("test", (group,)), 0, lambda record: None)

        assert kinds(asyncio.run(main())) == ["connection_refused"] * 3


def test_failures_and_successes_in_one_run() -> None:
    outcome, _ = run(ALL, script=lambda index: Script(status=503) if index % 3 == 0 else Script())
    assert sorted(kinds(outcome)) == ["http_503"] * 4 + ["ok"] * 8


def test_frames_cut_into_single_bytes_count_the_same() -> None:
    frame = (
        b'data:{"token":{"count_output_tokens":1,"prompt_tokens":20},"finished":true,"finish_reason":"length"}\r\n\r\n'
    )
    coded = b"".join(b"1\r\n%c\r\n" % byte for byte in frame)
    group = Group("all", Concurrency(1), 20, 1, num_requests=1)
    outcome, _ = run(group, script=lambda index: Script(raw=HEAD + coded + b"0\r\n\r\n"))
    assert kinds(outcome) == ["ok"]


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        asyncio.run(resolve(url, "/x"))


def test_a_url_with_a_path_keeps_it() -> None:
    async def main() -> str:
        return (await resolve("http://127.0.0.1:1/base/", "/generate_stream")).path

    assert asyncio.run(main()) == "/base/generate_stream"
