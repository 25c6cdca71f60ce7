"""The sampler: every parameter by its effect and against a plain-Python oracle; its draws against the softmax."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.philox import gumbel, random_words
from engine.sampler import Sampled, SamplingRow, choice_seed, is_greedy, sample
from messages.request import SamplingParams

EOS = 2


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of many small tensors: on a busy machine a second thread costs more than it brings."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def row(
    output: Sequence[int] = (), prompt: Sequence[int] = (), eos: Sequence[int] = (EOS,), seed: int = 0, **params: Any
) -> SamplingRow:
    return SamplingRow(SamplingParams(seed=seed, **params), prompt, output, eos)


def one(logits: list[float], a_row: SamplingRow) -> Sampled:
    return sample(torch.tensor([logits]), [a_row])[0]


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(value - top) for value in logits)) + top
    return [value - total for value in logits]


def oracle_logits(logits: list[float], a_row: SamplingRow) -> list[float]:
    """Table 1.3 of the reference, one id at a time."""
    params, output_len = a_row.params, len(a_row.output_token_ids)
    counts = Counter(a_row.output_token_ids) + (Counter(a_row.prompt_token_ids) if params.input_penalty else Counter())
    start, factor = params.exponential_decay_length_penalty
    edited = []
    for token_id, value in enumerate(logits):
        value += params.logit_bias.get(token_id, 0.0)
        if params.allowed_token_ids and token_id not in params.allowed_token_ids:
            value = -math.inf
        if counts[token_id]:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
            value -= counts[token_id] * params.frequency_penalty
            value -= params.presence_penalty
        if token_id in a_row.eos_token_ids:
            if value > -math.inf:
                value += abs(value) * (factor ** max(output_len - start, 0) - 1)
            if output_len < params.min_new_tokens - 1:
                value = min(value, -1e7)
        edited.append(value)
    return edited


def oracle_kept(scaled: list[float], params: SamplingParams) -> list[int]:
    probs = [math.exp(value) for value in log_softmax(scaled)]
    order = sorted(range(len(scaled)), key=lambda token_id: (-scaled[token_id], token_id))
    kept, before = [], 0.0
    for rank, token_id in enumerate(order):
        likely = probs[token_id] >= params.min_p * probs[order[0]]
        if before <= params.top_p and (params.top_k < 0 or rank < params.top_k) and likely:
            kept.append(token_id)
        before += probs[token_id]
    return kept


def oracle(logits: list[float], a_row: SamplingRow) -> Sampled:
    edited = oracle_logits(logits, a_row)
    if is_greedy(a_row.params):
        token_id = max(range(len(edited)), key=lambda i: (edited[i], -i))
        return Sampled(token_id, log_softmax(edited)[token_id])
    scaled = [value / a_row.params.temperature for value in edited]
    words = random_words(torch.tensor([a_row.params.seed]), torch.tensor([a_row.token_index]), len(logits))
    noise = gumbel(words)[0].tolist()
    token_id = max(oracle_kept(scaled, a_row.params), key=lambda i: scaled[i] + noise[i])
    return Sampled(token_id, log_softmax(scaled)[token_id])


def draws(logits: list[float], num_draws: int, **params: Any) -> list[Sampled]:
    """The first tokens of one request's output, were the logits the same at each."""
    rows = [row(output=range(index), do_sample=True, **params) for index in range(num_draws)]
    return sample(torch.tensor([logits]).expand(num_draws, -1), rows)


# ---- greedy


def test_greedy_takes_the_largest_logit_and_its_logprob() -> None:
    logits = [0.5, 2.0, -1.0, 1.5]
    sampled = one(logits, row())
    assert sampled.token_id == 1 and sampled.error == ""
    assert sampled.logprob == pytest.approx(log_softmax(logits)[1], abs=1e-6)


@pytest.mark.parametrize("vocab_size", [5, 1031, 49152])
def test_greedy_ties_go_to_the_lowest_id(vocab_size: int) -> None:
    logits = torch.zeros(3, vocab_size)
    logits[1, [3, vocab_size - 1]] = 1.0
    logits[2, [2, 4]] = 7.0
    assert [sampled.token_id for sampled in sample(logits, [row()] * 3)] == [0, 3, 2]


