"""What the harness' tests share: its folders in a temporary place, and a `machine` that is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import vm
from vm import booted, cli, folders, image, processes
from vm.channel import Channel
from vm.machine import Input, Machine, Result, Sink
from vm.recipe import AGENT

SUITE = os.environ.get("SUITE", "trixie")


@pytest.fixture(autouse=True, scope="session")
def ends_in_order() -> None:
    """SIGTERM and SIGHUP end the tests as Ctrl-C does, and so their machines."""
    processes.end_in_order()


@pytest.fixture
def own_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Cache and run folder for this test alone, with short names as sockets need them."""
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        monkeypatch.setenv("VM_CACHE", f"{name}/cache")
        monkeypatch.setenv("VM_RUN", f"{name}/run")
        yield Path(name)
    left = list(shared(Path(name) / "run").glob("*"))
    shutil.rmtree(shared(Path(name) / "run"), ignore_errors=True)
    assert not left


def shared(run: Path) -> Path:
    """Where the memory of a run folder's machines lies."""
    return Path("/dev/shm") / quote(str(run), safe="")


def leftovers(run: Path) -> set[str]:
    """Processes and folders of the machines of a run folder that there are now."""
    processes = subprocess.run(["pgrep", "-f", f"{run}/"], stdout=subprocess.PIPE, check=False)
    kept = [*run.glob("*/"), *shared(run).glob("*/")]
    return {*processes.stdout.decode().split(), *map(str, kept)}


@pytest.fixture(scope="module")
def own_run() -> Iterator[Path]:
    """A run folder for the module, in which nothing is left at its end."""
    with pytest.MonkeyPatch.context() as patch:
        with tempfile.TemporaryDirectory(prefix="vm-") as name:
            patch.setenv("VM_RUN", name)
            run = folders.run()
            yield run
            left = leftovers(run)
            if left:  # what a failed test left
                cli.main(["destroy", "--all"])
                folders.sweep()
            shutil.rmtree(shared(run), ignore_errors=True)
        assert not left


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

    def _run(
        self, command: str, timeout: float, input: Input, out: Sink | None, err: Sink | None
    ) -> Result:
        return self.channel.run(command, timeout=timeout, input=input, out=out, err=err)

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


@pytest.fixture
def ready(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image and its booted state are there; which accelerator it is need not be found."""
    found = booted.accelerator(image.build(SUITE, say=cli.say), say=cli.say)
    monkeypatch.setenv("VM_ACCEL", found)
    vm.prepare(f"vm://{SUITE}", say=cli.say)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with the image in it, but no booted state; its files are the real one's."""
    source = image.build(SUITE).folder
    with tempfile.TemporaryDirectory(prefix="own-", dir=folders.cache()) as name:
        target = Path(name) / "cache/images" / source.name
        target.parent.mkdir(parents=True, mode=0o700)
        skip = shutil.ignore_patterns("booted-*", "used", "booting")
        shutil.copytree(source, target, copy_function=os.link, ignore=skip)
        (Path(name) / "cache/.claims").touch()
        monkeypatch.setenv("VM_CACHE", f"{name}/cache")
        yield Path(name) / "cache"
