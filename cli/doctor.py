"""`pdq doctor`: whether this machine can serve, and with --gpu all that only a machine with GPUs can tell.

The checks are in host_checks.py and bench/doctor/; here is how they are run and shown.
"""

import json
import os
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bench.doctor.check import Finding, Section, Verdict, has_failed, run_checks
from bench.doctor.report import summary, to_document, to_markdown
from bench.machine import read_machine
from cli.gpu_inventory import list_gpus
from cli.host_checks import host_checks
from cli.options import ModelFlag, absolute_model, environment, settings_from

STDOUT = Path("-")
VERDICT_WIDTH = 5
STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def doctor(
    gpu: Annotated[bool, typer.Option("--gpu", help="Check kernels, transfers and the model on the GPUs.")] = False,
    model: ModelFlag = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write every figure to this file; `-`: to stdout alone."),
    ] = None,
) -> None:
    """Say what works here and what to do about what does not. Exit code 1 when something fails.

    With --gpu, progress goes to stderr and a report in Markdown, to paste into an issue, to stdout.
    """
    settings = settings_from(model=model)
    title = "pdq doctor --gpu" if gpu else "pdq doctor"
    is_json_out = json_file == STDOUT
    console = Console(stderr=gpu or is_json_out, highlight=False, soft_wrap=True)
    if not gpu:
        with console.status("") as status:
            sections = run_checks(
                host_checks(settings), lambda title: status.update(f"checking {title}"), partial(_say, console)
            )
        console.print(summary(sections))
    elif list_gpus():
        os.environ.update(environment({"model": {"path": absolute_model(settings.model.path)}}))  # for the children
        sections = _run_gpu_checks(console)
        typer.echo(to_markdown(title, read_machine(), sections), err=is_json_out)
    else:
        typer.echo("pdq: there is no GPU here, or no NVIDIA driver: --gpu has nothing to check", err=True)
        raise typer.Exit(1)
    if is_json_out:
        typer.echo(json.dumps(to_document(title, read_machine(), sections), indent=2))
    elif json_file is not None:
        from bench.result import write_json

        write_json(to_document(title, read_machine(), sections), json_file)
    if has_failed(sections):
        raise typer.Exit(1)


def _run_gpu_checks(console: Console) -> list[Section]:
    from bench.doctor.child import run_in_child
    from bench.doctor.gpu_checks import GPU_CHECKS, TIME_LIMIT_S  # torch

    checks = {title: partial(run_in_child, title, "cuda:0", TIME_LIMIT_S) for title in GPU_CHECKS}
    return run_checks(checks, lambda title: console.print(title, style="bold"), partial(_say, console))


def _say(console: Console, finding: Finding) -> None:
    for number, (text, style) in enumerate(lines_of(finding, console.width if console.is_terminal else None)):
        verdict = (f"{finding.verdict:<4} ", STYLES[finding.verdict]) if not number else " " * VERDICT_WIDTH
        console.print(Text.assemble(verdict, (text, style)))


def lines_of(finding: Finding, width: int | None) -> list[tuple[str, str]]:
    """What stands beside the verdict, with the style of each line, folded for a terminal of `width` columns. Elsewhere
    a line is as long as it is, lest what is searched for is cut in two."""
    room = 1 << 20 if width is None else max(30, width - VERDICT_WIDTH)
    said = wrap(f"{finding.subject}: {finding.said}", room, subsequent_indent="  ", break_on_hyphens=False)
    remedy = wrap(finding.remedy, room, initial_indent="-> ", subsequent_indent="   ", break_on_hyphens=False)
    return [(line, "") for line in said] + [(line, "bold") for line in remedy]
