"""Grammars in a worker: what may come next, whoever saw the tokens before; and what cannot be followed ends alone."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from tokenizers import Tokenizer

import grammar as limits
from bench.guided.proof import judge, prove
from bench.guided.schemas import random_schemas
from engine import grammars as module
from engine.block_space import BlockSpace
from engine.generator import GeneratedSequence, Generator
from engine.grammars import Grammars
from engine.model_runner import ModelRunner
from engine.sequence import Sequence
from errors import InvalidRequest, WorkerFailed
from grammar import compile_grammar
from messages.request import Grammar, SamplingParams
from messages.token_event import FinishReason
from tests.hostile_grammars import REFUSED
from tests.tiny_models import END_OF_TEXT, IM_END, VOCAB_SIZE, tiny_model, tiny_runner

AB = Grammar("regex", "(ab)+c?")
TOKENIZER = Tokenizer.from_file(str(tiny_model("llama").path / "tokenizer.json"))


def ids(text: str) -> list[int]:
    """One per byte."""
    token_ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(token_ids) == len(text.encode())
    return token_ids


PROMPT = ids("A text: ")
A, B, C = ids("abc")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def grammars() -> Grammars:
    return Grammars(tiny_model("llama").path, VOCAB_SIZE, {IM_END, END_OF_TEXT})


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    made = tiny_runner(tiny_model("llama").path, num_blocks=1024)
    made.grammars = Grammars(tiny_model("llama").path, VOCAB_SIZE, made.eos_token_ids)
    return made


def sequence_of(grammar: Grammar | None, output: str = "") -> Sequence:
    return Sequence("test", [*PROMPT, *ids(output)], len(PROMPT), SamplingParams(seed=0, grammar=grammar))


def allowed(grammars: Grammars, sequence: Sequence) -> set[int]:
    following = grammars.follow([sequence])
    assert following is not None
    bits = following.result()[0].bits
    assert bits is not None
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist())


def generate(runner: ModelRunner, *params: SamplingParams, num_blocks: int = 1024) -> list[GeneratedSequence]:
    space = BlockSpace(num_blocks, runner.kv_layout.block_size, prefix_cache=False)
    return Generator(runner, space, runner.eos_token_ids).generate([PROMPT] * len(params), list(params))


def text_of(output: GeneratedSequence) -> str:
    text: str = TOKENIZER.decode(output.token_ids, skip_special_tokens=True)
    return text


# -- what may come next ----------------------------------------------------------------------------------------------


def test_the_end_is_allowed_where_the_text_may_end_and_alone_where_it_has_to(grammars: Grammars) -> None:
    sequence = sequence_of(AB)
    ends = {IM_END, END_OF_TEXT}
    for text, expected in (("", {A}), ("a", {B}), ("b", {A, C, *ends}), ("c", ends)):
        sequence.token_ids += ids(text)
        assert allowed(grammars, sequence) == expected


def test_a_sequence_that_comes_from_elsewhere_is_where_it_was(grammars: Grammars) -> None:
    schema = Grammar("json_schema", '{"properties":{"a":{"type":"integer"},"b":{"pattern":"^x+$"}},"type":"object"}')
    text = '{"a": -12, "b":"xxx"}'
    here = sequence_of(schema)
    for end in range(len(text) + 1):
        here.token_ids = [*PROMPT, *ids(text[:end])]
        assert allowed(grammars, here) == allowed(grammars, sequence_of(schema, text[:end]))


def test_numbers_and_times_are_those_that_parsers_take(grammars: Grammars) -> None:
    """JSON allows 1E999, which no double holds; llguidance a 60th second in every minute, which RFC 3339 does not."""
    number = Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}')
    digits = set(ids("0123456789"))
    assert digits <= allowed(grammars, sequence_of(number, '{"a": 1E9'))
    assert not digits & allowed(grammars, sequence_of(number, '{"a": 1E99'))
    (six,) = ids("6")
    times = '{"type": "string", "format": "time"%s}'
    for schema in (times % "", times % ', "pattern": "Z$"', '{"anyOf": [%s]}' % (times % "")):
        may_come = allowed(grammars, sequence_of(Grammar("json_schema", schema), '"12:30:'))
        assert set(ids("5")) <= may_come and six not in may_come
    named = '{"type": "object", "properties": {"format": {"const": {"format": "time"}}}, "required": ["format"]}'
    text = '{"format":{"format":"time"}'
    assert set(ids("}")) <= allowed(grammars, sequence_of(Grammar("json_schema", named), text))


def test_who_has_no_grammar_costs_nothing(grammars: Grammars) -> None:
    plain = sequence_of(None)
    assert grammars.follow([plain, plain]) is None
    assert grammars.open(plain).result() is None and plain.grammar is None
    assert grammars._tokenizer is None


def test_a_grammar_is_compiled_once_and_few_are_kept(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(module, "MAX_COMPILED", 2)

    def counted(grammar: Grammar, tokenizer: Any) -> Any:
        compiled.append(grammar.text)
        return compile_grammar(grammar, tokenizer)

    monkeypatch.setattr(module, "compile_grammar", counted)
    for text in "aabacab":
        assert grammars.open(sequence_of(Grammar("regex", text))).result() is None
    assert "".join(compiled) == "abcb"


def test_what_others_have_seen_of_a_grammar_is_not_counted_against_a_sequence(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of a matcher share what it has seen, and one day that is all it may see."""
    from llguidance import LLParserLimits

    monkeypatch.setattr(limits, "limits", lambda: LLParserLimits(max_lexer_states=1000))
    compiled: list[Grammar] = []

    def counted(grammar: Grammar, tokenizer: Any) -> Any:
        compiled.append(grammar)
        return compile_grammar(grammar, tokenizer)

    monkeypatch.setattr(module, "compile_grammar", counted)
    for seed in range(12):
        draw = random.Random(seed)
        sequence = sequence_of(Grammar("regex", ".*a.{30}"))
        for _ in range(60):
            assert A in allowed(grammars, sequence)
            sequence.token_ids.append(draw.choice([A, B]))
    assert 1 < len(compiled) < 12


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path: Path) -> None:
    shutil.copy(tiny_model("llama").path / "tokenizer.json", tmp_path)
    grammars = Grammars(tmp_path, 250, {IM_END})
    assert allowed(grammars, sequence_of(AB, "ab")) == {A, C, IM_END}


