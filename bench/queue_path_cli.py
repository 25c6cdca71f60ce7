"""`pdq bench queue-path` on the command line: options and printing around `queue_path.py`."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench import lightllm_style
from bench.exit_status import exit_status
from bench.http_stream import resolve
from bench.load import Load
from bench.machine import read_machine
from bench.options import (
    DEFAULT_URL,
    ApiKey,
    IdleTimeout,
    JsonFile,
    Label,
    MaxTokenId,
    MinTokenId,
    PromptSeed,
    Url,
)
from bench.prompts import PromptSource, prompt_source
from bench.queue_path import QueuePath, compare, measure_in_turn
from bench.result import FORMAT_VERSION, command_line, write_json
from bench.step_bar import StepBar
from bench.table import describe
from bench.workload import Concurrency, Group
from settings.loading import load_settings


def queue_path(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    model: Annotated[str | None, typer.Option(help="The model the server serves; default: PDQ_MODEL__PATH.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Prompts measured on both ways.")] = 30,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens asked over HTTP; above 1, decode works too.")] = 4,
    num_threads: Annotated[
        int | None, typer.Option(min=0, help="Compute threads, as the worker's; default: PDQ_PREFILL__NUM_THREADS.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Prompts before, in no figure, on both ways.")] = 3,
    prompt_seed: PromptSeed = None,
    min_token_id: MinTokenId = 1000,
    max_token_id: MaxTokenId = 30000,
    idle_timeout_s: IdleTimeout = 120.0,
    json_file: JsonFile = None,
    label: Label = "",
) -> None:
    """What the queues add: p50 TTFT over HTTP, one request at a time, minus p50 in-process prefill time.

    The server must be idle, and serve the same model with the same dtype and thread count.
    """
    console = Console()
    group = Group("queue-path", Concurrency(1), prompt_tokens, output_tokens, num_requests=num_requests)
    machine = read_machine()
    with exit_status():
        prompts = prompt_source(prompt_seed, min_token_id, max_token_id)
        from engine.threads import let_idle_threads_sleep

        settings = load_settings({"model": {"path": model}} if model else None)
        let_idle_threads_sleep()  # as the worker's do
        from bench.in_process import InProcessPrefill  # torch comes with it

        threads = settings.prefill.num_threads if num_threads is None else num_threads
        in_process = InProcessPrefill(settings, prompt_tokens, threads, _report_to(console))
        with StepBar(console, "in turn", num_requests + warmup) as bar:
            ttfts_s, prefills_s = uvloop.run(
                _measure(url, api_key, prompts, idle_timeout_s, group, warmup, in_process.prefill, bar.advance)
            )
    result = compare(ttfts_s, prefills_s)
    _print(console, f"{label or 'queue path'} · {describe(group)} · {in_process.description}", result)
    if json_file is not None:
        document = {
            "format_version": FORMAT_VERSION,
            "label": label,
            "command": command_line(sys.argv),
            "url": url,
            "group": group,
            "prompt_seed": prompts.seed,
            "num_warmup": warmup,
            "in_process": in_process.description,
            "machine": machine,
            "queue_path": result,
            "http_ttft_s": ttfts_s,
            "in_process_s": prefills_s,
        }
        with exit_status():
            write_json(document, json_file)


async def _measure(
    url: str,
    api_key: str,
    prompts: PromptSource,
    idle_timeout_s: float,
    group: Group,
    num_warmup: int,
    prefill: Callable[[list[int]], float],
    on_end: Callable[[], None],
) -> tuple[list[float], list[float]]:
    load = Load(await resolve(url, lightllm_style.PATH, api_key), lightllm_style, prompts, idle_timeout_s)
    return await measure_in_turn(load, group, num_warmup, prefill, on_end)


class _report_to:
    """Prints what the model loader says, each line once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            self._console.print(line, style="dim", markup=False, highlight=False)
        self._last = line


def _print(console: Console, title: str, result: QueuePath) -> None:
    http, in_process, paired = result.http_ttft_ms, result.in_process_ms, result.paired_added_ms
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    for line in (
        f"TTFT over HTTP      p50 {http.p50:9.2f}   p90 {http.p90:9.2f} ms",
        f"in-process prefill  p50 {in_process.p50:9.2f}   p90 {in_process.p90:9.2f} ms",
        f"added latency           {result.added_p50_ms:9.2f} ms, p50 minus p50",
        f"  prompt by prompt  p50 {paired.p50:9.2f}   p90 {paired.p90:9.2f} ms",
    ):
        console.print(line, markup=False, highlight=False)
