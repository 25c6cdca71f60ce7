"""What is said: one frozen struct per arrow of the drawing, their wire form, and the errors.

Every message is msgpack behind one version byte; a struct is an array on the wire, so fields are only ever added at
the end. This file knows no room, no Redis and no torch.

Errors:
    PdqError
        RequestError            ends one request; carries the HTTP status
            InvalidRequest      417  the client's fault
            QueueFull           503  too much waits already
            NoWorker            503  nobody is there to do the work
            DeadlineExceeded    504  the time that the client gave it is over
            WorkerFailed        500  we failed at it, repeatedly
        KVTransferFailed        a pull did not deliver; the request goes back to prefill
        WireError               bytes that are no message of ours
        RankLost                a process of a tensor-parallel worker died or hangs; the worker ends
        StartupError            stops the process with its exit code
            ConfigError         2    settings
            DeviceError         3    no GPU, not enough memory
            ModelError          4    model files
            BrokerError         5    Redis
"""

from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args

import msgspec

WIRE_VERSION = 1

STALLED_EXIT_CODE = 6  # a worker whose loop stood still, or that did not get through its drain; start it again


class PdqError(Exception):
    """Root of every error of ours."""


class RequestError(PdqError):
    """Ends one request. `status` is the HTTP status it becomes."""

    status = 500


class InvalidRequest(RequestError):
    """The request itself is at fault."""

    status = 417


class QueueFull(RequestError):
    """More waits than may, or a place would come too late. `retry_after_s`: when one is expected."""

    status = 503
    retry_after_s = 1


class NoWorker(RequestError):
    """No live worker of a needed role."""

    status = 503


class DeadlineExceeded(RequestError):
    """The request's time was over before it ended."""

    status = 504


class WorkerFailed(RequestError):
    """The work failed on our side and repeating it did not help."""

    status = 500


class KVTransferFailed(PdqError):
    """The KV was not delivered, or is not the KV that was offered."""


class WireError(PdqError):
    """Bytes that are not a message of this version."""


class RankLost(PdqError):
    """A tensor-parallel worker is no longer complete and cannot go on; its jobs are reclaimed by others."""


class StartupError(PdqError):
    """The process cannot start."""

    exit_code = 1


class ConfigError(StartupError):
    """A setting is unknown or out of bounds."""

    exit_code = 2


class DeviceError(StartupError):
    """A device or its memory is missing."""

    exit_code = 3


class ModelError(StartupError):
    """The model cannot be read."""

    exit_code = 4


class BrokerError(StartupError):
    """Redis cannot be reached or used."""

    exit_code = 5


class Role(StrEnum):
    """What a worker process is."""

    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an EOS token or a stop sequence
    LENGTH = "length"  # max_new_tokens reached
    ABORT = "abort"  # the client went away or cancelled
    ERROR = "error"  # a failure on our side; the event says which


class Phase(StrEnum):
    """Where a sequence is, as /token_load and `pdq status` see it."""

    PREFILL_QUEUED = "prefill_queued"
    PREFILLING = "prefilling"
    DECODE_QUEUED = "decode_queued"  # its KV is offered
    DECODING = "decoding"


class Priority(StrEnum):
    """Which waiting request goes first; the members are in that order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


class WorkerState(StrEnum):
    """Where a worker process is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the output has to be, as the client wrote it. `grammar.py` says what each kind means."""

    kind: Literal["json_schema", "json_object", "regex", "lark", "ebnf"]
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is chosen. Names and meanings are LightLLM's; greedy when `do_sample` is false."""

    seed: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: no limit
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    exponential_decay_length_penalty: tuple[int, float] = (1, 1.0)
    input_penalty: bool = False  # whether prompt tokens count in the three penalties
    ignore_eos: bool = False
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    logit_bias: dict[int, float] = {}  # token id -> added to its logit
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    min_p: float = 0.0  # of the largest probability; 0: no limit
    grammar: Grammar | None = None  # None: any text
    num_top_logprobs: int = 0  # how many of the likeliest ids are told with each token
    num_prompt_logprobs: int | None = None  # as many with each prompt token, and its own logprob; None: neither