@pytest.mark.parametrize(
    ("model_dir", "eos", "kind", "words"),
    [
        (None, {IM_END}, WorkerFailed, "it has no tokenizer"),
        (Path("/nowhere"), {IM_END}, WorkerFailed, "can not follow grammars"),
        (None, set(), InvalidRequest, "the model has no EOS token"),
    ],
)
def test_a_worker_that_can_follow_no_grammar(model_dir: Path | None, eos: set[int], kind: type, words: str) -> None:
    error = Grammars(model_dir, VOCAB_SIZE, eos).open(sequence_of(AB)).result()
    assert type(error) is kind and words in str(error)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_api_refuses_a_worker_refuses_at_the_first_token_at_the_latest(name: str, grammars: Grammars) -> None:
    sequence = sequence_of(REFUSED[name])
    following = grammars.follow([sequence])
    assert following is not None
    for token_id in ids('{"a'):  # some are too large only once their names come
        error = following.result()[0].error
        if error is not None:
            assert isinstance(error, InvalidRequest)
            return
        sequence.token_ids.append(token_id)
        following = grammars.follow([sequence])
        assert following is not None
    pytest.fail("it was followed")


# -- in the steps ----------------------------------------------------------------------------------------------------


def params(grammar: Grammar | None, **more: Any) -> SamplingParams:
    return SamplingParams(**({"seed": 1, "max_new_tokens": 40} | more), grammar=grammar)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"do_sample": True, "temperature": 3.0},
        {"do_sample": True, "top_k": 2, "top_p": 0.5, "temperature": 2.0},
        {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {ids("z")[0]: 1e4}},
        {"min_new_tokens": 6, "exponential_decay_length_penalty": (3, 1.5)},
        {"ignore_eos": True},
    ],
)
def test_whatever_else_is_asked_for_the_text_fits(runner: ModelRunner, more: dict[str, Any]) -> None:
    (output,) = generate(runner, params(Grammar("regex", "[a-f]{3,7}-[0-9]+!"), max_new_tokens=64, **more))
    text = text_of(output)
    assert set(text[:3]) <= set("abcdef")
    if output.finish_reason is FinishReason.STOP:
        head, _, tail = text.partition("-")
        assert 3 <= len(head) <= 7 and set(head) <= set("abcdef")
        assert tail.endswith("!") and tail[:-1].isdigit()
        assert output.token_ids[-1] in runner.eos_token_ids
    else:
        assert output.finish_reason is FinishReason.LENGTH and len(output.token_ids) == 64


