"""Incremental text against the library's own decoding of the whole, for both makes of tokenizers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models

from api.detokenizer import Detokenizer
from api.pieces import Pieces, piece_rule
from api.tokenizer import Tokenizer
from errors import ModelError
from messages.request import OutputParams
from tests.api.tiny_models import CORPUS, EOS, START, TOOL, byte_level_tokenizer, sentencepiece_tokenizer

BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
PIECES = {id(library): Tokenizer(library.to_str()).pieces for library in (BYTE_LEVEL, SENTENCEPIECE)}
FLAGS = st.builds(OutputParams, skip_special_tokens=st.booleans(), add_spaces_between_special_tokens=st.booleans())
NO_EOS: frozenset[int] = frozenset()


def token(content: str) -> int:
    token_id = BYTE_LEVEL.token_to_id(content)
    assert token_id is not None
    return token_id


def incremental(
    library: LibraryTokenizer, token_ids: Sequence[int], output: OutputParams, eos: frozenset[int] = NO_EOS
) -> list[str]:
    detokenizer = Detokenizer(PIECES[id(library)], output, eos)
    return [detokenizer.feed(token_id) for token_id in token_ids]


def whole(library: LibraryTokenizer, token_ids: Sequence[int], output: OutputParams) -> str:
    """LightLLM's rule over the library's decode: segments and added tokens, joined."""
    added = library.get_added_tokens_decoder()
    parts: list[str] = []
    segment: list[int] = []
    for token_id in token_ids:
        if token_id not in added:
            segment.append(token_id)
        elif not (added[token_id].special and output.skip_special_tokens):
            if segment:
                parts.append(library.decode(segment, skip_special_tokens=False))
                segment = []
            parts.append(added[token_id].content)
    if segment:
        parts.append(library.decode(segment, skip_special_tokens=False))
    return (" " if output.add_spaces_between_special_tokens else "").join(parts)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40), FLAGS)
def test_byte_level_equals_the_whole_but_for_a_held_tail(token_ids: list[int], output: OutputParams) -> None:
    text = "".join(incremental(BYTE_LEVEL, token_ids, output))
    expected = whole(BYTE_LEVEL, token_ids, output)
    # An unfinished character at the very end is held for ever; the library shows it as one U+FFFD.
    assert expected in (text, text + "\ufffd")


ORDINARY = st.integers(259, SENTENCEPIECE.get_vocab_size() - 1).map(lambda token_id: [token_id])
CHARACTER = st.characters(exclude_categories=["Cs"]).map(lambda character: [3 + byte for byte in character.encode()])
SPECIAL = st.integers(0, 2).map(lambda token_id: [token_id])


@given(st.lists(st.one_of(ORDINARY, CHARACTER, SPECIAL), max_size=30), FLAGS)
def test_sentencepiece_equals_the_whole(groups: list[list[int]], output: OutputParams) -> None:
    token_ids = [token_id for group in groups for token_id in group]
    # A dropped special token between two runs of bytes joins them, in the library too.
    assert "".join(incremental(SENTENCEPIECE, token_ids, output)) == whole(SENTENCEPIECE, token_ids, output)


@given(st.lists(st.integers(3, 258), max_size=20))
@example([240, 163])
def test_broken_bytes_become_replacement_characters_and_never_stop_the_stream(token_ids: list[int]) -> None:
    text = "".join(incremental(SENTENCEPIECE, token_ids, OutputParams()))
    # The blank that sentencepiece puts first is stripped, whatever it came from.
    expected = bytes(token_id - 3 for token_id in token_ids).decode(errors="replace").removeprefix(" ")
    # An unfinished character at the end is not written; of a surrogate's first two bytes Python makes two.
    assert expected in (text, text + "\ufffd", text + "\ufffd\ufffd")


@pytest.mark.parametrize("library", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
@pytest.mark.parametrize("text", [*CORPUS, "the is a", " the", "  two blanks", "🙂é"])
def test_text_survives_the_round_trip(library: LibraryTokenizer, text: str) -> None:
    token_ids = library.encode(text, add_special_tokens=False).ids
    pieces = incremental(library, token_ids, OutputParams())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte() -> None:
    texts = incremental(SENTENCEPIECE, [3 + byte for byte in "é🙂".encode()], OutputParams())
    assert texts == ["", "é", "", "", "", "🙂"]


def test_an_unfinished_character_at_the_end_is_lost() -> None:
    assert incremental(SENTENCEPIECE, [3 + byte for byte in "🙂".encode()[:3]], OutputParams()) == ["", "", ""]


def test_special_and_added_tokens() -> None:
    start, tool = token(START), token(TOOL)
    (word,) = BYTE_LEVEL.encode(" AI", add_special_tokens=False).ids
    ids = [word, start, word, tool, word]
    assert incremental(BYTE_LEVEL, ids, OutputParams()) == [" AI", "", " AI", " " + TOOL, "  AI"]
    bare = OutputParams(skip_special_tokens=False, add_spaces_between_special_tokens=False)
    assert incremental(BYTE_LEVEL, ids, bare) == [" AI", START, " AI", TOOL, " AI"]


def test_eos_is_silent_unless_it_is_to_be_printed() -> None:
    eos = token(EOS)
    (word,) = BYTE_LEVEL.encode(" AI", add_special_tokens=False).ids
    for shown, output in [
        ("", OutputParams()),
        ("", OutputParams(skip_special_tokens=False)),
        (EOS, OutputParams(print_eos_token=True)),
    ]:
        assert incremental(BYTE_LEVEL, [word, eos], output, frozenset([eos])) == [" AI", shown]


def test_special_flag() -> None:
    detokenizer = Detokenizer(PIECES[id(BYTE_LEVEL)], OutputParams(), frozenset([300]))
    start, tool = token(START), token(TOOL)
    assert [detokenizer.is_special(token_id) for token_id in (start, 300, tool, 301)] == [True, True, False, False]


def test_an_id_beyond_the_tokenizer_has_no_text() -> None:
    assert incremental(BYTE_LEVEL, [10**6], OutputParams()) == [""]


def test_other_decoders() -> None:
    metaspace = LibraryTokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2}, unk_token="c"))
    for scheme in ("always", "never"):
        metaspace.decoder = decoders.Metaspace(prepend_scheme=scheme)
        detokenizer = Detokenizer(Tokenizer(metaspace.to_str()).pieces, OutputParams(), NO_EOS)
        assert "".join(map(detokenizer.feed, [0, 2, 1, 0])) == metaspace.decode([0, 2, 1, 0])
    plain = LibraryTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    detokenizer = Detokenizer(Pieces(plain, None), OutputParams(), NO_EOS)
    assert "".join(map(detokenizer.feed, [0, 1, 0])) == plain.decode([0, 1, 0]) == "a b a"


@pytest.mark.parametrize(
    "decoder", [{"type": "WordPiece"}, {"type": "Sequence", "decoders": [{"type": "Strip", "stop": 1, "start": 0}]}]
)
def test_an_unknown_decoder_stops_the_start(decoder: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="decoder"):
        piece_rule(decoder)


def test_a_missing_tokenizer_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
