"""The page in a real Chromium against a real cluster: asked, watched, stopped, resumed, and while a worker dies."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from api.key_file import Scope
from messages.worker_status import Role
from tests.api.keys import KeyFile
from tests.end_to_end.browser import PATIENCE_MS, Visit, running_browser
from tests.end_to_end.cluster import Cluster, free_port, running_cluster, wait_until

expect.set_options(timeout=PATIENCE_MS)
FRANCE = "What is the capital of France?"
LONG = "Tell me a long story about a lighthouse."


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, redis_url: str, demo_dir: Path) -> Iterator[Cluster]:
    """Two decode workers, so that one may die while the other is healthy. fp32, so that what is computed anew is the
    very same."""
    env = {"PDQ_MODEL__DTYPE": "float32"}
    with running_cluster(tmp_path_factory.mktemp("page"), redis_url, demo_dir, env, decode=2) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, shown: Cluster) -> Iterator[Visit]:
    visit = Visit(browser, shown.url, viewport={"width": 1280, "height": 860})
    yield visit
    visit.close()


def fill(page: Page, name: str, value: str) -> None:
    page.locator(f"#parameter-form [name={name}]").fill(value)


def ask(page: Page, text: str, max_tokens: int = 64) -> None:
    fill(page, "temperature", "0")
    fill(page, "max_tokens", str(max_tokens))
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Control+Enter")


def tokens_shown(page: Page) -> int:
    return page.locator(".turn.assistant .token").count()


def wait_for_tokens(page: Page, number: int) -> None:
    page.wait_for_function("number => document.querySelectorAll('.turn.assistant .token').length >= number", arg=number)


def wait_for_end(page: Page) -> None:
    expect(page.locator(".turn.streaming")).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def answer(page: Page) -> str:
    return page.locator(".turn.assistant .text").last.text_content() or ""


def whole_answer(url: str, max_tokens: int) -> str:
    """To LONG, in one piece."""
    body = {"messages": [{"role": "user", "content": LONG}], "temperature": 0, "max_tokens": max_tokens}
    answered = httpx.post(url + "/v1/chat/completions", json=body, timeout=60).json()
    return str(answered["choices"][0]["message"]["content"])


def test_a_chat_streams_and_each_token_tells_what_else_was_likely(visit: Visit) -> None:
    page = visit.open()
    visit.picture("playground-empty")
    ask(page, FRANCE)
    wait_for_tokens(page, 1)
    assert tokens_shown(page) < 8  # it is watched on its way
    wait_for_end(page)
    assert answer(page) == "The capital of France is Paris."
    page.locator(".turn.assistant .token", has_text="Paris").hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_be_visible()
    assert tip.locator("tr").count() == 5 and tip.locator("tr.is-it").count() == 1
    shares = tip.locator("td:last-child").all_text_contents()
    assert all(re.fullmatch(r"[\d.]+ %|< 1 %", share) for share in shares), shares
    visit.picture("playground-tokens")
    ask(page, "And of Italy?")
    wait_for_end(page)
    assert "Rome" in answer(page)  # the conversation went along


def test_a_completion_goes_on_from_its_text(visit: Visit) -> None:
    page = visit.open()
    page.get_by_text("Completion", exact=True).click()
    ask(page, "What is AI?", 12)
    wait_for_end(page)
    assert answer(page).startswith(" AI refers to machines that can perform")
    expect(page.locator(".turn.assistant .foot")).to_contain_text("reached its limit")


def test_stop_ends_it_and_continue_goes_on(visit: Visit) -> None:
    page = visit.open()
    ask(page, LONG, 400)
    wait_for_tokens(page, 4)
    page.keyboard.press("Escape")
    wait_for_end(page)
    number, text = tokens_shown(page), answer(page)
    assert 4 <= number < 400
    expect(page.locator(".turn.assistant .foot")).to_contain_text("stopped")
    fill(page, "max_tokens", "5")
    page.get_by_role("button", name="Continue").click()
    wait_for_tokens(page, number + 5)
    wait_for_end(page)
    assert tokens_shown(page) == number + 5 and answer(page).startswith(text)


def test_a_stream_is_resumed_after_a_reload(visit: Visit) -> None:
    page = visit.open()
    ask(page, LONG, 80)
    wait_for_tokens(page, 5)
    page.reload()
    expect(page.locator(".turn.user")).to_have_text(re.compile(LONG))
    wait_for_end(page)
    expect(page.locator(".turn.assistant .foot")).to_contain_text("resumed")
    assert answer(page) == whole_answer(visit.url, 80)
    assert sum("/stream" in url for url in visit.asked) == 1


def test_a_killed_worker_is_seen_and_its_request_goes_on(visit: Visit, shown: Cluster) -> None:
    page = visit.open()
    ask(page, LONG, 120)
    wait_for_tokens(page, 8)
    with ThreadPoolExecutor(1) as thread:  # Playwright's loop runs in this one
        victim = thread.submit(shown.busy_process, Role.DECODE).result()
    shown.kill(victim)
    page.get_by_role("link", name="Cluster").click()
    expect(page.locator(".incidents [data-kind=gone]")).to_contain_text("no heartbeat")
    expect(page.locator(".incidents [data-kind=continued]").first).to_contain_text("last published token")
    expect(page.locator(".worker.dead")).to_have_count(1)
    visit.picture("cluster-failure")
    page.get_by_role("link", name="Playground").click()
    wait_for_end(page)
    assert answer(page) == whole_answer(visit.url, 120)
    page.get_by_role("link", name="Cluster").click()
    strip = page.locator(".request", has=page.locator(".reclaimed")).locator(".strip")
    for kind in ("queue", "prefill-bar", "transfer", "lost", "reclaimed", "decode-bar"):
        expect(strip.locator(f".{kind}").first).to_be_attached()
    for figure in ("ms", "tokens/s"):
        expect(page.locator("#figures")).to_contain_text(figure)
    for chart in ("ttft", "itl"):
        assert page.locator(f"#{chart} path").first.get_attribute("d")
    visit.picture("cluster")
    shown.start("decode")
    expect(page.locator(".worker.decode:not(.dead)")).to_have_count(2)


def test_all_of_it_without_a_mouse(visit: Visit) -> None:
    page = visit.open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for _ in range(8):  # by way of the mode, the conversation's button, the conversation and what it proposes
        if page.evaluate("document.activeElement.id") == "prompt":
            break
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.nextElementSibling ?? document.body).outlineStyle"
        )
        assert outline in ("solid", "none")
        page.keyboard.press("Tab")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type(FRANCE)
    page.keyboard.press("Control+Enter")
    wait_for_end(page)
    assert answer(page)
    page.locator(".turn.assistant .text").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_be_visible()
    first = page.locator(".token.chosen").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.chosen").text_content() != first
    assert page.locator("#spoken").text_content() == answer(page)  # read out whole, once


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(browser: Browser, shown: Cluster, scheme: str) -> None:
    visit = Visit(browser, shown.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = visit.open()
    page.locator("#parameters summary").click()
    fill(page, "max_tokens", "24")
    page.locator("#parameters summary").click()
    page.get_by_label("Message", exact=True).fill(FRANCE)
    page.get_by_role("button", name="Send").click()
    wait_for_tokens(page, 1)
    wait_for_end(page)
    for view in ("playground", "cluster"):
        page.goto(f"{visit.url}/#{view}")
        if view == "cluster":
            expect(page.locator(".worker").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
        visit.picture(f"phone-{view}-{scheme}")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == ("rgb(20, 25, 24)" if scheme == "dark" else "rgb(246, 245, 241)")
    if scheme == "dark":
        page.get_by_role("button", name="Colours").click()  # light, and it stays so
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 241)"
    visit.close()


def test_a_key_is_asked_for_kept_in_the_tab_and_as_good_as_its_scope(
    browser: Browser, shown: Cluster, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path)
    keys.add("alice")
    keys.add("root", Scope.ADMIN)
    port = free_port()
    shown.start("api", PDQ_API__PORT=str(port), PDQ_SECURITY__KEYS_FILE=str(keys.path))
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: _answers(url), 30, "the API that asks for keys")
    visit = Visit(browser, url)
    page = visit.open()
    expect(page.locator("#key-note")).to_have_text("This server asks for an API key.")
    visit.picture("key-wanted")

    def show(key: str) -> None:
        if not page.get_by_label("API key", exact=True).is_visible():
            page.get_by_role("button", name="API key").click()
        page.locator("#key-field").fill(key)
        page.locator("#key-field").press("Enter")

    show("pdq-wrong")
    expect(page.locator("#key-note")).to_contain_text("not known")
    show(keys.keys["alice"])
    expect(page.locator("#model")).not_to_be_empty()
    ask(page, FRANCE)
    wait_for_end(page)
    assert "Paris" in answer(page)
    page.goto(f"{url}/#cluster")
    expect(page.locator("#cluster-notice")).to_contain_text("monitor or admin")
    visit.picture("cluster-refused")
    show(keys.keys["root"])
    expect(page.locator(".worker").first).to_be_visible()
    assert page.evaluate("Object.values(localStorage).join()").find("pdq-") < 0
    assert keys.keys["root"] in page.evaluate("Object.values(sessionStorage)")
    assert not any("pdq-" in asked for asked in visit.asked)
    visit.close(may_complain=True)  # of each 401 and 403


def test_a_stream_outlives_the_api_process_that_it_came_from(browser: Browser, shown: Cluster) -> None:
    visit = Visit(browser, shown.url)
    page = visit.open()
    ask(page, LONG, 120)
    wait_for_tokens(page, 5)
    shown.kill("api-0")
    shown.start("api")  # on the same port, as behind a balancer
    expect(page.locator(".turn.assistant .foot")).to_contain_text("taking the stream up again")
    wait_for_end(page)
    assert answer(page) == whole_answer(visit.url, 120)
    visit.close(may_complain=True)  # of each attempt while nobody answered


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
