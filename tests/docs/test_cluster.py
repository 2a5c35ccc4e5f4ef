"""The files for clusters: they parse, and what their systems set gives each worker its place."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import yaml

from tftoolkit import cli
from tftoolkit.trainers.distribution import cluster

FOLDER = Path(__file__).parents[2] / "docs/cluster"


def _task(options, variables, number):
    """The cluster and the place of worker ``number`` of the machine that sets ``variables``."""
    values = cli.parser_of("launch").parse(options)
    index = cluster.host_index(values.hosts, variables, values.host_index) * values.workers + number
    addresses = cluster.addresses(values.hosts, values.workers, values.port)
    config = json.loads(cluster.environment(addresses, index)["TF_CONFIG"])
    return config["cluster"]["worker"], config["task"]["index"]


def test_kubernetes():
    service, policy, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    program, name, *options = container["command"]
    assert (program, name) == ("tftoolkit", "launch")
    separator, *command = container["args"]
    assert separator == "--"
    assert command[:2] == ["train", "digits"]
    label = {"job-name": job["metadata"]["name"]}  # which the Job gives its pods
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == label
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    for pod_index in range(spec["completions"]):
        for number in (0, 1):
            workers, index = _task(options, {"JOB_COMPLETION_INDEX": str(pod_index)}, number)
            assert len(workers) == 2 * spec["completions"]
            assert workers[index] == f"{job['metadata']['name']}-{pod_index}.{pod['subdomain']}:{20000 + index}"


def test_slurm():
    script = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text().replace("\\\n", "")
    (line,) = re.findall(r"tftoolkit launch (.*?) -- +train digits", text)
    environment = {"SLURM_JOB_ID": "123456", "hosts": "node7,node9"}
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], env=environment, capture_output=True, text=True)
    options = shlex.split(done.stdout)
    for node in (0, 1):
        workers, index = _task(options, {"SLURM_NODEID": str(node)}, 1)
        assert workers[index] == f"{('node7', 'node9')[node]}:{23456 + index}"
        assert index == 2 * node + 1
