"""The chat template of a model directory, and the special tokens that it names.

Where transformers writes them: chat_template.jinja, chat_template.json (older models that read images) or
tokenizer_config.json. Knows files; renders nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from api.model_facts import read_json
from messages import ModelError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Jinja's source, where the model has one, and the tokens by their names in it."""

    source: str | None
    special_tokens: dict[str, str]

    @property
    def has_tools(self) -> bool:
        """Whether it writes the tools of a request itself."""
        return self.source is not None and "tools" in self.source

    @property
    def tool_style(self) -> Literal["hermes", "llama3"] | None:
        """How the model was taught to call tools; None where that is neither. One that knows no tools is told how."""
        if self.source is None or "<tool_call>" in self.source or not self.has_tools:
            return "hermes"
        is_llama3 = "<|python_tag|>" in self.source or '"parameters": ' in self.source
        return "llama3" if is_llama3 else None


def find_chat_template(path: Path) -> ChatTemplate:
    """That of the Hugging Face directory `path`. Raises ModelError for damaged files."""
    config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if (path / "chat_template.json").exists():
        source = read_json(path / "chat_template.json").get("chat_template", source)
    file = path / "chat_template.jinja"
    if file.exists():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file}: {error}") from None
    special = {}
    for name in SPECIAL:
        token = config.get(name)
        if isinstance(token, dict):  # as an AddedToken is written
            token = token.get("content")
        if isinstance(token, str):
            special[name] = token
    return ChatTemplate(source if isinstance(source, str) else None, special)
