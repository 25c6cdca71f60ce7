"""Renders chat templates, in a process of its own: what a template does can be neither bounded nor stopped in a thread.

The machinery is transformers' own: Jinja's immutable sandbox, its filters and tags, plain data only. It takes most of a
second to load and never loads torch. One line of JSON in, one out: first {"source", "special_tokens"}, answered by {}
or {"error"}; then conversations, answered by {"text"} or {"error"}. Ends with its standard input.
"""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve until the end of standard input."""
    # A template that never ends does not read on either.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import jinja2
    import orjson
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    # What a template may raise: on purpose, by a mistake of its own, or for messages that it did not expect.
    failures = (
        jinja2.TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    )

    def answer(content: dict[str, str]) -> None:
        sys.stdout.buffer.write(orjson.dumps(content) + b"\n")
        sys.stdout.buffer.flush()

    def complain(error: Exception) -> None:
        reason = str(error).split("\n")[0][:300]
        answer({"error": reason or type(error).__name__})

    start = orjson.loads(sys.stdin.buffer.readline())
    source: str = start["source"]
    try:
        _compile_jinja_template(source)
    except failures as error:
        complain(error)
        return
    answer({})
    for line in sys.stdin.buffer:
        asked = orjson.loads(line)
        try:
            (text,), _ = render_jinja_template(
                [asked["messages"]],
                tools=asked["tools"] or None,
                chat_template=source,
                add_generation_prompt=asked["add_generation_prompt"],
                continue_final_message=asked["continue_final_message"],
                **(start["special_tokens"] | asked["variables"]),
            )
        except failures as error:
            complain(error)
        else:
            answer({"text": text})


if __name__ == "__main__":
    main()
