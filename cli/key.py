"""`pdq key`: make, list and revoke API keys. Knows the key file; a running server reads it again by itself.

A key is printed once, when it is made; the file holds its hash.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.options import settings_from
from cli.terminal import open_console
from errors import ConfigError

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

FileFlag = Annotated[
    Path | None, typer.Option("--file", help="The file of keys.", show_default="PDQ_SECURITY__KEYS_FILE")
]
LimitFlag = Annotated[int | None, typer.Option(min=0, help="0: no limit.", show_default="the server's default")]


@app.command()
def new(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What logs and limits call it, e.g. alice.")],
    name: Annotated[str, typer.Option(help="For people, e.g. whose it is.")] = "",
    scope: Annotated[
        str, typer.Option(help="client, monitor (metrics, load, documentation) or admin (all).")
    ] = "client",
    requests_per_min: LimitFlag = None,
    tokens_per_min: LimitFlag = None,
    max_in_flight: LimitFlag = None,
    file: FileFlag = None,
) -> None:
    """Make a key and print it, once. The file is made if need be."""
    from api.key_file import ID_PATTERN, ApiKey, Scope, add_key, hash_of, new_key

    path = _key_file(file)
    if not ID_PATTERN.fullmatch(key_id):
        raise ConfigError(f"ID = {key_id!r}: must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if scope not in list(Scope):
        raise ConfigError(f"--scope = {scope!r}: must be {', '.join(Scope)}")
    text = new_key()
    key = ApiKey(
        key_id,
        hash_of(text),
        Scope(scope),
        name,
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        max_in_flight=max_in_flight,
    )
    add_key(path, key)
    typer.echo(f"pdq: {path} holds the hash of this key; the key itself is shown only now", err=True)
    typer.echo(text)


@app.command("list")
def list_keys(file: FileFlag = None) -> None:
    """Show every key but what it is."""
    from api.key_file import read_keys

    table = Table("id", "scope", "state", "requests/min", "tokens/min", "in flight", "name")
    for key in read_keys(_key_file(file)):
        limits = (key.requests_per_min, key.tokens_per_min, key.max_in_flight)
        shown = ["default" if limit is None else str(limit or "no limit") for limit in limits]
        table.add_row(key.id, key.scope, "revoked" if key.disabled else "valid", *shown, key.name)
    open_console().print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    file: FileFlag = None,
) -> None:
    """Make a key invalid; its line stays, with "disabled". Running requests may end."""
    from api.key_file import disable_key

    disable_key(_key_file(file), key_id)
    typer.echo(f"{key_id} is revoked; running servers know within a second or two")


def _key_file(flag: Path | None) -> Path:
    path = flag or settings_from().security.keys_file
    if path is None:
        raise ConfigError("no file of keys is named: give --file PATH or set PDQ_SECURITY__KEYS_FILE")
    return path