def test_without_do_sample_the_sampling_parameters_do_not_matter() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    plain = sample(logits, [row()])
    assert sample(logits, [row(temperature=3.0, top_p=0.1, top_k=7, min_p=0.9, seed=99)]) == plain


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (9.9e-6, True), (1e-5, False), (1.0, False)])
def test_a_temperature_next_to_zero_is_greedy(temperature: float, greedy: bool) -> None:
    a_row = row(do_sample=True, temperature=temperature)
    assert is_greedy(a_row.params) == greedy
    sampled = one([1.0, 1.00005, 0.0], a_row)
    if greedy:  # as if the temperature were 1
        assert sampled.token_id == 1 and sampled.logprob == pytest.approx(log_softmax([1.0, 1.00005, 0.0])[1], abs=1e-6)


# ---- parameters, each by its effect


def test_logit_bias_adds() -> None:
    assert one([1.0, 2.0, 0.0], row(logit_bias={2: 2.5})).token_id == 2
    assert one([1.0, 2.0, 0.0], row(logit_bias={1: -100.0})).token_id == 0
    assert one([1.0, 2.0, 0.0], row(logit_bias={7: 9.0, -1: 9.0})).token_id == 1  # no such id


def test_only_allowed_token_ids_are_chosen() -> None:
    sampled = one([1.0, 2.0, 0.0, -3.0], row(allowed_token_ids=(3, 2, 99)))
    assert sampled.token_id == 2
    assert sampled.logprob == pytest.approx(log_softmax([0.0, -3.0])[0], abs=1e-6)
    assert {drawn.token_id for drawn in draws([9.0, 9.0, 0.0, 0.0], 100, allowed_token_ids=(2, 3))} == {2, 3}


def test_a_bias_does_not_let_an_id_in_that_is_not_allowed() -> None:
    assert one([1.0, 2.0, 0.0], row(allowed_token_ids=(0,), logit_bias={1: 50.0})).token_id == 0


def test_repetition_penalty_divides_above_zero_and_multiplies_below() -> None:
    assert one([3.0, 2.0, 0.0], row(output=[0], repetition_penalty=1.6)).token_id == 1
    assert one([-1.0, -1.5, -9.0], row(output=[0], repetition_penalty=1.6)).token_id == 1
    assert one([3.0, 2.0, 0.0], row(output=[0], repetition_penalty=1.4)).token_id == 0


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    assert one([3.0, 2.0], row(output=[0], frequency_penalty=0.6)).token_id == 0
    assert one([3.0, 2.0], row(output=[0, 0], frequency_penalty=0.6)).token_id == 1
    assert one([3.0, 2.0], row(output=[0, 0, 0], presence_penalty=0.6)).token_id == 0
    assert one([3.0, 2.0], row(output=[0], presence_penalty=1.1)).token_id == 1


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}], ids=str
)
def test_prompt_tokens_count_only_with_input_penalty(penalty: dict[str, Any]) -> None:
    assert one([3.0, 2.0], row(prompt=[0], **penalty)).token_id == 0
    assert one([3.0, 2.0], row(prompt=[0], input_penalty=True, **penalty)).token_id == 1


def test_the_length_penalty_raises_eos_from_its_start_on() -> None:
    params: dict[str, Any] = {"exponential_decay_length_penalty": (2, 1.5), "eos": (1, 2)}
    logits = [3.0, 1.0, 2.5]
    assert [one(logits, row(output=[0] * length, **params)).token_id for length in (0, 2, 3)] == [0, 0, 2]
    # 2.5 + 2.5 * (1.5 - 1) = 3.75; 1.0 -> 1.5
    assert one(logits, row(output=[0] * 3, **params)).logprob == pytest.approx(
        log_softmax([3.0, 1.5, 3.75])[2], abs=1e-5
    )
    assert one([3.0, -1.0, -2.0], row(output=[0] * 12, **params)).token_id == 2  # |logit| grows, below zero too


def test_a_long_length_penalty_stays_finite() -> None:
    sampled = one([3.0, 1.0, 2.5], row(output=[0] * 16000, exponential_decay_length_penalty=(1, 2.0)))
    assert sampled.token_id == EOS and sampled.logprob == pytest.approx(0.0)


def test_eos_that_is_not_allowed_stays_out_whatever_its_length_penalty() -> None:
    a_row = row(output=[0] * 50, allowed_token_ids=(0, 1), exponential_decay_length_penalty=(1, 1.5), min_new_tokens=90)
    assert one([1.0, 2.0, 9.0], a_row).token_id == 1


