"""What is tuned: every knob of pdq, with its unit, its default and a sentence.

Built once in a process's entry point by `load_settings()` and handed down by section; nothing else reads
`os.environ`. An environment variable is `PDQ_<SECTION>__<KNOB>` (`PDQ_KV__BLOCK_SIZE=32`). An unknown name or a
value out of bounds stops the start. This file knows no room.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from messages import ConfigError

ENV_PREFIX = "PDQ_"

Seconds = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Limit = Annotated[int, Field(ge=0)]
Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["auto", "bf16", "int8", "int4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TransportKind = Literal["shared_memory", "cuda_ipc", "nixl", "nccl", "gloo"]


class Section(BaseModel):
    """One section of the settings; a misspelt knob inside it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def begins_as_allowed(url: str, allowed: str) -> bool:
    """Whether `url` begins as one of these, with commas between them: same scheme, host and port, and a path below."""
    try:
        asked = urlsplit(url)
        place = (asked.scheme, asked.hostname, asked.port)
    except ValueError:
        return False
    if asked.username is not None or asked.password is not None or ".." in asked.path or "\\" in url:
        return False
    for beginning in filter(None, map(str.strip, allowed.split(","))):
        known = urlsplit(beginning)
        if place == (known.scheme, known.hostname, known.port) and asked.path.startswith(known.path):
            return place[0] in ("http", "https") and bool(place[1])
    return False


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


class ModelSettings(Section):
    """Which model is served and how it is loaded."""

    path: str = Field("demo", description="Hugging Face directory, GGUF file, hub name, or `demo`.")
    name: str = Field("", description="The name clients see; empty: the last part of the path.")
    dtype: Dtype = Field("auto", description="Type of weights and KV; auto: what the checkpoint says.")
    weights: Weights = Field(
        "auto",
        description="How a CPU keeps the weights of linears: auto and bf16 as dtype says (a GGUF's dequantized), int8 "
        "in 8.5 bits, int4 in 5, a Q4_0, Q4_1 or Q8_0 GGUF's without loss where the bits are the same. With int4 the "
        "language head is int8, unless a GGUF has it in 4 bits.",
    )
    device: Device = Field("auto", description="auto: cuda where there is one, else cpu.")
    rank_timeout_s: Seconds = Field(
        60.0, description="How long a step of a tensor-parallel worker may take; then a rank counts as hung."
    )
    max_total_tokens: Count = Field(16384, description="Most tokens, prompt and output together, of one request.")
    cache_dir: Path = Field(
        Path("~/.cache/pdq"), description="Where fetched and converted models are kept.", validate_default=True
    )
    weights_dir: Path | None = Field(
        None, description="Where packed weights are kept, each model's in one file; empty: `weights` in cache_dir."
    )
    share_weights: bool = Field(
        True,
        description="Whether workers on a CPU map their packed weights from that file, so that a host has them in "
        "memory once; else each has a copy.",
    )


class KVSettings(Section):
    """The paged KV pool of one worker."""

    # An int Literal does not parse the text of an environment variable by itself.
    block_size: Annotated[Literal[16, 32], BeforeValidator(int)] = Field(16, description="Tokens per block.")
    num_blocks: Count | None = Field(
        None, description="Blocks in the pool; empty: sized from pool_bytes or gpu_memory_fraction."
    )
    pool_bytes: Count = Field(1 << 30, description="Most bytes of KV pool per worker on a CPU.")
    first_bytes: Count = Field(
        128 << 20,
        description="Bytes of it that a CPU worker takes at its start; more when sequences need it.",
    )
    cache_bytes: Limit = Field(
        384 << 20,
        description="Bytes up to which it also takes more to keep cached prefixes, which beyond make room instead.",
    )
    gpu_memory_fraction: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Share of a GPU's memory that its workers take together: weights, working memory and pools.",
    )
    prefix_cache: bool = Field(True, description="Whether workers that prefill reuse blocks of equal prefixes.")


class TransferSettings(Section):
    """How KV blocks get from prefill to decode workers."""

    network: Literal["none", "nixl", "nccl"] = Field(
        "none",
        description="How KV travels between hosts: none keeps a cluster's workers on one; nixl is UCX's; nccl is "
        "torch's process groups, which on a CPU are Gloo's.",
    )
    address: str = Field(
        "",
        description="With nccl: this host's address that a prefill worker listens on and names to others; empty: that "
        "of the interface towards other networks, or 127.0.0.1 where there is none.",
    )
    require: TransportKind | None = Field(
        None, description="The only transport allowed; a worker that cannot start it does not start."
    )
    timeout_s: Seconds = Field(5.0, description="How long one read from another host may take; then prefill repeats.")
    staging_bytes: Count = Field(32 << 20, description="Size of the buffers that KV of another host arrives in.")
    release_check_s: Seconds = Field(1.0, description="How often a worker checks what became of its open offers.")
    max_offers: Count = Field(4096, description="Most offers one prefill worker keeps open.")
    checksum: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether pulled bytes are compared with a checksum of what was offered; auto: in host memory, "
        "where the C++ kernels take it while they copy; on: everywhere.",
    )
    secret_file: Path | None = Field(
        None,
        description="File of 16 bytes or more that every worker has alike and nobody else: handles are sealed with it. "
        "Empty: they are not, and whoever can write to Redis can name KV; `pdq serve` with its own Redis makes one.",
    )


