"""429: which limit, when to come again, before any tokenizing, shared by API processes, given back at the end."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.tokenizer import Tokenizer
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until
from tests.api.keys import KeyFile
from tests.api.test_connections import Gate, asking, closed, head

PROMPT = "What is AI?"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


async def ask(cluster: FakeCluster, keys: KeyFile, key: str = "alice", **more: Any) -> httpx.Response:
    headers = keys.bearer(key) | more.pop("headers", {})
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 10} | more}
    return await cluster.post("/generate", body, headers=headers)


def test_requests_a_minute(settings: Settings, keys: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.add("alice", requests_per_min=2)
    keys.add("bob")

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(" AI")
            assert [(await ask(cluster, keys)).status_code for _ in range(2)] == [200, 200]
            monkeypatch.setattr(Tokenizer, "encode", None)  # nothing is tokenized any more
            for path in ("/generate", "/generate_stream", "/tokens", "/"):
                answer = await cluster.client.post(path, content=b"no JSON", headers=keys.bearer("alice"))
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
                said = "the API key may use 2 requests a minute, please try again later"
                assert answer.json() == {"message": said}
            monkeypatch.undo()
            assert (await ask(cluster, keys, "bob")).status_code == 200  # others have their own

    run(main())


def test_the_settings_limits_are_the_default(settings: Settings, keys: KeyFile) -> None:
    keys.add("alice")
    keys.add("bob", requests_per_min=0)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings, requests_per_min=1)) as cluster:
            cluster.script = cluster.length_script(" AI")
            assert [(await ask(cluster, keys)).status_code for _ in range(2)] == [200, 429]
            assert [(await ask(cluster, keys, "bob")).status_code for _ in range(3)] == [200, 200, 200]

    run(main())


def test_requests_in_flight_are_counted_across_api_processes(settings: Settings, keys: KeyFile) -> None:
    keys.add("alice", max_in_flight=2)

    async def main() -> None:
        chosen = keys.settings(settings)
        async with fake_cluster(chosen) as first, fake_cluster(chosen, workers=False, takes_jobs=False) as second:
            gate = Gate(first)
            running = [asyncio.create_task(ask(cluster, keys)) for cluster in (first, second)]

            async def both_run() -> bool:
                return len(first.requests) == 2

            await until(both_run)
            for cluster in (first, second):
                answer = await ask(cluster, keys)
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert "2 requests at once" in answer.json()["message"]
            gate.opened.set()
            assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
            assert (await ask(second, keys)).status_code == 200

    run(main())


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_is_no_longer_in_flight(settings: Settings, keys: KeyFile, path: str) -> None:
    keys.add("alice", max_in_flight=1)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster, cluster.serving() as port:
            Gate(cluster)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(path, asking(), f"X-API-Key: {keys.keys['alice']}"))

            async def runs() -> bool:
                return len(cluster.requests) == 1

            await until(runs)
            assert (await ask(cluster, keys)).status_code == 429
            await closed(writer)

            async def fits_again() -> bool:
                cluster.script = cluster.length_script(" AI")
                return (await ask(cluster, keys)).status_code == 200

            await until(fits_again, 2)

    run(main())


def test_tokens_a_minute(settings: Settings, keys: KeyFile) -> None:
    keys.add("alice", tokens_per_min=100)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(" AI")
            num_prompt, num_output = len(cluster.ids(PROMPT)), len(cluster.ids(" AI"))
            # 3 x (prompt + 25) are more than 100, but what was not generated comes back.
            used = 0
            while used + num_prompt + 25 <= 100:
                assert (await ask(cluster, keys, max_new_tokens=25)).status_code == 200
                used += num_prompt + num_output
            answer = await ask(cluster, keys, max_new_tokens=100 - num_prompt)
            wait_s = int(answer.headers["retry-after"])
            assert answer.status_code == 429 and 0.6 * used - 1 <= wait_s <= 0.6 * used + 1
            assert "100 tokens a minute" in answer.json()["message"]
            # What can never fit is the client's mistake, and waiting would not help.
            answer = await ask(cluster, keys, max_new_tokens=101 - num_prompt)
            assert answer.status_code == 417
            assert "may come to 101 tokens" in answer.json()["message"]
            assert (await ask(cluster, keys, best_of=2, max_new_tokens=50)).status_code == 417

    run(main())


def test_a_request_that_is_refused_later_gives_all_back(settings: Settings, keys: KeyFile) -> None:
    keys.add("alice", tokens_per_min=100, max_in_flight=1)

    async def main() -> None:
        chosen = keys.settings(settings)
        chosen = chosen.model_copy(update={"queue": chosen.queue.model_copy(update={"max_waiting": 1})})
        async with fake_cluster(chosen) as cluster:
            cluster.script = cluster.length_script(" AI")
            for _ in range(5):
                answer = await ask(cluster, keys, best_of=2, max_new_tokens=40)
                assert answer.status_code == 503  # two jobs, one place
            assert (await ask(cluster, keys, max_new_tokens=80)).status_code == 200

    run(main())


def test_an_id_that_is_in_use_is_counted_on_its_own(settings: Settings, keys: KeyFile) -> None:
    keys.add("alice", tokens_per_min=1000, max_in_flight=2)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            gate = Gate(cluster)
            same = {"X-Request-Id": "same"}
            first = asyncio.create_task(ask(cluster, keys, headers=same))

            async def runs() -> bool:
                return len(cluster.requests) == 1

            await until(runs)
            cluster.script = cluster.events_script([TokenEvent(5, -1.0, FinishReason.LENGTH)])
            # With the first one's record it would be taken for still running, and no third one would fit.
            for _ in range(2):
                assert (await ask(cluster, keys, headers=same)).status_code == 200
            gate.opened.set()
            assert (await first).status_code == 200
            ids = [request.request_id for request in cluster.requests]
            assert ids[0] == "same" and len(set(ids)) == 3

    run(main())


def test_monitoring_does_not_count(settings: Settings, keys: KeyFile) -> None:
    from api.key_file import Scope

    keys.add("root", Scope.ADMIN, requests_per_min=1)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings), takes_jobs=False) as cluster:
            for _ in range(5):
                assert (await cluster.client.get("/token_load", headers=keys.bearer("root"))).status_code == 200

    run(main())


def test_a_refusal_is_quick_whatever_the_body(settings: Settings, keys: KeyFile) -> None:
    """Without waiting for the body, which never comes here."""
    keys.add("alice", requests_per_min=1)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster, cluster.serving() as port:
            cluster.script = cluster.length_script(" AI")
            assert (await ask(cluster, keys)).status_code == 200
            took_s = []
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                began = time.perf_counter()
                lines = ["POST /generate HTTP/1.1", "Host: test", "Content-Length: 30000000"]
                writer.write("\r\n".join([*lines, f"X-API-Key: {keys.keys['alice']}", "", ""]).encode())
                assert b"429" in await reader.readline()
                took_s.append(time.perf_counter() - began)
                await closed(writer)
            assert min(took_s) < 0.05

    run(main())
