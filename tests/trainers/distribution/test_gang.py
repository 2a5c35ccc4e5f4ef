"""The supervisor, with real processes that train nothing.

A long file: every way in which a worker can end.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit.trainers import heartbeat
from tftoolkit.trainers.distribution import cluster
from tftoolkit.trainers.distribution.gang import Gang

_BEGIN = """
import json, os, signal, subprocess, sys, time
from tftoolkit.trainers import heartbeat
attempt = int(os.environ["TFTOOLKIT_ATTEMPT"])
config = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
index = config["task"]["index"]
"""
_OPTIONS = ("--backoff=0.1", "--max_restarts=2")


@pytest.fixture
def start(tmp_path):
    """Starts ``tftoolkit launch`` with a program; what runs at the end of the test is killed."""
    started = []

    def begin(program, *options):
        path = tmp_path / "program.py"
        path.write_text(_BEGIN + program)
        command = [sys.executable, "-m", "tftoolkit", "launch", *_OPTIONS, *options, "--", path]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(launcher)
        return launcher

    yield begin
    for launcher in started:
        launcher.kill()
        launcher.communicate()


@pytest.fixture
def launch(start):
    """Runs it to its end; returns exit code, output and the launcher's own messages."""

    def run(program, *options):
        launcher = start(program, *options)
        out, err = launcher.communicate(timeout=60)
        assert "Traceback" not in err
        return launcher.returncode, out, err

    return run


def test_a_killed_worker_takes_all_into_a_new_attempt(launch):
    code, out, err = launch(
        "print(json.dumps(config), os.environ['GCE_METADATA_IP'], flush=True)\n"
        "if (attempt, index) == (0, 1): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if attempt == 0: time.sleep(60)\n"
        "print('done')",
        "--workers=2",
    )
    assert code == 0
    assert "worker 1 was ended by SIGKILL; ending the others" in err
    assert "restart 1 of 2 in 0.1 s" in err
    assert sorted(re.findall(r"\[(\d)\] done", out)) == ["0", "1"]
    lines = re.findall(r"\[(\d)\] (\{.*\}) 127.0.0.1:9", out)
    assert len(lines) in (3, 4)  # worker 0 may not have got that far
    clusters = set()
    for index, text in lines:
        config = json.loads(text)
        assert config["task"] == {"type": "worker", "index": int(index)}
        assert all(address.startswith("127.0.0.1:") for address in config["cluster"]["worker"])
        assert len(set(config["cluster"]["worker"])) == 2
        clusters.add(tuple(config["cluster"]["worker"]))
    assert len(clusters) == 2, "the same ports again"


@pytest.mark.slow
def test_one_worker_needs_no_cluster(launch):
    code, out, _ = launch("print('TF_CONFIG' in os.environ)")
    assert (code, out) == (0, "[0] False\n")


def test_output_is_passed_on_in_whole_lines_and_kept(launch, tmp_path):
    program = """
if attempt == 0: sys.exit(1)
for text in ("straße ".encode()[:5], "straße ".encode()[5:], b"and \\xff\\n", b"10%\\r100%\\n", b"no end"):
    os.write(1, text)
    time.sleep(0.02)
"""
    code, out, _ = launch(program, f"--log_dir={tmp_path / 'logs'}")
    assert code == 0
    assert out == "[0] straße and \N{REPLACEMENT CHARACTER}\n[0] 100%\n[0] no end\n"
    assert (tmp_path / "logs/worker-0.log").read_bytes().endswith(b"and \xff\n10%\r100%\nno end")


