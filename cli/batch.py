"""`pdq batch`: the worker that runs batches; and for people, batches submitted to, watched and fetched from any server.

The latter know the terminal alone: what is said to the server at --url is batch_client.py's.
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.batch_client import BatchClient, BatchFailed, ServerAway, read_key
from cli.options import ApiKeyFlag, RedisUrlFlag, settings_from
from errors import ConfigError
from telemetry import configure_logging

app = typer.Typer(help="Run batches; submit, watch and fetch them.", invoke_without_command=True)

POLL_S = 0.5
AWAY_S = 60.0  # for how long a server that restarts is waited for
OPEN = ("validating", "in_progress", "finalizing", "cancelling")

UrlFlag = Annotated[str, typer.Option("--url", envvar="PDQ_BATCH__API_URL", help="The server.")]
KeyFlag = Annotated[Path | None, typer.Option("--key-file", help="File holding an API key.", show_default=False)]
OutFlag = Annotated[Path | None, typer.Option("--out", help="Where answers go; empty: the screen.", show_default=False)]
ErrorsFlag = Annotated[Path | None, typer.Option("--errors", help="Where failed lines go.", show_default=False)]
DEFAULT_URL = "http://127.0.0.1:8080"


@app.callback()
def batch(context: typer.Context, redis_url: RedisUrlFlag = None) -> None:
    """Without a command: run a batch worker, any number of them per cluster."""
    if context.invoked_subcommand is not None:
        return
    settings = settings_from(redis_url=redis_url)
    configure_logging(settings.log, role="batch")
    process = _room()
    raise typer.Exit(process.run_worker(settings))


@app.command()
def beat(redis_url: RedisUrlFlag = None) -> None:
    """Run the clock alone, for workers that have none (PDQ_BATCH__BEAT=false)."""
    settings = settings_from(redis_url=redis_url)
    configure_logging(settings.log, role="beat")
    _room().run_beat(settings)


@app.command()
def flower(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5555,
    redis_url: RedisUrlFlag = None,
) -> None:
    """Run Flower, a page about the batch workers. They tell it what they do with PDQ_BATCH__EVENTS=true."""
    settings = settings_from(redis_url=redis_url)
    configure_logging(settings.log, role="flower")
    if importlib.util.find_spec("flower") is None:
        raise ConfigError("the page needs Flower: pip install 'pdq[batch,flower]'")
    _room().run_flower(settings, host, port)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Lines of OpenAI's batch format.")],
    endpoint: Annotated[str, typer.Option(help="Where the lines go.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="How long it may take, as 24h, 30m, 7d.")] = "24h",
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended, and show how far it is.")] = False,
    url: UrlFlag = DEFAULT_URL,
    api_key: ApiKeyFlag = "",
    key_file: KeyFlag = None,
) -> None:
    """Upload a file and begin a batch; prints the batch's id. Exits with 1 when it is refused."""
    with _server(url, api_key, key_file) as server, file.open("rb") as content:
        made = server.begin(server.upload(file.name, content), endpoint, window)
        typer.echo(made["id"])
        if wait:
            _watch(server, made["id"])


@app.command()
def status(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="The batch.")],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended.")] = False,
    url: UrlFlag = DEFAULT_URL,
    api_key: ApiKeyFlag = "",
    key_file: KeyFlag = None,
) -> None:
    """Say how far a batch is. Exits with 1 when it ended otherwise than completed."""
    with _server(url, api_key, key_file) as server:
        if wait:
            _watch(server, batch_id)
            return
        found = server.find(batch_id)
    typer.echo(_line(found))
    if found["status"] not in (*OPEN, "completed"):
        raise typer.Exit(1)


@app.command()
def cancel(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="The batch.")],
    url: UrlFlag = DEFAULT_URL,
    api_key: ApiKeyFlag = "",
    key_file: KeyFlag = None,
) -> None:
    """Run no more lines of a batch."""
    with _server(url, api_key, key_file) as server:
        typer.echo(_line(server.cancel(batch_id)))


@app.command()
def fetch(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="A batch that has ended.")],
    out: OutFlag = None,
    errors: ErrorsFlag = None,
    url: UrlFlag = DEFAULT_URL,
    api_key: ApiKeyFlag = "",
    key_file: KeyFlag = None,
) -> None:
    """Get the answers of a batch, and its failed lines."""
    with _server(url, api_key, key_file) as server:
        found = server.find(batch_id)
        if found["status"] in OPEN:
            raise BatchFailed(f"{batch_id} has not ended: {_line(found)}; `pdq batch status {batch_id} --wait` waits")
        _save(server, found["output_file_id"], out, "--out")
        if errors is not None:
            _save(server, found["error_file_id"], errors, "--errors")
    typer.echo(_line(found), err=True)


@contextmanager
def _server(url: str, api_key: str, key_file: Path | None) -> Iterator[BatchClient]:
    """The server. What it refuses is a sentence and exit code 1."""
    with BatchClient(url, api_key if key_file is None else read_key(key_file)) as client:
        try:
            yield client
        except BatchFailed as error:
            typer.echo(f"pdq: {error}", err=True)
            raise typer.Exit(1) from None


def _room() -> Any:
    try:
        from batch_worker import process
    except ModuleNotFoundError as error:
        if error.name not in ("celery", "kombu"):
            raise
        raise ConfigError("batch workers need Celery: pip install 'pdq[batch]'") from None
    return process


def _watch(server: BatchClient, batch_id: str) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("validating", total=None)
            reached_s = time.monotonic()
            while True:
                try:
                    found, reached_s = server.find(batch_id), time.monotonic()
                except ServerAway:
                    if time.monotonic() - reached_s > AWAY_S:
                        raise
                    progress.update(bar, description="no answer")
                    time.sleep(POLL_S)
                    continue
                counts = found["request_counts"]
                done = counts["completed"] + counts["failed"]
                progress.update(bar, description=found["status"], total=counts["total"] or None, completed=done)
                if found["status"] not in OPEN:
                    break
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        typer.echo(f"the batch goes on: `pdq batch status {batch_id} --wait`, `pdq batch cancel {batch_id}`", err=True)
        raise
    typer.echo(_line(found), err=True)
    for problem in (found["errors"] or {"data": []})["data"]:
        where = f"line {problem['line']}: " if problem["line"] else ""
        typer.echo(f"{where}{problem['message']}", err=True)
    if found["status"] != "completed":
        raise typer.Exit(1)


def _line(found: dict[str, Any]) -> str:
    counts = found["request_counts"]
    return (
        f"{found['id']} {found['status']}: {counts['completed']} completed and {counts['failed']} failed "
        f"of {counts['total']}"
    )


def _save(server: BatchClient, file_id: str | None, path: Path | None, flag: str) -> None:
    chunks = server.read(file_id) if file_id is not None else iter(())
    if path is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    try:
        with path.open("wb") as target:
            for chunk in chunks:
                target.write(chunk)
    except OSError as error:
        raise ConfigError(f"{flag} = {path}: {error.strerror}") from None
