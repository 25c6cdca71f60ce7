"""What happened to one request: when it was sent, when each token came, how it ended.

Times are `time.perf_counter()` seconds. Prompts and outputs are never kept. This file knows frames and answers; it
must not know sockets or statistics.

Failure kinds:
    connection_refused, connect_failed    no connection
    http_<status>                         a status other than 200
    bad_response, bad_frame               bytes that are no HTTP, a `data:` line that is no frame
    cut_stream                            the connection ended before the terminal frame and the response's end
    timeout                               nothing arrived for the idle limit
    server_error                          an error frame
    finish_<reason>                       an end with a reason other than stop or length (abort, error, none)
    short_output, long_output             fewer or more tokens than asked for
    token_gap, token_repeated             the token count jumped, or did not rise
    frame_after_end                       a frame after the terminal one
    wrong_prompt_tokens                   the server counted other prompt tokens than were sent
"""

from dataclasses import dataclass, field
from itertools import pairwise

from bench.http_stream import Answer
from bench.wire_style import Frame

GOOD_FINISH_REASONS = frozenset({"stop", "length"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request does not count."""

    kind: str
    detail: str = ""  # what the server or the system said


@dataclass(slots=True)
class RequestRecord:
    """One request. It succeeded when `failure` is None, which only `end` decides."""

    group: str
    index: int
    prompt_tokens: int
    asked_tokens: int
    sent_s: float  # before the connection is opened
    scheduled_s: float | None = None  # open loop: when it should have been sent
    arrivals_s: list[float] = field(default_factory=list)  # of each output token
    end_s: float = 0.0
    finish_reason: str | None = None
    failure: Failure | None = None
    has_ended: bool = False  # the terminal frame came
    num_untimed: int = 0  # of the tokens, those without a frame of their own, that only the last count tells of
    _counts_frames: bool = False  # frames came with text and without a count

    def take(self, frame: Frame, now_s: float, one_frame_per_token: bool) -> None:
        """Notes a frame that arrived at `now_s`. The first failure is kept."""
        if self.has_ended:
            self.fail("frame_after_end")
            return
        if frame.error is not None:
            self.fail("server_error", frame.error)
            return
        if frame.prompt_tokens is not None and frame.prompt_tokens != self.prompt_tokens:
            self.fail("wrong_prompt_tokens", f"sent {self.prompt_tokens}, the server counts {frame.prompt_tokens}")
        if frame.output_tokens is not None:
            fresh = frame.output_tokens - len(self.arrivals_s)
            if fresh < 1 and one_frame_per_token:
                self.fail("token_repeated", f"count {frame.output_tokens} after {len(self.arrivals_s)}")
            elif fresh > 1 and one_frame_per_token:
                self.fail("token_gap", f"count {frame.output_tokens} after {len(self.arrivals_s)}")
            if self._counts_frames:
                # The count at the end: what it has beyond the frames came in one of them, nobody knows in which.
                self.num_untimed += max(0, fresh)
                now_s = self.arrivals_s[-1] if self.arrivals_s else now_s
            self.arrivals_s.extend([now_s] * fresh)
        elif frame.text:
            self._counts_frames = True
            self.arrivals_s.append(now_s)
        self.finish_reason = frame.finish_reason or self.finish_reason
        self.has_ended = frame.is_end

    def fail(self, kind: str, detail: str = "") -> None:
        """Marks the request failed; later failures of the same request do not replace the first."""
        if self.failure is None:
            self.failure = Failure(kind, detail[:200])

    def end(self, answer: Answer, now_s: float) -> None:
        """Judges the request when its exchange has ended."""
        self.end_s = now_s
        num_tokens = len(self.arrivals_s)
        if answer.bad_response:
            self.fail("bad_response", answer.bad_response)
        elif answer.timed_out:
            self.fail("timeout", f"after {num_tokens} tokens")
        elif answer.status is None:
            self.fail("cut_stream", "closed without a response")
        elif answer.status != 200:
            self.fail(f"http_{answer.status}", answer.body.decode("utf-8", "replace"))
        elif not self.has_ended or not answer.is_complete:
            self.fail("cut_stream", f"after {num_tokens} of {self.asked_tokens} tokens")
        elif self.finish_reason not in GOOD_FINISH_REASONS:
            self.fail(f"finish_{self.finish_reason or 'none'}")
        elif num_tokens < self.asked_tokens:
            self.fail("short_output", f"{num_tokens} of {self.asked_tokens} tokens")
        elif num_tokens > self.asked_tokens:
            self.fail("long_output", f"{num_tokens} of {self.asked_tokens} tokens")

    @property
    def succeeded(self) -> bool:
        """Whether every token asked for arrived, once, and the response ended as it should."""
        return self.failure is None

    @property
    def ttft_s(self) -> float:
        """Time to first token, the client's clock: send -> first output token. Needs a token."""
        return self.arrivals_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        """End-to-end latency: send -> last output token. Needs a token."""
        return self.arrivals_s[-1] - self.sent_s

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: each gap between successive output tokens."""
        return [later - earlier for earlier, later in pairwise(self.arrivals_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (output tokens - 1). None with one token."""
        gaps = len(self.arrivals_s) - 1
        return (self.e2e_s - self.ttft_s) / gaps if gaps > 0 else None