@pytest.mark.slow
@pytest.mark.parametrize("hang", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_worker_without_heartbeat_is_ended(launch, hang):
    program = f"""
heartbeat.beat()
if (attempt, index) == (0, 1): {hang}
for _ in range(50 if attempt == 0 else 1):
    time.sleep(0.1)
    heartbeat.beat()
"""
    code, _, err = launch(program, "--workers=2", "--heartbeat_timeout=2", "--grace=0.1")
    assert code == 0
    assert "worker 1: no heartbeat for 2 s; ending the others" in err
    assert "restart 1 of 2" in err


@pytest.mark.slow
def test_before_the_first_beat_and_in_a_pause_silence_is_allowed(launch):
    program = """
time.sleep(1)
heartbeat.beat()
heartbeat.pause()
time.sleep(1)
heartbeat.beat()
"""
    code, _, err = launch(program, "--heartbeat_timeout=0.6")
    assert code == 0
    assert "restart" not in err


@pytest.mark.slow
def test_a_program_that_never_beats(launch):
    code, _, err = launch("time.sleep(1.5)", "--start_timeout=0.5", "--max_restarts=0", "--grace=0.1")
    assert code == 1
    assert "no heartbeat in the first 0.5 s (a program that doesn't use the Trainer calls" in err
    assert launch("time.sleep(1.5)", "--start_timeout=0.5", "--heartbeat_timeout=0")[0] == 0


@pytest.mark.slow
def test_it_gives_up_and_shows_the_end_of_the_log(launch):
    code, out, err = launch("print(f'bad luck {attempt}')\nsys.exit(index * 3)", "--workers=2")
    assert code == 1
    assert "restart 2 of 2 in 0.2 s" in err
    assert "worker 1 ended with exit code 3, after 2 restarts without a newer checkpoint. The last lines" in err
    assert "of worker 1:\n  bad luck 2\n[tftoolkit: docs/errors.md#gang-failed]\n" in err
    assert "[1] bad luck 2" in out


@pytest.mark.slow
def test_newer_checkpoints_count_as_progress(launch):
    program = """
heartbeat.beat(saved_step=10 * min(attempt, 4))
sys.exit(attempt != 6)
"""
    code, _, err = launch(program, "--max_restarts=2")
    assert code == 0
    assert re.findall(r"restart (\d) of 2", err) == ["1"] * 5 + ["2"]
    assert launch(program, "--max_restarts=1")[0] == 1


def test_wrong_usage_is_not_tried_again(launch):
    code, _, err = launch("sys.exit('unknown option') if attempt else sys.exit(2)")
    assert code == 2
    assert "exit code 2, as if called wrongly, so it isn't tried again" in err
    assert "restart 1" not in err


_SAVES = """
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
"""
_READY = """
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def _wait_for_ready(launcher, workers):
    ready = 0
    while ready < workers:
        line = launcher.stdout.readline()
        assert line, launcher.stderr.read()
        ready += line.rstrip().endswith("ready")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_lets_everyone_save(start, number, expected):
    launcher = start(_SAVES + _READY, "--workers=2")
    _wait_for_ready(launcher, 2)
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=30)
    assert launcher.returncode == expected
    assert sorted(out.split("\n")) == ["", "[0] saved", "[1] saved"]
    assert f"{number.name}: run the same command again to go on" in err
    assert "restart" not in err


def test_who_ignores_the_signal_is_killed(start):
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN) if index else None\n" + _READY
    launcher = start(_SAVES + program, "--workers=2", "--grace=0.3")
    _wait_for_ready(launcher, 2)
    launcher.terminate()
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 75
    assert "worker 1 did not end within 0.3 s: SIGKILL" in err
    assert "worker 1 was ended by SIGKILL before it had saved; the last checkpoint stands" in err
    assert "worker 0 was" not in err


@pytest.mark.slow
def test_a_second_signal_does_not_wait(start):
    launcher = start("signal.signal(signal.SIGINT, lambda *_: print('ignored', flush=True))" + _READY)
    _wait_for_ready(launcher, 1)
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout.readline() == "[0] ignored\n"
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 130


@pytest.mark.slow
def test_a_signal_while_it_waits_to_restart(start):
    launcher = start("sys.exit(1)", "--backoff=60")
    while "restart 1 of 2 in 60 s" not in launcher.stderr.readline():
        pass
    launcher.terminate()
    launcher.communicate(timeout=30)
    assert launcher.returncode == 75


@pytest.mark.slow
def test_nobody_is_left_when_the_launcher_is_killed(start):
    launcher = start("print(os.getpid(), flush=True)" + _READY, "--workers=2")
    _wait_for_ready(launcher, 2)
    pids = re.findall(r"worker \d started, process (\d+)", launcher.stderr.readline() + launcher.stderr.readline())
    assert len(pids) == 2
    ended = [os.pidfd_open(int(pid)) for pid in pids]
    launcher.kill()
    for descriptor in ended:
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)


@pytest.mark.slow
def test_what_a_worker_started_ends_with_it(launch):
    program = """
if index == 1:
    print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    code, out, _ = launch(program, "--workers=2", "--max_restarts=0")
    assert code == 1
    (pid,) = re.findall(r"\[1\] (\d+)", out)
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or ") Z " in stat.read_text(), "it still runs"  # Z: nobody has asked how it ended


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"command": []}, "command is empty"),
        ({"workers": 0}, "workers must be at least 1, but is 0"),
        ({"parameter_servers": -1}, "parameter_servers must be at least 0, but is -1"),
        ({"parameter_servers": 1, "hosts": ["a"]}, "parameter_servers are started on this machine only: without hosts"),
        ({"max_restarts": -1}, "max_restarts must be at least 0"),
        ({"heartbeat_timeout": float("nan")}, "heartbeat_timeout must be at least 0, but is nan"),
        ({"hosts": ["a", "b:1"], "host_index": 0}, "without a port, but one is 'b:1'"),
        ({"hosts": ["a", "a"], "host_index": 0}, "hosts must differ, but are a,a"),
        ({"hosts": ["a", "b"]}, "several hosts need host_index, or one of JOB_COMPLETION_INDEX, SLURM_NODEID"),
        ({"hosts": ["a", "b"], "host_index": 2}, "host_index must be 0 to 1, as there are 2 hosts, but is 2"),
        ({"hosts": ["a"], "workers": 2, "port": 65535}, "ports up to 65536"),
    ],
)
def test_bad_arguments(options, named, monkeypatch):
    for name in cluster.HOST_INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=re.escape(named)):
        Gang(**{"command": ["true"], **options})


