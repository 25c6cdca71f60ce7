"""What a single token is called where tokens are listed: its text, or its bytes where they are no text.

Knows the pieces of the vocabulary; knows no sequence: a name does not depend on the tokens before it.
"""

from api.pieces import Pieces


class TokenNames:
    """Those of one vocabulary."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def of(self, token_id: int) -> bytes:
        """The token's bytes; those of an added token's content, special or not."""
        added = self._pieces.added.get(token_id)
        return self._pieces.token_bytes(token_id, False) if added is None else added.encode()

    def text(self, token_id: int) -> str:
        """Its text; a part of a character is written as OpenAI does, `bytes:\\xe2\\x80`, so that no two are alike."""
        name = self.of(token_id)
        try:
            return name.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in name)
