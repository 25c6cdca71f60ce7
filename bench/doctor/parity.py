"""Whether the model on the device says what it says on the CPU: greedy tokens through the engine, judged in float32.

Every token that the device chose is compared with the CPU's logits after the very tokens before it. If each is the
CPU's first choice, both generate the same text. Where it is not, its logit must be close to the best one's: two devices
add up in other orders, so near-ties may fall either way, in bfloat16 often.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bench.doctor.check import Finding, Verdict
from engine.block_space import BlockSpace
from engine.generator import Generator
from engine.kv_pool import KVLayout, KVPool
from engine.model_files import resolve_model
from engine.model_runner import ModelRunner
from engine.served_model import ServedModel
from engine.weights import load_model
from kernels.ops import PrefillMeta
from messages.request import SamplingParams
from settings.loading import load_settings

# How far below the CPU's best logit a chosen token's may lie. In bfloat16 on a CPU, by torch's own operations, the demo
# came to 0.34 in ten prompts of 48 tokens.
LARGEST_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.7}
NUM_TOKENS = 48
_BLOCK_SIZE = 16
_TOKEN_BUDGET = 256  # prompts longer than this are computed in chunks
_CPU = torch.device("cpu")
_TEXTS = (
    "What is AI?",
    "def fibonacci(n):",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    # Long enough for several chunks, and for decode attention to split its tokens.
    "Here is a list of the planets of the solar system, from the sun outwards. " * 45,
)


def check(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """A line per prompt. The model is the one of the settings: the demo, unless PDQ_MODEL__PATH says otherwise."""
    model_dir = resolve_model(load_settings().model, lambda line: None)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in _TEXTS]
    yield from compare(model_dir, prompts, device, dtype)


def compare(
    model_dir: Path,
    prompts: Sequence[list[int]],
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int = NUM_TOKENS,
) -> Iterator[Finding]:
    """A line per prompt for a model on the device in `dtype`."""
    outputs = generate(load_model(model_dir, dtype, device), prompts, num_tokens)
    oracle = load_model(model_dir, torch.float32, _CPU)
    for prompt, output in zip(prompts, outputs, strict=True):
        yield judge(f"prompt of {len(prompt)} tokens", _logits(oracle, prompt, output), output, LARGEST_GAP[dtype])


def judge(subject: str, logits: torch.Tensor, output: Sequence[int], largest_gap: float) -> Finding:
    """logits: float32 [len(output), vocab], the CPU's before each token of `output`."""
    best = logits.max(dim=1)
    gaps = best.values - logits[torch.arange(len(output)), torch.tensor(output)]
    num_equal = int((best.indices == torch.tensor(output)).sum())
    gap = float(gaps.max())
    said = (
        f"{num_equal} of {len(output)} tokens are the CPU's in float32; "
        f"the others' logits lie at most {gap:.2g} below its best, {largest_gap:g} allowed"
    )
    verdict = Verdict.OK if gap <= largest_gap else Verdict.FAIL
    return Finding(subject, verdict, said, figures={"tokens": len(output), "equal_tokens": num_equal, "max_gap": gap})


def generate(model: ServedModel, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy tokens, the prompts together: chunked prefill, then decode in one batch. EOS is ignored."""
    pool = _pool(model, sum(_num_blocks(len(prompt) + num_tokens) + 1 for prompt in prompts))
    space = BlockSpace(pool.num_blocks, _BLOCK_SIZE, prefix_cache=False)
    generator = Generator(ModelRunner(model, pool), space, (), _TOKEN_BUDGET)
    params = SamplingParams(seed=0, max_new_tokens=num_tokens, ignore_eos=True)
    return [one.token_ids for one in generator.generate(list(prompts), [params] * len(prompts))]


@torch.inference_mode()
def _logits(model: ServedModel, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The model's logits before each token of `output`, in one pass. -> float32 [len(output), vocab]"""
    token_ids = [*prompt, *output[:-1]]
    num_blocks = _num_blocks(len(token_ids))
    meta = PrefillMeta.of([0, len(token_ids)], [0], [list(range(num_blocks))], model.device)
    places = torch.arange(len(token_ids), device=model.device)
    hidden = model.forward(torch.tensor(token_ids, device=model.device), places, places, meta, _pool(model, num_blocks))
    return model.logits(hidden[len(prompt) - 1 :])


def _pool(model: ServedModel, num_blocks: int) -> KVPool:
    config = model.config
    layout = KVLayout(config.num_layers, config.num_kv_heads, _BLOCK_SIZE, config.head_dim, model.dtype)
    return KVPool.allocate(layout, num_blocks, model.device)


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // _BLOCK_SIZE)
