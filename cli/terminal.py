"""Where tables go. They fit a terminal; elsewhere nothing is folded, so that lines can be searched."""

import os

from rich.console import Console

UNFOLDED_WIDTH = 400  # characters; a table takes what it needs of them


def open_console(stderr: bool = False) -> Console:
    """For one command's output. COLUMNS and NO_COLOR have the meaning that rich gives them."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNFOLDED_WIDTH
    return console
