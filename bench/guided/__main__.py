"""`python -m bench.guided`: does what a model writes by a schema fit it? Exits with 1 where one text does not.

Random schemas, a model in this process, every other text greedy and the rest sampled. Prints what they came to and what
the bits of a token cost.
"""

import argparse
import sys

from tokenizers import Tokenizer

from bench.guided.proof import TimedGrammars, prove
from bench.guided.schemas import random_schemas
from engine.kv_pool import KVPool
from engine.loading import load
from engine.model_files import resolve_model
from engine.model_runner import ModelRunner
from messages.worker_status import Role
from settings.loading import Settings
from settings.model import ModelSettings

NUM_BLOCKS = 4096


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the schemas")
    parser.add_argument("--max-new-tokens", type=int, default=768)
    parser.add_argument("--running", type=int, default=32, help="sequences at once")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--verbose", action="store_true", help="print what failed and what was cut")
    options = parser.parse_args()

    settings = Settings(model=ModelSettings(path=options.model))
    loaded = load(settings, Role.DECODE, 0, lambda line: None)
    pool = KVPool.allocate(loaded.layout, NUM_BLOCKS, loaded.model.device)
    path = resolve_model(settings.model, lambda line: None)
    config = loaded.model.config
    grammars = TimedGrammars(path, config.vocab_size, config.eos_token_ids)
    runner = ModelRunner(loaded.model, pool, grammars=grammars)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    schemas = random_schemas(options.schemas, options.seed)
    outcome = prove(runner, tokenizer, schemas, options.max_new_tokens, options.running, NUM_BLOCKS)
    ended = outcome.valid + len(outcome.invalid)
    print(f"{len(schemas)} schemas, {outcome.num_tokens} tokens")
    print(f"  {ended} texts ended by themselves, {outcome.valid} of them fit their schema")
    print(f"  {len(outcome.cut)} were cut at {options.max_new_tokens} tokens")
    print(f"  {len(outcome.failed)} schemas could not be followed")
    costs = sorted(grammars.seconds)
    print(
        f"  the bits of a token: mean {sum(costs) / len(costs) * 1e6:.0f} us, half within "
        f"{costs[len(costs) // 2] * 1e6:.0f}, 99 % within {costs[len(costs) * 99 // 100] * 1e6:.0f}, "
        f"longest {costs[-1] * 1e6:.0f}"
    )
    for schema, text, wrong in outcome.invalid:
        print(f"INVALID {wrong}\n  {schema}\n  {text!r}")
    if options.verbose:
        for schema, reason in outcome.failed:
            print(f"FAILED {reason}\n  {schema}")
        for schema, text in outcome.cut:
            print(f"CUT {text[-60:]!r}\n  {schema}")
    return 1 if outcome.invalid else 0


if __name__ == "__main__":
    sys.exit(main())