def test_eos_can_be_the_min_new_tokens_th_token_and_none_before() -> None:
    chosen = [one([1.0, 0.0, 9.0], row(output=[0] * length, min_new_tokens=3)).token_id for length in range(4)]
    assert chosen == [0, 0, EOS, EOS]


def test_every_eos_id_is_held_back_and_foreign_ones_are_left_out() -> None:
    assert one([1.0, 8.0, 9.0], row(eos=(1, 2, 77), min_new_tokens=2)).token_id == 0


def test_eos_alone_allowed_is_chosen_even_when_held_back() -> None:
    assert one([1.0, 2.0, 0.0], row(allowed_token_ids=(EOS,), min_new_tokens=9)) == Sampled(EOS, 0.0)


def test_temperature_sharpens_and_flattens() -> None:
    logits = [2.0, 1.0, 0.0]
    share = {t: Counter(d.token_id for d in draws(logits, 500, temperature=t))[0] / 500 for t in (0.2, 1.0, 9.0)}
    assert share[0.2] > 0.97 > share[1.0] + 0.2 > share[9.0] + 0.3


def test_top_k_keeps_the_k_largest() -> None:
    logits = [0.0, 0.3, 0.1, 0.2]
    assert {drawn.token_id for drawn in draws(logits, 300, top_k=2)} == {1, 3}
    assert {drawn.token_id for drawn in draws(logits, 50, top_k=1)} == {1}
    assert {drawn.token_id for drawn in draws(logits, 300)} == {0, 1, 2, 3}


def test_top_k_breaks_ties_by_the_lowest_id() -> None:
    assert {drawn.token_id for drawn in draws([1.0, 1.0, 1.0, 1.0], 300, top_k=2)} == {0, 1}


def test_top_p_keeps_an_id_while_the_mass_before_it_is_at_most_top_p() -> None:
    logits = [math.log(p) for p in (0.5, 0.25, 0.125, 0.125)]
    assert {drawn.token_id for drawn in draws(logits, 400, top_p=0.49)} == {0}
    assert {drawn.token_id for drawn in draws(logits, 400, top_p=0.51)} == {0, 1}
    assert {drawn.token_id for drawn in draws(logits, 400, top_p=0.8)} == {0, 1, 2}
    assert {drawn.token_id for drawn in draws(logits, 400, top_p=0.8, top_k=2)} == {0, 1}


def test_min_p_keeps_an_id_of_at_least_that_share_of_the_largest_probability() -> None:
    logits = [math.log(p) for p in (0.1, 0.5, 0.26, 0.14)]
    kept = {min_p: {drawn.token_id for drawn in draws(logits, 400, min_p=min_p)} for min_p in (0.15, 0.25, 0.5, 1.0)}
    assert kept == {0.15: {0, 1, 2, 3}, 0.25: {1, 2, 3}, 0.5: {1, 2}, 1.0: {1}}
    assert {drawn.token_id for drawn in draws(logits, 400, min_p=0.25, temperature=0.5)} == {1, 2}  # 0.078 of it
    assert {drawn.token_id for drawn in draws(logits, 400, min_p=0.25, top_k=2)} == {1, 2}
    assert {drawn.token_id for drawn in draws(logits, 400, min_p=0.25, top_p=0.4)} == {1}
    assert {drawn.token_id for drawn in draws([1.0, 0.5, 1.0], 200, min_p=1.0)} == {0, 2}  # equals of the largest


def test_logprob_is_over_all_ids_at_the_temperature() -> None:
    logits = [1.0, 0.5, 0.0, -1.0]
    expected = log_softmax([value / 0.5 for value in logits])
    for drawn in draws(logits, 50, temperature=0.5, top_k=2):
        assert drawn.logprob == pytest.approx(expected[drawn.token_id], abs=1e-6)


# ---- against the oracle


