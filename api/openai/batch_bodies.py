"""Files, batches and lists of them as OpenAI writes them, and what a request for a batch says. Pure."""

import re
from collections.abc import Sequence
from typing import Any

from api.admission import Body
from api.errors import BadField
from broker.batch_records import BatchView
from messages.batch import BatchStatus, StoredFile
from settings.batch import BatchSettings

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/generate")
MAX_METADATA, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512  # OpenAI's
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def file_body(file: StoredFile) -> dict[str, Any]:
    """A file object."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": file.expires_ms // 1000 or None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def deleted_body(file: StoredFile) -> dict[str, Any]:
    """What is said of a file that is gone."""
    return {"id": file.file_id, "object": "file", "deleted": True}


def batch_body(view: BatchView) -> dict[str, Any]:
    """A batch object."""
    batch = view.batch
    stamps = {
        f"{status}_at": int(at) if (at := view.fields.get(f"{status}_at")) else None
        for status in BatchStatus
        if status is not BatchStatus.VALIDATING
    }
    problems = view.problems
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": view.status,
        "output_file_id": view.fields.get("output_file_id"),
        "error_file_id": view.fields.get("error_file_id"),
        "created_at": batch.created_ms // 1000,
        "expires_at": batch.expires_ms // 1000,
        **stamps,
        "request_counts": {"total": view.total, "completed": view.completed, "failed": view.failed},
        "metadata": batch.metadata or None,
    }


def list_body(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": has_more}


def read_endpoint(body: Body) -> str:
    """Where the lines go. Raises BadField."""
    endpoint = body.get("endpoint")
    if endpoint not in ENDPOINTS:
        raise BadField(f"endpoint must be one of {', '.join(ENDPOINTS)}, got {str(endpoint)[:80]!r}", "endpoint")
    return str(endpoint)


def read_window_s(body: Body, limits: BatchSettings) -> int:
    """Seconds of `completion_window`, which OpenAI writes 24h. Raises BadField."""
    given = body.get("completion_window")
    found = re.fullmatch(r"([0-9]{1,7})([smhd])", given) if isinstance(given, str) else None
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 1 <= seconds <= limits.max_window_s:
        wanted = f"a number and s, m, h or d, at most {limits.max_window_s} s"
        raise BadField(f"completion_window must be {wanted}; got {str(given)[:40]!r}", "completion_window")
    return seconds


def read_metadata(body: Body) -> dict[str, str]:
    """What the client wants to find again. Raises BadField."""
    given = body.get("metadata")
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MAX_METADATA:
        raise BadField(f"metadata must be an object of at most {MAX_METADATA} entries", "metadata")
    for key, value in given.items():
        if not isinstance(value, str) or len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS:
            most = f"keys of at most {MAX_KEY_CHARS} and strings of at most {MAX_VALUE_CHARS} characters"
            raise BadField(f"metadata must have {most}", "metadata")
    return dict(given)


def read_webhook(body: Body, limits: BatchSettings) -> str:
    """Who is to be told of the end; empty for nobody. Raises BadField."""
    given = body.get("webhook_url")
    if given is None:
        return ""
    if not isinstance(given, str) or len(given) > 2000 or not limits.allows_webhook(given):
        raise BadField("webhook_url must be a URL that this server's operator allows", "webhook_url")
    if limits.webhook_secret_file is None:
        raise BadField("this server has no secret to sign webhooks with", "webhook_url")
    return given