def test_a_text_that_can_only_end_ends_and_a_limit_is_a_limit(runner: ModelRunner) -> None:
    ended, cut, forced = generate(
        runner,
        params(Grammar("lark", 'start: "yes"')),
        params(Grammar("regex", "a{10}"), max_new_tokens=4),
        params(Grammar("lark", 'start: "yes"'), ignore_eos=True, min_new_tokens=30),
    )
    assert (text_of(ended), ended.finish_reason) == ("yes", FinishReason.STOP)
    assert (text_of(cut), cut.finish_reason) == ("aaaa", FinishReason.LENGTH)
    assert (text_of(forced), forced.finish_reason) == ("yes", FinishReason.STOP)


def test_who_is_beside_a_grammar_says_what_it_would_alone(runner: ModelRunner) -> None:
    free = [params(None, seed=seed, do_sample=seed > 1, ignore_eos=True) for seed in range(4)]
    alone = [generate(runner, one)[0] for one in free]
    guided = [params(AB), params(Grammar("regex", "(")), params(REFUSED["a reference to itself"]), params(AB, seed=9)]
    together = generate(runner, *[one for pair in zip(free, guided, strict=True) for one in pair])
    assert together[::2] == alone
    fits, broken, endless, _ = together[1::2]
    assert text_of(fits).startswith("ab")
    for output, words in ((broken, "unclosed group"), (endless, "no text fits it")):
        assert output.finish_reason is FinishReason.ERROR and words in output.error
        assert output.token_ids == []


def test_preempted_and_begun_anew_it_goes_on_where_it_was(runner: ModelRunner) -> None:
    asked = [params(Grammar("regex", "[a-z ]{60}"), seed=seed, max_new_tokens=80) for seed in range(6)]
    space = BlockSpace(14, runner.kv_layout.block_size, prefix_cache=False)
    generator = Generator(runner, space, runner.eos_token_ids)
    crowded = [output.token_ids for output in generator.generate([PROMPT] * 6, asked)]
    assert generator.num_preemptions
    assert crowded == [generate(runner, one)[0].token_ids for one in asked]


def test_texts_by_random_schemas_fit_them(runner: ModelRunner) -> None:
    """A sample of `python -m bench.guided`; a model of random weights is the worst writer that there is."""
    schemas = [schema for schema in random_schemas(60, seed=5) if len(orjson.dumps(schema)) < 400][:16]
    outcome = prove(runner, TOKENIZER, schemas, max_new_tokens=400, max_running=16, num_blocks=1024)
    assert outcome.invalid == [] and outcome.failed == []
    assert outcome.valid >= 8, outcome.cut


def test_the_judge_sees_what_does_not_fit() -> None:
    schema = {"type": "object", "properties": {"a": {"format": "date", "type": "string"}}, "required": ["a"]}
    assert judge(schema, '{"a": "2024-02-29"}') == ""
    for text in ('{"a": "2024-02-30"}', "{}", "[]", '{"a": "2024'):
        assert judge(schema, text)
