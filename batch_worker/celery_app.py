"""Celery as pdq uses it: on the same Redis, below the same prefix, JSON only, tasks that carry ids and nothing else.

Celery carries, spreads and times tasks; that none is lost or done twice is the business of records and leases
(tending.py, step_lease.py), so its own redelivery is only a second way to the same end.
"""

from typing import Any

from celery import Celery

from batch_worker.celery_url import celery_broker
from broker.keys import Keys
from settings.loading import Settings

TEND, SWEEP, STEP = "pdq.tend", "pdq.sweep", "pdq.step"
QUEUE = "batch"
SPARE_THREADS = 2  # for what is not a shard: looking after batches must not wait for one
VISIBILITY_TIMEOUT_S = 3600


def new_celery(settings: Settings) -> Celery:
    """The application, connected to nothing yet. Raises ConfigError, BrokerError."""
    url, options = celery_broker(settings.redis)
    app = Celery("pdq", broker=url, set_as_current=True)
    app.conf.update(configuration(settings) | {"broker_transport_options": options | transport_options(settings)})
    return app


def transport_options(settings: Settings) -> dict[str, Any]:
    """Those of kombu's Redis transport."""
    return {
        "global_keyprefix": Keys(settings.redis.key_prefix).celery(),
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "socket_connect_timeout": settings.redis.connect_timeout_s,
    }


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings."""
    batch = settings.batch
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": batch.shards_at_once + SPARE_THREADS,
        "task_default_queue": QUEUE,
        "task_default_delivery_mode": "transient",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": batch.events,
        "worker_send_task_events": batch.events,
        "task_send_sent_event": batch.events,
        "enable_utc": True,
        "beat_scheduler": "celery.beat:Scheduler",  # in memory: the persistent one keeps a pickle
        # A tick that nobody has begun by the next one is not worth more than that one.
        "beat_schedule": {
            "tend": {"task": TEND, "schedule": batch.tend_s, "options": {"expires": max(5.0, 3 * batch.tend_s)}},
            "sweep": {"task": SWEEP, "schedule": batch.sweep_s, "options": {"expires": batch.sweep_s}},
        },
    }