class PrefillSettings(Section):
    """The prefill worker's loop."""

    tensor_parallel: Count = Field(1, description="GPUs (on a CPU: processes) that one prefill worker splits over.")
    token_budget: int = Field(
        0,
        ge=0,
        description="Most prompt tokens computed in one step (chunked prefill). 0: 128 on a CPU, 512 on a GPU.",
    )
    max_running: Count = Field(64, description="Most sequences in prefill at once.")
    max_ahead: Count = Field(
        16,
        description="Most sequences that one prefill worker has prefilled and no decode worker has pulled; beyond, it "
        "takes no job.",
    )
    num_threads: int = Field(0, ge=0, description="CPU threads for compute; 0: every core.")

    def token_budget_on(self, device_type: str) -> int:
        """Most prompt tokens of a step on `cpu` or `cuda`.

        A CPU's products are as fast with 128 rows as with 512, and prompts in one step end together: 16 streams of
        128/128 on two cores, first token p50 205 ms with 128, 572 ms with 512, and 2 % more tokens/s.
        """
        return self.token_budget or (128 if device_type == "cpu" else 512)


class DecodeSettings(Section):
    """The decode worker's loop."""

    tensor_parallel: Count = Field(1, description="GPUs (on a CPU: processes) that one decode worker splits over.")
    max_running: Count = Field(64, description="Most sequences in the running batch.")
    export_pool: bool = Field(
        True,
        description="Whether a CPU worker's pool lies in shared memory, so that when the worker stops others can go on "
        "with its sequences' KV; else, and where there is no room, they are prefilled again.",
    )
    cuda_graphs: bool = Field(True, description="Whether a GPU's decode steps are recorded once and replayed.")
    local_prefill: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether a decode worker on a CPU prefills prompts itself: auto: where that is faster by what was "
        "measured and no running stream waits longer than allowed; always: every prompt that it has room for.",
    )
    local_prefill_max_stall_ms: Milliseconds = Field(
        100.0,
        description="With auto: how much longer (ms) a running stream may wait for a token because of a local prefill, "
        "and at most 0.9 of a decode step; longer prompts are computed in chunks.",
    )
    local_prefill_max_ms: Milliseconds = Field(
        500.0, description="With auto: longest time (ms) for which one prompt may keep a decode worker busy."
    )
    rest_share: float = Field(
        1.0,
        ge=0,
        le=10,
        description="While others compute on the same cores of a CPU (prompts, above all): for how long a decode step "
        "leaves all of them to the others before the next one, as a share of the step. 0: never.",
    )
    rest_until_ms: Milliseconds = Field(
        40.0, description="A decode step and that rest take at most so long together (ms): the streams' ITL meanwhile."
    )
    num_threads: int = Field(0, ge=0, description="CPU threads for compute; 0: every core.")


