"""The page in headless Chromium; skipped where there is no Chromium or no Playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.server.test_launch import Process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("There is no Chromium here.", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Process(0.02, 1.0)
    yield server.url
    server.signal()
    assert server.wait()[0] == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, newly opened; nothing may be logged as an error while it is used."""
    faults: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(url)
    yield page
    context.close()
    assert faults == []


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> str:
    playwright.expect(page.locator("#messages")).to_have_attribute("aria-busy", "false", timeout=10_000)
    return page.locator("#messages li.assistant > span").first.inner_text()


def test_a_chat_that_is_kept(page: Page) -> None:
    playwright.expect(page.locator("#model")).to_have_text("fake-model")
    say(page, "hi")
    assert last_answer(page) == "hello there"
    assert "12 tokens" in page.locator("#messages .meta").last.inner_text()
    page.reload()
    assert page.locator("#messages li").count() == 2
    page.get_by_role("button", name="New chat").click()
    assert page.locator("#messages li").count() == 0


def test_probabilities(page: Page) -> None:
    say(page, "hi")
    last_answer(page)
    page.locator("#messages .token").first.hover()
    assert "was written" in page.locator("#tip").inner_text()
    page.locator("#messages li.assistant").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.chosen").inner_text() == "e"


def test_stopping(page: Page) -> None:
    page.get_by_label("System prompt").fill("x")
    page.get_by_label("Most tokens").fill("40")
    say(page, "yo")
    page.locator("#messages .token").first.wait_for()
    page.keyboard.press("Escape")
    assert 0 < len(last_answer(page)) < 40


def test_refusals_are_shown(page: Page) -> None:
    page.get_by_label("Temperature").fill("-1")
    page.evaluate('window.fetch = async () => new Response(\'{"error":{"message":"Not so."}}\', {status: 400})')
    say(page, "hi")
    page.get_by_role("alert").filter(has_text="Not so.").wait_for()


def test_the_block_map(page: Page) -> None:
    page.get_by_text("free 1").wait_for()
    assert page.locator("#used").inner_text() == "2 of 4"
    image = page.locator("#blocks")
    assert image.get_attribute("aria-label") == "KV cache: 1 blocks free, 1 cached, 1 used, 1 shared"
    colours = page.evaluate(
        """() => { const canvas = document.getElementById('blocks'), context = canvas.getContext('2d');
        return new Set([0, 1, 2, 3].map((cell) => context.getImageData(5 + 10 * cell, 5, 1, 1).data.join())).size }"""
    )
    assert colours == 4


def test_dark_and_light(page: Page) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shades[0] != shades[1]


@pytest.fixture
def docs(page: Page, url: str) -> Iterator[Page]:
    """The API's page, loaded; nothing may be asked of any other host."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url + "/docs")
    playwright.expect(page.locator("#endpoints")).to_have_attribute("aria-busy", "false")
    yield page
    assert [address for address in asked if not address.startswith((url, "data:"))] == []


def test_every_endpoint_is_described(docs: Page, url: str) -> None:
    paths = httpx.get(url + "/openapi.json").json()["paths"]
    assert docs.locator(".endpoint").count() == sum(len(operations) for operations in paths.values())
    assert {"OpenAI", "Anthropic"} <= set(docs.locator("h2").all_text_contents())
    for summary in docs.locator(".endpoint > summary").all():
        summary.click()
    playwright.expect(docs.locator(".try")).to_have_count(docs.locator(".endpoint").count())


def test_schemas_unfold(docs: Page) -> None:
    docs.locator(".endpoint > summary", has_text="Create Chat Completion").click()
    endpoint = docs.locator(".endpoint[open]")
    endpoint.locator("summary", has_text="ChatMessage").click()
    role = endpoint.locator(".fields .fields").first.locator("li").first.inner_text()
    assert role.startswith("role string") and role.endswith("required")


def test_an_endpoint_is_tried_with_the_keyboard(docs: Page) -> None:
    docs.get_by_label("API key").fill("any")
    docs.locator(".endpoint > summary", has_text="/v1/completions").focus()
    docs.keyboard.press("Enter")
    body = docs.get_by_label("Body (JSON)")
    assert json.loads(body.input_value())["prompt"] == "Once upon a time"
    body.fill('{"prompt": "hi", "stream": true}')
    body.press("Control+Enter")
    playwright.expect(docs.locator(".answer")).to_contain_text("[DONE]")
    assert docs.locator(".status").inner_text().startswith("200, ")


def test_a_file_is_uploaded(docs: Page) -> None:
    docs.locator(".endpoint > summary", has_text="Upload File").click()
    docs.locator("input[type=file]").set_input_files({"name": "in.jsonl", "mimeType": "text/plain", "buffer": b"{}"})
    docs.get_by_label("purpose").fill("batch")
    docs.get_by_role("button", name="Send").click()
    playwright.expect(docs.locator(".answer")).to_contain_text('"filename": "in.jsonl"')


def test_an_endpoint_with_parameters_is_tried(docs: Page) -> None:
    docs.locator(".endpoint > summary", has_text="/v1/models/{model_id}").click()
    docs.get_by_label("model_id").fill("fake-model")
    docs.get_by_role("button", name="Send").click()
    playwright.expect(docs.locator(".answer")).to_contain_text('"id": "fake-model"')
