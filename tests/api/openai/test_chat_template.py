"""Chat templates: what they are given, what they may do, and for how long."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.errors import BadField
from api.openai.chat_template import ChatTemplate, find_chat_template
from api.openai.conversation import Conversation, read_conversation
from api.openai.renderer import ChatRenderer
from messages import ModelError, WorkerFailed
from tests.api.fake_cluster import run
from tests.api.openai.conftest import TEMPLATE

USER = {"role": "user", "content": "Hi"}
SPECIAL = {"bos_token": "<s>"}


@contextlib.asynccontextmanager
async def renderer_of(source: str, timeout_s: float = 20.0) -> AsyncIterator[ChatRenderer]:
    renderer = ChatRenderer(ChatTemplate(source, SPECIAL), timeout_s)
    try:
        yield renderer
    finally:
        await renderer.close()


def rendered(source: str, **body: Any) -> str:
    async def main() -> str:
        async with renderer_of(source) as renderer:
            return await renderer.render(read_conversation({"messages": [USER]} | body))

    return run(main())


def test_one_process_renders_one_conversation_after_the_other() -> None:
    async def main() -> None:
        async with renderer_of(TEMPLATE) as renderer:
            conversations = [read_conversation({"messages": [{"role": "user", "content": str(i)}]}) for i in range(20)]
            texts = await asyncio.gather(*map(renderer.render, conversations))
            for number, text in enumerate(texts):
                assert text == f"<|im_start|>user\n{number}<|im_end|>\n<|im_start|>assistant\n"
            continued = read_conversation(
                {"messages": [USER, {"role": "assistant", "content": "I am"}], "continue_final_message": True}
            )
            assert (await renderer.render(continued)).endswith("<|im_start|>assistant\nI am")
            silent = await renderer.render(read_conversation({"messages": [USER], "add_generation_prompt": False}))
            assert silent.endswith("<|im_end|>\n")
            opened = read_conversation({"messages": [USER], "chat_template_kwargs": {"opening": "Well"}})
            assert (await renderer.render(opened)).endswith("assistant\nWell")

    run(main())


def test_transformers_words_and_the_special_tokens_are_there() -> None:
    text = rendered(
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    assert text.startswith("<s>" + json.dumps(USER)) and len(text) == len("<s>" + json.dumps(USER)) + 4


def test_messages_are_brought_to_the_form_that_templates_read() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ 'name' in m }};{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts, "name": None}]
    assert rendered(source, messages=messages) == "system:x:False;user:a\nb:False;"
    assert rendered("{# developer #}" + source, messages=messages[:1]) == "developer:x:False;"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_is_in_a_sandbox(source: str) -> None:
    try:
        assert rendered(source) == ""  # what is not to be seen is undefined
    except BadField as refused:
        assert "the chat template cannot write these messages" in str(refused)


def test_a_template_may_refuse_and_says_why() -> None:
    with pytest.raises(BadField, match="roles must alternate") as refused:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert refused.value.param == "messages"
    with pytest.raises(BadField, match="cannot write"):
        rendered("{{ 1 / 0 }}")


def test_a_template_that_does_not_end_is_stopped_and_the_next_one_served() -> None:
    source = "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    source += "{% endfor %}{% endif %}done"

    async def main() -> None:
        async with renderer_of(source, timeout_s=0.5) as renderer:
            plain = read_conversation({"messages": [USER]})
            assert await renderer.render(plain) == "done"
            with pytest.raises(BadField, match=r"longer than 0\.5 s"):
                await renderer.render(read_conversation({"messages": [USER | {"content": "loop"}]}))
            assert await renderer.render(plain) == "done"

    run(main())


def test_who_leaves_in_between_leaves_no_answer_to_the_next() -> None:
    async def main() -> None:
        async with renderer_of(TEMPLATE) as renderer:
            first, second = (read_conversation({"messages": [{"role": "user", "content": one}]}) for one in "ab")
            await renderer.render(first)
            for _ in range(2):
                leaving = asyncio.create_task(renderer.render(first))
                await asyncio.sleep(0)
                leaving.cancel()
                assert "user\nb" in await renderer.render(second)

    run(main())


def test_a_process_that_dies_is_an_error_once() -> None:
    async def main() -> None:
        async with renderer_of(TEMPLATE) as renderer:
            conversation = read_conversation({"messages": [USER]})
            await renderer.render(conversation)
            assert renderer._process is not None
            os.kill(renderer._process.pid, signal.SIGKILL)
            with pytest.raises(WorkerFailed, match="has ended"):
                await renderer.render(conversation)
            assert "Hi" in await renderer.render(conversation)

    run(main())


def test_a_template_that_is_no_jinja_and_a_model_without_one() -> None:
    with pytest.raises(WorkerFailed, match="cannot be used"):
        rendered("{% for %}")
    with pytest.raises(BadField, match="no chat template"):
        run(ChatRenderer(ChatTemplate(None, {}), 1.0).render(Conversation([], True, False, {})))


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {"messages": []}),
        ("messages", {"messages": "Hi"}),
        ("messages[0]", {"messages": ["Hi"]}),
        ("messages[0]", {"messages": [{"content": "Hi"}]}),
        ("messages[1]", {"messages": [USER, {"role": "user", "content": 5}]}),
        ("messages[0]", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        ("continue_final_message", {"messages": [USER], "continue_final_message": True, "add_generation_prompt": True}),
        ("continue_final_message", {"messages": [{"role": "user"}], "continue_final_message": True}),
        ("chat_template_kwargs", {"messages": [USER], "chat_template_kwargs": {"tokenize": True}}),
        ("chat_template_kwargs", {"messages": [USER], "chat_template_kwargs": {"chat_template": "x"}}),
        ("chat_template_kwargs", {"messages": [USER], "chat_template_kwargs": [1]}),
    ],
)
def test_what_no_template_could_write_is_refused_by_its_field(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(BadField) as refused:
        read_conversation(body)
    assert refused.value.param == param


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert find_chat_template(tmp_path) == ChatTemplate(None, {})
    config: dict[str, Any] = {
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    }
    config |= {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = find_chat_template(tmp_path)
    assert found == ChatTemplate("d", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    assert find_chat_template(tmp_path).source == "older"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert find_chat_template(tmp_path).source == "j"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        find_chat_template(tmp_path)
