"""Logprobs in the two shapes that OpenAI gives them: that of chats, and the older one of completions.

Pure. A likeliest token that is also the chosen one has the same figure in both places; JSON has no -inf, for which
LEAST_LOGPROB stands.
"""

from collections.abc import Sequence

from api.frames import LEAST_LOGPROB, OutputToken
from api.token_names import TokenNames
from messages.request import GenerationRequest
from messages.token_event import TokenLogprob

Json = dict[str, object]
Listing = dict[str, list[object]]  # by name, one entry for each token


def chat_logprobs(tokens: Sequence[OutputToken], num_top: int, names: TokenNames) -> Json:
    """`choices[].logprobs` of a chat."""
    rows = []
    for token in tokens:
        if token.token_id is not None:
            tops = [_row(names, *one) for one in token.top[:num_top]]
            rows.append(_row(names, token.token_id, token.logprob) | {"top_logprobs": tops})
    return {"content": rows, "refusal": None}


def _row(names: TokenNames, token_id: int, logprob: float) -> Json:
    name = names.of(token_id)
    return {"token": names.text(token_id), "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(name)}


class CompletionLogprobs:
    """`choices[].logprobs` of a completion, growing with it: offsets go on from what was listed before."""

    def __init__(self, num_top: int, names: TokenNames) -> None:
        self._num_top, self._names = num_top, names
        self._offset = 0

    def of_prompt(self, request: GenerationRequest, first: OutputToken) -> Listing:
        """Of an echoed prompt, whose first token has none; `first` brings them."""
        listing = _new_listing()
        for place, token_id in enumerate(request.prompt_token_ids):
            said = first.prompt_logprobs[place - 1] if 0 < place <= len(first.prompt_logprobs) else None
            text = self._names.text(token_id)
            if said is None:
                self._add(listing, text, None, None, len(text))
            else:
                tops = self._tops(token_id, said.logprob, said.top)
                self._add(listing, text, max(said.logprob, LEAST_LOGPROB), tops, len(text))
        return listing

    def of_output(self, tokens: Sequence[OutputToken]) -> Listing:
        """Of the next tokens."""
        listing = _new_listing()
        for token in tokens:
            if token.token_id is None:
                continue
            tops = self._tops(token.token_id, token.logprob, token.top)
            logprob = max(token.logprob, LEAST_LOGPROB)
            self._add(listing, self._names.text(token.token_id), logprob, tops, len(token.text))
        return listing

    def _tops(self, token_id: int, logprob: float, top: Sequence[TokenLogprob]) -> Json:
        """The likeliest, and the token itself where it is none of them: OpenAI's lists may have one more than asked."""
        pairs = {**dict(top[: self._num_top]), token_id: logprob}
        return {self._names.text(other): max(value, LEAST_LOGPROB) for other, value in pairs.items()}

    def _add(self, listing: Listing, text: str, logprob: float | None, tops: Json | None, chars: int) -> None:
        listing["tokens"].append(text)
        listing["token_logprobs"].append(logprob)
        listing["top_logprobs"].append(tops)
        listing["text_offset"].append(self._offset)
        self._offset += chars


def _new_listing() -> Listing:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def joined(first: Listing, second: Listing) -> Listing:
    """Two listings as one."""
    return {name: first[name] + second[name] for name in first}
