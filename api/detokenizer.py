"""Token ids -> text, one token at a time.

Knows the pieces of the vocabulary and LightLLM's joining rules; knows no stop sequences and no wire. The concatenation
of the texts is the text of the whole output, but for an unfinished character at its very end, which is lost.

Runs of ordinary tokens are decoded as one byte string. An added token (special or not) stands alone; runs and added
tokens are joined by a blank, or by nothing. A dropped special token does not end a run.
"""

import codecs

from api.pieces import Pieces
from messages.request import OutputParams

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One per sequence."""

    def __init__(self, pieces: Pieces, output: OutputParams, eos_token_ids: frozenset[int]) -> None:
        self._pieces, self._rule = pieces, pieces.rule
        self._eos_token_ids = eos_token_ids
        self._print_eos = output.print_eos_token
        self._dropped = pieces.special_ids if output.skip_special_tokens else frozenset()
        self._joint = " " if output.add_spaces_between_special_tokens else ""
        self._inside = pieces.inside
        self._is_inside = False  # in a run, with nothing to strip and no character begun: a token's text is its own
        self._has_text_before = False  # whether a run or an added token came before the present run
        self._in_run = False
        self._to_strip = 0
        self._utf8 = _new_utf8_decoder(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is unfinished."""
        if self._is_inside and token_id not in self._eos_token_ids:
            text = self._inside.get(token_id)
            if text is not None:
                return text
        text = self._feed(token_id)
        self._is_inside = self._in_run and not self._to_strip and not self._utf8.getstate()[0]
        if self._is_inside:
            self._pieces.learn_inside(token_id)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a special one, an EOS token included."""
        return token_id in self._pieces.special_ids or token_id in self._eos_token_ids

    def _feed(self, token_id: int) -> str:
        if token_id in self._eos_token_ids:
            return self._eos_text(token_id)
        if token_id in self._dropped:
            return ""
        added = self._pieces.added.get(token_id)
        if added is not None:
            return self._end_run() + self._join() + added
        if self._in_run:
            return self._strip(self._rule.separator + self._utf8.decode(self._pieces.token_bytes(token_id, False)))
        joint = self._join()
        self._in_run = True
        self._to_strip = self._rule.strip_count
        return joint + self._strip(self._utf8.decode(self._pieces.token_bytes(token_id, True)))

    def _eos_text(self, token_id: int) -> str:
        if not self._print_eos:
            return ""
        return self._pieces.added.get(token_id) or self._pieces.token_bytes(token_id, False).decode(errors="replace")

    def _join(self) -> str:
        joint = self._joint if self._has_text_before else ""
        self._has_text_before = True
        return joint

    def _end_run(self) -> str:
        """The rest of the run that an added token ends: an unfinished character becomes U+FFFD, as in any decoding."""
        if not self._in_run:
            return ""
        rest = self._strip(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._in_run = False
        return rest

    def _strip(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != self._rule.strip_character:
                self._to_strip = 0
            else:
                text = text[1:]
                self._to_strip -= 1
        return text
