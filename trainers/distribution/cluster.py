"""Which processes a gang has, and the environment that tells each of them."""

import contextlib
import dataclasses
import json
import os
import random
import re
import socket
from collections.abc import Iterable, Mapping, Sequence

LOOPBACK = "127.0.0.1"
HOST_INDEX_VARIABLES = ("JOB_COMPLETION_INDEX", "SLURM_NODEID")
"""Where Kubernetes (indexed Job) and Slurm say which host this is, from 0."""

_FREE_PORTS = (10000, 32768)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of a gang."""

    name: str
    """Such as "worker 0", "chief", "ps 1"."""
    label: str
    """What stands before its lines."""
    environment: Mapping[str, str]
    leads: bool = True
    """The gang has finished when all who lead have; they give heartbeats."""
    replaceable: bool = False
    """If it ends early the others go on, and it is started again on its own."""


def check_hosts(hosts: Sequence[str]) -> None:
    """Raises ValueError where a name can't be a host's, or occurs twice."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"hosts must be host names or IPv4 addresses without a port, but one is {host!r}")
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"hosts must differ, but are {','.join(hosts)}; workers says how many run on each")


def host_index(hosts: Sequence[str], environment: Mapping[str, str], given: int | None = None) -> int:
    """Which of ``hosts`` this machine is: ``given``, or as the cluster's environment says.

    Raises:
        ValueError: nothing says it, or it is out of range.
    """
    text, where = (str(given), "host_index") if given is not None else ("", "host_index")
    if given is None:
        where = next((name for name in HOST_INDEX_VARIABLES if name in environment), where)
        text = environment.get(where, "0" if len(hosts) < 2 else "")
    if not text:
        raise ValueError(
            f"several hosts need host_index, or one of {', '.join(HOST_INDEX_VARIABLES)} in the environment"
        )
    if not text.isdigit() or int(text) >= max(1, len(hosts)):
        raise ValueError(
            f"{where} must be 0 to {max(1, len(hosts)) - 1}, as there are {len(hosts)} hosts, but is {text}"
        )
    return int(text)


def addresses(hosts: Sequence[str], workers: int, port: int) -> list[str]:
    """Of all workers, ``workers`` on each host; ports count on from ``port``.

    Without hosts: on this machine's loopback interface, with ports that are free now, below those that the system gives
    to outgoing connections, which could take one before its worker does.
    """
    if hosts:
        return [
            f"{host}:{port + first * workers + number}" for first, host in enumerate(hosts) for number in range(workers)
        ]
    with contextlib.ExitStack() as open_sockets:  # all at once, so that they differ
        ports: list[int] = []
        while len(ports) < workers:
            each = open_sockets.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind((LOOPBACK, random.randrange(*_FREE_PORTS)))
                ports.append(each.getsockname()[1])
        return [f"{LOOPBACK}:{each}" for each in ports]


def check_port_is_free(address: str) -> None:
    """Raises OSError if somebody listens there already; TensorFlow's servers would share the port with them."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections don't count
        try:
            probe.bind(("", port))
        except OSError as error:
            raise OSError(f"port {port} of this machine is in use ({error.strerror}): choose another --port") from error


def synchronous(addresses: Sequence[str], indices: Iterable[int]) -> list[Task]:
    """Workers ``indices`` of those at ``addresses``."""
    return [Task(f"worker {index}", str(index), environment(addresses, index)) for index in indices]


def asynchronous(addresses: Sequence[str], workers: int) -> list[Task]:
    """A chief, ``workers`` workers, and the rest of ``addresses`` parameter servers."""
    kinds = {"chief": addresses[:1], "worker": addresses[1 : workers + 1], "ps": addresses[workers + 1 :]}
    return [
        Task(
            *(name, name),
            _variables({kind: list(places) for kind, places in kinds.items()}, kind, index),
            leads=kind == "chief",
            replaceable=kind == "worker",
        )
        for kind, places in kinds.items()
        for index in range(len(places))
        for name in ["chief" if kind == "chief" else f"{kind} {index}"]
    ]


def environment(workers: Sequence[str], index: int) -> dict[str, str]:
    """What worker ``index`` of those at the addresses ``workers`` needs: ``TF_CONFIG``, unless it is alone."""
    return {} if len(workers) == 1 else _variables({"worker": list(workers)}, "worker", index)


def _variables(cluster: Mapping[str, list[str]], kind: str, index: int) -> dict[str, str]:
    variables = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}
    if all(address.startswith(f"{LOOPBACK}:") for addresses in cluster.values() for address in addresses):
        # TensorFlow asks Google's cloud whether this machine is about to be preempted, and waits long where there is
        # no answer. Nobody listens here.
        variables["GCE_METADATA_IP"] = os.environ.get("GCE_METADATA_IP", f"{LOOPBACK}:9")
    return variables
