"""A server's greedy answer to one question: numbers of a server that talks nonsense mean nothing."""

from pathlib import Path

from tokenizers import Tokenizer

from bench.compare.run_server import Running
from bench.http_stream import post_stream
from bench.wire_style import BadFrame

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
NUM_TOKENS = 12
TIMEOUT_S = 60.0


async def first_words(running: Running, model_dir: Path) -> str:
    """The text, or what came in its place."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    prompt = tokenizer.encode(QUESTION, add_special_tokens=False).ids
    pieces: list[str] = []

    def on_data(payload: bytes, now_s: float) -> None:
        try:
            pieces.append(running.style.parse_frame(payload).text)
        except BadFrame as error:
            pieces.append(f"[{error}]")

    body = running.style.build_request(prompt, NUM_TOKENS)
    answer = await post_stream(running.target, body, on_data, TIMEOUT_S)
    if answer.status != 200:
        return f"[status {answer.status}: {answer.body[:200]!r}]"
    return "".join(pieces)
