"""How far the fetching of a model is, on a terminal and off it."""

import io

from rich.console import Console

from cli.fetch_bar import FetchBar


def said(is_terminal: bool, *sentences: str) -> str:
    out = io.StringIO()
    with FetchBar(Console(file=out, force_terminal=is_terminal, width=100)) as bar:
        for sentence in sentences:
            bar.say(sentence)
    return out.getvalue()


def test_a_percentage_moves_a_bar() -> None:
    shown = said(True, "fetching [it] from the hub", "converting x.gguf to bfloat16 43%")
    assert "converting x.gguf to bfloat16" in shown and "43%" in shown and "bfloat16 43%" not in shown


def test_off_a_terminal_every_sentence_is_a_line() -> None:
    long = "fetching [it] " * 20
    assert said(False, long, "loading 7%") == f"{long}\nloading 7%\n"
