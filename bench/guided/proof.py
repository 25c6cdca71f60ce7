"""A model writes JSON by schemas, in this process, and another library than the one that guided it is the judge."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from tokenizers import Tokenizer

from bench.guided.schemas import Schema
from engine.block_space import BlockSpace
from engine.generator import Generator
from engine.grammar_state import GrammarState
from engine.model_runner import ModelRunner
from messages import FinishReason, Grammar, SamplingParams


@dataclass(slots=True)
class Outcome:
    """What the schemas came to. `invalid` has (schema, text, what is wrong) of those that ended by themselves."""

    valid: int = 0
    cut: list[tuple[Schema, str]] = field(default_factory=list)  # by max_new_tokens, with the text
    failed: list[tuple[Schema, str]] = field(default_factory=list)  # with the reason
    invalid: list[tuple[Schema, str, str]] = field(default_factory=list)
    num_tokens: int = 0
    bits_s: list[float] = field(default_factory=list)  # what each step's bits took


def prove(
    runner: ModelRunner,
    tokenizer: Tokenizer,
    schemas: Sequence[Schema],
    max_new_tokens: int,
    max_running: int,
    num_blocks: int,
) -> Outcome:
    """Have text written for every schema, every other one greedily, and judge it."""
    outcome = Outcome()
    texts = [orjson.dumps(schema).decode() for schema in schemas]
    prompts = [tokenizer.encode(f"A JSON object that fits the schema {text}:\n").ids for text in texts]
    params = [
        SamplingParams(
            seed=index,
            do_sample=index % 2 == 1,
            temperature=0.8,
            max_new_tokens=max_new_tokens,
            grammar=Grammar("json_schema", text),
        )
        for index, text in enumerate(texts)
    ]
    space = BlockSpace(num_blocks, runner.kv_layout.block_size, prefix_cache=False)
    generator = Generator(runner, space, runner.eos_token_ids, max_running=max_running)
    timed = _timed(GrammarState.next_bits, outcome.bits_s)
    plain, GrammarState.next_bits = GrammarState.next_bits, timed  # type: ignore[method-assign]
    try:
        outputs = generator.generate(prompts, params)
    finally:
        GrammarState.next_bits = plain  # type: ignore[method-assign]
    for schema, output in zip(schemas, outputs, strict=True):
        outcome.num_tokens += len(output.token_ids)
        text = tokenizer.decode(output.token_ids, skip_special_tokens=True)
        if output.finish_reason is FinishReason.LENGTH:
            outcome.cut.append((schema, text))
        elif output.finish_reason is FinishReason.STOP:
            wrong = judge(schema, text)
            if wrong:
                outcome.invalid.append((schema, text, wrong))
            outcome.valid += not wrong
        else:
            outcome.failed.append((schema, output.error))
    return outcome


def judge(schema: Schema, text: str) -> str:
    """What is wrong with `text`; empty where it is JSON that fits, formats included."""
    import jsonschema_rs  # of the development tools

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return str(error)
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    return "; ".join(error.message for error in validator.iter_errors(value))


def _timed(next_bits, seconds):  # type: ignore[no-untyped-def]
    def timed(state, token_ids):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        try:
            return next_bits(state, token_ids)
        finally:
            seconds.append(time.perf_counter() - began)

    return timed
