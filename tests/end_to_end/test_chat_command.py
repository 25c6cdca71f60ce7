"""`pdq chat` as a process, with a cluster of ours."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cli.health import api_problem
from tests.api.keys import KeyFile
from tests.cli.terminal import CTRL_C, CTRL_D, terminal
from tests.end_to_end.cluster import ROOT, Cluster, free_port, wait_until

FRANCE = "What is the capital of France?"
STORY = "Tell me a very long story about a queue."  # a few hundred tokens
PARIS = "The capital of France is Paris.\n"


def chat(url: str, *arguments: str, said: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "chat", "--url", url, "--temperature", "0", *arguments]
    return subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | env
    )


def test_one_question_is_answered(demo: Cluster) -> None:
    answer = chat(demo.url + "/v1", FRANCE)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, PARIS, "")


def test_a_conversation_has_a_history_and_commands(demo: Cluster) -> None:
    said = f"{FRANCE}\n/retry\n/undo\n/nonsense\n/new\n/undo\n/help\n/exit\nnever asked\n"
    answer = chat(demo.url, said=said)
    assert (answer.returncode, answer.stdout) == (0, PARIS * 2)
    lines = answer.stderr.splitlines()
    assert lines[:4] == [
        f"forgotten: {FRANCE}",
        "/nonsense is no command; /help lists them",
        "a new conversation",
        "nothing was asked yet",
    ]
    assert lines[4].startswith("/help")


def test_what_fails_is_a_sentence(demo: Cluster) -> None:
    nobody = chat("http://127.0.0.1:9", "Hi")
    assert nobody.returncode == 1 and "cannot be reached" in nobody.stderr and "--url" in nobody.stderr
    unknown = chat(demo.url, "--model", "gpt-9", "Hi")
    assert unknown.returncode == 1 and "answered 404" in unknown.stderr and "gpt-9" in unknown.stderr
    assert chat("ftp://x", "Hi").returncode == 2
    # In a conversation, the next question can be asked.
    later = chat(demo.url, "--model", "gpt-9", said="Hi\nHi\n")
    assert later.returncode == 0 and later.stderr.count("answered 404") == 2


@pytest.fixture(scope="module")
def keyed(demo: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """An API process of the same cluster that asks for a key: its URL, a key, its name."""
    port, keys = free_port(), KeyFile(tmp_path_factory.mktemp("keys"))
    key = keys.add("alice")
    name = demo.start(
        "api", PDQ_API__PORT=str(port), PDQ_SECURITY__KEYS_FILE=str(keys.path), PDQ_STREAM__RECONNECT_S="1"
    )
    wait_until(lambda: not api_problem("127.0.0.1", port), 60, "a second API process")
    yield f"http://127.0.0.1:{port}", key, name
    demo.kill(name)
    del demo.processes[name]


def test_a_key_is_asked_for_and_taken_from_the_environment(keyed: tuple[str, str, str]) -> None:
    url, key, _ = keyed
    without = chat(url, FRANCE)
    assert without.returncode == 1 and "answered 401" in without.stderr and "PDQ_API_KEY" in without.stderr
    assert without.stderr.count("\n") == 1
    for given in ({"PDQ_API_KEY": key}, {"OPENAI_API_KEY": key}):
        assert chat(url, FRANCE, **given).stdout == PARIS
    wrong = chat(url, FRANCE, PDQ_API_KEY="pdq-wrong")
    assert wrong.returncode == 1 and "pdq-wrong" not in wrong.stderr


def test_ctrl_c_ends_the_answer_on_the_server_and_the_conversation_goes_on(demo: Cluster) -> None:
    arguments = ("chat", "--url", demo.url, "--temperature", "0", "--max-tokens", "4000")
    with terminal(*arguments) as screen:
        screen.wait_for("> ")
        screen.press(f"{STORY}\n")
        screen.wait_for("a queue.")  # the echo
        screen.wait_for(" ")  # the answer
        screen.press(CTRL_C)
        screen.wait_for("\n> ")
        wait_until(lambda: not any(worker.num_running for worker in demo.workers()), 10, "the server to stop, too")
        screen.press(f"/new\n{FRANCE}\n")
        screen.wait_for(PARIS.strip())
        screen.wait_for("> ")
        screen.press(CTRL_D)
        assert screen.wait_end() == 0 and "Traceback" not in screen.text


def test_one_question_that_is_cut_short_is_exit_code_130(demo: Cluster) -> None:
    with terminal("chat", STORY, "--url", demo.url, "--temperature", "0") as screen:
        screen.wait_for(" ")  # the answer has begun
        screen.press(CTRL_C)
        assert screen.wait_end() == 130 and "Traceback" not in screen.text


def test_a_server_that_goes_away_is_a_sentence_and_the_prompt_comes_back(
    demo: Cluster, keyed: tuple[str, str, str]
) -> None:
    url, key, name = keyed
    arguments = ("chat", "--url", url, "--temperature", "0", "--max-tokens", "4000")
    with terminal(*arguments, columns=200, environment={"PDQ_API_KEY": key}) as screen:
        screen.wait_for("> ")
        screen.press(f"{STORY}\n")
        screen.wait_for("a queue.")  # the echo
        screen.wait_for(" ")  # the answer
        demo.kill(name, signal.SIGKILL)
        screen.wait_for("pdq: ")
        screen.wait_for("> ")
        screen.press("Hi\n")
        assert "cannot be reached" in screen.wait_for("start one with `pdq serve`")
        screen.wait_for("> ")
        screen.press(CTRL_D)
        assert screen.wait_end() == 0 and "Traceback" not in screen.text
    wait_until(
        lambda: not any(worker.num_running for worker in demo.workers()), 20, "what nobody reads to be cancelled"
    )
