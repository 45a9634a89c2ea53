"""The report page, in a browser, of the real examples under real servers while traffic runs."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.once, pytest.mark.accelerator]

LEAKING = {"flask": "GET /leakable", "fastapi": "GET /leak/async"}
LEAKED = {"flask": "app.LeakObj", "fastapi": "app.AsyncLeak"}
HELD = "module app → global 'leakable' → list → "


def leaking_line(kind):
    source = (Path(__file__).parents[2] / "examples" / f"{kind}_app" / "app.py").read_text().splitlines()
    return next(number for number, line in enumerate(source, 1) if "leakable.append(" in line)


@pytest.mark.parametrize(("kind", "workers"), [("flask", 4), ("fastapi", 1)])
def test_from_suspicion_to_cause(kind, workers, example, traffic, look, tmp_path_factory):
    """The leaking route comes first and is said to leak; opened, it shows the type, the line, and who holds it."""
    server = example(kind, workers=workers, sampling="1")  # a verdict wants growth beyond what sampling may show
    pictures = tmp_path_factory.mktemp("pictures")
    for _ in range(10 * workers):  # whichever route is asked for first is charged with what is loaded once
        httpx.get(f"{server.url}/clean").raise_for_status()
    with traffic(kind, server.url):
        page = look(f"{server.url}/heap")
        first = page.locator("#routes tbody tr").first
        expect(first.locator(".badge")).to_have_text("leaks", timeout=120_000)
        assert first.locator("button").inner_text() == LEAKING[kind]
        assert f"{LEAKING[kind]} leaks" in page.locator("#summary").inner_text()
        first.locator("button").click()
        mine = page.locator("#types tbody tr", has_text=LEAKED[kind])
        mine.wait_for()
        assert f"app.py:{leaking_line(kind)} " in page.locator("#sites tbody tr").first.inner_text()
        mine.get_by_role("button").click()
        page.wait_for_selector("#paths li", timeout=30_000)
        path = page.locator("#paths li").first.inner_text()
        assert re.fullmatch(re.escape(HELD + LEAKED[kind]) + r" × \d+", path), path
        assert page.locator("#tree canvas").count() == 1
        page.screenshot(path=pictures / f"{kind}.png", full_page=True)
        assert page.hosts == {server.url.removeprefix("http://"), ""} or page.hosts == {server.url[7:]}


def test_mark_and_compare(example, traffic, look):
    """I mark a moment, traffic leaks, and the growth since is shown; the table filters and sorts."""
    server = example("flask", census_min_interval="0.1")
    page = look(f"{server.url}/heap")
    page.wait_for_selector("#heap tbody tr")
    page.get_by_role("button", name="Mark this moment").click()
    expect(page.locator("#marked")).to_contain_text("since the mark of")
    with traffic("flask", server.url):
        page.fill("#filter", "app.leak")
        expect(page.locator("#heap tbody td.grown")).to_have_text(re.compile(r"\+\d+"), timeout=30_000)
    (row,) = page.locator("#heap tbody tr").all()
    assert row.locator("td").first.inner_text() == "app.LeakObj"
    page.fill("#filter", "")
    page.get_by_role("button", name="Type", exact=True).click()
    expect(page.locator("#heap th[aria-sort=ascending]")).to_have_text("Type")
    names = page.locator("#heap tbody td.code").all_inner_texts()
    assert names[0].lower() < names[-1].lower()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_both_themes_and_a_phone(scheme, width, example, traffic, look, tmp_path_factory):
    """In the dark and on a phone nothing sticks out of the page, and the keyboard reaches the routes."""
    server = example("flask", census_min_interval="0.1")
    with traffic("flask", server.url):
        page = look(f"{server.url}/heap", scheme=scheme, width=width)
        page.wait_for_selector("#routes tbody tr")
        page.keyboard.press("Tab")
        for _ in range(6):
            if page.evaluate("document.activeElement.dataset.key !== undefined"):
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#route:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=tmp_path_factory.mktemp("pictures") / f"{scheme}-{width}.png", full_page=True)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")


def test_with_a_token_there_is_a_login(example, look):
    """With a token set, the page asks for it once, and is then open."""
    server = example("flask", access="a token of my own")
    page = look(f"{server.url}/heap", expect=("403",))
    page.fill("#token", "something else")
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#trouble")).to_have_text("That is not the token.")
    page.fill("#token", "a token of my own")
    page.get_by_role("button", name="Open").click()
    page.wait_for_selector("#heap tbody tr")
