"""Tells who wants to know that a batch has ended. Signed as in the Standard Webhooks specification, which OpenAI's
clients verify: HMAC-SHA256 over `id.timestamp.body`, base64, with the secret that PDQ_BATCH__WEBHOOK_SECRET_FILE holds.

At least once: a receiver tells repeats by `webhook-id`, which follows from the batch's id.
"""

import asyncio
import base64
import hmac
import random
import time
from pathlib import Path

import httpx
import orjson

from batch_worker.step_lease import held_step
from batch_worker.webhook_guard import NotAllowed, target_of
from batch_worker.work import Work
from broker.batch_records import BatchView
from broker.deadline import now_ms
from errors import ConfigError
from telemetry import get_logger

log = get_logger()

STEP = "webhook"
FIRST_PAUSE_S, MAX_PAUSE_S = 5.0, 3600.0


def read_secret(path: Path) -> bytes:
    """The signing secret: the file's text, or what it says in base64 after `whsec_`. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        secret = base64.b64decode(text.removeprefix("whsec_")) if text.startswith("whsec_") else text.encode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"PDQ_BATCH__WEBHOOK_SECRET_FILE = {path}: {error}") from None
    if len(secret) < 16:
        raise ConfigError(f"PDQ_BATCH__WEBHOOK_SECRET_FILE = {path}: {len(secret)} bytes, wanted 16 or more")
    return secret


def signed_headers(webhook_id: str, timestamp_s: int, body: bytes, secret: bytes) -> dict[str, str]:
    """The headers by which a receiver knows who sent it, and when."""
    said = b"%b.%d.%b" % (webhook_id.encode(), timestamp_s, body)
    signature = base64.b64encode(hmac.digest(secret, said, "sha256")).decode()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
        "content-type": "application/json",
        "user-agent": "pdq",
    }


def event_of(view: BatchView) -> bytes:
    """OpenAI's event: which batch, and what became of it."""
    batch_id = view.batch.batch_id
    ended_s = int(view.fields.get(f"{view.status}_at", "0"))
    event = {"id": event_id(batch_id), "object": "event", "created_at": ended_s, "type": f"batch.{view.status}"}
    return orjson.dumps(event | {"data": {"id": batch_id}})


def event_id(batch_id: str) -> str:
    """The same for every try."""
    return f"evt_{batch_id.removeprefix('batch_')}"


def pause_s(attempt: int) -> float:
    """How long to wait after that many tries, with jitter."""
    return float(min(MAX_PAUSE_S, FIRST_PAUSE_S * 3 ** (attempt - 1)) * random.uniform(0.8, 1.2))


async def tell(work: Work, batch_id: str) -> None:
    """One try. Raises RedisError."""
    async with held_step(work, batch_id, STEP) as is_held:
        batches, settings = work.broker.batches, work.settings.batch
        view = await batches.find(batch_id)
        if not is_held or view is None or batch_id not in await batches.due_webhooks(now_ms()):
            return
        attempt = await batches.count_webhook(batch_id)
        problem = await _call(work, view)
        if problem is None:
            await batches.webhook_over(batch_id, "delivered")
            return
        is_last = attempt >= settings.webhook_attempts
        log.warning("webhook_failed", batch_id=batch_id, attempt=attempt, reason=problem, is_last=is_last)
        if is_last:
            await batches.webhook_over(batch_id, "given_up")
        else:
            await batches.webhook_later(batch_id, now_ms() + round(1000 * pause_s(attempt)))


async def _call(work: Work, view: BatchView) -> str | None:
    """None when the receiver said 2xx, else what went wrong."""
    settings = work.settings.batch
    if settings.webhook_secret_file is None:
        return "there is no PDQ_BATCH__WEBHOOK_SECRET_FILE"
    body = event_of(view)
    secret = await asyncio.to_thread(read_secret, settings.webhook_secret_file)
    headers = signed_headers(event_id(view.batch.batch_id), int(time.time()), body, secret)
    try:
        async with asyncio.timeout(settings.webhook_timeout_s):
            target = await asyncio.to_thread(target_of, view.batch.webhook_url, settings)
            extensions = {"sni_hostname": target.tls_name}
            async with (
                httpx.AsyncClient(follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "POST",
                    target.url,
                    content=body,
                    headers=headers | {"host": target.host_header},
                    extensions=extensions,
                ) as response,
            ):
                # The body is not read: nothing in it is wanted, however long it is.
                return None if response.is_success else f"status {response.status_code}"
    except (httpx.HTTPError, OSError, NotAllowed) as error:
        return f"{type(error).__name__}: {error}"
