"""`pdq config`: the settings as this environment gives them. Knows the settings' fields; secrets are not shown."""

from collections.abc import Iterator

import typer
from pydantic import BaseModel

from broker.client import display_url
from settings.loading import ENV_PREFIX, Settings, load_settings

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)


@app.command()
def show() -> None:
    """Print every setting as the variable that sets it, with its meaning."""
    for line in setting_lines(load_settings()):
        typer.echo(line)


@app.command()
def check() -> None:
    """Exit 0 when the environment's settings are good, 2 with a sentence when not."""
    load_settings()
    typer.echo("the settings are good")


def setting_lines(settings: Settings) -> Iterator[str]:
    """`# meaning`, then `VARIABLE=value`, for each setting. An unset one is a comment."""
    for section_name in Settings.model_fields:
        section: BaseModel = getattr(settings, section_name)
        for knob, field in type(section).model_fields.items():
            value = getattr(section, knob)
            variable = f"{ENV_PREFIX}{section_name}__{knob}".upper()
            yield f"# {field.description}"
            if value is None:
                yield f"# {variable}="
            else:
                yield f"{variable}={display_url(value) if knob == 'url' else value}"
