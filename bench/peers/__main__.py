"""`python -m bench.peers install NAME...` fetches and builds other servers; `python -m bench.peers list` says which."""

from typing import Annotated

import typer
from rich.console import Console

from bench.exit_status import exit_status
from bench.peers.shelf import PEERS, install, is_installed, workshop_of
from errors import ConfigError

app = typer.Typer(help=__doc__, no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """A line, as it is."""
    console.print(line, markup=False)


@app.command("install")
def install_peers(names: Annotated[list[str], typer.Argument(help=f"Of {', '.join(PEERS)}.")]) -> None:
    """Install servers to compare with, each in a directory of its own under PDQ_MODEL__CACHE_DIR."""
    with exit_status():
        if unknown := set(names) - PEERS.keys():
            raise ConfigError(f"{', '.join(sorted(unknown))}: the peers are {', '.join(PEERS)}")
        for name in names:
            install(name, say)


@app.command("list")
def list_peers() -> None:
    """Which peers there are, whether each is installed, and where."""
    for name, peer in PEERS.items():
        state = "installed" if is_installed(name) else "not installed"
        say(f"{name}: {state} in {workshop_of(name, say).folder} ({', '.join(peer.RECIPE[:-1])})")


if __name__ == "__main__":
    app()
