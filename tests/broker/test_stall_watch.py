"""When a loop counts as stalled."""

from broker.stall_watch import StallWatch


def stalled_after(watch: StallWatch, num_rounds: int | None, step_s: float = 0.1, most: int = 1000) -> int | None:
    """Looks, `step_s` apart, until the loop at this round counts as stalled."""
    return next((look for look in range(1, most) if watch.is_stalled(num_rounds, step_s)), None)


def test_a_loop_that_comes_round_is_never_stalled() -> None:
    watch = StallWatch(0.15)
    assert not any(watch.is_stalled(number, 10.0) for number in range(50))


def test_a_loop_that_stands_still_is_stalled_after_the_limit() -> None:
    watch = StallWatch(1.0)
    watch.is_stalled(1, 0.1)
    assert stalled_after(watch, 1) == 11


def test_what_was_not_seen_does_not_count() -> None:
    watch = StallWatch(1.0)
    watch.is_stalled(1, 0.1)
    assert stalled_after(watch, 1, step_s=0.0) is None


def test_long_rounds_earn_patience() -> None:
    watch = StallWatch(1.0)
    watch.is_stalled(1, 0.1)
    assert not any(watch.is_stalled(1, 0.1) for _ in range(9))  # a round of 0.9 s
    watch.is_stalled(2, 0.1)
    looks = stalled_after(watch, 2)
    assert looks is not None and 36 <= looks <= 38


def test_loading_is_no_stall_and_not_the_measure_of_rounds() -> None:
    watch = StallWatch(1.0)
    assert stalled_after(watch, None) is None
    watch.is_stalled(1, 0.1)
    assert stalled_after(watch, 1) == 11
