"""What one server API looks like to the load generator: a request's body and a streamed frame.

One file per style implements `WireStyle`: `lightllm_style.py` as a module, `openai_style.py` as a class, for it has
options. Nothing else in bench/ knows field names. This file must not know HTTP, clocks or files.
"""

from dataclasses import dataclass
from typing import Protocol


class BadFrame(ValueError):
    """A `data:` line that is no frame of this style."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What one `data:` line says."""

    output_tokens: int | None = None  # cumulative count, this frame's token included; None: the frame has no count
    prompt_tokens: int | None = None  # as the server counted them; None: the frame does not say
    finish_reason: str | None = None  # set on the terminal frame, or on one before it
    is_end: bool = False  # the last frame of a whole answer
    error: str | None = None  # the server ended the request with this
    text: str = ""  # what the frame adds to the answer; without a count it stands for one token
    token_id: int | None = None  # None: the frame does not say


class WireStyle(Protocol):
    """A server API."""

    @property
    def PATH(self) -> str:
        """The route that streams, e.g. "/generate_stream"."""

    @property
    def ONE_FRAME_PER_TOKEN(self) -> bool:
        """Whether every token must have its own frame, so that a jump of the count is a lost token."""

    def build_request(self, prompt_token_ids: list[int], output_tokens: int) -> bytes:
        """JSON body asking for exactly `output_tokens` greedy tokens, streamed, EOS ignored."""

    def parse_frame(self, payload: bytes) -> Frame:
        """The frame in what follows `data:` on a line. Raises BadFrame."""
