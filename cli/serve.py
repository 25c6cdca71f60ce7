"""`pdq serve`: the command and its flags. What it does is local_cluster.py."""

import asyncio
from typing import Annotated, Any

import typer

from cli.local_cluster import LocalCluster
from cli.options import DtypeFlag, HostFlag, ModelFlag, PortFlag, RedisUrlFlag, overrides, settings_from
from messages.worker_status import Role
from settings.loading import load_settings


def serve(
    model: ModelFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    prefill: Annotated[int, typer.Option("--prefill", min=1, help="Number of prefill workers.")] = 1,
    decode: Annotated[int, typer.Option("--decode", min=1, help="Number of decode workers.")] = 1,
    redis_url: RedisUrlFlag = None,
    dtype: DtypeFlag = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.", show_default="warning")
    ] = None,
) -> None:
    """Serve a model on this machine: API, prefill and decode workers, and a Redis of its own unless one is named.

    Every setting can also be given as PDQ_<SECTION>__<KNOB> (`pdq config show` lists them). Ctrl-C ends everything.
    """
    flags: dict[str, Any] = {"model": model, "host": host, "port": port, "redis_url": redis_url, "dtype": dtype}
    settings = settings_from(**flags, log_level=log_level)
    if "level" not in settings.log.model_fields_set:  # the logs of all children on one screen: what matters only
        settings = load_settings(overrides(**flags, log_level="warning"))
    # Asked of the settings without flags: an override makes a section look as if all of it had been given.
    is_redis_given = redis_url is not None or "url" in settings_from().redis.model_fields_set
    asyncio.run(LocalCluster(settings, {Role.PREFILL: prefill, Role.DECODE: decode}, is_redis_given).run())
