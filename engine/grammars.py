"""The grammars of a worker's sequences: compiled once, followed step by step, beside the thread that computes.

What may come next depends on the tokens before it alone, as the logits do: so the bits of a step are made while it is
computed, on a thread of their own. Compiling has another one, which no step waits for. A worker that never gets a
grammar starts neither thread and loads no tokenizer. Knows sequences and tokenizer.json; knows no queue.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.grammar_state import GrammarState
from engine.json_numbers import JsonNumbers, NumberState
from errors import InvalidRequest, RequestError, WorkerFailed
from grammar import compile_grammar, is_of_json
from messages.request import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from engine.sequence import Sequence as EngineSequence

MAX_COMPILED = 16  # that are kept, each with up to 40 MB of what its sequences have seen


@dataclass(frozen=True, slots=True)
class Next:
    """What may come next of one sequence: the bits, or why nothing may."""

    bits: bytes | None = None
    error: RequestError | None = None


class Grammars:
    """One per worker."""

    def __init__(self, model_dir: Path | None, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """`vocab_size`: of the model, whose tokenizer may have fewer ids. Without a directory every grammar fails."""
        self._model_dir, self._vocab_size, self._eos_token_ids = model_dir, vocab_size, sorted(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()  # the last used at the end
        self._numbers: JsonNumbers | None = None
        self._lock = threading.Lock()  # of the three above
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._following = ThreadPoolExecutor(1, thread_name_prefix="bits")

    def open(self, sequence: "EngineSequence") -> "Future[RequestError | None]":
        """Have the sequence's grammar compiled, if it has one. The result says why it cannot be."""
        if sequence.sampling.grammar is None:
            done: Future[RequestError | None] = Future()
            done.set_result(None)
            return done
        return self._opening.submit(self._open, sequence)

    def follow(self, sequences: "Sequence[EngineSequence]") -> Future[dict[int, Next]] | None:
        """What may come next of those that have a grammar, by place; None where nobody has."""
        guided = [
            (place, sequence) for place, sequence in enumerate(sequences) if sequence.sampling.grammar is not None
        ]
        return self._following.submit(self._follow, guided) if guided else None

    def _open(self, sequence: "EngineSequence") -> RequestError | None:
        grammar = sequence.sampling.grammar
        assert grammar is not None
        try:
            matcher = self._compile(grammar).deep_copy()
            numbers = NumberState(self._load_numbers()) if is_of_json(grammar) else None
            state = GrammarState(grammar, matcher, partial(self._compile_anew, grammar), numbers)
        except RequestError as error:
            return error
        sequence.grammar = state
        return None

    def _follow(self, guided: "Sequence[tuple[int, EngineSequence]]") -> dict[int, Next]:
        return {place: self.next_of(sequence) for place, sequence in guided}

    def next_of(self, sequence: "EngineSequence") -> Next:
        """What may come next of one that has a grammar; on the thread that follows."""
        if sequence.grammar is None:  # who had time before this step has opened it
            error = self._open(sequence)
            if error is not None:
                return Next(error=error)
        assert sequence.grammar is not None
        try:
            return Next(sequence.grammar.next_bits(sequence.output_token_ids))
        except InvalidRequest as error:
            return Next(error=error)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
                return compiled
        compiled = compile_grammar(grammar, self._load_tokenizer())
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile_anew(self, grammar: Grammar) -> "LLMatcher":
        """For a sequence alone; who comes later begins anew too."""
        with self._lock:
            self._compiled.pop(grammar, None)
        return compile_grammar(grammar, self._load_tokenizer())

    def _load_numbers(self) -> JsonNumbers:
        """Once, like the tokenizer."""
        tokenizer = self._load_tokenizer()
        with self._lock:
            if self._numbers is None:
                tokens = [tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.vocab_size)]
                self._numbers = JsonNumbers(tokens, self._eos_token_ids)
            return self._numbers

    def _load_tokenizer(self) -> "LLTokenizer":
        """Once: a quarter of a second and 60 MB for a vocabulary of 49,000. Raises WorkerFailed, InvalidRequest."""
        from llguidance import LLTokenizer

        if not self._eos_token_ids:
            raise InvalidRequest("the model has no EOS token, by which a text that follows a grammar ends")
        with self._lock:
            if self._tokenizer is not None:
                return self._tokenizer
            if self._model_dir is None:
                raise WorkerFailed("this worker can not follow grammars: it has no tokenizer")
            try:
                text = (self._model_dir / "tokenizer.json").read_text(encoding="utf-8")
                try:
                    tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
                except ValueError:  # it has more ids than the model; those mean nothing to the sampler
                    tokenizer = LLTokenizer(text, eos_token=self._eos_token_ids)
            except (OSError, ValueError) as error:
                raise WorkerFailed(f"this worker can not follow grammars: {error}") from None
            self._tokenizer = tokenizer
            return tokenizer