def random_row(generator: torch.Generator, vocab_size: int) -> SamplingRow:
    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    def ids(count: int) -> list[int]:
        return torch.randint(vocab_size, (count,), generator=generator).tolist()

    return row(
        output=ids(pick(0, 1, 5, 40)),
        prompt=ids(pick(1, 20)),
        eos=ids(pick(1, 2)),
        seed=pick(0, 1, 2**40 + 3, 2**63 - 1),
        do_sample=pick(False, True, True, True),
        temperature=pick(0.0, 0.3, 1.0, 1.7),
        top_p=pick(1.0, 0.95, 0.5, 0.01),
        top_k=pick(-1, 1, 5, 100),
        min_p=pick(0.0, 0.0, 0.02, 0.3),
        presence_penalty=pick(0.0, 0.7),
        frequency_penalty=pick(0.0, 0.3),
        repetition_penalty=pick(1.0, 1.3),
        exponential_decay_length_penalty=pick((1, 1.0), (3, 1.2)),
        input_penalty=pick(False, True),
        min_new_tokens=pick(1, 4),
        max_new_tokens=99,
        logit_bias=pick({}, dict.fromkeys(ids(3), 2.5)),
        allowed_token_ids=pick((), (), tuple(ids(12))),
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("vocab_size", [7, 64, 1031])
def test_random_parameters_match_the_oracle(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    rows = [random_row(generator, vocab_size) for _ in range(150)]
    logits = torch.randn(len(rows), vocab_size, generator=generator) * 3
    for sampled, values, a_row in zip(sample(logits, rows), logits.tolist(), rows, strict=True):
        expected = oracle(values, a_row)
        assert sampled.token_id == expected.token_id, a_row
        assert sampled.logprob == pytest.approx(expected.logprob, rel=1e-5, abs=1e-4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("spread", "params"),
    [
        (4.0, {"top_p": 0.9}),  # a few hundred ids: settled at once
        (1.0, {"top_p": 0.9}),  # thousands: needs more candidates
        (0.01, {"top_p": 0.95}),  # nearly all: sorted whole
        (1.0, {"top_k": 511}),
        (1.0, {"top_k": 512}),  # reaches the last candidate
        (1.0, {"top_k": 9000}),
        (0.0, {"top_k": 600}),  # all equal: the lowest ids stay
        (0.0, {"top_p": 0.3}),
        (1.0, {"min_p": 0.1}),
        (0.01, {"min_p": 0.97}),  # thousands
    ],
    ids=str,
)
def test_truncation_of_a_large_vocabulary_matches_the_oracle(spread: float, params: dict[str, Any]) -> None:
    vocab_size = 12000
    generator = torch.Generator().manual_seed(4)
    # bfloat16 logits have many equals, also where the cut is.
    logits = (torch.randn(1, vocab_size, generator=generator) * spread).bfloat16().float()
    rows = [row(output=[0] * index, do_sample=True, **params) for index in range(12)]
    kept = oracle_kept(logits[0].tolist(), rows[0].params)
    words = random_words(torch.zeros(12, dtype=torch.int64), torch.arange(12), vocab_size)
    scores = (logits + gumbel(words))[:, kept]
    expected = [kept[place] for place in scores.argmax(dim=-1).tolist()]
    assert [sampled.token_id for sampled in sample(logits.expand(12, -1), rows)] == expected


# ---- draws


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 4},
        {"top_p": 0.7},
        {"top_k": 4, "top_p": 0.7},
        {"min_p": 0.2},
        {"seed": 77},
    ],
    ids=str,
)
def test_draws_follow_the_softmax_of_what_is_kept(params: dict[str, Any]) -> None:
    num_draws = 8000
    logits = torch.randn(9, generator=torch.Generator().manual_seed(3)).mul(1.5).tolist()
    scaled = [value / params.get("temperature", 1.0) for value in logits]
    kept = oracle_kept(scaled, SamplingParams(0, **{k: v for k, v in params.items() if k.startswith(("top", "min"))}))
    weights = {token_id: math.exp(scaled[token_id]) for token_id in kept}
    counts = Counter(drawn.token_id for drawn in draws(logits, num_draws, **params))
    assert set(counts) <= set(kept)
    chi_square = 0.0
    for token_id in kept:
        expected = num_draws * weights[token_id] / sum(weights.values())
        chi_square += (counts[token_id] - expected) ** 2 / expected
    freedom = len(kept) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # about one in 2000 by chance; the seeds are fixed


