"""Routes about the server itself: health, readiness, load, metrics, model name.

Thin: health.py and token_load.py judge what cluster_view.py has read.
"""

import importlib.metadata

import orjson
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response

from api.health import capacity_tokens, lacking_roles, needed_roles
from api.metrics import exposition
from api.services import services_of
from api.token_load import token_load
from broker.deadline import now_ms
from broker.queue_waits import read_waits
from messages.worker_status import Role
from observability.families import Aliases
from telemetry import get_logger

log = get_logger()

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"], response_model=None)
@router.get("/healthz", response_model=None)
async def health(request: Request) -> Response:
    """200 while every needed role has a worker that makes progress."""
    if await _lacking(request):
        return _json({"message": "Error"}, 503)
    return _json({"message": "Ok"})


@router.api_route("/ping", methods=["GET", "POST"], response_model=None)
async def ping(request: Request) -> Response:
    """As /health, without a word: SageMaker's name for it."""
    return Response(status_code=503 if await _lacking(request) else 200)


@router.get("/version", response_model=None)
async def version() -> Response:
    """Which pdq this is."""
    try:
        return _json({"version": importlib.metadata.version("pdq")})
    except importlib.metadata.PackageNotFoundError:  # run where it lies
        return _json({"version": "unknown"})


@router.api_route("/readiness", methods=["GET", "POST"], response_model=None)
async def readiness(request: Request) -> Response:
    """As /health, and says what is missing. A process that was told to end is not ready, while its streams go on."""
    lacking = "this process is stopping" if services_of(request).stopping.is_set() else await _lacking(request)
    if lacking:
        return _json({"status": "not ready", "detail": lacking}, 503)
    return _json({"status": "ok"})


@router.api_route("/liveness", methods=["GET", "POST"], response_model=None)
async def liveness() -> Response:
    """That this process answers."""
    return _json({"status": "ok"})


@router.api_route("/get_model_name", methods=["GET", "POST"], response_model=None)
async def get_model_name(request: Request) -> Response:
    """The name of the model that is served."""
    return _json({"model_name": services_of(request).facts.name})


@router.get("/token_load", response_model=None)
async def get_token_load(request: Request) -> Response:
    """How loaded the cluster is. A reward model has no decode workers; its load is that of the prefill workers."""
    services = services_of(request)
    role = Role.PREFILL if services.facts.is_reward else Role.DECODE
    capacity = capacity_tokens(await services.view.workers(), role)
    load = token_load(await services.view.loads(), capacity)
    return _json(
        {
            "current_load": load.current_load,
            "logical_max_load": load.logical_max_load,
            "dynamic_max_load": load.dynamic_max_load,
        }
    )


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """What this process has measured, and the figures of workers and queues, in Prometheus' text format."""
    services = services_of(request)
    broker = services.broker
    depths = {
        Role.PREFILL: await broker.prefill_queue.depths(),
        Role.DECODE: await broker.decode_queue.depths(),
    }
    waits = await read_waits(broker.redis, broker.keys)
    aliases = Aliases(services.facts.name) if services.settings.metrics.vllm_names else None
    num_followed = services.relay.num_subscriptions
    batches = await broker.batches.totals(now_ms())
    workers, needed = await services.view.workers(), needed_roles(services.facts.is_reward)
    text = exposition(services.meters, num_followed, workers, depths, waits, aliases, batches, needed)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


async def _lacking(request: Request) -> str:
    """What keeps the cluster from answering; empty when nothing does."""
    services = services_of(request)
    try:
        workers = await services.view.workers()
    except RedisError as error:
        log.warning("registry_unreadable", reason=type(error).__name__)
        return "Redis can not be reached"
    roles = lacking_roles(workers, needed_roles(services.facts.is_reward), services.settings.api.no_progress_s)
    return ", ".join(f"no {role} worker makes progress" for role in roles)


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
