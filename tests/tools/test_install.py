"""tools/install.py: uv is told what pip is set to."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(load_module):
    return load_module(ROOT / "tools" / "install.py")


def test_pip_settings_reach_uv(install, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a.example/simple\nconstraint = /pins.txt\n[install]\nindex-url = https://b.example\n"
    )
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CONSTRAINT", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    environment = install.uv_environment(install.pip_settings())
    assert environment["UV_DEFAULT_INDEX"] == "https://b.example"
    assert environment["UV_CONSTRAINT"] == "/pins.txt"
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple")
    assert install.uv_environment(install.pip_settings())["UV_DEFAULT_INDEX"] == "https://c.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://d.example/simple")
    assert install.uv_environment(install.pip_settings())["UV_DEFAULT_INDEX"] == "https://d.example/simple"


@pytest.mark.parametrize("setting", [{"PIP_NO_INDEX": "1"}, {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}])
def test_pip_is_used_where_uv_cannot(install, monkeypatch, capsys, setting):
    """Settings that uv has no word for, and a uv that fails."""
    ran = []

    def run(command, check, **options):
        ran.append([str(word) for word in command])
        if "uv" in Path(command[0]).name:
            raise install.subprocess.CalledProcessError(2, command)
        return real(command, check=check, **options) if "config" in command else Done()

    class Done:
        returncode = 0

    real = install.subprocess.run
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install.sys, "argv", ["install.py", "export", "onnx"])
    assert install.main() == 0
    assert ran[-1][1:] == [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--editable",
        ".[export,onnx]",
    ]
    assert "Installing with pip, which takes minutes, instead of uv: " in capsys.readouterr().err
