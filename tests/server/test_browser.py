"""The page in headless Chromium; skipped where there is no Chromium or no Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
