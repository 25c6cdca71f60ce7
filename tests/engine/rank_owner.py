"""A process that is rank 0 of two, for tests that kill it: prints the other's process id, then decodes for ever."""

import sys
from pathlib import Path

from engine.kv_pool import KVPool
from engine.loading import load
from engine.model_runner import ModelRunner
from engine.ranks import Ranks
from messages.worker_status import Role
from settings.kv import KVSettings
from settings.loading import Settings
from settings.model import ModelSettings
from tests.tiny_models import prefill_all, sequences_for


def settings_for(model_dir: Path, rank_timeout_s: float = 60) -> Settings:
    return Settings(
        model=ModelSettings(path=str(model_dir), device="cpu", rank_timeout_s=rank_timeout_s),
        kv=KVSettings(num_blocks=64),
    )


def runner_with(ranks: Ranks, settings: Settings) -> ModelRunner:
    """Rank 0's runner, once all of them serve."""
    loaded = load(settings, Role.DECODE, 1, lambda line: None, ranks)
    pool = KVPool.allocate(loaded.layout, loaded.num_blocks)
    ranks.serve(loaded.num_blocks)
    return ModelRunner(loaded.model, pool, ranks.step)


def main() -> None:
    settings = settings_for(Path(sys.argv[1]))
    with Ranks.start("decode_worker.rank", 2, "owner", 1, settings) as ranks:
        runner = runner_with(ranks, settings)
        sequences = sequences_for(runner, [[1, 2, 3]], 1)
        prefill_all(runner, sequences, 64)
        sys.stdout.write(f"{ranks.pids[0]}\n")
        sys.stdout.flush()
        while True:
            runner.decode(sequences)
            sequences[0].num_computed_tokens -= 1  # the same token again


if __name__ == "__main__":
    main()
