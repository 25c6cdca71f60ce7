"""What of OpenAI's API, and of other servers' additions to it, is not there: refused, for it would change the answer.

The one place where it is told. Who builds the shape of an answer (`response_format`) takes its names out of here and
makes of them what `parameters.py` puts into SamplingParams; who builds tools gives them to the template by way of
`conversation.py` and reads them out of the text in `chunks.py` and `bodies.py`. What is in no list and not read either
(`user`, `metadata`, `store`, `service_tier`...) changes no answer and is ignored. Pure.
"""

from collections.abc import Mapping

from api.errors import BadField

TOOLS = ("tools", "functions", "function_call")
SHAPES = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
OTHERS = (
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
NEUTRAL_TOOL_CHOICES = (None, "none", "auto")
NEUTRAL_FORMATS = (None, {"type": "text"})


def check_supported(body: Mapping[str, object]) -> None:
    """Raises BadField for the first field that cannot be honoured."""
    for name in (*TOOLS, *SHAPES, *OTHERS):
        if body.get(name):
            raise BadField(f"{name} is not supported yet", name)
    if body.get("tool_choice") not in NEUTRAL_TOOL_CHOICES:
        raise BadField("tool_choice is not supported yet", "tool_choice")
    if body.get("response_format") not in NEUTRAL_FORMATS:
        raise BadField('response_format is not supported yet, but for {"type": "text"}', "response_format")
    if body.get("modalities") not in (None, ["text"]):
        raise BadField('modalities are not supported, but for ["text"]', "modalities")
