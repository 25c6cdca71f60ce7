"""Token ids as text of the same length in tokens, for servers that take no ids. Knows the file tokenizer.json.

Random ids do not survive the way through text: their pieces merge. So the text is encoded again, cut or filled up with
more ids until its own encoding has the wanted length. A server that puts a token of its own before it counts one more.
"""

from pathlib import Path

from tokenizers import Tokenizer

from errors import ConfigError

MAX_ROUNDS = 50
BROKEN = "\ufffd"  # what bytes that are no character decode to


class TextPrompt:
    """Callable: ids -> text."""

    def __init__(self, path: Path) -> None:
        """`path`: a tokenizer.json, or the directory that holds one. Raises ConfigError."""
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"--tokenizer {path}: there is no such file")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001 - tokenizers raises the bare class
            raise ConfigError(f"--tokenizer {file}: {error}") from None

    def __call__(self, token_ids: list[int]) -> str:
        """Text that begins like these ids and has as many tokens. Raises ConfigError when none is found."""
        wanted = len(token_ids)
        ids = list(token_ids)
        for round_ in range(MAX_ROUNDS):
            text = self._tokenizer.decode(ids).replace(BROKEN, "")
            found = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(found) == wanted:
                return text
            # Others each time, lest the same ones merge again.
            filling = (token_ids[round_ % wanted :] + token_ids)[: max(0, wanted - len(found))]
            ids = found[:wanted] + filling
        raise ConfigError(f"--tokenizer: found no text of {wanted} tokens")
