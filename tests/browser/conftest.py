"""Debian's Chromium, driven by playwright. A page cannot reach the network."""

import shutil

import pytest

CHROMIUM = "chromium"


@pytest.fixture(scope="session")
def chromium():
    """Return a running Chromium."""
    # This package is installed by `make test-browser` only.
    from playwright.sync_api import sync_playwright

    path = shutil.which(CHROMIUM)
    # The test is not skipped, because a check that silently does not run shows nothing.
    assert path, "Chromium is missing; install it with: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Return `open_page(address, answers, **options)`: a page whose errors fail the test.

    Requests for other hosts are answered with `answers`, by the end of the address, or fail.
    """
    contexts, faults = [], []

    def opened(address, answers=None, **options):
        context = chromium.new_context(viewport={"width": 1400, "height": 1000}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        home = address.rpartition("/")[0]

        def answer(route):
            own = route.request.url
            if own.startswith(home):
                return route.continue_()
            for end, text in (answers or {}).items():
                if own.endswith(end):
                    return route.fulfill(body=text, content_type="text/javascript")
            faults.append(f"the page loads {own}")
            return route.abort()

        page.route("**/*", answer)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults
