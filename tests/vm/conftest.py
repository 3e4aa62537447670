"""What the harness' tests share: its folders in a temporary place, and a `machine` that is none."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.channel import Channel
from vm.machine import Machine, Result
from vm.recipe import AGENT


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache and run folder for this test alone."""
    monkeypatch.setenv("VM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VM_RUN", str(tmp_path / "run"))
    return tmp_path


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's agent, built for this machine."""
    program = tmp_path_factory.mktemp("agent") / "vm-agent"
    flags = ["-static", "-Os", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), str(AGENT)], check=True)
    return program


class LocalMachine(Machine):
    """This machine, through the real agent and channel: quick, and as fresh as the test's files."""

    name = "local"

    def __init__(self, agent: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.process = subprocess.Popen([agent, str(fd)], pass_fds=[fd])
        self.channel = Channel(ours)
        self.channel.hello(timeout=5)
        self.restored: list[str] = []

    def run(self, command: str, *, timeout: float = 60, input: bytes = b"") -> Result:
        return self.channel.run(command, timeout=timeout, input=input)

    def snapshot(self, name: str) -> None:
        pass

    def restore(self, name: str) -> None:
        self.restored.append(name)

    def reboot(self, *, timeout: float = 120) -> None:
        raise NotImplementedError

    def ssh_command(self) -> list[str]:
        return ["sh", "-c"]

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def local(agent: Path) -> Iterator[LocalMachine]:
    """A machine that is this one."""
    with LocalMachine(agent) as machine:
        yield machine
