"""What a client says of how it reads: whether it can come back to a stream, from where, and whether it reads at all.

Pure: headers and query -> values. Raises InvalidRequest.
"""

from starlette.requests import Request

from errors import InvalidRequest

SSE_IDS = "X-SSE-Ids"
DETACHED = "X-Detached"
LAST_EVENT_ID = "Last-Event-ID"


def wants_ids(request: Request) -> bool:
    """Whether the client asked for the ids by which a stream is resumed."""
    return _flag(request, SSE_IDS)


def is_detached(request: Request) -> bool:
    """Whether the request is to go on without its client."""
    return _flag(request, DETACHED)


def last_seen(request: Request) -> int:
    """Index of the last event that the client has; -1 for none.

    The header wins over `?after=`: an EventSource comes back with the address that it was given at first.
    """
    given = request.headers.get(LAST_EVENT_ID) or request.query_params.get("after") or "-1"
    try:
        index = int(given)
    except ValueError:
        index = -2
    if index < -1:
        raise InvalidRequest(
            f"{LAST_EVENT_ID} (or after) must be the id of an event, a number from -1 on, got {given!r}"
        )
    return index


def _flag(request: Request, name: str) -> bool:
    given = request.headers.get(name, "false").lower()
    if given not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false, got {given!r}")
    return given == "true"
