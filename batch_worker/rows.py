"""The lines of a batch's output and error files, as OpenAI writes them. Pure."""

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API said to a line, at last. `body`: JSON."""

    status: int
    request_id: str
    body: bytes

    @property
    def is_completed(self) -> bool:
        """Whether the line belongs in the output file, and not in that of errors."""
        return self.status == 200


def row_of(batch_id: str, line: int, custom_id: str, answer: Answer) -> bytes:
    """A line that was answered."""
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = {"error": {"message": "the answer was no JSON", "type": "server_error", "param": None, "code": None}}
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
    return _row(batch_id, line, custom_id, response, None)


def unrun_row(batch_id: str, line: int, custom_id: str, ending: str) -> bytes:
    """A line that was not run to its end; `ending`: what became of the batch, `expired` or `cancelled`."""
    why = {
        "expired": "This request could not be executed before the completion window expired.",
        "cancelled": "This request was not executed before the batch was cancelled.",
    }
    return _row(batch_id, line, custom_id, None, {"code": f"batch_{ending}", "message": why[ending]})


def _row(batch_id: str, line: int, custom_id: str, response: Any, error: Any) -> bytes:
    row_id = f"batch_req_{batch_id.removeprefix('batch_')}_{line}"
    return orjson.dumps({"id": row_id, "custom_id": custom_id, "response": response, "error": error})
