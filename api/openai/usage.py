"""How many tokens a request came to, in OpenAI's words.

Pure. Prompts count once, however many choices go on from them; a token that was generated and not told counts not.
"""

from collections.abc import Sequence

from api.frames import OutputToken
from messages.request import GenerationRequest


class Usage:
    """Of the requests of one client's prompts."""

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self._prompt = sum(len(request.prompt_token_ids) for request in requests)
        self._drops_output = requests[0].answer.drops_output
        self._n = requests[0].n
        self._counts: dict[int, int] = {}
        self._cached: dict[int, int] = {}

    def note(self, token: OutputToken, choice: int) -> None:
        """A choice's next token has come."""
        self._counts[choice] = token.count
        if token.index == 0:
            # Of several choices the later ones find what the first has computed: that is not what is asked.
            self._cached.setdefault(choice // self._n, token.num_cached_tokens)

    @property
    def object(self) -> dict[str, object]:
        """As far as it is known."""
        completion = 0 if self._drops_output else sum(self._counts.values())
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }


def usage_of(requests: Sequence[GenerationRequest], choices: Sequence[Sequence[OutputToken]]) -> dict[str, object]:
    """Of requests that have ended."""
    usage = Usage(requests)
    for choice, tokens in enumerate(choices):
        usage.note(tokens[0], choice)
        usage.note(tokens[-1], choice)
    return usage.object
