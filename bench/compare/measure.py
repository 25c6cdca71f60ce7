"""One server, one round: its starts, its words, its workloads and its memory, into the document.

Knows the order; what is sent, counted and computed is the load generator's. Says a line per step, with its time.
"""

import time
from collections.abc import Callable
from pathlib import Path

from bench.compare.document import HALF_BILLION, Attempt, Document, Memory, Start, Words
from bench.compare.first_words import first_words
from bench.compare.memory_watch import MemoryWatch
from bench.compare.plan import Plan
from bench.compare.rate_search import WANTED_ATTAINMENT, first_rung, ladder, next_rung, real_rate
from bench.compare.run_server import Running, running
from bench.load import run_workload
from bench.machine import CpuClock
from bench.peers.server import Server
from bench.prompts import PromptSource
from bench.report import summarize
from bench.workload import PRESETS, Poisson, Workload, warmup_of

NUM_WARMUP = 2
# A rate that a server with this many tokens per second in w2 may bear: its prefill takes the rest.
GUESSED_SHARE = 0.7
OUTPUT_TOKENS_W4 = PRESETS["w4"].groups[0].output_tokens

Report = Callable[[str], None]


class Measurement:
    """A server with a model, in one round."""

    def __init__(
        self,
        document: Document,
        plan: Plan,
        server: Server,
        model: str,
        round_: int,
        report: Report,
        caches: Path | None = None,
    ) -> None:
        """`caches`: empty in the first round, so that starts can be compared; None: those of the server's own."""
        self.document, self.plan, self.server, self.model, self.round = document, plan, server, model, round_
        self.caches = caches
        self._report = report
        self._guess_rps: float | None = None

    async def run(self, model_dir: Path) -> None:
        """Everything of the plan. Raises PeerFailed when the server does not start."""
        server = self.server
        if self.caches is not None and self.round == 0 and server.cache_environment:
            async with running(server, self.caches) as first:
                self._note_start(first, is_first=True)
        async with running(server, self.caches) as this:
            self._note_start(this, is_first=False)
            if self.round == 0 and self.model != HALF_BILLION:  # its weights are random
                text = await first_words(this, model_dir)
                self.document.words.append(Words(server.name, self.model, text))
                self.say(f"says {text!r}")
            watch = MemoryWatch(this.pid)
            await watch.look()
            for workload in self.plan.workloads:
                if isinstance(workload.groups[0].arrivals, Poisson):
                    await self._search_rate(this, workload)
                elif workload.name == "w2":
                    async with watch.watching():
                        await self._attempt(this, workload)
                else:
                    await self._attempt(this, workload)
                await watch.look()
            if watch.most is not None:
                memory = Memory(server.name, self.model, watch.most.pss_bytes, watch.most.rss_bytes)
                self.document.memories.append(memory)
                self.say(f"memory {memory.pss_bytes / 1e6:.0f} MB at most, shared pages counted once")

    def say(self, what: str) -> None:
        """A line for whoever waits."""
        self._report(f"{self.server.name} · {what}")

    def _note_start(self, this: Running, is_first: bool) -> None:
        self.document.starts.append(Start(self.server.name, self.model, is_first, this.ready_s))
        self.say(f"ready after {this.ready_s:.1f} s" + (" with empty caches" if is_first else ""))

    async def _search_rate(self, this: Running, workload: Workload) -> None:
        seed = self.plan.arrival_seed
        (group,) = workload.groups
        rungs = ladder(group, self.plan.rates_rps, seed)
        rates = [real_rate(rung, seed) for rung in rungs]
        first = first_rung(rates, self._guess_rps)
        borne: dict[int, bool] = {}
        while (rung := next_rung(len(rungs), borne, first)) is not None:
            attempt = await self._attempt(this, Workload(workload.name, (rungs[rung],)), number=rung)
            attainment = attempt.summaries[0].attainment
            borne[rung] = attainment is not None and attainment >= WANTED_ATTAINMENT

    async def _attempt(self, this: Running, workload: Workload, number: int = 0) -> Attempt:
        plan, began = self.plan, time.monotonic()
        load = this.load(PromptSource(plan.prompt_seed_of(workload.name, number, self.round)))
        await run_workload(load, warmup_of(workload, NUM_WARMUP), plan.arrival_seed, lambda record: None)
        clock = CpuClock(this.pid)
        outcome = await run_workload(load, workload, plan.arrival_seed, lambda record: None)
        cpu = clock.read()
        limits = self.document.limits
        summaries = [summarize(group, outcome.records, outcome.start_s, limits) for group in workload.groups]
        arrivals = workload.groups[0].arrivals
        rate_rps = arrivals.rate_rps if isinstance(arrivals, Poisson) else None
        attempt = Attempt(self.server.name, self.model, workload.name, self.round, rate_rps, summaries, cpu)
        self.document.attempts.append(attempt)
        if workload.name == "w2":
            self._guess_rps = summaries[0].output_tokens_per_s * GUESSED_SHARE / OUTPUT_TOKENS_W4
        self._say_attempt(attempt, time.monotonic() - began)
        return attempt

    def _say_attempt(self, attempt: Attempt, took_s: float) -> None:
        parts = []
        for summary in attempt.summaries:
            failed = summary.num_sent - summary.num_succeeded
            ttft, itl = summary.ttft_ms.p50, summary.itl_ms.p99
            parts += [f"{summary.group}:"] if len(attempt.summaries) > 1 else []
            parts += [f"{summary.output_tokens_per_s:.1f} tokens/s"]
            parts += [f"TTFT p50 {ttft:.0f} ms"] if ttft is not None else []
            parts += [f"ITL p99 {itl:.0f} ms"] if itl is not None else []
            if summary.offered_rps is not None and attempt.nominal_rps is not None:
                parts.append(
                    f"{(summary.attainment or 0) * 100:.0f} % within the limits at {summary.offered_rps:.2f}/s"
                )
            parts += [f"{failed} FAILED ({summary.failures[0].kind})"] if failed else []
        unclean = "" if attempt.cpu.is_clean is not False else " (NOT CLEAN: others used the cores)"
        self.say(f"{attempt.workload} in {took_s:.0f} s: {', '.join(parts)}{unclean}".replace(":,", ":"))
