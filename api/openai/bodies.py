"""Whole answers of /v1/completions and /v1/chat/completions, field by field.

Pure: what was generated -> bytes.
"""

from collections.abc import Sequence

import orjson

from api.frames import OutputToken
from api.openai.logprobs import CompletionLogprobs, Json, Listing, chat_logprobs, joined
from api.openai.tool_calls import message_of
from api.openai.usage import usage_of
from api.services import Services
from messages.request import GenerationRequest

Requests = Sequence[GenerationRequest]
Choices = Sequence[Sequence[OutputToken]]


def head_of(requests: Requests, prefix: str, kind: str, services: Services) -> Json:
    """What every chunk and body of an answer begins with: the same id, time and model in all of them."""
    first = requests[0]
    return {
        "id": f"{prefix}-{first.request_id}",
        "object": kind,
        "created": first.created_ms // 1000,
        "model": services.facts.name,
    }


def completion_body(requests: Requests, choices: Choices, services: Services) -> bytes:
    """Of /v1/completions. The choices of the first prompt come first."""
    rows = []
    for index, tokens in enumerate(choices):
        request = requests[index // requests[0].n]
        text, logprobs = completion_part(request, tokens, services)
        reason = tokens[-1].finish_reason
        rows.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    head = head_of(requests, "cmpl", "text_completion", services)
    return orjson.dumps({**head, "choices": rows, "usage": usage_of(requests, choices)})


def completion_part(
    request: GenerationRequest, tokens: Sequence[OutputToken], services: Services
) -> tuple[str, Listing | None]:
    """(text, logprobs) of one choice, with its prompt before it if that is wanted."""
    answer = request.answer
    told = [] if answer.drops_output else tokens
    text = "".join(token.text for token in told)
    listing = None
    if answer.num_logprobs is not None:
        listed = CompletionLogprobs(answer.num_logprobs, services.tokenizer.names)
        prompt = listed.of_prompt(request, tokens[0]) if answer.echo else None
        output = listed.of_output(told)
        listing = output if prompt is None else joined(prompt, output)
    return (prompt_text(request, services) if answer.echo else "") + text, listing


def prompt_text(request: GenerationRequest, services: Services) -> str:
    """The prompt as text, of which the record has only the ids."""
    skips = request.output.skip_special_tokens
    return services.tokenizer.text(request.prompt_token_ids, skip_special_tokens=skips)


def chat_body(requests: Requests, choices: Choices, services: Services) -> bytes:
    """Of /v1/chat/completions."""
    rows = []
    for index, tokens in enumerate(choices):
        num_logprobs = requests[0].answer.num_logprobs
        logprobs = None if num_logprobs is None else chat_logprobs(tokens, num_logprobs, services.tokenizer.names)
        tools = requests[0].answer.tools
        reason: str | None = tokens[-1].finish_reason
        if tools is None:
            message: Json = {"role": "assistant", "content": "".join(token.text for token in tokens), "refusal": None}
        else:
            message, reason = message_of(tools, tokens, requests[0], index)
        rows.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
    head = head_of(requests, "chatcmpl", "chat.completion", services)
    return orjson.dumps({**head, "choices": rows, "usage": usage_of(requests, choices)})