def test_heartbeats(tmp_path, monkeypatch):
    path = tmp_path / "beat"
    heartbeat.beat()  # nobody listens
    monkeypatch.setenv(heartbeat.VARIABLE, str(path))
    heartbeat.pause()
    heartbeat.beat()
    assert path.read_text() == ""
    heartbeat.beat(saved_step=120)
    heartbeat.beat()
    assert path.read_text() == "120"
    heartbeat.pause()
    assert not path.exists()


_SERVES = """
kind = config["task"]["type"]
me = kind if kind == "chief" else f"{kind} {index}"
assert {name: len(places) for name, places in config["cluster"].items()} == {"chief": 1, "worker": 2, "ps": 1}
def serve():
    print("serving", flush=True)
    time.sleep(60)
"""
_WITH_SERVERS = ("--workers=2", "--parameter_servers=1")


@pytest.mark.slow
def test_with_parameter_servers_the_chief_decides_when_it_is_over(launch, tmp_path):
    code, out, err = launch(
        _SERVES + "serve() if kind != 'chief' else time.sleep(1)", *_WITH_SERVERS, f"--log_dir={tmp_path / 'logs'}"
    )
    assert code == 0
    assert sorted(out.splitlines()) == ["[ps 0] serving", "[worker 0] serving", "[worker 1] serving"]
    assert "chief has finished" in err
    assert "restart" not in err
    logs = {file.name for file in (tmp_path / "logs").iterdir()}
    assert logs == {"chief.log", "worker-0.log", "worker-1.log", "ps-0.log"}


@pytest.mark.slow
def test_with_parameter_servers_a_worker_is_started_again_alone(launch, tmp_path):
    program = f"""
first = not os.path.exists({str(tmp_path / "mark")!r})
if me == "worker 1" and first:
    open({str(tmp_path / "mark")!r}, "w").close()
    print(config["cluster"]["worker"][1], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if me == "worker 1":
    print(config["cluster"]["worker"][1], flush=True)
serve() if kind != "chief" else time.sleep(2)
"""
    code, out, err = launch(_SERVES + program, *_WITH_SERVERS)
    assert code == 0
    assert "worker 1 was ended by SIGKILL; the others go on; start 1 of 2 in 0.1 s" in err
    assert "ending the others" not in err
    addresses = re.findall(r"\[worker 1\] (127.*)", out)
    assert len(addresses) == 2
    assert addresses[0] == addresses[1]


def test_with_parameter_servers_a_worker_that_keeps_dying_ends_it(launch):
    code, _, err = launch(_SERVES + "sys.exit(3) if me == 'worker 0' else serve()", *_WITH_SERVERS, "--max_restarts=1")
    assert code == 1
    assert err.count("worker 0 ended with exit code 3; the others go on; start 1 of 1") == 2  # in each of two attempts
    assert err.count("worker 0 ended with exit code 3; ending the others") == 2
    assert "restart 1 of 1" in err


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["chief", "ps 0"])
def test_with_parameter_servers_all_start_again_without_chief_or_server(launch, lost):
    program = f"""
if attempt == 0 and me == {lost!r}:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
serve() if kind != "chief" or attempt == 0 else time.sleep(1)
"""
    code, _, err = launch(_SERVES + program, *_WITH_SERVERS)
    assert code == 0
    assert f"{lost} was ended by SIGKILL; ending the others" in err
    assert err.count("restart 1 of 2") == 1


@pytest.mark.slow
def test_with_parameter_servers_the_chief_saves_before_the_others_end(start):
    program = """
def leave(*_):
    if kind == "chief":
        time.sleep(0.5)
        print("saved", flush=True)
        sys.exit(75)
    print("left", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
"""
    launcher = start(_SERVES + program + _READY, *_WITH_SERVERS)
    _wait_for_ready(launcher, 4)
    launcher.terminate()
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 75
    lines = out.splitlines()
    assert lines[0] == "[chief] saved"
    assert sorted(lines[1:]) == ["[ps 0] left", "[worker 0] left", "[worker 1] left"]
