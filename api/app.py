"""The ASGI application: routes, errors, the request id, who may pass.

Knows how the HTTP side is put together; opens nothing (services.py does) and serves nothing (server.py does).
"""

from functools import cache, partial

from fastapi import FastAPI
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import errors, lightllm_routes, page_routes, request_routes, status_routes
from api.head_bound import HeadBound
from api.key_gate import KeyGate
from api.openai import batch_routes, file_routes
from api.openai import routes as openai_routes
from api.openapi import described
from api.request_id import RequestId
from api.services import Services
from errors import RequestError


def create_app(services: Services) -> FastAPI:
    """The application over open `services`."""
    app = FastAPI(title="pdq", description="LightLLM's API and OpenAI's over disaggregated prefill and decode workers.")
    app.state.services = services
    # The last one added is the first one asked.
    app.add_middleware(KeyGate, services=services)
    app.add_middleware(HeadBound, max_bytes=services.settings.api.max_header_bytes)
    app.add_middleware(RequestId, responses=services.meters.responses)
    app.add_exception_handler(RequestError, errors.on_request_error)
    app.add_exception_handler(RedisError, errors.on_redis_error)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_exception_handler(ClientDisconnect, errors.on_client_left)
    app.add_exception_handler(Exception, errors.on_defect)
    app.include_router(lightllm_routes.router)
    app.include_router(openai_routes.router)
    app.include_router(file_routes.router)
    app.include_router(batch_routes.router)
    app.include_router(request_routes.router)
    app.include_router(status_routes.router)
    app.include_router(page_routes.router)
    settings = services.settings
    app.openapi = cache(partial(described, app.openapi, settings.api, settings.batch))  # type: ignore[method-assign]
    return app
