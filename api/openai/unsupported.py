"""What of OpenAI's API, and of other servers' additions to it, is not there: refused, for it would change the answer.

The one place where it is told. What is in no list and not read either
(`user`, `metadata`, `store`, `service_tier`...) changes no answer and is ignored. Pure.
"""

from collections.abc import Mapping

from api.errors import BadField

TOOLS = ("tools", "tool_choice")  # of chats only
OTHERS = (
    "functions",
    "function_call",
    "suffix",
    "audio",
    "web_search_options",
    "use_beam_search",
    "bad_words",
    "logits_processors",
    "prompt_embeds",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "chat_template",
    "documents",
)


def check_supported(body: Mapping[str, object], *, is_chat: bool) -> None:
    """Raises BadField for the first field that cannot be honoured."""
    for name in OTHERS:
        if body.get(name):
            raise BadField(f"{name} is not supported yet", name)
    for name in () if is_chat else TOOLS:
        if body.get(name) not in (None, [], "none", "auto"):
            raise BadField(f"{name} is for /v1/chat/completions", name)
    if body.get("modalities") not in (None, ["text"]):
        raise BadField('modalities are not supported, but for ["text"]', "modalities")
