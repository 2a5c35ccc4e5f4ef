"""The command line as a user meets it: messages, help, exit codes; real processes where the process is the point."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import tftoolkit as package
from tftoolkit import cli
from tftoolkit.cli.parser import Parser, integer
from tftoolkit.cli.recipe_options import comments
from tftoolkit.trainers import recipes


def tftoolkit(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tftoolkit", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))  # which ml_collections reads, and so train sets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "unknown command 'tran': did you mean train"),
        ([], "usage: tftoolkit COMMAND"),
        (["train"], "train: needs a RECIPE, got nothing. There are: "),
        (["train", "digitz"], "train: unknown recipe 'digitz'; did you mean digits"),
        (["train", "digits", "mnist"], "train digits: mnist is too much"),
        (["train", "digits", "--config.stepps=5"], "no option --config.stepps; did you mean --config.steps"),
        (["train", "digits", "--config.stepps", "5"], "no option --config.stepps; did you mean --config.steps"),
        (["train", "digits", "--config.expected.x=5"], "no option --config.expected.x. tftoolkit train digits --help"),
        (["train", "digits", "--config.steps=many"], "--config.steps=many"),
        (["train", "digits", "--config.steps", "many"], "--config.steps=many"),
        (["train", "digits", "--directry=x"], "no option --directry; did you mean --directory?"),
        (["train", "digits", "--directory"], "argument --directory: expected one argument"),
        (["ops"], "ops: needs a COMMAND, got nothing. There are: list, build, check"),
        (["ops", "--cuda", "bild"], "ops: unknown command 'bild'; did you mean build?"),
        (["ops", "check"], "required: LIBRARY.so|SOURCE.cc|OP"),
        (["doctor", "please"], "doctor: please is too much"),
        (["doctor", "--now"], "doctor: no option --now. It has none but --help"),
        (["verify"], "the following arguments are required: FILE"),
        (["export", "x", "--quantize=int9"], "invalid choice: 'int9'"),
        (["export", "x", "--overwrite=maybe"], "--overwrite is true or false, got 'maybe'"),
        (["web", "a", "--port=70000"], "--port: must be at least 0, at most 65535, got 70000"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["launch", "--workers", "2"], "launch needs a program after --"),
        (["launch", "--workers", "2", "train", "digits", "--"], "launch: train digits stands before --"),
        (["launch", "train", "--", "digits"], "launch: train stands before --"),
        (["launch", "--wrokers=2", "--", "train"], "did you mean --workers?"),
        (["launch", "--workers=0", "--", "train"], "launch: workers must be at least 1, but is 0"),
        (["launch", "--hosts=a,a:1", "--", "train"], "host names or IPv4 addresses without a port, but one is 'a:1'"),
        (["launch", "--", "trian", "digits"], "launch: 'trian' is no program; did you mean train?"),
        (["launch", "--", "train"], "train: needs a RECIPE, got nothing"),
        (["launch", "--", "verify", "--help"], "launch: 'verify' is no program. After -- comes"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def _all_parsers():
    """Of every command and command of a command, by what one types."""

    def below(name, parser):
        yield name, parser
        for word, one in parser.commands.choices.items() if parser.commands else ():
            yield from below([*name, word], one)

    for command in cli.COMMANDS:
        yield from below([command], cli.parser_of(command))


ALL = {" ".join(name): parser for name, parser in _all_parsers()}


def test_the_main_help_fits_a_screen_and_names_every_command_and_exit_code(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23  # and the prompt
    assert max(map(len, lines)) <= 80
    for command in cli.COMMANDS:
        assert len([line for line in lines if line.split()[:1] == [command]]) == 1
    text = " ".join(lines)
    assert all(f"{code} " in text for code in (0, 1, 2, 75, 130))
    assert cli.main(["help"]) == 0


@pytest.mark.parametrize("name", ALL)
def test_every_help_is_complete(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    parser = ALL[name]
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].startswith(f"usage: tftoolkit {name}")
    assert f"tftoolkit {name.split()[0]}" in text.partition("example:\n")[2]
    assert "exit codes: 0 " in text
    assert "2 wrong usage" in text.replace("\n", " ")
    flat = " ".join(text.split())
    for action in parser._actions:
        if action.dest == "help" or action.option_strings == []:
            continue
        (line,) = [line for line in lines if line.split("=")[0].split()[0:1] == [_shown(action)]]
        assert action.help, line
        after = flat.partition(" ".join(line.split()))[2]
        assert "(default: " in (line + after).partition(" --")[0], line
    for action in parser._positionals._group_actions:
        assert action.help
    for word, one in parser.commands.choices.items() if parser.commands else ():
        assert one.description
        assert len([line for line in lines if line.split()[:1] == [word]]) == 1  # its text may begin on the next one


def _shown(action):
    option = action.option_strings[0]
    return option if action.nargs is None else f"--[no]{option[2:]}"


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_tells_its_options_and_expected_result(recipe, capsys):
    assert cli.main(["train", "--help"]) == 0
    about = " ".join(capsys.readouterr().out.split())
    config = recipes.load(recipe)
    expected = {"at least": config.get("at_least", {}), "at most": config.get("at_most", {})}
    assert any(expected.values())
    for words, bounds in expected.items():
        for name, value in bounds.items():
            assert f"{name} of {words} {value}" in about
    assert cli.main(["train", recipe, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            assert (f"--[no]config.{name}" if isinstance(value, bool) else f"--config.{name}=") in text
            assert f"(default: {value})" in text
    # Every option has a comment in the recipe's file.
    assert [action.dest for action in ALL[f"train {recipe}"]._actions if (action.help or "").startswith(" (")] == []


def test_comments_of_a_recipe():
    source = """
