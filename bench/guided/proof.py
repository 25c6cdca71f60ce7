"""A model writes JSON by schemas, in this process, and another library than the one that guided it is the judge."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from tokenizers import Tokenizer

from bench.guided.schemas import Schema
from engine.block_space import BlockSpace
from engine.generator import Generator
from engine.grammars import Grammars, Next
from engine.model_runner import ModelRunner
from engine.sequence import Sequence as EngineSequence
from messages.request import Grammar, SamplingParams
from messages.token_event import FinishReason


@dataclass(slots=True)
class Outcome:
    """What the schemas came to. `invalid` has (schema, text, what is wrong) of those that ended by themselves."""

    valid: int = 0
    cut: list[tuple[Schema, str]] = field(default_factory=list)  # by max_new_tokens, with the text
    failed: list[tuple[Schema, str]] = field(default_factory=list)  # with the reason
    invalid: list[tuple[Schema, str, str]] = field(default_factory=list)
    num_tokens: int = 0


class TimedGrammars(Grammars):
    """Notes what the bits of each token took, in seconds."""

    def __init__(self, model_dir: Path, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        super().__init__(model_dir, vocab_size, eos_token_ids)
        self.seconds: list[float] = []

    def next_of(self, sequence: EngineSequence) -> Next:
        """As every worker's."""
        began = time.perf_counter()
        following = super().next_of(sequence)
        self.seconds.append(time.perf_counter() - began)
        return following


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
            frequency_penalty=0.3,  # without it the demo model repeats itself where nothing ends it
            max_new_tokens=max_new_tokens,
            grammar=Grammar("json_schema", text),
        )
        for index, text in enumerate(texts)
    ]
    space = BlockSpace(num_blocks, runner.kv_layout.block_size, prefix_cache=False)
    outputs = Generator(runner, space, runner.eos_token_ids, max_running=max_running).generate(prompts, params)
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
