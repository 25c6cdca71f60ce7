"""What one API process measures: of the requests that came to it, and of its responses.

Written by the event loop alone. What is measured when is measurement.py's and request_id.py's to say; names and
meanings are the catalogue's.
"""

from collections import Counter

from api.timelines import Timelines
from observability.catalogue import (
    ADMISSION,
    FIRST_TOKEN,
    INTER_TOKEN,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    RELAY,
    SEQUENCE,
)
from observability.histogram import Histogram


class ApiMeters:
    """One per process."""

    def __init__(self) -> None:
        self.admission = Histogram(ADMISSION)
        self.first_token = Histogram(FIRST_TOKEN)
        self.inter_token = Histogram(INTER_TOKEN)
        self.relay = Histogram(RELAY)
        self.sequence = Histogram(SEQUENCE)
        self.prompt_tokens = Histogram(PROMPT_TOKENS)
        self.output_tokens = Histogram(OUTPUT_TOKENS)
        self.ended: Counter[str] = Counter()  # sequences, by finish_reason
        self.responses: Counter[tuple[str, str]] = Counter()  # by (path of the route, status)
        self.timelines = Timelines()

    @property
    def num_tokens(self) -> int:
        """Tokens that came, of sequences that have not ended too."""
        return self.first_token.count + self.inter_token.count

    def histograms(self) -> tuple[Histogram, ...]:
        """All of them."""
        return (
            *(self.admission, self.first_token, self.inter_token, self.relay),
            *(self.sequence, self.prompt_tokens, self.output_tokens),
        )
