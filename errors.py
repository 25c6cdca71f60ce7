"""The errors, and the exit codes and HTTP statuses that they become. Knows nothing of ours.

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