class GpuSettings(Section):
    """Which GPUs of a node a worker takes for itself."""

    lease: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: a worker leases its GPUs where there are any, unless PDQ_MODEL__DEVICE is cpu."
    )
    lease_dir: Path = Field(
        Path("~/.cache/pdq/gpu-leases"),
        description="Lock files of the leases; every worker of a node has to see the same directory.",
    )
    lease_retry_s: Seconds = Field(1.0, description="How often a worker without a GPU looks for a free one.")
    uuids: str = Field("", description="Comma-separated UUIDs of the GPUs that may be leased; empty: every GPU.")
    share: Count = Field(1, description="Workers per GPU; each takes its share of PDQ_KV__GPU_MEMORY_FRACTION.")


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
    stall_limit_s: float = Field(
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


class ApiSettings(Section):
    """The HTTP front."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    token_load_max_age_s: Seconds = Field(0.1, description="How old the answer of /token_load may be.")
    no_progress_s: Seconds = Field(2.5, description="A worker whose loop stands still for this long is not healthy.")
    no_worker_timeout_s: Seconds = Field(
        30.0, description="With no live worker of a role for this long, waiting requests end in an error."
    )
    request_timeout_s: float = Field(
        0.0, ge=0, description="Time of a request that brings no X-Request-Timeout; 0: as long as it takes."
    )
    max_request_timeout_s: Seconds = Field(86400.0, description="Largest X-Request-Timeout.")
    max_body_bytes: Count = Field(32 << 20, description="Largest request body.")
    max_header_bytes: Count = Field(64 << 10, description="Largest request head.")
    arrival_timeout_s: Seconds = Field(30.0, description="How long a request's head, then its body, may take to come.")
    max_best_of: Count = Field(8, description="Largest best_of and n.")
    max_stop_sequences: Count = Field(10, description="Most stop sequences of one request.")
    max_stop_tokens: Count = Field(256, description="Most tokens (or characters) of one stop sequence.")
    max_allowed_token_ids: Count = Field(256, description="Most entries of allowed_token_ids.")
    max_logit_bias: Count = Field(300, description="Most entries of logit_bias.")
    max_grammar_bytes: Count = Field(32 << 10, description="Largest JSON schema, regular expression or grammar.")
    grammar_timeout_s: Seconds = Field(
        1.0, description="How long a request's schema, expression or grammar may take to compile."
    )
    max_prompts: Count = Field(128, description="Most prompts of one request to /v1/completions.")
    max_top_logprobs: Limit = Field(20, description="Most of the likeliest tokens that are listed beside each token.")
    max_prompt_logprobs: Count = Field(
        131072,
        description="Most logprobs of prompt tokens in one answer: prompt tokens x (1 + those listed beside each).",
    )
    style: Literal["lightllm", "tgi"] = Field(
        "lightllm",
        description="Whose shape /generate and /generate_stream have for requests without an X-API-Style header.",
    )
    keep_alive_s: float = Field(
        15.0, ge=0, description="A stream of OpenAI's routes that is quiet for this long gets a comment; 0: never."
    )
    template_timeout_s: Seconds = Field(5.0, description="How long the chat template may take for one conversation.")
    tool_style: Literal["auto", "hermes", "llama3"] = Field(
        "auto",
        description="How the model writes tool calls: hermes (Hermes, Qwen), llama3, or auto: by its chat template.",
    )
    drain_s: Seconds = Field(8.0, description="How long open streams may go on after SIGTERM.")


class ImageSettings(Section):
    """Images in prompts, where the model reads them."""

    max_per_request: Count = Field(8, description="Most images of one request.")
    max_bytes: Count = Field(8 << 20, description="Largest image, as it is sent or fetched.")
    max_pixels: Count = Field(25_000_000, description="Largest image, width x height.")
    url_allow: str = Field(
        "",
        description="Comma-separated beginnings of the URLs that images may be fetched from, with their scheme and "
        "host (https://example.org/pictures/); `*`: every public address; empty: none.",
    )
    url_private: bool = Field(
        False, description="Whether a host allowed there by name may have an address of a private network."
    )
    fetch_timeout_s: Seconds = Field(5.0, description="How long all images of one request may take to be fetched.")
    at_once: Count = Field(2, description="Most images that an API process decodes at once to check them.")
    feature_cache_bytes: Limit = Field(
        256 << 20, description="Bytes of encoded images that a prefill worker keeps for prompts with the same ones."
    )

    def allows_url(self, url: str) -> bool:
        """Whether an image may be fetched from `url`, as far as the URL says it."""
        return self.is_any_allowed or begins_as_allowed(url, self.url_allow)

    @property
    def is_any_allowed(self) -> bool:
        """Whether every public address is."""
        return self.url_allow.strip() == "*"


class BatchSettings(Section):
    """Files and batches: what the API takes, and what batch workers do."""

    store: str = Field(
        "~/.cache/pdq/files",
        description="Where files are kept, which API processes and batch workers see alike: a directory, or an address "
        "that fsspec knows, where the package for it is installed (s3://bucket/folder).",
    )
    max_file_bytes: Count = Field(100 << 20, description="Largest file.")
    max_files: Count = Field(1000, description="Most files of one API key.")
    max_lines: Count = Field(50000, description="Most lines of one batch.")
    max_line_bytes: Count = Field(1 << 20, description="Longest line of a batch.")
    max_open: Count = Field(50, description="Most batches of one API key that have not ended.")
    max_window_s: Count = Field(7 * 86400, description="Longest completion_window.")
    keep_s: Count = Field(
        30 * 86400, description="How long a file is kept that says nothing of it, and a batch after its end."
    )
    api_url: str = Field(
        "http://127.0.0.1:8080", pattern=r"^https?://", description="Where batch workers send lines: the cluster's API."
    )
    api_key_file: Path | None = Field(
        None, description="File holding the API key of the batch workers; empty: they send none."
    )
    lines_at_once: Count = Field(16, description="Most lines that one batch worker has in the cluster at once.")
    shards_at_once: Count = Field(4, description="Most shards that one batch worker works on at once.")
    shard_lines: Count = Field(64, description="Lines of a shard, which one worker runs.")
    max_attempts: Count = Field(3, description="How often a line is tried that the cluster fails at.")
    max_wait_s: Seconds = Field(30.0, description="Longest time to wait before a line is sent again.")
    lease_s: Seconds = Field(
        10.0, description="A batch worker that renews nothing for this long is dead; others go on with its shards."
    )
    tend_s: Seconds = Field(1.0, description="How often batches are looked after: begun, dealt out, ended.")
    sweep_s: Seconds = Field(60.0, description="How often what has expired is removed.")
    beat: bool = Field(
        True, description="Whether `pdq batch` also runs the clock (beat); any number of them do no harm."
    )
    events: bool = Field(False, description="Whether workers tell Flower what they do, and do what it says.")
    webhook_allow: str = Field(
        "",
        description="Comma-separated beginnings of the URLs that may be told of a batch's end, with their scheme and "
        "host (https://example.org/hooks/); empty: none.",
    )
    webhook_private: bool = Field(
        False, description="Whether a host allowed there may have an address of a private network."
    )
    webhook_secret_file: Path | None = Field(
        None, description="File with the secret that webhooks are signed with; without it none may be asked for."
    )
    webhook_timeout_s: Seconds = Field(10.0, description="How long one call of a webhook may take.")
    webhook_attempts: Count = Field(8, description="How often a webhook is tried, at growing distances.")

    def allows_webhook(self, url: str) -> bool:
        """Whether `url` begins as one that is allowed."""
        return begins_as_allowed(url, self.webhook_allow)


class SecuritySettings(Section):
    """Who may use the API, and how much of it."""

    keys_file: Path | None = Field(
        None, description="File of API keys (`pdq key new` writes it); empty: no key is asked for, the API is open."
    )
    requests_per_min: Limit = Field(0, description="Requests a minute of a key that names no limit; 0: no limit.")
    tokens_per_min: Limit = Field(
        0, description="Prompt and output tokens a minute of a key that names no limit; 0: no limit."
    )
    max_in_flight: Limit = Field(0, description="Requests at once of a key that names no limit; 0: no limit.")


class MetricsSettings(Section):
    """What Prometheus reads, besides the API's own /metrics."""

    host: str = Field("127.0.0.1", description="Address on which a worker answers GET /metrics.")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on which a worker answers GET /metrics; 0: it does not. Under `pdq serve` the first worker "
        "has this port and each other one the next.",
    )
    vllm_names: bool = Field(
        True, description="Whether figures that vLLM has too are there under its names (vllm:...) once more."
    )


