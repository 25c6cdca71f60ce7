"""Coming back to a stream: at any process, after any token, to the bytes that the first connection would have sent."""

from typing import Any

import httpx
import pytest

from settings import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run

PROMPT = "What is AI?"
TEXT = "one STOP two three"


def frames_of(content: bytes) -> list[tuple[int, bytes]]:
    """(id, the rest) of every event."""
    events = content.removesuffix(b"\n\n").split(b"\n\n") if content else []
    lines = [event.split(b"\n") for event in events]
    assert all(len(pair) == 2 and pair[0].startswith(b"id: ") for pair in lines), content
    return [(int(pair[0].removeprefix(b"id: ")), pair[1]) for pair in lines]


async def whole(cluster: FakeCluster, request_id: str, **parameters: Any) -> list[tuple[int, bytes]]:
    body = {"inputs": PROMPT, "parameters": parameters}
    headers = {"X-SSE-Ids": "true", "X-Request-Id": request_id}
    answer = await cluster.post("/generate_stream", body, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == request_id
    return frames_of(answer.content)


async def resume(cluster: FakeCluster, request_id: str, after: int, **more: Any) -> httpx.Response:
    return await cluster.client.get(f"/requests/{request_id}/stream", headers={"Last-Event-ID": str(after)}, **more)


@pytest.mark.parametrize("parameters", [{}, {"stop_sequences": ["STOP"]}, {"stop_sequences": ["three!"]}])
def test_every_place_of_an_ended_stream_can_be_resumed_from(settings: Settings, parameters: dict[str, Any]) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as first, fake_cluster(settings, takes_jobs=False) as second:
            ids = [first.ids(character)[0] for character in TEXT]
            first.script = first.events_script(first.events(ids))
            frames = await whole(first, "r", **parameters)
            assert [index for index, _ in frames] == list(range(len(frames)))
            for after in range(-1, len(frames) - 1):
                answer = await resume(second, "r", after)
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert frames_of(answer.content) == frames[after + 1 :]
            for after in (len(frames) - 1, len(frames), 1000):
                assert (await resume(second, "r", after)).status_code == 204  # an EventSource stops

    run(main())
