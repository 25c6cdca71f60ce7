"""Tool calls as OpenAI writes them: in a message, and in the deltas of a stream.

Pure. A call's id is made of the request's, so that every process that writes the same answer gives it the same one.
"""

import hashlib
from collections.abc import Sequence

from api.frames import OutputToken
from api.openai.tool_parser import Arguments, CallStart, Content, Delta, ToolParser
from messages.request import GenerationRequest, ToolParams
from messages.token_event import FinishReason

Json = dict[str, object]

TOOL_CALLS = "tool_calls"  # finish_reason, in place of "stop"


def delta_of(delta: Delta, request: GenerationRequest, choice: int) -> Json:
    """The `delta` of a chunk."""
    match delta:
        case Content(text):
            return {"content": text}
        case CallStart(index, name):
            call = {"id": call_id(request, choice, index), "type": "function", "function": _function(name, "")}
            return {"tool_calls": [{"index": index} | call]}
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(
    params: ToolParams, tokens: Sequence[OutputToken], request: GenerationRequest, choice: int
) -> tuple[Json, str | None]:
    """(message, finish_reason) of a choice that has ended. Its content is null where there is nothing but calls."""
    parser = ToolParser(params)
    content, calls = "", list[tuple[str, str]]()
    for delta in [one for token in tokens for one in parser.feed(token.text)] + parser.end():
        match delta:
            case Content(text):
                content += text
            case CallStart(_, name):
                calls.append((name, ""))
            case Arguments(index, text):
                name, before = calls[index]
                calls[index] = (name, before + text)
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["content"] = content or None
        message["tool_calls"] = [
            {"id": call_id(request, choice, index), "type": "function", "function": _function(*call)}
            for index, call in enumerate(calls)
        ]
    return message, reason_of(tokens[-1].finish_reason, parser)


def reason_of(reason: FinishReason | None, parser: ToolParser) -> str | None:
    """What a choice is said to have ended with: calls only where the text ended by itself and each of them is whole.

    Whoever reads `tool_calls` carries them out, so arguments that a limit or a stop sequence cut off keep the reason
    of the cut, as OpenAI's do.
    """
    return TOOL_CALLS if reason == FinishReason.STOP and parser.has_whole_calls else reason


def call_id(request: GenerationRequest, choice: int, index: int) -> str:
    """Of one call. Clients choose request ids, and choose the same one again."""
    told = f"{request.request_id} {request.created_ms} {choice} {index}"
    return "call_" + hashlib.blake2s(told.encode(), digest_size=12).hexdigest()


def _function(name: str, arguments: str) -> Json:
    return {"name": name, "arguments": arguments}
