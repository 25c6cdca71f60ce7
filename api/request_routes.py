"""Routes about a request by its id: how far it is, its stream resumed, its cancellation.

Thin. A request can be asked about at any API process, by whoever holds the API key that made it; to everybody else it
is as unknown as one that never was.
"""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.admission import owner_of
from api.answers import frames_of
from api.errors import UnknownRequest, aborted
from api.event_stream import EventStream
from api.generation import Departure, Generation
from api.request_view import request_view
from api.resuming import last_seen
from api.services import services_of
from messages.request import GenerationRequest

router = APIRouter()


@router.get("/requests/{request_id}", response_model=None)
async def get_request(request: Request, request_id: str) -> Response:
    """How far the request is; once it has ended, its answer."""
    services = services_of(request)
    found = await _find(request, request_id)
    reader = services.broker.request_reader
    progress = await reader.progress(found)
    # After the progress: an end seen there is among the events read here.
    ended = {(request_id, choice): -1 for choice, state in enumerate(progress) if state.phase is None}
    events = await reader.read_many(ended)
    if not all(events.values()):
        raise _unknown(request_id)  # it has expired since it was found
    listed = [[event for _, event in events.get((request_id, choice), [])] for choice in range(found.n)]
    return Response(request_view(services, found, progress, listed), media_type="application/json")


@router.get("/requests/{request_id}/stream", response_model=None)
async def resume_stream(request: Request, request_id: str) -> Response:
    """The events after the one that the client has seen last, as the route that began the request writes them."""
    after = last_seen(request)
    found = await _find(request, request_id)
    services = services_of(request)
    frames_of([found], services)  # or the request has no stream
    generation = Generation(services, found, Departure.LINGER, is_begun=True)
    return EventStream([generation], services, with_ids=True, after=after)


@router.delete("/requests/{request_id}", response_model=None)
async def cancel_request(request: Request, request_id: str) -> Response:
    """End what has not ended of the request. Says which choices this call ended, none when it is repeated."""
    found = await _find(request, request_id)
    cancelled = await services_of(request).broker.requests.cancel(found, aborted())
    return Response(
        orjson.dumps({"request_id": request_id, "cancelled_choices": cancelled}), media_type="application/json"
    )


async def _find(request: Request, request_id: str) -> GenerationRequest:
    """The request of that id, if it is its owner who asks. Raises UnknownRequest."""
    found = await services_of(request).broker.request_reader.record(request_id)
    if found is None or found.owner != owner_of(request):
        raise _unknown(request_id)
    return found


def _unknown(request_id: str) -> UnknownRequest:
    return UnknownRequest(f"request id {request_id!r} is not known")
