"""What is in Redis: where that is, the queues, the token streams."""

from pathlib import Path

from pydantic import Field

from settings.section import Count, Seconds, Section, Share


class RedisSettings(Section):
    """Where the queues live."""

    url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis address: redis://, rediss://, unix://, redis+sentinel://host:port,host:port/service or "
        "redis+cluster://host:port,host:port.",
    )
    username: str = Field("", description="Redis user (ACL); empty: the URL's, else Redis's `default`.")
    password_file: Path | None = Field(None, description="File holding the Redis password; keeps it out of the URL.")
    key_prefix: str = Field(
        "pdq",
        pattern=r"^[A-Za-z0-9._-]+$",
        description="First part of every key; two clusters on one Redis differ in it.",
    )
    connect_timeout_s: Seconds = Field(5.0, description="How long one connection attempt may take.")
    command_timeout_s: Seconds = Field(5.0, description="How long one non-blocking command may take.")


class QueueSettings(Section):
    """The job queues and who owns what on them."""

    max_waiting: Count = Field(
        512, description="Most jobs in the prefill queue, of all priorities together; above it new requests get 503."
    )
    normal_share: Share = Field(0.9, description="Share of max_waiting up to which normal requests are let in.")
    low_share: Share = Field(0.5, description="Share of max_waiting up to which low requests are let in.")
    ttft_limit_s: float = Field(
        10.0,
        ge=0,
        description="A request whose first token would come later than this gets 503, judged by the prompt tokens that "
        "wait and the rate of the prefill workers; 0: no limit.",
    )
    place_limit_s: float = Field(
        10.0,
        ge=0,
        description="A request that would wait longer than this for a place in a decode batch, its prefill's time not "
        "counted, gets 503; 0: no limit.",
    )
    turn_every: int = Field(
        8,
        ge=3,
        description="Of so many jobs that a worker takes, one is low and another one normal if there is one, whatever "
        "is more urgent.",
    )
    clock_tolerance_s: float = Field(
        0.5,
        ge=0,
        description="How far the clocks of the hosts may differ: a worker ends a request so long after its deadline.",
    )
    lease_s: Seconds = Field(
        2.0, description="A worker that renews nothing for this long is dead; its jobs are reclaimed."
    )
    heartbeat_s: Seconds = Field(0.25, description="How often a worker renews its leases and publishes its status.")
    stall_s: Seconds = Field(
        120.0,
        description="A worker whose loop does not come round for this long, and 4 times its longest round, gives "
        "up its jobs and ends, to be started again. Above the longest step.",
    )
    drain_s: Seconds = Field(5.0, description="How long a stopping worker waits for what it has offered to be pulled.")
    exit_s: Seconds = Field(
        20.0, description="A stopping worker that is not through after this long ends as it stands; others reclaim."
    )
    max_deliveries: Count = Field(
        4, description="How often a job may take its worker down before it is answered with an error."
    )


class StreamSettings(Section):
    """Token streams in Redis and their relay to the API processes."""

    keep_s: Count = Field(120, description="How long a finished request's record and tokens are kept.")
    relay_max_entries: Count = Field(4096, description="Most entries kept in one API process's relay stream.")
    recheck_s: Seconds = Field(1.0, description="A quiet stream is checked against the request's own log this often.")
    reconnect_s: Seconds = Field(
        15.0,
        description="How long a request goes on without a reader, whose resumable stream broke or whose API process "
        "died, before it is cancelled.",
    )
