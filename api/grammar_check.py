"""Whether a grammar can be followed, found out before a request is admitted: compiled and tried out on a thread.

llguidance counts its work and stops at the limits of grammar.py, so a thread comes back in any case; the time limit is
for a machine that has other things to do. What was found is kept, for the schema that every request of an application
brings. Knows no model: bytes stand for its tokens, which saves the API process the tokenizer's 60 MB.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from errors import InvalidRequest, QueueFull
from grammar import check, compile_grammar, refusal
from messages.request import Grammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer

NUM_THREADS = 2  # one that is at a hostile grammar keeps nobody waiting
MAX_KEPT = 64  # grammars, of at most api.max_grammar_bytes each
TRIAL_BYTES = 64  # of a text that are tried: what is too large for a step is so at the beginning, mostly


class GrammarCheck:
    """One per API process."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._refusals: OrderedDict[Grammar, str | None] = OrderedDict()  # None: can be followed; last used at the end
        self._tokenizer: LLTokenizer | None = None

    async def check(self, grammar: Grammar) -> None:
        """Raises InvalidRequest with what is wrong with the grammar, QueueFull where others keep us from looking."""
        if grammar not in self._refusals:
            self._refusals[grammar] = await self._try_in_time(grammar)
            while len(self._refusals) > MAX_KEPT:
                self._refusals.popitem(last=False)
        self._refusals.move_to_end(grammar)
        reason = self._refusals[grammar]
        if reason is not None:
            raise InvalidRequest(reason)

    async def _try_in_time(self, grammar: Grammar) -> str | None:
        trial = self._threads.submit(self._try, grammar)
        done, _ = await asyncio.wait([asyncio.wrap_future(trial)], timeout=self._timeout_s)
        if done:
            return trial.result()
        if trial.cancel():
            raise QueueFull(f"{grammar.kind}: too many grammars wait to be compiled (Status code: 503)")
        raise refusal(grammar, f"it takes longer than {self._timeout_s:g} s to compile")

    def _try(self, grammar: Grammar) -> str | None:
        """Why it cannot be followed: compile it, and write the beginning of a text by it."""
        from llguidance import LLTokenizer

        tokenizer = self._tokenizer = self._tokenizer or LLTokenizer("byte")
        try:
            matcher = compile_grammar(grammar, tokenizer)
            for place in range(TRIAL_BYTES):
                bits = matcher.compute_bitmask()
                check(matcher, grammar)
                allowed = [byte for byte in range(tokenizer.vocab_size) if bits[byte // 8] >> byte % 8 & 1]
                if not allowed:
                    raise refusal(grammar, "no text fits it")
                if matcher.is_stopped():
                    break
                matcher.consume_token(allowed[place * 7 % len(allowed)])
                check(matcher, grammar)
        except InvalidRequest as error:
            return str(error)
        return None
