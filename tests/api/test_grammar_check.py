"""A grammar is tried before it is admitted; a hostile one costs its sender an error and the event loop nothing."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api import grammar_check
from api.grammar_check import GrammarCheck
from errors import InvalidRequest, QueueFull
from grammar import compile_grammar
from messages.request import Grammar
from tests.hostile_grammars import HARMLESS, REFUSED

ROOT = Path(__file__).parents[2]
GOOD = Grammar("json_schema", '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}')


@asynccontextmanager
async def lively(longest_s: float) -> AsyncIterator[None]:
    """Fails when the event loop stands still for that long meanwhile."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert max(gaps) < longest_s


async def reason_of(check: GrammarCheck, grammar: Grammar) -> str:
    began = time.perf_counter()
    try:
        await check.check(grammar)
    except InvalidRequest as error:
        return str(error)
    finally:
        assert time.perf_counter() - began < 2.0
    return ""


def test_hostile_grammars_are_refused_in_time_and_the_loop_goes_on() -> None:
    async def main() -> None:
        check = GrammarCheck(timeout_s=1.5)
        await check.check(GOOD)  # llguidance is loaded
        async with lively(0.25):
            for name, grammar in REFUSED.items():
                reason = await reason_of(check, grammar)
                assert reason.startswith(f"{grammar.kind} can not be followed: "), name
                assert len(reason) < 400, name
            for grammar in HARMLESS.values():
                await reason_of(check, grammar)
        await check.check(GOOD)

    asyncio.run(main())


@pytest.mark.parametrize(
    "grammar",
    [
        GOOD,
        Grammar("json_object"),
        Grammar("regex", r"^\d{3}-[a-z]+$"),
        Grammar("lark", 'start: "a" | "b"'),
        Grammar("ebnf", 'root ::= "yes" | "no"'),
        Grammar("ebnf", 'start: "yes"'),
        Grammar("json_schema", '{"$defs":{"n":{"properties":{"c":{"$ref":"#/$defs/n"}}}},"$ref":"#/$defs/n"}'),
    ],
)
def test_what_can_be_followed_passes(grammar: Grammar) -> None:
    asyncio.run(GrammarCheck(timeout_s=5.0).check(grammar))


def test_llguidance_is_not_loaded_before_it_is_needed() -> None:
    program = "import sys, api.app, api.server, prefill_worker.assembly, decode_worker.assembly\n"
    program += "sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


def test_what_was_found_is_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Grammar] = []
    monkeypatch.setattr(grammar_check, "MAX_KEPT", 2)

    def counted(grammar: Grammar, tokenizer: Any) -> Any:
        tried.append(grammar)
        return compile_grammar(grammar, tokenizer)

    monkeypatch.setattr(grammar_check, "compile_grammar", counted)
    bad, third = Grammar("regex", "("), Grammar("regex", "b")

    async def main() -> None:
        check = GrammarCheck(timeout_s=5.0)
        for grammar in (GOOD, bad, GOOD, bad, third, GOOD):
            assert bool(await reason_of(check, grammar)) is (grammar is bad)

    asyncio.run(main())
    assert tried == [GOOD, bad, third, GOOD]  # the third put out the one that was used least lately


def test_a_grammar_that_takes_too_long_is_refused_and_who_waits_behind_it_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()

    def slow(grammar: Grammar, tokenizer: Any) -> Any:
        if grammar is not GOOD:
            go_on.wait(30)
        return compile_grammar(grammar, tokenizer)

    monkeypatch.setattr(grammar_check, "compile_grammar", slow)

    async def main() -> None:
        check = GrammarCheck(timeout_s=0.2)
        slow_ones = [Grammar("regex", str(number)) for number in range(grammar_check.NUM_THREADS)]
        waiting = [asyncio.create_task(check.check(grammar)) for grammar in slow_ones]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await check.check(GOOD)
        for task in waiting:
            with pytest.raises(InvalidRequest, match=r"takes longer than 0.2 s to compile"):
                await task
        go_on.set()
        for grammar in slow_ones:  # what was slow once is not kept
            async with asyncio.timeout(5):
                await check.check(grammar)

    asyncio.run(main())
