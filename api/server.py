"""The HTTP server around the application.

Knows uvicorn and signals; knows no route. h11 and not httptools, because only h11 bounds the size of a request's head.
"""

import asyncio
import contextlib
import functools
import gc
import ipaddress
import socket
import time
from collections.abc import Iterator

import uvicorn

from api.app import create_app
from api.attendance import attend
from api.body_sender import KnowingServer
from api.services import Services, open_services, running
from api.timed_protocol import TimedProtocol
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()


FORCE_CHECK_S = 0.2  # how soon a second SIGINT is heard
CLEAN_UP_S = 1  # for what was cut off: it says so to its client and to Redis


class Server(uvicorn.Server):
    """uvicorn, but a signal that was obeyed is not raised again: a graceful end exits with status 0. And connections
    are accepted until the last stream has ended: a balancer has to hear from /readiness that it should send no more.
    """

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event, drain_s: float) -> None:
        """`stopping` is set as soon as the server is told to end; streams then get `drain_s`."""
        super().__init__(config)
        self._stopping, self._drain_s = stopping, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs end, cut off what does not, and close."""
        self._stopping.set()
        give_up_at = time.monotonic() + self._drain_s
        while (tasks := set(self.server_state.tasks)) and not self.force_exit:
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(tasks, timeout=min(left_s, FORCE_CHECK_S))
        for task in tasks:
            task.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def new_server(services: Services) -> Server:
    """The server over open `services`, not started."""
    api = services.settings.api
    config = uvicorn.Config(
        KnowingServer(create_app(services)),
        host=api.host,
        port=api.port,
        http=functools.partial(TimedProtocol, arrival_timeout_s=api.arrival_timeout_s),  # type: ignore[arg-type]
        ws="none",
        loop="none",
        lifespan="off",
        h11_max_incomplete_event_size=api.max_header_bytes,
        timeout_graceful_shutdown=CLEAN_UP_S,
        access_log=False,
        log_config=None,
        server_header=False,
    )
    return Server(config, services.stopping, api.drain_s)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; open streams then get settings.api.drain_s. Raises StartupError.

    Run it under uvloop (`uvloop.run(serve(settings))`).
    """
    async with open_services(settings) as services, running(attend(services)):
        # What is here now stays, and is most of what the collector would look through while streams wait.
        gc.collect()
        gc.freeze()
        log.info("api_started", host=settings.api.host, port=settings.api.port, model=services.facts.name)
        if services.key_ring is None and not is_loopback(settings.api.host):
            advice = "anybody who reaches this address may use it; PDQ_SECURITY__KEYS_FILE asks for API keys"
            log.warning("api_is_open", host=settings.api.host, advice=advice)
        await new_server(services).serve()
    log.info("api_stopped")
