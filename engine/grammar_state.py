"""How far one sequence is in its grammar, and what may come next. Derived from its output tokens alone, so that it is
the same on whichever worker the sequence goes on. Knows a matcher; knows no model and no tensor.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.json_numbers import NumberState
from grammar import check, refusal
from messages.request import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarState:
    """One per sequence; one thread at a time."""

    def __init__(
        self,
        grammar: Grammar,
        matcher: "LLMatcher",
        renew: "Callable[[], LLMatcher]",
        numbers: NumberState | None = None,
    ) -> None:
        """`matcher` is a copy of one that others have copies of: what they all have seen counts towards its limits.
        `renew` makes one that is nobody else's. `numbers`: of a text that is JSON."""
        self._numbers, self._num_read = numbers, 0
        self._grammar, self._matcher = grammar, matcher
        self._renew: Callable[[], LLMatcher] | None = renew
        self._num_consumed = 0

    def next_bits(self, output_token_ids: Sequence[int]) -> bytes:
        """After these tokens, of which it has seen the first: a bit per token id, as `kernels/logits_bitmask.py` reads
        them. EOS is allowed where the text may end, and nothing else where it has to.

        Raises InvalidRequest: the limits of grammar.py do not suffice for what comes next, or nothing may.
        """
        bits = self._advance(output_token_ids)
        if self._matcher.is_error() and self._renew is not None:
            self._matcher, self._renew, self._num_consumed = self._renew(), None, 0
            bits = self._advance(output_token_ids)
        check(self._matcher, self._grammar)
        if self._numbers is not None:
            self._numbers.read(output_token_ids[self._num_read :])
            self._num_read = len(output_token_ids)
            both = int.from_bytes(bits, "little") & self._numbers.bits
            bits = both.to_bytes(len(bits), "little")
        if bits.count(0) == len(bits):
            raise refusal(self._grammar, "no token may come next")
        return bits

    def _advance(self, output_token_ids: Sequence[int]) -> bytes:
        # A matcher that is in an error, or gets into one, says so and does nothing.
        self._matcher.consume_tokens(list(output_token_ids[self._num_consumed :]))
        self._num_consumed = len(output_token_ids)
        return self._matcher.compute_bitmask()
