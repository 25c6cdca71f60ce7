"""OpenAI's /v1/batches: made, looked at and cancelled here; run by batch workers (batch_worker/).

Thin, and without Celery: a batch is a record in Redis that a batch worker finds. It belongs to the API key that made
it.
"""

import uuid

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.admission import owner_of, read_body
from api.errors import BadField, InUse, UnknownObject
from api.openai.batch_bodies import (
    batch_body,
    list_body,
    read_endpoint,
    read_metadata,
    read_webhook,
    read_window_s,
)
from api.openai.file_routes import PURPOSE, find_file
from api.openai.paging import read_limit
from api.services import services_of
from broker.batch_records import BatchView
from broker.deadline import now_ms
from messages.batch import Batch, BatchStatus

router = APIRouter()

LISTED, MAX_LISTED = 20, 100
MAX_BODY_BYTES = 64 << 10


@router.post("/v1/batches", response_model=None)
async def create_batch(request: Request) -> Response:
    """Run every line of a file, when there is time for it."""
    services = services_of(request)
    limits = services.settings.batch
    body = await read_body(request, MAX_BODY_BYTES)
    endpoint, window_s = read_endpoint(body), read_window_s(body, limits)
    file_id = body.get("input_file_id")
    if not isinstance(file_id, str):
        raise BadField("input_file_id must be the id of a file", "input_file_id")
    file = await find_file(request, file_id)
    if file.purpose != PURPOSE:
        raise BadField(f"the file's purpose must be {PURPOSE!r}, it is {file.purpose!r}", "input_file_id")
    created_ms = now_ms()
    batch = Batch(
        f"batch_{uuid.uuid4().hex}",
        file.owner,
        endpoint,
        file.file_id,
        str(body["completion_window"]),
        created_ms,
        created_ms + 1000 * window_s,
        read_metadata(body),
        read_webhook(body, limits),
    )
    if not await services.broker.batches.create(batch, limits.max_open):
        raise InUse(f"{limits.max_open} batches have not ended yet; wait for one, or cancel it")
    return await _answer(request, batch.batch_id)


@router.get("/v1/batches", response_model=None)
async def list_batches(request: Request) -> Response:
    """The key's batches, the newest first."""
    query = request.query_params
    limit, after = read_limit(query.get("limit"), LISTED, MAX_LISTED), query.get("after")
    page = await services_of(request).broker.batches.page(owner_of(request), after, limit)
    if page is None:
        raise BadField(f"after = {str(after)[:80]!r} is not in the list", "after")
    views, has_more = page
    return _json(list_body([batch_body(view) for view in views], has_more))


@router.get("/v1/batches/{batch_id}", response_model=None)
async def get_batch(request: Request, batch_id: str) -> Response:
    """How far a batch is."""
    return await _answer(request, batch_id)


@router.post("/v1/batches/{batch_id}/cancel", response_model=None)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Run no more of its lines. What is answered by then will be in its files."""
    view = await _find(request, batch_id)
    running = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
    await services_of(request).broker.batches.move(view.batch, BatchStatus.CANCELLING, running, now_ms())
    view = await _find(request, batch_id)
    if view.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        raise InUse(f"the batch cannot be cancelled, it is {view.status}")
    return _json(batch_body(view))


async def _answer(request: Request, batch_id: str) -> Response:
    return _json(batch_body(await _find(request, batch_id)))


async def _find(request: Request, batch_id: str) -> BatchView:
    """The batch of that id, if it is its owner who asks. Raises UnknownObject."""
    found = await services_of(request).broker.batches.find(batch_id)
    if found is None or found.batch.owner != owner_of(request):
        raise UnknownObject(f"No such batch: {batch_id[:80]}")
    return found


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
