"""`pdq batch`: the worker that runs batches; and for people, batches submitted to, watched and fetched from any server.

The latter know HTTP and OpenAI's API alone: the server is the one at --url.
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.options import RedisUrlFlag, settings_from
from errors import ConfigError
from telemetry import configure_logging

app = typer.Typer(help="Run batches; submit, watch and fetch them.", invoke_without_command=True)

POLL_S = 0.5
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
    key_file: KeyFlag = None,
) -> None:
    """Upload a file and begin a batch; prints the batch's id."""
    with _client(url, key_file) as client, file.open("rb") as content:
        files = {"file": (file.name, content, "application/jsonl")}
        uploaded = _said(client.post("/v1/files", data={"purpose": "batch"}, files=files))
        asked = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": window}
        made = _said(client.post("/v1/batches", json=asked))
        typer.echo(made["id"])
        if wait:
            _watch(client, made["id"])


@app.command()
def status(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="The batch.")],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended.")] = False,
    url: UrlFlag = DEFAULT_URL,
    key_file: KeyFlag = None,
) -> None:
    """Say how far a batch is. Exits with 1 when it ended otherwise than completed."""
    with _client(url, key_file) as client:
        if wait:
            _watch(client, batch_id)
            return
        found = _said(client.get(f"/v1/batches/{batch_id}"))
    typer.echo(_line(found))
    if found["status"] not in (*OPEN, "completed"):
        raise typer.Exit(1)


@app.command()
def cancel(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="The batch.")],
    url: UrlFlag = DEFAULT_URL,
    key_file: KeyFlag = None,
) -> None:
    """Run no more lines of a batch."""
    with _client(url, key_file) as client:
        typer.echo(_line(_said(client.post(f"/v1/batches/{batch_id}/cancel"))))


@app.command()
def fetch(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="A batch that has ended.")],
    out: OutFlag = None,
    errors: ErrorsFlag = None,
    url: UrlFlag = DEFAULT_URL,
    key_file: KeyFlag = None,
) -> None:
    """Get the answers of a batch, and its failed lines."""
    with _client(url, key_file) as client:
        found = _said(client.get(f"/v1/batches/{batch_id}"))
        if found["status"] in OPEN:
            raise ConfigError(f"{batch_id} has not ended: {_line(found)}")
        _save(client, found["output_file_id"], out)
        if errors is not None:
            _save(client, found["error_file_id"], errors)
    typer.echo(_line(found), err=True)


def _room() -> Any:
    try:
        from batch_worker import process
    except ModuleNotFoundError as error:
        if error.name not in ("celery", "kombu"):
            raise
        raise ConfigError("batch workers need Celery: pip install 'pdq[batch]'") from None
    return process


def _client(url: str, key_file: Path | None) -> httpx.Client:
    headers = {}
    if key_file is not None:
        try:
            headers["Authorization"] = f"Bearer {key_file.read_text(encoding='utf-8').strip()}"
        except OSError as error:
            raise ConfigError(f"--key-file = {key_file}: {error.strerror}") from None
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def _said(response: httpx.Response) -> dict[str, Any]:
    """The answer. Raises ConfigError with the server's words."""
    if response.is_success:
        said: dict[str, Any] = response.json()
        return said
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise ConfigError(f"{response.request.url}: {response.status_code}, {message}")


def _watch(client: httpx.Client, batch_id: str) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("validating", total=None)
        while True:
            found = _said(client.get(f"/v1/batches/{batch_id}"))
            counts = found["request_counts"]
            done = counts["completed"] + counts["failed"]
            progress.update(bar, description=found["status"], total=counts["total"] or None, completed=done)
            if found["status"] not in OPEN:
                break
            time.sleep(POLL_S)
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


def _save(client: httpx.Client, file_id: str | None, path: Path | None) -> None:
    if file_id is None:
        if path is not None:
            path.write_bytes(b"")
        return
    with client.stream("GET", f"/v1/files/{file_id}/content") as response:
        if not response.is_success:
            response.read()
            _said(response)
        if path is None:
            for chunk in response.iter_bytes():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        with path.open("wb") as target:
            for chunk in response.iter_bytes():
                target.write(chunk)
