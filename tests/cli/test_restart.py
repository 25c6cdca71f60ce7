"""The back-off is a pure function of ends and lifetimes."""

from cli.restart import RestartPolicy


def test_the_delay_doubles_up_to_its_longest() -> None:
    policy = RestartPolicy()
    assert [policy.delay_s(failures) for failures in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert policy.delay_s(10_000) == 15.0


def test_a_long_life_forgives_what_was_before() -> None:
    policy = RestartPolicy()
    assert policy.failures(0, alive_s=1.0) == 1
    assert policy.failures(4, alive_s=29.9) == 5
    assert policy.failures(4, alive_s=30.0) == 1
