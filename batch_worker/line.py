"""One line through the cluster's HTTP API, until there is an answer that counts. Knows HTTP; no Redis, no files.

The request id of a line follows from the batch's id and the line's number, and the request is detached: it goes on in
the cluster when this process dies. Who takes the line over asks about that id first (docs/streams.md) and so gets the
answer of what runs already. What the cluster refuses for the moment (429, 503) is sent again after what
Retry-After says, without end: a batch has its window. What it fails at (500, 502) is tried `max_attempts` times.
"""

import asyncio
import random
from typing import Any

import httpx
import orjson

from batch_worker.rows import Answer
from settings.batch import BatchSettings
from telemetry import get_logger

log = get_logger()

POLL_S = 0.5
_REFUSED = (429, 503)
_NOT_LET_IN = (401, 403)  # the fault of this worker's key, not the line's
_FAILED = (500, 502)
_UNKNOWN = 404


class LineSender:
    """One per batch worker; `client` has the API's address and key."""

    def __init__(self, client: httpx.AsyncClient, settings: BatchSettings) -> None:
        self._client, self._settings = client, settings

    async def answer(self, request_id: str, endpoint: str, body: dict[str, Any], is_repeat: bool) -> Answer:
        """The answer to a line. `is_repeat`: somebody may have sent it before."""
        may_be_there = is_repeat and has_one_request(body)
        attempt = 0
        num_waits = 0
        while True:
            attempt_id = request_id if attempt == 0 else f"{request_id}-{attempt}"
            answer = await self._attached(attempt_id) if may_be_there else None
            wait_s = 0.0
            if answer is None:
                try:
                    response = await self._post(attempt_id, endpoint, body)
                except httpx.TransportError:
                    # The API went away, perhaps after it had taken the request.
                    may_be_there = has_one_request(body)
                    num_waits += 1
                    await asyncio.sleep(self._pause_s(num_waits))
                    continue
                answer = Answer(response.status_code, attempt_id, response.content)
                wait_s = _retry_after_s(response)
            if answer.status in _NOT_LET_IN:
                log.error("api_refuses_batch_worker", status=answer.status, advice="look at PDQ_BATCH__API_KEY_FILE")
                await asyncio.sleep(self._settings.max_wait_s)
            elif answer.status in _REFUSED:
                num_waits += 1
                await asyncio.sleep(max(min(wait_s, self._settings.max_wait_s), self._pause_s(num_waits)))
            elif answer.status in _FAILED and attempt + 1 < self._settings.max_attempts:
                attempt += 1
                await asyncio.sleep(self._pause_s(attempt))
            else:
                return answer

    async def cancel(self, request_id: str) -> None:
        """Nobody wants the line's answer any more. What cannot be reached ends by itself."""
        try:
            await self._client.delete(f"/requests/{request_id}")
        except httpx.TransportError:
            return

    async def _post(self, request_id: str, endpoint: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"X-Request-Id": request_id, "X-Priority": "low", "X-Detached": "true"}
        headers["Content-Type"] = "application/json"
        return await self._client.post(endpoint, content=orjson.dumps(body), headers=headers)

    async def _attached(self, request_id: str) -> Answer | None:
        """The answer of a request that was sent before, once it has ended; None where there is none to wait for."""
        while True:
            try:
                response = await self._client.get(f"/requests/{request_id}")
            except httpx.TransportError:
                await asyncio.sleep(self._settings.max_wait_s / 10)
                continue
            if response.status_code == _UNKNOWN:
                return None
            if response.status_code == 200:
                view = orjson.loads(response.content)
                if view["result"] is not None:
                    return Answer(200, request_id, orjson.dumps(view["result"]))
                if view["error"] is not None:
                    said = {"error": view["error"] | {"type": "server_error", "param": None, "code": None}}
                    status = view["error"]["status"]
                    # It was admitted, so it failed; 503 would read as a refusal, and be waited for under this id.
                    return Answer(502 if status in _REFUSED else status, request_id, orjson.dumps(said))
            await asyncio.sleep(POLL_S)

    def _pause_s(self, number: int) -> float:
        """Longer each time, and never for all lines at once."""
        return float(min(self._settings.max_wait_s, 0.2 * 2 ** min(number, 10)) * random.uniform(0.5, 1.0))


def has_one_request(body: dict[str, Any]) -> bool:
    """Whether the body is one request in the cluster, under its own id; several prompts are several."""
    prompt = body.get("prompt")
    return not isinstance(prompt, list) or all(isinstance(each, int) for each in prompt) or len(prompt) == 1


def _retry_after_s(response: httpx.Response) -> float:
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 0.0
