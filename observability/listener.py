"""A worker's own /metrics: a small HTTP server on a thread of its own, prometheus_client's.

It reads what the loop has written; nothing of a scrape happens on the loop. Loads prometheus_client only once it runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from errors import ConfigError
from messages.worker_status import WorkerStatus
from observability.worker_meters import WorkerMeters
from settings.observability import MetricsSettings
from telemetry import get_logger

log = get_logger()


@contextmanager
def metrics_listener(
    settings: MetricsSettings, meters: WorkerMeters, read_status: Callable[[], WorkerStatus], model_name: str
) -> Iterator[None]:
    """Answer scrapes on `metrics.port` while the body runs; nothing where that is 0. Raises ConfigError when the port
    cannot be had."""
    if not settings.port:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    from observability.families import Aliases, Collected, own_families

    aliases = Aliases(model_name) if settings.vllm_names else None
    registry = CollectorRegistry()
    registry.register(Collected(lambda: own_families(meters, read_status(), aliases)))
    try:
        server, thread = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        raise ConfigError(
            f"PDQ_METRICS__PORT = {settings.port}: cannot listen on {settings.host}: {error.strerror or error}; set it "
            "to another port, or to 0 for no metrics of this worker, or PDQ_METRICS__HOST to an address of this host"
        ) from None
    log.info("metrics_listening", host=settings.host, port=settings.port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
