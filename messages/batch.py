"""Files and batches. API -> batch workers."""

from enum import StrEnum

import msgspec


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
