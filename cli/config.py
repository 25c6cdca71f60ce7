"""`pdq config`: the settings as this environment gives them, and whether they are good.

Knows the settings' fields and where values come from; what contradicts what is contradictions.py's. Shows no
secrets.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from broker.client import display_url
from cli.contradictions import contradictions, variable_of
from errors import ConfigError
from settings.loading import ENV_PREFIX, Settings, load_settings, setting_problems

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)

EnvFileFlag = Annotated[
    Path | None,
    typer.Option(
        "--env-file", help="Also read the PDQ_ variables of this file, as compose does; the environment's win."
    ),
]

# How a knob's name ends -> the unit of its value.
_UNITS = {"_per_min": "a minute", "_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_tokens": "tokens"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@app.command()
def show(
    section: Annotated[str | None, typer.Argument(help="Only these, as kv or queue.", show_default="all")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only those that are not as by default.")] = False,
    env_file: EnvFileFlag = None,
) -> None:
    """Print every setting as the variable that sets it, with its meaning, unit, bounds, and where its value is from."""
    origins = _origins(env_file)
    settings = load_settings()
    sections = list(Settings.model_fields)
    if section is not None:
        if section.lower() not in sections:
            raise ConfigError(f"SECTION = {section!r}: sections are {', '.join(sections)}")
        sections = [section.lower()]
    for line in setting_lines(settings, sections, origins, changed):
        typer.echo(line)


@app.command()
def check(env_file: EnvFileFlag = None) -> None:
    """Say all that is wrong with the settings: unknown names, values out of bounds, what does not go together.

    Exit code 0 when they are good, 2 when not.
    """
    _origins(env_file)
    problems = setting_problems()
    doubts = []
    if not problems:
        found = list(contradictions(load_settings()))
        problems = [one.text for one in found if one.is_fatal]
        doubts = [one.text for one in found if not one.is_fatal]
    for doubt in doubts:
        typer.echo(f"pdq: warning: {doubt}", err=True)
    for problem in problems:
        typer.echo(f"pdq: {problem}", err=True)
    if problems:
        raise typer.Exit(ConfigError.exit_code)
    typer.echo("the settings are good" + (f", with {len(doubts)} warning(s)" if doubts else ""))


def setting_lines(
    settings: Settings, sections: list[str], origins: Mapping[str, str], changed_only: bool = False
) -> Iterator[str]:
    """`# meaning [unit, bounds; origin]`, then `VARIABLE=value`, for each setting. An unset one is a comment."""
    for name in sections:
        section: BaseModel = getattr(settings, name)
        for knob, field in type(section).model_fields.items():
            value = getattr(section, knob)
            if changed_only and value == getattr(Settings.model_fields[name].default, knob):
                continue
            variable = variable_of(name, knob)
            facts = ", ".join(filter(None, [unit_of(knob), bounds_of(field)]))
            origin = origins.get(variable, "default")
            yield f"# {field.description} [{facts}; {origin}]" if facts else f"# {field.description} [{origin}]"
            if value is None:
                yield f"# {variable}="
            else:
                yield f"{variable}={display_url(value) if isinstance(value, str) else value}"


def unit_of(knob: str) -> str:
    """The unit of a knob's value, which its name ends in; empty where it has none."""
    return next((unit for ending, unit in _UNITS.items() if knob.endswith(ending)), "")


def bounds_of(field: FieldInfo) -> str:
    """What a knob's value may be, as `>= 0, <= 65535` or `auto|cpu|cuda`; empty where all goes."""
    said = [
        f"{sign} {getattr(bound, name):g}"
        for bound in _metadata(field)
        for name, sign in _SIGNS.items()
        if getattr(bound, name, None) is not None
    ]
    choices = _choices(field.annotation)
    return ", ".join([*said, *(["|".join(choices)] if choices else [])])


def _metadata(field: FieldInfo) -> list[Any]:
    """Of the type and, where it is one or nothing, of what it is then."""
    inner = [part for kind in get_args(field.annotation) for part in getattr(kind, "__metadata__", ())]
    return [*field.metadata, *(bound for part in inner for bound in getattr(part, "metadata", [part]))]


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _origins(env_file: Path | None) -> dict[str, str]:
    """Variable -> who sets it. Those of the file become this process's, where its environment is silent."""
    origins = {name.upper(): "environment" for name in os.environ if name.upper().startswith(ENV_PREFIX)}
    if env_file is not None:
        for name, value in _read_env_file(env_file).items():
            if name.startswith(ENV_PREFIX) and value is not None and name.upper() not in origins:
                os.environ[name] = value
                origins[name.upper()] = str(env_file)
    return origins


def _read_env_file(path: Path) -> dict[str, str | None]:
    from dotenv import dotenv_values

    try:
        with path.open(encoding="utf-8") as lines:
            return dotenv_values(stream=lines)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--env-file = {path}: {getattr(error, 'strerror', None) or error}") from None
