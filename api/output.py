"""A choice's events -> its tokens with their text, as far as its stop sequences let it go.

Pure. The same events give the same text, whoever asks and whenever: so a stream can be begun by one API process and
continued by another, which feeds what was sent before in silence.
"""

from api.detokenizer import Detokenizer
from api.errors import failure
from api.frames import OutputToken
from api.model_facts import ModelFacts
from api.stop_matcher import StopMatcher
from api.tokenizer import Tokenizer
from messages.request import OutputParams
from messages.token_event import FinishReason, TokenEvent


class Output:
    """One per choice and reader. Feed it every event from index 0 on, until it gives a token with a finish_reason."""

    def __init__(self, tokenizer: Tokenizer, facts: ModelFacts, params: OutputParams) -> None:
        self._detokenizer = Detokenizer(tokenizer.pieces, params, facts.eos_token_ids)
        self._stops = StopMatcher(params)
        self._count = 0

    @property
    def may_stop(self) -> bool:
        """Whether there are stop sequences, so that a token may have a finish_reason where its event has none."""
        return self._stops.is_needed

    def feed(self, event: TokenEvent) -> OutputToken:
        """The next token. It has a finish_reason where `event` has none if it completes a stop sequence: no event after
        it belongs to the output. Raises RequestError for the event of a failure."""
        finish_reason = event.finish_reason
        if finish_reason == FinishReason.ERROR:
            raise failure(event)
        text, special = "", True
        if event.token_id is not None:
            self._count += 1
            text = self._detokenizer.feed(event.token_id)
            if self._stops.is_needed:
                text = self._stops.feed(event.token_id, text)
            special = self._detokenizer.is_special(event.token_id)
        if self._stops.is_stopped:
            finish_reason = FinishReason.STOP
        elif finish_reason is not None:
            text += self._stops.flush()
        return OutputToken(
            event.token_id,
            text,
            event.logprob,
            special,
            self._count,
            finish_reason,
            event.top,
            event.prompt_logprobs,
            event.num_cached_tokens,
        )
