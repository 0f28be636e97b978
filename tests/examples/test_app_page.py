"""Test the app in a real browser by mouse, by keyboard, and at the size of a phone."""

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modeling_magnet import AutoMagnetForCausalLM

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "app.py"
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def address(wiki_7m, tmp_path_factory):
    """Start the app on a small real model, as a user does."""
    folder = tmp_path_factory.mktemp("app")
    AutoMagnetForCausalLM.from_pretrained(wiki_7m).save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", str(SCRIPT), "--model", str(folder / "model"), "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until = time.monotonic() + 120
        while "app: OK" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None
        assert "Traceback" not in log.read_text()
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    """Return one headless chromium for all tests."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the app as a new visitor; finally check that no console shows an error and no other host was contacted."""
    contexts, asked, complaints = [], set(), []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.add(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(address)
        page.get_by_label("Text with blanks").wait_for()
        page.get_by_text("Loading...").wait_for(state="hidden")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked and all(url.startswith((f"{address}/", "data:", "blob:")) for url in asked), asked


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def problem(page, tab):
    """Return the problem that a tab reports."""
    alert = page.locator(f"#{tab}-answer [role=alert]")
    alert.wait_for()
    return alert.inner_text()


def test_infill_tab_works_by_keyboard_and_by_mouse(visit):
    page = visit()
    area, answer = page.get_by_label("Text with blanks"), page.locator("#infill-answer")
    area.fill("Once upon a time there was a little girl.")
    area.press("Home")
    for key in ["Control+ArrowRight"] * 4 + ["Control+Shift+ArrowRight"] * 2 + ["Alt+b"]:
        area.press(key)
    sync_api.expect(area).to_have_value("Once upon a time [blank] a little girl.")
    sync_api.expect(area).to_be_focused()
    area.press("Shift+Enter")
    answer.get_by_role("heading", name="From the left only").wait_for()
    assert answer.locator("section mark").count() == 2 and answer.locator(".token").count() > 5
    assert "nats" in answer.locator("ol > li").first.inner_text()

    page.get_by_role("radio", name="set").check()
    page.get_by_label("number input for Tokens, if set").fill("3")
    area.press("End")
    area.press("Control+Shift+ArrowLeft")
    page.get_by_role("button", name="Blank the selection").click()
    sync_api.expect(area).to_have_value(re.compile(r"a little \[blank\]\.?$|a little girl\[blank\]$"))
    page.get_by_role("button", name="Fill the blanks").click()
    answer.get_by_role("heading", name="Blank 2").wait_for()
    assert answer.locator(".pair .note").all_inner_texts()[0].startswith("6 tokens, ")

    area.fill(f"{HOSTILE}[blank] {HOSTILE}.")
    area.press("Shift+Enter")
    answer.get_by_text(HOSTILE).first.wait_for()
    assert answer.locator("img").count() == 0


def test_generate_tab_streams_tokens_and_stops(visit):
    page = visit()
    open_tab(page, "Generate")
    area, status = page.get_by_label("Prompt"), page.locator("#generate-answer").get_by_role("status")
    counts = page.locator("#generate-meters .meters > span")
    area.fill("Once upon a time")
    page.get_by_label("number input for New tokens").fill("30")
    area.press("Shift+Enter")
    sync_api.expect(status).to_have_text("finished")
    assert counts.inner_text() == "30 tokens"
    assert page.locator("#generate-meters meter").count() == 4

    page.get_by_label("number input for New tokens").fill("200")
    # Pressed by the page itself, because so small a model may be done before a busy machine has pressed anything.
    page.evaluate("""new MutationObserver(() => document.getElementById("generate-stop").click()).observe(
        document.getElementById("generate-meters"), { subtree: true, childList: true, characterData: true })""")
    page.get_by_role("button", name="Generate").click()
    sync_api.expect(status).to_have_text("stopped")
    assert 0 < int(counts.inner_text().split()[0]) < 200

    area.fill("")
    page.get_by_role("button", name="Generate").click()
    assert "The prompt is empty" in problem(page, "generate")


def test_attention_tab_shows_masks_and_a_head(visit):
    page = visit()
    open_tab(page, "Attention")
    area, answer = page.get_by_label("Text, with or without blanks"), page.locator("#attention-answer")
    area.fill("The dog[blank] home.")
    page.get_by_role("radio", name="causal").check()
    page.get_by_label("number input for Head").fill("3")
    page.get_by_role("button", name="Show attention").click()
    sync_api.expect(answer.locator("table.heat caption")).to_contain_text("head 3, causal mode")
    assert answer.locator("table.mask").count() == 3
    assert answer.locator("table.heat tbody tr").first.locator("td").first.inner_text() == "1.00"

    area.fill(f"{HOSTILE} " * 20)
    area.press("Shift+Enter")
    assert "a table shows 40 at most" in problem(page, "attention")
