"""The simulation sees what it is there to see: each of these ways to break the protocol is found, and can be shown."""

import pytest

from bench.chaos.protocol.__main__ import run
from bench.chaos.protocol.episode import replay, shrunk
from bench.chaos.protocol.mutants import MUTANTS, Mutant

# Those that take no more than a few thousand steps; all are `python -m bench.chaos.protocol --mutants`.
QUICK = (
    "take_same_epoch",
    "take_finished",
    "finish_same_epoch",
    "hand_over_not_fenced",
    "cancel_same_epoch",
    "free_before_withdraw",
    "freed_at_hand_over",
)


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.name in QUICK], ids=lambda one: one.name)
def test_a_broken_protocol_is_found(mutant: Mutant) -> None:
    with mutant.broken():
        tally, failure = run(30_000, seed=1)
    assert failure is not None, f"{tally.num_steps} steps: {mutant.what}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    """What it changes is still there; else it would break nothing and be found never."""
    with mutant.broken():
        pass


def test_a_failure_is_repeated_and_shortened() -> None:
    (mutant,) = [one for one in MUTANTS if one.name == "take_same_epoch"]
    with mutant.broken():
        _, failure = run(30_000, seed=1)
        assert failure is not None
        short = shrunk(failure)
        assert len(short.trace) < len(failure.trace) / 4
        assert replay(short.shape, short.trace) is not None
    assert replay(short.shape, short.trace) is None
