"""Stop sequences against a reading of the whole text at once, however the text is cut into tokens."""

from hypothesis import given
from hypothesis import strategies as st

from api.stop_matcher import StopMatcher
from messages.request import OutputParams

PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
GROUPS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=3)


def fed(pieces: list[str], stops: list[str], include: bool) -> tuple[str, int | None, list[str]]:
    """(all text, index of the token that stopped, what was out after each token)."""
    matcher = StopMatcher(OutputParams(stop_strings=tuple(stops), include_stop=include))
    out, steps = "", []
    for index, piece in enumerate(pieces):
        out += matcher.feed(index, piece)
        steps.append(out)
        if matcher.is_stopped:
            return out, index, steps
    return out + matcher.flush(), None, steps


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(start, end) of the stop string that is complete first; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end - max(map(len, ending)), end
    return None


@given(PIECES, STOPS)
def test_strings_are_cut_where_a_reader_of_the_whole_text_would_cut(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    cut = first_stop(text, stops)
    out, index, _ = fed(pieces, stops, include=False)
    out_with, index_with, _ = fed(pieces, stops, include=True)
    assert index == index_with
    if cut is None:
        assert (out, out_with, index) == (text, text, None)
    else:
        assert (out, out_with) == (text[: cut[0]], text[: cut[1]])
        assert index is not None
        assert len("".join(pieces[:index])) < cut[1] <= len("".join(pieces[: index + 1]))


@given(PIECES, STOPS)
def test_no_part_of_a_stop_string_leaks_and_no_more_than_needed_is_held(pieces: list[str], stops: list[str]) -> None:
    _, stopped, steps = fed(pieces, stops, include=False)
    for index, out in enumerate(steps[:stopped]):
        text = "".join(pieces[: index + 1])
        held = text[len(out) :]
        possible = [k for stop in stops for k in range(len(stop)) if text.endswith(stop[:k])]
        assert len(held) == max(possible, default=0)
        assert text == out + held


@given(st.lists(st.integers(0, 2), max_size=20), GROUPS, st.booleans())
def test_groups_of_ids_match_the_suffix_of_the_output(
    token_ids: list[int], groups: list[list[int]], keep: bool
) -> None:
    texts = ["x", "yy", ""]
    matcher = StopMatcher(OutputParams(stop_token_ids=tuple(map(tuple, groups)), include_stop=keep))
    out, stopped_at = "", None
    for index, token_id in enumerate(token_ids):
        out += matcher.feed(token_id, texts[token_id])
        if matcher.is_stopped:
            stopped_at = index
            break
    else:
        out += matcher.flush()
    expected_at, expected_end = None, len(token_ids)
    for end in range(1, len(token_ids) + 1):
        ending = [group for group in groups if token_ids[:end][-len(group) :] == group]
        if ending:
            expected_at = end - 1
            expected_end = end if keep else end - max(map(len, ending))
            break
    assert stopped_at == expected_at
    assert out == "".join(texts[token_id] for token_id in token_ids[:expected_end])


def test_a_stop_string_over_three_tokens_leaves_nothing_behind() -> None:
    out, index, steps = fed(["Hi ", "<", "/s", "> more"], ["</s>"], include=False)
    assert (out, index) == ("Hi ", 3)
    assert steps == ["Hi ", "Hi ", "Hi ", "Hi "]
    assert fed(["Hi ", "<", "/s", "> more"], ["</s>"], include=True)[0] == "Hi </s>"


def test_strings_and_groups_together_cut_at_the_earlier_start() -> None:
    matcher = StopMatcher(OutputParams(stop_strings=("cd",), stop_token_ids=((1, 2),)))
    assert matcher.feed(1, "ab") == ""
    assert matcher.feed(2, "cd") == ""
    assert matcher.is_stopped
