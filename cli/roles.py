"""`pdq api`, `pdq prefill`, `pdq decode`: one process of the cluster each; compose.yaml runs exactly these.

Each imports its room only when it is run, so that the API's process never holds torch.
"""

import typer

from cli.model import client_name, is_directory, resolve_blocking
from cli.options import DtypeFlag, HostFlag, ModelFlag, PortFlag, RedisUrlFlag, settings_from
from cli.worker_process import run_worker
from messages.worker_status import Role
from settings.loading import Settings
from telemetry import configure_logging, get_logger


def api(
    model: ModelFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    redis_url: RedisUrlFlag = None,
) -> None:
    """Run the HTTP front: one process, any number of them per cluster."""
    settings = settings_from(model=model, host=host, port=port, redis_url=redis_url)  # before any slow import

    import uvloop

    from api.server import serve

    configure_logging(settings.log, role="api")
    uvloop.run(serve(_with_model_directory(settings)))


def prefill(model: ModelFlag = None, dtype: DtypeFlag = None, redis_url: RedisUrlFlag = None) -> None:
    """Run a prefill worker: computes prompts, any number of them per cluster."""
    settings = settings_from(model=model, dtype=dtype, redis_url=redis_url)  # before any slow import

    from engine.threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    from prefill_worker.assembly import work

    run_worker(settings, Role.PREFILL, work)


def decode(model: ModelFlag = None, dtype: DtypeFlag = None, redis_url: RedisUrlFlag = None) -> None:
    """Run a decode worker: computes output tokens, any number of them per cluster."""
    settings = settings_from(model=model, dtype=dtype, redis_url=redis_url)  # before any slow import

    from engine.threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    from decode_worker.assembly import work

    run_worker(settings, Role.DECODE, work)


def _with_model_directory(settings: Settings) -> Settings:
    """Settings whose model is a directory. Fetching and converting, which take torch, happen in a child."""
    if is_directory(settings.model):
        return settings
    log = get_logger()
    path = resolve_blocking(settings.model, lambda line: log.info("model_fetch", says=line))
    knobs = {"path": str(path), "name": client_name(settings.model, path)}
    return settings.model_copy(update={"model": settings.model.model_copy(update=knobs)})


def register(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for command in (api, prefill, decode):
        app.command()(command)
