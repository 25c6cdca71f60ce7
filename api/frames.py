"""Response bodies and SSE frames of LightLLM's routes, field by field.

Pure: what was generated -> bytes. A frame is `data:` and JSON and two newlines; no blank, no [DONE], no comments,
since LightLLM's own clients count lines.
"""

from collections.abc import Sequence

import msgspec
import orjson

from messages.request import GenerationRequest
from messages.token_event import FinishReason, PromptLogprob, TokenLogprob

LEAST_LOGPROB = -9999.0  # JSON has no -inf

# Written out, since every token of every stream is one of these: filling it in takes half as long as encoding a dict.
_STREAM_FRAME = (
    b'data:{"token":{"id":%b,"text":%b,"logprob":%b,"special":%b,"count_output_tokens":%d,"prompt_tokens":%d},'
    b'"generated_text":null,"finished":%b,"finish_reason":%b,"details":null}\n\n'
)


class OutputToken(msgspec.Struct, frozen=True):
    """One token event as a client sees it. `token_id` is None when a sequence ends without a further token."""

    token_id: int | None
    text: str
    logprob: float
    special: bool
    count: int  # token events so far, this one included
    finish_reason: FinishReason | None
    top: tuple[TokenLogprob, ...] = ()  # the likeliest in its place, where they were asked for
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # with the first token, where they were asked for
    num_cached_tokens: int = 0  # of the prompt; with the first token

    @property
    def index(self) -> int:
        """Its place in the choice's stream of events; only the last event may have no token."""
        return self.count if self.token_id is None else self.count - 1


def stream_frame(token: OutputToken, prompt_tokens: int, more: dict[str, object] | None = None) -> bytes:
    """The event of one token, with `more` fields in the first one's."""
    reason = token.finish_reason
    frame = _STREAM_FRAME % (
        b"null" if token.token_id is None else b"%d" % token.token_id,
        orjson.dumps(token.text),
        orjson.dumps(max(token.logprob, LEAST_LOGPROB)),
        b"true" if token.special else b"false",
        token.count,
        prompt_tokens,
        b"false" if reason is None else b"true",
        b"null" if reason is None else orjson.dumps(reason),
    )
    return frame if more is None else frame.removesuffix(b"}\n\n") + b"," + orjson.dumps(more)[1:] + b"\n\n"


def error_frame(message: str) -> bytes:
    """The last event of a stream that failed after its headers went out."""
    return _frame(
        {"error": {"message": message, "type": "server_error", "param": None, "code": "stream_error"}},
    )


def generate_body(request: GenerationRequest, choices: Sequence[Sequence[OutputToken]]) -> bytes:
    """The answer of /generate. With one choice all but generated_text are scalars."""
    prompt_tokens = len(request.prompt_token_ids)
    body: dict[str, object] = {
        "generated_text": ["".join(token.text for token in tokens) for tokens in choices],
        "count_output_tokens": _scalar_or_list([tokens[-1].count for tokens in choices]),
        "finish_reason": _scalar_or_list([tokens[-1].finish_reason for tokens in choices]),
        "prompt_tokens": prompt_tokens,
    }
    if request.sampling.num_prompt_logprobs is not None:
        body |= prompt_listing(request.prompt_token_ids, choices[0][0])
    if request.answer.with_details:
        body["tokens"] = _scalar_or_list([_details(tokens, prompt_tokens) for tokens in choices])
    return orjson.dumps(body)


def prompt_listing(prompt_token_ids: Sequence[int], first: OutputToken) -> dict[str, object]:
    """The prompt's ids, and of each but the first `[id before it, {id: logprob}]`, as LightLLM lists them."""
    places = zip(prompt_token_ids, prompt_token_ids[1:], first.prompt_logprobs, strict=False)
    rows = []
    for before, token_id, said in places:
        logprobs = {str(other): max(logprob, LEAST_LOGPROB) for other, logprob in said.top}
        rows.append([before, {str(token_id): max(said.logprob, LEAST_LOGPROB)} | logprobs])
    return {"prompt_token_ids": list(prompt_token_ids), "prompt_logprobs": rows}


def score_body(score: float, prompt_tokens: int) -> bytes:
    """The answer of /get_score."""
    return orjson.dumps({"score": score, "prompt_tokens": prompt_tokens, "finish_reason": FinishReason.STOP})


def tokens_body(num_tokens: int) -> bytes:
    """The answer of /tokens."""
    return orjson.dumps({"ntokens": num_tokens})


def _details(tokens: Sequence[OutputToken], prompt_tokens: int) -> list[dict[str, object]]:
    details: list[dict[str, object]] = []
    logprob_sum = 0.0
    for token in tokens:
        if token.token_id is None:
            continue
        logprob = max(token.logprob, LEAST_LOGPROB)
        logprob_sum += logprob
        details.append(
            {
                "id": token.token_id,
                "logprob": logprob,
                "cumlogprob": logprob_sum / token.count,  # LightLLM's: the running mean
                "special": token.special,
                "count_output_tokens": token.count,
                "mtp_accepted_token_num": 0,
                "prompt_tokens": prompt_tokens,
                "text": token.text,
            }
        )
    return details


def _scalar_or_list(values: Sequence[object]) -> object:
    return values[0] if len(values) == 1 else values


def _frame(content: dict[str, object]) -> bytes:
    return b"data:" + orjson.dumps(content) + b"\n\n"
