"""The command line: `pdq COMMAND`. Ties the commands to their names; each lives in the file of its noun."""

import importlib.metadata
from collections.abc import Sequence
from typing import Annotated

import typer

from cli import batch, config, key, model, roles
from cli.chat import chat
from cli.doctor import doctor
from cli.errors import fail
from cli.health import health
from cli.serve import serve
from cli.status import status
from errors import StartupError

app = typer.Typer(
    name="pdq",
    help="pdq: prefill and decode over queues. `pdq serve` runs a whole cluster on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"pdq {importlib.metadata.version('pdq')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("pdq (run from its source, not installed)")
        raise typer.Exit


@app.callback()
def pdq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Flags before the command."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Measure a running server: load, latencies, goodput. `pdq bench --help` lists the options."""
    from bench.cli import app as bench_app

    bench_app(args=context.args, prog_name="pdq bench")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def plan(context: typer.Context) -> None:
    """How many workers of each role a load needs. `pdq plan measure` first; `pdq plan --help` lists the options."""
    from planning.cli import app as plan_app

    plan_app(args=context.args, prog_name="pdq plan")


app.command()(serve)
roles.register(app)
app.command()(chat)
app.command()(status)
app.command()(health)
app.command()(doctor)
app.add_typer(batch.app, name="batch")
app.add_typer(key.app, name="key")
app.add_typer(model.app, name="model")
app.add_typer(config.app, name="config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (sys.argv unless given) and exit. A start that cannot be: its code and one sentence."""
    try:
        app(arguments, prog_name="pdq")
    except StartupError as error:
        fail(error)


if __name__ == "__main__":
    main()
