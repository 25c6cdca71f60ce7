"""`pdq model`: where a model's files are, fetched and converted if need be.

Converting imports torch, so whoever must not hold it (the API, `pdq serve`) runs `pdq model fetch` as a child.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cli.child import kill, pdq_command, start_child
from cli.errors import BY_EXIT_CODE, startup_error
from cli.fetch_bar import FetchBar
from cli.options import absolute_model, environment, settings_from
from cli.terminal import open_console
from errors import ModelError
from settings.model import ModelSettings

app = typer.Typer(help="Fetch and convert models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Fetch and convert models."""


@app.command()
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="Hugging Face directory, GGUF file, hub name, or `demo`.", show_default="PDQ_MODEL__PATH"),
    ] = None,
) -> None:
    """Fetch NAME, convert it if it is GGUF, and print the directory it is in."""
    from engine.model_files import resolve_model

    settings = settings_from(model=name)
    with FetchBar(Console(stderr=True, highlight=False)) as bar:
        path = resolve_model(settings.model, bar.say)
    typer.echo(str(path))


@app.command("list")
def list_models() -> None:
    """List what was fetched or converted, and where it is."""
    cache_dir = settings_from().model.cache_dir.expanduser()
    table = Table(Column("directory", overflow="fold"), Column("GB", justify="right"))
    for path in kept_models(cache_dir):
        num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        table.add_row(Text(str(path)), f"{num_bytes / 1e9:.2f}")
    if not table.row_count:
        typer.echo(f"nothing is kept in {cache_dir}; `pdq model fetch` fetches a model")
        return
    open_console().print(table)


def kept_models(cache_dir: Path) -> list[Path]:
    """Model directories below `cache_dir`: converted ones, and the hub's snapshots."""
    found = [*cache_dir.glob("models/*/config.json"), *cache_dir.glob("hub/models--*/snapshots/*/config.json")]
    return sorted(file.parent for file in found)


def is_directory(settings: ModelSettings) -> bool:
    """Whether nothing has to be fetched or converted."""
    return Path(settings.path).expanduser().is_dir()


def client_name(settings: ModelSettings, model_dir: Path) -> str:
    """The name that clients see, wherever the files were found."""
    if settings.name:
        return settings.name
    if settings.path == "demo":
        from engine.model_files import DEMO_NAME

        return DEMO_NAME
    return Path(settings.path.rstrip("/")).name.removesuffix(".gguf") or model_dir.name


async def resolve_in_child(settings: ModelSettings, report: Callable[[str], None]) -> Path:
    """The model's directory; a child process fetches and converts it. Raises ModelError (or ConfigError)."""
    if is_directory(settings):
        return Path(absolute_model(settings.path))
    from engine.model_files import resolve_here  # torch-free

    here = resolve_here(settings)
    if here is not None:
        return here
    knobs = {"model": {"path": absolute_model(settings.path), "cache_dir": settings.cache_dir}}
    child = await start_child(pdq_command("model", "fetch"), environment(knobs))
    lines = [""]
    try:
        async for line in child.output:
            lines.append(line.decode(errors="replace").strip())
            if not lines[-1].startswith("/"):  # the last line is the answer, a path
                report(lines[-1])
        code = await child.process.wait()
    finally:
        kill(child.process)
        child.pipe.close()
    if code in BY_EXIT_CODE:
        raise startup_error(code, lines[-1].removeprefix("pdq: "))
    if code != 0:
        raise ModelError(f"{settings.path}: `pdq model fetch` ended with code {code}: {lines[-1]}")
    return Path(lines[-1])


def resolve_blocking(settings: ModelSettings, report: Callable[[str], None]) -> Path:
    """`resolve_in_child` for a process that has no event loop yet."""
    return asyncio.run(resolve_in_child(settings, report))