@pytest.mark.usefixtures("one_thread")
def test_draws_of_successive_tokens_and_of_other_seeds_are_independent() -> None:
    num_draws, num_seeds = 1000, 20
    columns = [[drawn.token_id for drawn in draws([0.0] * 3, num_draws, seed=seed)] for seed in range(num_seeds)]
    successive = [(column[0::2], column[1::2]) for column in columns]
    neighbours = list(zip(columns, columns[1:], strict=False))
    for columns_pairs in (successive, neighbours):
        chi_squares = []
        for one_column, other in columns_pairs:
            counts = Counter(zip(one_column, other, strict=True))
            expected = len(one_column) / 9
            chi_squares.append(sum((counts[a, b] - expected) ** 2 / expected for a in range(3) for b in range(3)))
        # Each has 8 degrees of freedom: mean 8, variance 16.
        assert abs(sum(chi_squares) / len(chi_squares) - 8) < 4 * math.sqrt(16 / len(chi_squares))


# ---- purity


def mixed_batch(vocab_size: int) -> tuple[Tensor, list[SamplingRow]]:
    generator = torch.Generator().manual_seed(8)
    rows = [random_row(generator, vocab_size) for _ in range(10)]
    rows += [row(), row(do_sample=True), row(do_sample=True, top_p=0.9), row(do_sample=True, top_k=3000)]
    return torch.randn(len(rows), vocab_size, generator=generator) * 2, rows


@pytest.mark.parametrize("vocab_size", [53, 49152])
def test_a_row_does_not_depend_on_its_batch(vocab_size: int) -> None:
    logits, rows = mixed_batch(vocab_size)
    together = sample(logits, rows)
    alone = [sample(logits[index : index + 1], [rows[index]])[0] for index in range(len(rows))]
    assert together == alone  # logprobs to the last bit
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = sample(logits[order], [rows[index] for index in order])
    assert [shuffled[order.index(index)] for index in range(len(rows))] == together
    assert sample(logits, rows) == together


def test_the_logits_are_not_changed() -> None:
    logits, rows = mixed_batch(53)
    before = logits.clone()
    sample(logits, rows)
    assert torch.equal(logits, before)
    for a_row in (row(output=[1], repetition_penalty=2.0), row(do_sample=True, temperature=0.5)):
        sample(logits, [a_row] * len(logits))  # where all rows are of one kind
        assert torch.equal(logits, before)


def test_bfloat16_logits_and_empty_batches_are_taken() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0]] * 2)
    rows = [row(), row(do_sample=True)]
    assert sample(logits.bfloat16(), rows) == sample(logits, rows)
    assert sample(torch.zeros(0, 3), []) == []


def test_logits_and_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 sampling rows"):
        sample(torch.zeros(2, 3), [row()])


# ---- rows that cannot be sampled


@pytest.mark.parametrize(
    "params", [{}, {"repetition_penalty": 1.2}, {"do_sample": True}, {"do_sample": True, "top_p": 0.9}]
)
@pytest.mark.parametrize(
    "bad", [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [-math.inf] * 3], ids=["nan", "inf", "none"]
)
def test_a_row_without_probabilities_says_so_and_harms_no_other(bad: list[float], params: dict[str, Any]) -> None:
    good = [0.0, 3.0, 1.0]
    rows = [row(output=[1], **params) for _ in range(3)]
    before, failed, after = sample(torch.tensor([good, bad, good]), rows)
    assert failed.error and failed.token_id == -1
    assert before == after == one(good, rows[0]) and not before.error


def test_a_row_with_no_allowed_id_in_the_vocabulary_says_so() -> None:
    assert one([1.0, 2.0], row(allowed_token_ids=(77,))).error
    assert one([1.0, 2.0, 0.0], row(allowed_token_ids=(77,), min_new_tokens=9)).error  # holding EOS back lets none in


def test_masked_logits_are_no_error() -> None:
    assert one([-math.inf, 1.0, -math.inf], row()) == Sampled(1, 0.0)
    assert one([-math.inf, 1.0, -math.inf], row(do_sample=True, top_p=0.5)) == Sampled(1, 0.0)


# ---- seeds of choices


def test_choices_of_one_request_get_seeds_of_their_own() -> None:
    assert choice_seed(123, 0) == 123 and choice_seed(2**63 - 1, 0) == 2**63 - 1
    seeds = [choice_seed(seed, choice) for seed in (0, 1, 2**62, 2**63 - 1) for choice in range(8)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert choice_seed(0, 1) == 0xE220A8397B1DCDAF >> 1  # fixed for good: splitmix64's first output for 0