class OutputParams(msgspec.Struct, frozen=True, array_like=True):
    """How token ids become text. Only the API looks at it; it is in the record so that any API can go on."""

    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[tuple[int, ...], ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    add_spaces_between_special_tokens: bool = True
    print_eos_token: bool = False


class ToolParams(msgspec.Struct, frozen=True, array_like=True):
    """How tool calls are read out of an output."""

    style: Literal["hermes", "llama3"]
    names: tuple[str, ...]  # of the tools that may be called
    is_parallel: bool = True  # else only the first call is told


class AnswerParams(msgspec.Struct, frozen=True, array_like=True):
    """How the answer is written. Only the API looks at it; it is in the record so that any API can go on."""

    route: str = ""  # name of the route that began it, whose frames and body it is answered with
    with_details: bool = False  # whether its body lists every token
    num_logprobs: int | None = None  # OpenAI's routes: how many of the likeliest tokens it lists; None: no logprobs
    echo: bool = False  # whether the prompt stands before the output
    drops_output: bool = False  # only the prompt is wanted; the one token that was generated is not told
    include_usage: bool = False  # whether a stream ends with its usage
    continuous_usage: bool = False  # whether every chunk of a stream has it
    tools: ToolParams | None = None  # None: the output is content, whatever is in it


class ImageRef(msgspec.Struct, frozen=True, array_like=True):
    """An image of a prompt and the tokens that stand for it; its bytes lie under the request's images in Redis."""

    digest: bytes  # sha256 of its bytes
    first: int  # place of its first token in the prompt
    num_tokens: int  # the markers around and between its tiles included

    @property
    def end(self) -> int:
        """The place after its last token."""
        return self.first + self.num_tokens


class GenerationRequest(msgspec.Struct, frozen=True, array_like=True):
    """What a client asked, as the record keeps it. `n` sequences ("choices" 0..n-1) share the prompt."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output: OutputParams = OutputParams()
    n: int = 1
    kind: Literal["generate", "score"] = "generate"
    api_id: str = ""  # whose relay stream gets the tokens
    created_ms: int = 0  # Unix time
    owner: str = ""  # id of the API key that made it; empty where no keys are asked for
    is_detached: bool = False  # goes on when its client leaves
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0  # Unix time after which nobody waits for it; 0: none
    answer: AnswerParams = AnswerParams()
    trace: str = ""  # W3C traceparent of the span that work on it belongs to; empty: it is not traced
    images: tuple[ImageRef, ...] = ()  # of its prompt, in its order


class PrefillJob(msgspec.Struct, frozen=True, array_like=True):
    """API or decode worker -> prefill queue: compute the KV of prompt + published tokens, and the next token."""

    request_id: str
    choice: int
    hop: int  # how often the sequence changed queues; a job of an older hop is stale
    attempt: int = 0  # how many workers died or failed on it without progress
    num_published: int = 0  # tokens in the stream when the job was made


class KVHandle(msgspec.Struct, frozen=True, array_like=True):
    """What a receiver needs to pull offered blocks. At most 1 KiB, block ids aside."""

    transfer_id: str
    worker_id: str  # the owner, to whom the release goes
    pool: str  # name of the exported pool
    pool_epoch: int  # random, one per export; a pool of the same name with another epoch is another pool
    slot: int  # which generation counter in the pool's head guards this offer
    generation: int  # its value while the offer stands
    layout_hash: str  # model, shapes, dtype, block size; compared before the first byte
    num_tokens: int  # tokens whose KV the blocks hold
    block_ids: list[int]
    num_ranks: int = 1  # over how many pools the heads are spread: slot, generation and block ids are the same in all
    is_summed: bool = False  # whether a checksum of the blocks is, or will be, in each pool's head
    mac: bytes = b""  # over all of it and the job it is for (kv_transfer/seal.py); empty where there is no secret


class PoolExport(msgspec.Struct, frozen=True, array_like=True):
    """How an owner's pool can be reached; said once per pool, not per request."""

    worker_id: str
    pool: str  # name of the head's segment in /dev/shm
    pool_epoch: int
    host_id: str  # equal exactly where /dev/shm is shared: boot id and IPC namespace
    device: str  # where the blocks lie: "cpu", or a GPU's UUID ("GPU-..."), never an index
    block_bytes: int
    num_blocks: int
    addresses: dict[str, bytes] = {}  # transport kind -> what its puller needs besides
    ranks: tuple["PoolExport", ...] = ()  # the pools of a tensor-parallel owner's ranks 1 and up, in order
    mac: bytes = b""  # over all of it, ranks included (kv_transfer/seal.py); empty where there is no secret


class TransferCount(msgspec.Struct, frozen=True, array_like=True):
    """What one transport has done for one decode worker since its start."""

    pulls: int = 0
    num_bytes: int = 0
    failures: int = 0

    def plus(self, pulls: int = 0, num_bytes: int = 0, failures: int = 0) -> "TransferCount":
        """The sum."""
        return TransferCount(self.pulls + pulls, self.num_bytes + num_bytes, self.failures + failures)


class DecodeJob(msgspec.Struct, frozen=True, array_like=True):
    """Prefill worker, or a decode worker that stops -> decode queue: the KV of all tokens but the last published one
    is offered."""

    request_id: str
    choice: int
    hop: int
    kv_handle: KVHandle
    attempt: int = 0


TokenLogprob = tuple[int, float]  # token id, the log of its probability


class PromptLogprob(msgspec.Struct, frozen=True, array_like=True):
    """What the model made of one prompt token, given those before it."""

    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the likeliest ids in its place, the likeliest first


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a token stream. Its index is its place in the stream. The terminal event has `finish_reason`."""

    token_id: int | None = None  # None: a terminal event without a token
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    error: str = ""
    error_status: int = 0
    score: float | None = None  # the answer to a request of kind "score"
    top: tuple[TokenLogprob, ...] = ()  # the likeliest ids in its place, where they were asked for
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # event 0 only, where asked for: of the prompt's tokens from 1 on
    num_cached_tokens: int = 0  # event 0 only: prompt tokens whose KV was there already


class RelayedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event on its way to an API process that waits for it."""

    member: str  # the choice, as broker/choice.py names it
    index: int
    event: TokenEvent


class RelayedEvents(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a relay: events of one step that an API process waits for. broker/lua/relay.lua writes it."""

    events: list[RelayedEvent]


class Release(msgspec.Struct, frozen=True, array_like=True):
    """Decode worker -> the owner's inbox: the offer is pulled or no longer wanted."""

    transfer_id: str


class FinishedPhase(msgspec.Struct, frozen=True, array_like=True):
    """A part of one sequence's life that a worker has just seen end. Nothing of its text."""

    number: int  # counted from 1 by the worker; a reader takes each once
    request_id: str
    choice: int
    name: str  # as its span is named: queue prefill, prefill, offer, queue decode, kv_pull, decode, reclaimed...
    ended_ms: int  # Unix time, by the worker's host
    took_ms: float


class WorkerStatus(msgspec.Struct, frozen=True, array_like=True):
    """A worker's heartbeat."""

    worker_id: str
    role: Role
    state: WorkerState
    host: str
    pid: int
    started_ms: int  # Unix time
    model_hash: str = ""
    capacity_tokens: int = 0  # KV tokens the pool holds
    block_size: int = 0
    num_blocks: int = 0
    free_blocks: int = 0  # evictable prefix-cache blocks included
    num_running: int = 0
    idle_s: float = 0.0  # seconds since the loop last came round
    detail: str = ""  # e.g. "loading weights 43 %"
    export: PoolExport | None = None  # its pool, where others can pull from it
    transfers: dict[str, TransferCount] = {}  # a decode worker's pulls, by transport
    gpus: tuple[str, ...] = ()  # UUIDs it has leased
    max_running: int = 0  # sequences it runs at once
    tokens_per_s: float = 0.0  # a prefill worker's prompt tokens per second of work, of late; 0: not known yet
    sequence_s: float = 0.0  # seconds that a sequence is expected to stay in a decode worker's batch; 0: not known
    prefilled_tokens: int = 0  # prompt tokens that it has computed since its start
    counters: dict[str, int] = {}  # what else it has counted since its start, by its name in /metrics
    phases: tuple[FinishedPhase, ...] = ()  # what ended of late: a few seconds' worth, and no more than some dozens


class BatchStatus(StrEnum):
    """Where a batch is; OpenAI's words."""

    VALIDATING = "validating"  # its lines are not checked yet
    FAILED = "failed"  # its input cannot be run
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  # no more lines are run; its files are written
    COMPLETED = "completed"
    EXPIRED = "expired"  # its window ended first
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do for it."""
        return self in (self.VALIDATING, self.IN_PROGRESS, self.FINALIZING, self.CANCELLING)


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    """A file whose bytes are in the file store under its id."""

    file_id: str
    owner: str  # id of the API key that made it; empty where none is asked for
    filename: str
    purpose: str
    num_bytes: int
    created_ms: int  # Unix time
    expires_ms: int = 0  # 0: it is kept


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """API -> batch workers: the lines of a file, each a request to `endpoint`. What never changes of a batch."""

    batch_id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str  # as the client wrote it
    created_ms: int
    expires_ms: int
    metadata: dict[str, str] = {}
    webhook_url: str = ""  # who is told of its end; empty: nobody


Job = PrefillJob | DecodeJob
Message = (
    GenerationRequest
    | PrefillJob
    | DecodeJob
    | TokenEvent
    | RelayedEvents
    | Release
    | WorkerStatus
    | StoredFile
    | Batch
)
MessageT = TypeVar("MessageT", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in get_args(Message)}
_VERSION_BYTE = bytes([WIRE_VERSION])


def encode(message: Message) -> bytes:
    """The message's wire form."""
    return _VERSION_BYTE + _encoder.encode(message)


def decode(data: bytes, kind: type[MessageT]) -> MessageT:
    """The message in `data`. Raises WireError when it is not one of `kind`."""
    if data[:1] != _VERSION_BYTE:
        raise WireError(f"{kind.__name__}: wire version {data[:1]!r}, this process speaks {WIRE_VERSION}")
    try:
        message: MessageT = _decoders[kind].decode(memoryview(data)[1:])
        return message
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"{kind.__name__}: {error}") from None