def get_config():
    # Not its own.

    config.plain = 1
    # Two lines
    # of text.
    config.above = 2
    config.behind = 3  # behind it
    # Both,
    config.both = (
        4,
    )  # and behind
    config.text = "# not a comment"
    # The whole part.
    config.part = ConfigDict({
        "first": 1,
        # Second.
        "second": 2,
        "deep": {"third": 3},  # third
    })
    config.part.later = 5  # later
"""
    assert comments(source) == {
        "above": "Two lines of text.",
        "behind": "behind it",
        "both": "Both, and behind",
        "part": "The whole part.",
        "part.second": "Second.",
        "part.deep": "third",
        "part.deep.third": "third",
        "part.later": "later",
    }


def _parser():
    parser = Parser(prog="tftoolkit x")
    parser.describe("[OPTION ...] FILE", "Does x.", "tftoolkit x")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--number", type=integer(0, 9), default=3)
    parser.add_argument("--text", default="none")
    parser.add_argument("--many", action="append", default=[])
    parser.add_switch("--fast", "quickly")
    return parser


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("a", {"files": ["a"], "number": 3, "text": "none", "many": [], "fast": False}),
        ("a --number=4 b --text x c", {"files": ["a", "b", "c"], "number": 4, "text": "x"}),
        ("--fast a b", {"files": ["a", "b"], "fast": True}),
        ("a --fast --nofast", {"fast": False}),
        ("a --fast=false", {"fast": False}),
        ("a --nofast=False", {"fast": True}),
        ("a --fast=1", {"fast": True}),
        ("a -number=4 -fast", {"number": 4, "fast": True}),
        ("a --text=", {"text": ""}),
        ("a --text=x=y=z", {"text": "x=y=z"}),
        ("a --text --fast", {"text": "--fast", "fast": False}),
        ("a --text -1", {"text": "-1"}),
        ("a --many x --many=y", {"many": ["x", "y"]}),
        ("-- --fast -x", {"files": ["--fast", "-x"], "fast": False}),
        ("a -- b", {"files": ["a", "b"]}),
        ("- -1", {"files": ["-", "-1"]}),
    ],
)
def test_spellings(arguments, wanted):
    options = vars(_parser().parse(arguments.split()))
    assert {name: options[name] for name in wanted} == wanted


def test_every_spelling_reaches_the_recipe(monkeypatch):
    seen = []
    monkeypatch.setattr("tftoolkit.cli.train.import_tensorflow", lambda: None)
    jobs = types.SimpleNamespace(find=lambda name: lambda config: config, run=lambda *given: seen.append(given))
    monkeypatch.setitem(sys.modules, "tftoolkit.jobs", jobs)  # the real ones need TensorFlow
    monkeypatch.setattr(package, "jobs", jobs, raising=False)
    for arguments in (
        ["digits", "--directory=x/y", "--config.steps=7", "--config.runner=xla", "--config.at_least.accuracy=0.5"],
        ["--config.steps=7", "--directory=x/y", "--config.runner=xla", "--config.at_least.accuracy=0.5", "--",
         "digits"],
        ["--config.steps", "7", "--directory", "x/y", "digits", "--config.runner", "xla", "--debug",
         "--config.at_least.accuracy", "0.5"],
    ):  # fmt: skip
        assert cli.main(["train", *arguments]) == 0
        config, directory, recipe = seen.pop()
        assert recipe == "digits"
        assert (directory, config.steps, config.runner) == (Path("x/y"), 7, "xla")
        assert config.at_least.accuracy == 0.5
        assert config.seed == recipes.load("digits").seed


def test_the_defaults_of_launch_are_those_of_the_gang(monkeypatch):
    from tftoolkit.trainers.distribution.gang import Gang

    def run(gang):
        assert gang == Gang(["true"])
        return 75

    monkeypatch.setattr(Gang, "run", run)
    assert cli.main(["launch", "--", "true"]) == 75


def test_formats_offered_are_those_that_there_are():
    from tftoolkit.cli.export import QUANTIZE
    from tftoolkit.export.convert.convert import MODES

    assert set(QUANTIZE) == set(MODES)


def test_help_needs_no_tensorflow(tmp_path):
    code = (
        "import json, sys, time\nfrom tftoolkit.cli import main\nmain(['--help'])\n"
        "seconds = time.process_time()\n"
        "[main([*name.split(), '--help']) for name in json.loads(sys.argv[1])]\n"
        "heavy = {'tensorflow', 'jax', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "print(json.dumps([seconds, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(list(ALL))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert seconds < 0.3  # of the processor


def test_the_module_is_the_command(tmp_path):
    assert "train RECIPE" in tftoolkit("--help", cwd=tmp_path).stdout


def test_ops_list(capsys):
    assert cli.main(["ops", "list"]) == 0
    assert "TfToolkit>RmsNorm<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d]" in capsys.readouterr().out


def test_compilation_database(tmp_path):
    assert cli.main(["ops", "--compile_commands", "commands.json", "build"]) == 0
    assert "xla_kernel.cc" in (tmp_path / "commands.json").read_text()


def test_doctor_finds_everything_here(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "ok      op host" in printed
    assert "RmsNorm, RmsNormGrad for CPU" in printed


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path):
    done = tftoolkit("doctor", cwd=tmp_path, PATH="/nonexistent", CUDA_HOME="", CXX="")
    assert done.returncode == 1
    assert "MISSING C++ compiler" in done.stdout
    assert "apt install g++" in done.stdout


@pytest.mark.slow
def test_no_compiler_and_nothing_built_yet(tmp_path):
    """One message, before any training, and no run folder half begun."""
    cache = str(tmp_path / "cache")
    done = tftoolkit("train", "digits", cwd=tmp_path, PATH="/nonexistent", CXX="", TFTOOLKIT_CACHE_DIR=cache)
    assert done.returncode == 1
    assert "BuildError: no C++ compiler found" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_a_file_that_is_not_there(capsys):
    assert cli.main(["verify", "gone.tflite"]) == 1
    assert "FileNotFoundError: no such file: gone.tflite" in capsys.readouterr().err


def test_a_runtime_that_is_not_installed_is_no_bug(tmp_path, capsys, monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    assert cli.main(["verify", str(tmp_path / "model.tflite")]) == 1
    said = capsys.readouterr().err
    assert "ai-edge-litert, which is not installed: pip install 'tftoolkit[export]'" in said
    assert "Traceback" not in said
