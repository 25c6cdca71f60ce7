"""Tools for templates that know none: described to the model in the system's message, in the words of Hermes.

Pure. The words are those of NousResearch's Hermes-Function-Calling, which Qwen's templates have, too.
"""

from collections.abc import Mapping, Sequence

import orjson

from api.openai.tools import Tool

Message = dict[str, object]

_WORDS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
%s
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def with_tools_in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The messages, of which the first tells of the tools, with calls and results of the past as text."""
    told = [_told(message) for message in messages]
    if not tools:
        return told
    words = _WORDS % "\n".join(orjson.dumps(tool).decode() for tool in tools)
    if told and told[0]["role"] == "system":
        first, *others = told
        return [first | {"content": f"{first.get('content', '')}\n\n{words}"}, *others]
    return [{"role": "system", "content": words}, *told]


def _told(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    parts = [str(message.get("content") or "")]
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            said = {"name": function.get("name"), "arguments": function.get("arguments")}
            parts.append(f"<tool_call>\n{orjson.dumps(said).decode()}\n</tool_call>")
    return {"role": message["role"], "content": "\n".join(filter(None, parts))}
