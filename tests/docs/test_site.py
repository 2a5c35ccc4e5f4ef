"""The site as `make site` built it: each page in a browser, on a desk and on a phone, without server and network."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tftoolkit.export.runtimes import browser

ROOT = Path(__file__).parents[2]
DESK, PHONE = 1280, 390
# What sticks out of the page: tables and code scroll within themselves.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SITE = ROOT / "build/site"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make site` builds what is looked at here"),
]


def opened(page, width, path):
    page.send("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600,
    })  # fmt: skip
    page.open(path.as_uri())
    page.wait_for("document.readyState == 'complete'")


def test_every_page_fits_and_asks_for_nothing_from_outside():
    pages = sorted(set(SITE.rglob("*.html")) - {SITE / "404.html"})  # that one is for servers
    assert len(pages) > 40
    with browser.Browser(DESK, 900) as page:
        found = []
        for width in (DESK, PHONE):
            for path in pages:
                opened(page, width, path)
                if page.evaluate(OVERFLOW) > 0:
                    found.append(f"{path.relative_to(SITE)} at {width}: {page.evaluate(OVERFLOW)} pixels too wide")
        addresses = {urlsplit(request) for request in page.requests}
        found += page.errors
    found += [one.geturl() for one in addresses if one.scheme not in ("file", "data")]
    found += [one.path for one in addresses if one.scheme == "file" and not Path(unquote(one.path)).exists()]
    assert found == []


def test_search_works_from_the_folder():
    with browser.Browser(DESK, 900) as page:
        opened(page, DESK, SITE / "index.html")
        page.evaluate("document.querySelector('[data-md-toggle=search]').click()")
        page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        page.send("Input.insertText", {"text": "rms_norm"})
        page.send("Input.dispatchKeyEvent", {"type": "keyUp", "key": "m"})
        page.wait_for("document.querySelector('.md-search-result__item a[href*=\"custom_ops.html\"]')")
        assert page.errors == []


def test_dark_is_dark_on_each_page_that_follows():
    background = "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    with browser.Browser(DESK, 900) as page:
        opened(page, DESK, SITE / "index.html")
        assert min(page.evaluate(background)) > 200
        page.evaluate("document.querySelector('label[for=__palette_1]').click()")
        page.wait_for("document.body.dataset.mdColorScheme == 'slate'")
        for name in ("index.html", "performance.html", "reference/export.html", "notebooks/export.html"):
            opened(page, DESK, SITE / name)
            assert max(page.evaluate(background)) < 80, name
        assert page.errors == []
