"""Steps are measured with the engine itself; on a tiny checkpoint, and only that figures come out of every place."""

from planning.costs import check_costs
from planning.measure import NUM_PASSES, measure_steps, measured, thread_counts
from settings.loading import load_settings
from tests.tiny_models import tiny_model


def test_halves_of_the_cores_are_measured_down_to_one() -> None:
    assert thread_counts(12) == [12, 6, 3, 1]
    assert thread_counts(1) == [1]
    assert thread_counts(0) == [0]  # a GPU


def test_a_tiny_model_is_measured() -> None:
    settings = load_settings(
        {
            "model": {"path": str(tiny_model("llama").path), "dtype": "float32", "device": "cpu"},
            "prefill": {"token_budget": 32},
            "decode": {"max_running": 4, "num_threads": 1},
            "kv": {"num_blocks": 64},
        }
    )
    said: list[str] = []
    costs = measure_steps(settings, "tiny", said.append)
    check_costs(costs, "measured")
    assert (costs.cores, costs.token_budget, costs.decode_blocks) == (1, 32, 64)
    assert {point.size for point in costs.prefill} == {4, 16, 32}
    assert {point.size for point in costs.decode} == {1, 4}
    assert all(point.seconds > 0 for point in (*costs.prefill, *costs.decode))
    # What the pool or the model has no room for is left out.
    assert max(point.size * (point.context + 1) for point in costs.decode) <= 64 * costs.block_size
    assert any("decode steps of 1 to 4 sequences" in line for line in said)


def test_what_disturbs_one_pass_spoils_no_point() -> None:
    pairs, seen = [(1, 64), (4, 64), (4, 512)], 0

    def step_s(size: int, context: int) -> float:
        nonlocal seen
        seen += 1
        is_disturbed = seen <= len(pairs) or 2 * len(pairs) < seen <= 3 * len(pairs)  # the first pass, and one more
        return (size + context / 1000) * (50 if is_disturbed else 1)

    points = measured(2, pairs, step_s)
    assert [(point.threads, point.size, point.context) for point in points] == [(2, *pair) for pair in pairs]
    assert [point.seconds for point in points] == [size + context / 1000 for size, context in pairs]
    assert seen == len(pairs) * (1 + NUM_PASSES)
