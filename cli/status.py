"""`pdq status`: the cluster as Redis and one API process know it, once or refreshed in place.

Knows the terminal and signals; what is asked is cluster_state.py's, what is shown status_picture.py's.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live

from broker.client import Broker, display_url, open_broker
from cli.cluster_state import API_TIMEOUT_S, Api, ClusterState, read_cluster
from cli.health import in_url
from cli.options import ApiKeyFlag, RedisUrlFlag, settings_from
from cli.own_cluster import find_own_clusters
from cli.status_picture import document, picture, rates_between
from cli.stop_signals import StopSignals
from cli.terminal import open_console
from errors import BrokerError, ConfigError
from settings.loading import Settings

PATIENCE_S = API_TIMEOUT_S + 0.5  # a look that takes longer waits for Redis


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval-s", min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One look as JSON, for programs.")] = False,
    redis_url: RedisUrlFlag = None,
    url: Annotated[
        str | None, typer.Option(help="The API asked for latencies.", show_default="PDQ_API__HOST and __PORT")
    ] = None,
    api_key: ApiKeyFlag = "",
) -> None:
    """Show workers, queues, sequences, and the last minute's latencies.

    Without an address, of the one `pdq serve` of this user, else of PDQ_REDIS__URL. Ctrl-C ends --watch with code 0.
    """
    if watch and as_json:
        raise ConfigError("--json is one look and --watch many: give one of them")
    settings, api_url = _addresses(settings_from(redis_url=redis_url), redis_url is not None, url)
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url = {url!r}: must look like http://HOST:PORT")
    asyncio.run(_show(settings, Api(api_url, api_key), watch, as_json, interval_s))


def _addresses(settings: Settings, is_redis_named: bool, url: str | None) -> tuple[Settings, str]:
    """Settings that lead to the Redis to ask, and the API's URL. Raises ConfigError when there are several."""
    configured = f"http://{in_url(settings.api.host)}:{settings.api.port}"
    if is_redis_named or "url" in settings_from().redis.model_fields_set:
        # A `pdq serve` may be named by its Redis.
        found = {own.redis_url: own.api_url for own in find_own_clusters()}
        return settings, url or found.get(settings.redis.url, configured)
    own = find_own_clusters()
    if len(own) > 1:
        listed = " or ".join(f"--redis-url {one.redis_url} (API {one.api_url})" for one in own)
        raise ConfigError(f"{len(own)} clusters of `pdq serve` run here: say which, {listed}")
    if not own:
        return settings, url or configured
    return settings_from(redis_url=own[0].redis_url), url or own[0].api_url


async def _show(settings: Settings, api: Api, watch: bool, as_json: bool, interval_s: float) -> None:
    async with api, open_broker(settings.redis, settings.queue, settings.stream) as broker:
        watcher = Watcher(broker, display_url(settings.redis.url), api)
        if watch:
            await watcher.run(open_console(), interval_s)
            return
        try:
            state = await watcher.look()
        except RedisError as error:
            raise BrokerError(f"Redis at {display_url(settings.redis.url)} answers, and not this: {error}") from None
        if as_json:
            typer.echo(json.dumps(document(state), indent=2))
        else:
            console = open_console()
            console.print(picture(state, console.width))


class Watcher:
    """Looks again and again, also when Redis is away for a time."""

    def __init__(self, broker: Broker, redis_url: str, api: Api) -> None:
        self._broker, self._redis_url, self._api = broker, redis_url, api
        self._state: ClusterState | None = None
        self._rates: dict[str, float] = {}
        self._away_since: float | None = None
        self._why_away = "no answer"

    async def look(self) -> ClusterState:
        """The cluster as of now. Raises RedisError."""
        state = await read_cluster(self._broker, self._redis_url, self._api)
        if self._state is not None:
            self._rates = rates_between(self._state, state)
        self._state, self._away_since = state, None
        return state

    async def run(self, console: Console, interval_s: float) -> None:
        """Until a signal. On a terminal one picture in place, elsewhere one after the other."""
        signals = StopSignals()
        signals.listen()
        ended = asyncio.create_task(signals.asked.wait())
        if not console.is_terminal:
            await self._repeat(ended, interval_s, lambda: self._print(console))
            return
        with Live(console=console, auto_refresh=False) as live:
            await self._repeat(ended, interval_s, lambda: self._draw(live, console))

    async def _repeat(self, ended: "asyncio.Task[bool]", interval_s: float, show: Callable[[], None]) -> None:
        while not ended.done():
            began = time.monotonic()
            looking = asyncio.create_task(self.look())
            while not looking.done() and not ended.done():
                patience_s = max(interval_s, PATIENCE_S) if self._away_since is None else interval_s
                await asyncio.wait([looking, ended], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done() and not ended.done():
                    self._note_away(began)
                    show()
            if ended.done():
                looking.cancel()
                await asyncio.wait([looking])
                return
            try:
                looking.result()
            except RedisError as error:
                self._why_away = str(error) or type(error).__name__
                self._note_away(began)
            show()
            left_s = interval_s - (time.monotonic() - began)
            await asyncio.wait([ended], timeout=max(0.0, left_s))

    def _note_away(self, since: float) -> None:
        if self._away_since is None:
            self._away_since = since

    def _trouble(self) -> str:
        if self._away_since is None:
            return ""
        away_s = time.monotonic() - self._away_since
        return f"Redis does not answer for {away_s:.0f} s ({self._why_away}); below is the last look. Trying on."

    def _draw(self, live: Live, console: Console) -> None:
        if self._state is None:
            live.update(self._trouble(), refresh=True)
        else:
            live.update(picture(self._state, console.width, self._rates, self._trouble()), refresh=True)

    def _print(self, console: Console) -> None:
        if self._trouble():
            console.print(self._trouble(), markup=False)
        elif self._state is not None:
            console.print(picture(self._state, console.width, self._rates))
            console.print()
        console.file.flush()
