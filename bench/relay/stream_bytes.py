"""The bytes of one SSE stream -> when each of its tokens arrived, and whether all came, once and in order.

Pure, and run after the measurement: while it goes on, the client only reads and stamps.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

Reads = Sequence[tuple[int, bytes]]  # (time.monotonic_ns() after the read, what was read)

_TOKEN = re.compile(rb'"count_output_tokens":(\d+)[^\n]*\n\n')
_STATUS_OK = b"HTTP/1.1 200 "
_END = b"0\r\n\r\n"


def is_begun(first_read: bytes) -> bool:
    """Whether a response that begins so brings a stream."""
    return first_read.startswith(_STATUS_OK)


def is_whole(last_read: bytes) -> bool:
    """Whether a response ends with this read."""
    return last_read.endswith(_END)


def token_times(reads: Reads) -> list[int]:
    """For each token its arrival, that of the frame's last byte. Raises ValueError when the stream is not what it
    should be: status 200, tokens 1, 2, 3 and so on, each once, `length` at the end."""
    body = b"".join(data for _, data in reads)
    if not is_begun(body):
        raise ValueError(f"answered {body[:200]!r}")
    ends = list(accumulate(len(data) for _, data in reads))
    times = []
    for count, token in enumerate(_TOKEN.finditer(body), 1):
        if int(token[1]) != count:
            raise ValueError(f"token {int(token[1])} came where {count} was due")
        times.append(reads[bisect_left(ends, token.end())][0])
    if body.count(b'"finish_reason":"length"') != 1 or not body.endswith(_END):
        raise ValueError(f"{len(times)} tokens, and no proper end: {body[-200:]!r}")
    return times
