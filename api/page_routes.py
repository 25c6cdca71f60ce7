"""The page at / and its files, and GET /cluster, which it draws.

Thin: page_files.py has the files, lookout.py what happened, cluster_body.py writes it down.
"""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.cluster_body import cluster_body, digest_of
from api.errors import message_response
from api.key_file import Scope
from api.page_files import INDEX, page_files
from api.services import services_of
from broker.queue_waits import read_waits

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
async def page(request: Request) -> Response:
    """The playground, and the cluster at work."""
    return _file(request, INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    """What the page is made of."""
    return _file(request, name)


@router.get("/cluster", response_model=None)
async def cluster(request: Request) -> Response:
    """Workers, queues, the last minutes' curves, requests and incidents, as this API process knows them."""
    services = services_of(request)
    lookout = services.lookout
    # Where keys are asked for, a key that may only watch is told no id that a client chose.
    may_see_ids = request.scope.get("pdq.scope", Scope.ADMIN) is Scope.ADMIN
    body = cluster_body(
        now_ms=int(time.time() * 1000),
        api_id=services.api_id,
        model_name=services.facts.name,
        num_followed=services.relay.num_subscriptions,
        workers=await services.view.workers(),
        waits=await read_waits(services.broker.redis, services.broker.keys),
        points=lookout.curves.points(),
        last_minute=lookout.curves.last_minute(),
        timelines=lookout.timelines.latest(),
        incidents=lookout.incidents.latest(),
        show_id=str if may_see_ids else digest_of,
    )
    return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")


def _file(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        return message_response(request.url.path, 404, f"the page has no file {name[:100]!r}")
    is_zipped = "gzip" in request.headers.get("accept-encoding", "")
    headers = file.headers(is_zipped)
    if file.tag(is_zipped) in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.zipped if is_zipped else file.content, headers=headers)
