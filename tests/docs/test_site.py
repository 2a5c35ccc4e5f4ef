"""The site as `make site` builds it: every page in a browser, on a desk and on a phone, without server and network."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tftoolkit.export.runtimes import browser

ROOT = Path(__file__).parents[2]
DESK, PHONE = 1280, 390
# What sticks out of the page: tables and code scroll within themselves.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def opened(page, width, path):
    page.send("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600,
    })  # fmt: skip
    page.open(path.as_uri())
    page.wait_for("document.readyState == 'complete'")


def test_every_page_fits_and_asks_for_nothing_from_outside(site):
    pages = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # that one is for servers
    assert len(pages) > 40
    with browser.Browser(DESK, 900) as page:
        found = []
        for width in (DESK, PHONE):
            for path in pages:
                opened(page, width, path)
                if page.evaluate(OVERFLOW) > 0:
                    found.append(f"{path.relative_to(site)} at {width}: {page.evaluate(OVERFLOW)} pixels too wide")
        addresses = {urlsplit(request) for request in page.requests}
        found += page.errors
    found += [one.geturl() for one in addresses if one.scheme not in ("file", "data")]
    found += [one.path for one in addresses if one.scheme == "file" and not Path(unquote(one.path)).exists()]
    assert found == []


def test_search_works_from_the_folder(site):
    with browser.Browser(DESK, 900) as page:
        opened(page, DESK, site / "index.html")
        page.evaluate("document.querySelector('[data-md-toggle=search]').click()")
        page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        page.send("Input.insertText", {"text": "rms_norm"})
        page.send("Input.dispatchKeyEvent", {"type": "keyUp", "key": "m"})
        page.wait_for("document.querySelector('.md-search-result__item a[href*=\"custom_ops.html\"]')")
        assert page.errors == []