class TracingSettings(Section):
    """Spans of requests, sent to an OpenTelemetry collector."""

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="OTLP/HTTP address of a collector, e.g. http://127.0.0.1:4318; empty: nothing is traced.",
    )
    sample_share: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced, of those whose client does not say."
    )
    export_every_s: Seconds = Field(5.0, description="How often finished spans are sent.")


class LogSettings(Section):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, json elsewhere."
    )


class Settings(BaseSettings):
    """Every section. See `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    redis: RedisSettings = RedisSettings()
    model: ModelSettings = ModelSettings()
    kv: KVSettings = KVSettings()
    kv_transfer: TransferSettings = TransferSettings()
    prefill: PrefillSettings = PrefillSettings()
    decode: DecodeSettings = DecodeSettings()
    gpu: GpuSettings = GpuSettings()
    queue: QueueSettings = QueueSettings()
    stream: StreamSettings = StreamSettings()
    api: ApiSettings = ApiSettings()
    images: ImageSettings = ImageSettings()
    batch: BatchSettings = BatchSettings()
    security: SecuritySettings = SecuritySettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()


def load_settings(overrides: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Settings from the environment, with command-line `overrides` ({section: {knob: value}}) on top.

    Raises ConfigError that names the variable, its value and what was wanted.
    """
    known = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        # pydantic-settings ignores a variable whose section does not exist; a misspelt one must stop the start.
        if variable.startswith(ENV_PREFIX):
            section = variable.removeprefix(ENV_PREFIX).split("__")[0].upper()
            if section not in known:
                raise ConfigError(f"{variable} is no setting of pdq; sections are {', '.join(sorted(known))}")
    try:
        settings = Settings()
        for section, knobs in (overrides or {}).items():
            merged = getattr(settings, section).model_dump() | knobs
            checked = type(getattr(settings, section)).model_validate(merged)
            settings = settings.model_copy(update={section: checked})
    except ValidationError as error:
        first = error.errors()[0]
        where = "__".join(str(part).upper() for part in first["loc"])
        raise ConfigError(f"{ENV_PREFIX}{where} = {first['input']!r}: {first['msg']}") from None
    return settings
