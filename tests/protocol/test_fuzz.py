"""Whatever comes through Redis, a worker and an API process go on, and no request is left without an end."""

import asyncio

from bench.chaos.fuzz import fuzz

NUM_MESSAGES = 2000


def test_two_thousand_mutated_messages() -> None:
    counts = asyncio.run(fuzz(NUM_MESSAGES, seed=1))
    assert counts["not a message"] + counts["a message all the same"] == NUM_MESSAGES
    assert counts["a message all the same"] > 100  # what is only nearly wrong finds the most
    assert counts["pulled"] > 10 and counts["not pulled"] > 10
