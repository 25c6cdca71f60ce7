"""Every interleaving is a fair one: Hypothesis and seeded random drivers step a cluster, and every promise is kept."""

import random

import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bench.chaos.protocol.__main__ import run
from bench.chaos.protocol.episode import random_shape, run_episode
from bench.chaos.protocol.kinds import CLIENTS, FAULTS, PROGRESS, Kind, pick
from bench.chaos.protocol.rest import settle
from bench.chaos.protocol.world import World

NUM_STEPS = 10_000


class Cluster(RuleBasedStateMachine):
    """Two prefill and two decode workers, an API and a Redis; Hypothesis says who goes next and what goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.has_failed = False

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        """The shape: pools, budgets and bounds that are tight in different places."""
        self.world = World(random_shape(random.Random(seed)))
        self.world.__enter__()

    @rule(steps=st.lists(st.tuples(st.sampled_from(PROGRESS), st.integers(0, 63)), min_size=1, max_size=12))
    def go_on(self, steps: list[tuple[Kind, int]]) -> None:
        for kind, number in steps:
            self.happen(kind, number)

    @rule(kind=st.sampled_from(CLIENTS), number=st.integers(0, 2**24))
    def ask(self, kind: Kind, number: int) -> None:
        self.happen(kind, number)

    @rule(kind=st.sampled_from(FAULTS), number=st.integers(0, 63))
    def break_something(self, kind: Kind, number: int) -> None:
        self.happen(kind, number)

    def happen(self, kind: Kind, number: int) -> None:
        assert self.world is not None
        try:
            pick(self.world, kind, number)
        except AssertionError:
            self.has_failed = True
            raise

    def teardown(self) -> None:
        if self.world is not None:
            try:
                if not self.has_failed:
                    settle(self.world, random.Random(0).randrange)
            finally:
                self.world.__exit__()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_ten_thousand_random_steps() -> None:
    with structlog.testing.capture_logs() as logs:
        tally, failure = run(NUM_STEPS, seed=2)
    assert failure is None, failure
    assert tally.num_steps >= NUM_STEPS
    # That nothing went wrong means something only where much was tried.
    assert len(tally.orders) == tally.num_episodes
    assert all(tally.kinds[kind.name] > 0 for kind in (*PROGRESS, *CLIENTS, *FAULTS))
    said = {line["event"] for line in logs}
    assert {"job_reclaimed", "job_lost", "kv_pull_failed", "kv_transport_chosen"} <= said


def test_an_episode_is_a_function_of_its_seed() -> None:
    traces = []
    for _ in range(2):
        worlds: list[World] = []
        assert run_episode(5, worlds.append) is None
        traces.append(worlds[0].trace)
    assert traces[0] == traces[1]
