"""`pdq doctor`: whether this machine can serve, and with --gpu all that only a machine with GPUs can tell.

The checks are in host_checks.py and bench/doctor/; here is how they are run and shown.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bench.doctor.check import Finding, Section, Verdict, has_failed, run_checks
from bench.doctor.report import to_document, to_markdown
from bench.machine import read_machine
from cli.gpu_inventory import list_gpus
from cli.host_checks import host_checks
from cli.options import ModelFlag, absolute_model, environment, settings_from

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def doctor(
    gpu: Annotated[bool, typer.Option("--gpu", help="Check kernels, transfers and the model on the GPUs.")] = False,
    model: ModelFlag = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")] = None,
) -> None:
    """Say what works here and what to do about what does not. Exit code 1 when something fails.

    With --gpu, progress goes to stderr and a report in Markdown, to paste into an issue, to stdout.
    """
    settings = settings_from(model=model)
    title = "pdq doctor --gpu" if gpu else "pdq doctor"
    console = Console(stderr=gpu, highlight=False, soft_wrap=True)
    if not gpu:
        with console.status("") as status:
            sections = run_checks(host_checks(settings), status.update, lambda finding: None)
        console.print(_table(sections))
    elif list_gpus():
        os.environ.update(environment({"model": {"path": absolute_model(settings.model.path)}}))  # for the children
        sections = _run_gpu_checks(console)
        typer.echo(to_markdown(title, read_machine(), sections))
    else:
        typer.echo("pdq: there is no GPU here, or no NVIDIA driver: --gpu has nothing to check", err=True)
        raise typer.Exit(1)
    if json_file is not None:
        from bench.result import write_json

        write_json(to_document(title, read_machine(), sections), json_file)
    if has_failed(sections):
        raise typer.Exit(1)


def _run_gpu_checks(console: Console) -> list[Section]:
    from bench.doctor.child import run_in_child
    from bench.doctor.gpu_checks import GPU_CHECKS, TIME_LIMIT_S  # torch

    def say(finding: Finding) -> None:
        verdict = (f"{finding.verdict:<4} ", STYLES[finding.verdict])
        console.print(Text.assemble(verdict, f"{finding.subject}: {finding.said}"))

    checks = {title: partial(run_in_child, title, "cuda:0", TIME_LIMIT_S) for title in GPU_CHECKS}
    return run_checks(checks, lambda title: console.print(title, style="bold"), say)


def _table(sections: Sequence[Section]) -> Table:
    table = Table("check", "", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    for section in sections:
        for finding in section.findings:
            verdict = Text(finding.verdict, STYLES[finding.verdict])
            table.add_row(Text(finding.subject), verdict, Text(finding.said), Text(finding.remedy))
    return table
