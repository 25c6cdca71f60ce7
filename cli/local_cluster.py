"""The whole cluster on this machine, from the model's files to a banner, and down again.

Starts what compose.yaml starts, as children. Holds neither torch nor the engine.
"""

import asyncio
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from broker.client import Broker, display_url, open_broker
from cli.banner import Facts, banner, model_dtype, waiting_for
from cli.cluster_plan import cluster_children, nursery_child, nursery_path, redis_child, shared_knobs
from cli.embedded_redis import find_redis_server, redis_url, wait_until_answering
from cli.forked_child import wait_until_listening
from cli.health import api_problem, in_url
from cli.janitor import Janitor
from cli.listen_port import reserve_port
from cli.model import client_name, resolve_in_child
from cli.own_cluster import STATE_PREFIX, note_api_url
from cli.screen import Screen
from cli.shm_room import are_pools_in_shm, shm_room
from cli.stop_signals import StopSignals
from cli.supervisor import Supervisor
from errors import DeviceError
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.loading import Settings

READY_POLL_S = 0.1
CLEAN_TIMEOUT_S = 1.5
LONGEST_SOCKET_FOLDER = 80  # the path of a unix socket holds 107 bytes


class LocalCluster:
    """One run of `pdq serve`."""

    def __init__(self, settings: Settings, num_workers: dict[Role, int], is_redis_given: bool) -> None:
        self.settings, self.num_workers, self.is_redis_given = settings, num_workers, is_redis_given
        self.began = time.monotonic()
        self.screen = Screen()
        self.url = ""

    async def run(self) -> None:
        """Until a signal, or a start that cannot be: then raises the StartupError."""
        host, port = self.settings.api.host, reserve_port(self.settings.api.host, self.settings.api.port)
        self.settings = self.settings.model_copy(update={"api": self.settings.api.model_copy(update={"port": port})})
        self.url = f"http://{in_url(host)}:{port}"
        signals = StopSignals()
        signals.listen()
        self.state_dir = make_state_dir()
        note_api_url(self.state_dir, self.url)
        janitor = Janitor(self.state_dir)
        self.supervisor = Supervisor(self.screen.say, self.screen.child_line, janitor.note)
        start = asyncio.create_task(self.bring_up())
        asked = asyncio.create_task(signals.asked.wait())
        ends: list[asyncio.Future[Any]] = [asked, self.supervisor.failure]
        try:
            await asyncio.wait([*ends, start], return_when=asyncio.FIRST_COMPLETED)
            if start.done() and not start.exception():
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.screen.progress_done()
            if asked.done():
                self.screen.say("stopping: open streams may end, a second Ctrl-C kills")
            start.cancel()
            asked.cancel()
            await asyncio.gather(start, asked, return_exceptions=True)
            stop_began = time.monotonic()
            await self.supervisor.stop(signals.insisted)
            if not janitor.finish(CLEAN_TIMEOUT_S):
                self.screen.say("shared memory of this run may be left; the next start removes it")
        if self.supervisor.failure.done():
            raise self.supervisor.failure.result()
        if not start.cancelled():
            start.result()  # raises what kept it from starting
        self.screen.say(f"stopped after {time.monotonic() - stop_began:.1f} s")

    async def bring_up(self) -> None:
        """Model, Redis, workers and API, banner. Raises StartupError."""
        nursery = self.start_nursery()
        model_dir = await self.resolve_model()
        has_room = self.has_room_for_decode_pools()
        url = await self.start_redis()
        name = client_name(self.settings.model, model_dir)
        is_terminal = self.screen.is_terminal
        knobs = shared_knobs(self.settings, model_dir, name, url, is_terminal, self.make_secret(), has_room)
        redis = self.settings.redis.model_copy(update={"url": url})
        if nursery is not None:
            await wait_until_listening(nursery)
        async with open_broker(redis, self.settings.queue, self.settings.stream) as broker:
            children = [self.supervisor.keep(spec) for spec in cluster_children(knobs, self.num_workers, nursery)]
            counted = ", ".join(f"{count} {role}" for role, count in self.num_workers.items())
            self.screen.say(f"starting {counted} and the API on {self.url}")
            workers = await self.wait_until_ready(broker, lambda: {child.pid for child in children})
        self.screen.progress_done()
        self.supervisor.was_ready = True
        dtype = model_dtype(self.settings.model, model_dir)
        took_s = time.monotonic() - self.began
        asks_for_key = self.settings.security.keys_file is not None
        facts = Facts(self.url, name, model_dir, dtype, workers, self.status_url(url), took_s, asks_for_key)
        self.screen.say(banner(facts))

    def status_url(self, url: str) -> str:
        """What the banner tells to give `pdq status`; ours has no password to hide."""
        return display_url(url) if self.is_redis_given else url

    def start_nursery(self) -> Path | None:
        """Begin to load what workers need while the rest is being prepared; where it takes orders. None for GPUs,
        whose workers each load a CUDA of their own."""
        if not are_pools_in_shm(self.settings):
            return None
        self.supervisor.keep(nursery_child(self.state_dir))
        return nursery_path(self.state_dir)

    async def resolve_model(self) -> Path:
        """The model's directory."""
        self.screen.say(f"model {self.settings.model.path}")
        try:
            return await resolve_in_child(self.settings.model, self.screen.progress)
        finally:
            self.screen.progress_done()

    def has_room_for_decode_pools(self) -> bool:
        """Whether decode workers may have their pools in shared memory. Raises DeviceError when not even those of the
        prefill workers fit."""
        from kv_transfer.segment import sweep_segments  # torch-free

        if not are_pools_in_shm(self.settings):
            return True
        sweep_segments()  # what workers of an earlier run left
        room = shm_room()
        lacking = room.lacks_for(self.settings, self.num_workers)
        pool = f"{self.settings.kv.pool_bytes / 2**30:.1f} GiB"
        more = room.remedy(self.settings, self.num_workers)
        if lacking is Role.PREFILL:
            num_pools = self.num_workers[Role.PREFILL]
            raise DeviceError(f"{room}; {num_pools} prefill worker(s) take {pool} each: {more}")
        if lacking is Role.DECODE:
            self.screen.say(
                f"{room}, too little for decode workers' pools of {pool} too: the requests of one that is stopped are "
                f"prefilled again. To spare that, {more}"
            )
        return lacking is None

    async def start_redis(self) -> str:
        """The URL of the Redis to use; starts one when none was named."""
        if self.is_redis_given:
            self.screen.say(f"using Redis at {display_url(self.settings.redis.url)}")
            return self.settings.redis.url
        binary = find_redis_server()
        self.supervisor.keep(redis_child(binary, self.state_dir))
        await wait_until_answering(self.state_dir)
        self.screen.say(f"started {binary} at {redis_url(self.state_dir)}")
        return redis_url(self.state_dir)

    def make_secret(self) -> Path | None:
        """The file that handles of this run are sealed with. None where one was named, and where Redis was: workers
        of another `pdq serve` may be there too, and would not have ours."""
        if self.settings.kv_transfer.secret_file is not None:
            return None
        if self.is_redis_given:
            self.screen.say("KV handles are not authenticated: give all workers one PDQ_KV_TRANSFER__SECRET_FILE")
            return None
        path = self.state_dir / "secret"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        return path

    async def wait_until_ready(self, broker: Broker, pids: Callable[[], set[int | None]]) -> list[WorkerStatus]:
        """Our workers, once each is ready and the API says that the cluster is well."""
        num_wanted = sum(self.num_workers.values())
        api = self.settings.api
        while True:
            problem = await asyncio.to_thread(api_problem, api.host, api.port)
            try:
                live = await broker.registry.live()
            except RedisError as error:
                self.screen.progress(f"waiting for Redis: {error}")
                live = []
            # Another Redis may know workers of other machines.
            ours = [worker for worker in live if worker.host == socket.gethostname() and worker.pid in pids()]
            num_ready = sum(worker.state is WorkerState.READY for worker in ours)
            if num_ready == num_wanted and not problem:
                return ours
            self.screen.progress(waiting_for(ours, self.num_workers, problem))
            await asyncio.sleep(READY_POLL_S)


def make_state_dir() -> Path:
    """A fresh directory of this run, mode 0700, whose name is short enough for a socket."""
    folder = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=STATE_PREFIX, dir=folder if len(folder) <= LONGEST_SOCKET_FOLDER else "/tmp"))
