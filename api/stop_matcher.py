"""Where an output ends at a stop sequence, found while it streams.

Pure. Strings are looked for in the text, so token borders do not matter; groups of token ids in the ids. What may
still become a stop sequence is held back, so no part of one is ever let out and taken back.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from messages.request import OutputParams


class _Pattern:
    """Knuth-Morris-Pratt over one stop sequence: how much of its beginning the items seen so far end with."""

    def __init__(self, items: Sequence[Hashable]) -> None:
        self.items = items
        self.matched = 0
        self._fallback = [0] * len(items)  # longest proper border of items[: i + 1]
        length = 0
        for i in range(1, len(items)):
            while length and items[i] != items[length]:
                length = self._fallback[length - 1]
            length += items[i] == items[length]
            self._fallback[i] = length

    def step(self, item: Hashable) -> bool:
        """Whether `item` completes the sequence. Not to be called again after it did."""
        while self.matched and item != self.items[self.matched]:
            self.matched = self._fallback[self.matched - 1]
        self.matched += item == self.items[self.matched]
        return self.matched == len(self.items)


class StopMatcher:
    """One per sequence. Feed it each token's id and text; it says what text may go out, and when to stop."""

    def __init__(self, output: OutputParams) -> None:
        self._strings = [_Pattern(text) for text in output.stop_strings]
        self._groups = [_Pattern(token_ids) for token_ids in output.stop_token_ids]
        self._include = output.include_stop
        self._held = ""
        longest = max((len(group.items) for group in self._groups), default=0)
        self._token_chars: deque[int] = deque(maxlen=longest)  # text length of the last tokens
        self.is_needed = bool(self._strings or self._groups)  # else there is nothing to feed
        self.is_stopped = False

    def feed(self, token_id: int, text: str) -> str:
        """The text that goes out with this token. Sets `is_stopped` when the token completed a stop sequence."""
        assert not self.is_stopped
        self._token_chars.append(len(text))
        before = len(self._held)
        self._held += text
        cuts = []  # (start, end) in self._held of what stops here
        for position, character in enumerate(text, before + 1):
            # No short circuit: every pattern must see every character.
            complete = [pattern for pattern in self._strings if pattern.step(character)]
            if complete:
                cuts.append((position - max(len(pattern.items) for pattern in complete), position))
                break
        for group in self._groups:
            if group.step(token_id):
                cuts.append((len(self._held) - self._chars_of_last(len(group.items)), len(self._held)))
        if cuts:
            self.is_stopped = True
            start, end = min(cuts)
            return self._held[: end if self._include else start]
        held_chars = max((pattern.matched for pattern in self._strings), default=0)
        for group in self._groups:
            held_chars = max(held_chars, self._chars_of_last(group.matched))
        border = len(self._held) - held_chars
        released, self._held = self._held[:border], self._held[border:]
        return released

    def flush(self) -> str:
        """What is held back, for the event that ends the output without a stop sequence."""
        released, self._held = self._held, ""
        return released

    def _chars_of_last(self, num_tokens: int) -> int:
        return sum(self._token_chars[-1 - i] for i in range(num_tokens))
