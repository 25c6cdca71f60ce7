"""The processes of this room: a worker, with the clock in a thread if it is to have one, and the clock alone.

SIGTERM: nothing new is taken, shards are left as they stand for another worker, and what runs in the cluster runs on.
"""

import os
import socket
import uuid
from typing import Any

from celery import Celery
from celery import signals as celery_signals
from celery.apps.beat import Beat
from celery.beat import EmbeddedService, Scheduler

from batch_worker.celery_app import new_celery
from batch_worker.tasks import register
from batch_worker.work_loop import WorkLoop
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()


def run_worker(settings: Settings) -> int:
    """Work until SIGTERM; the exit status. Raises StartupError."""
    worker_id = f"batch-{uuid.uuid4().hex[:12]}"
    app = new_celery(settings)
    loop = WorkLoop(settings, worker_id)
    loop.start()
    register(app, loop)
    clock = EmbeddedService(app, thread=True, scheduler_cls=Scheduler) if settings.batch.beat else None

    def on_ready(**_: Any) -> None:
        log.info("batch_worker_started", worker_id=worker_id, beat=settings.batch.beat, api=settings.batch.api_url)
        if clock is not None:
            clock.start()

    def on_stopping(**_: Any) -> None:
        loop.stop_steps()

    _keep_logging_ours()
    celery_signals.worker_ready.connect(on_ready, weak=False)
    celery_signals.worker_shutting_down.connect(on_stopping, weak=False)
    host = f"{worker_id}@{socket.gethostname()}"
    worker = app.Worker(
        hostname=host, pool="threads", quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True
    )
    worker.start()
    if clock is not None:
        clock.stop()
    loop.end()
    log.info("batch_worker_stopped", worker_id=worker_id)
    return int(worker.exitcode or os.EX_OK)


def run_beat(settings: Settings) -> None:
    """The clock alone, until SIGTERM. Raises StartupError."""
    app: Celery = new_celery(settings)
    _keep_logging_ours()
    Beat(app=app, quiet=True, redirect_stdouts=False).run()


def run_flower(settings: Settings, host: str, port: int) -> None:
    """Flower's page about the workers, until SIGTERM. Raises StartupError."""
    app = new_celery(settings)
    _keep_logging_ours()
    app.start(argv=["flower", f"--address={host}", f"--port={port}", "--logging=warning"])


def _keep_logging_ours() -> None:
    # Somebody who listens keeps Celery from setting up logging itself.
    celery_signals.setup_logging.connect(_leave_logging, weak=False)


def _leave_logging(**_: Any) -> None:
    return
