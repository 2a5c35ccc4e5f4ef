"""A page is served under this machine's names alone."""

import http.client
import urllib.parse

import pytest

from tftoolkit.export.web import serving


@pytest.mark.parametrize(("host", "status"), [(None, 200), ("localhost", 200), ("elsewhere.example", 421)])
def test_a_name_that_others_made_lead_here_is_refused(tmp_path, host, status):
    (tmp_path / "index.html").write_text("a page")
    with serving.served(tmp_path) as address:
        port = urllib.parse.urlsplit(address).port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/", headers={} if host is None else {"Host": f"{host}:{port}"})
        assert connection.getresponse().status == status
        connection.close()
