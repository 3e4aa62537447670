"""Fixtures of the unit and boot tests of overlay_boot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "true"]
needs_root = pytest.mark.skipif(
    subprocess.run(UNSHARE, check=False, capture_output=True).returncode != 0,
    reason="makes namespaces: run as root, with the privileges for it",
)


def run(*command: str | Path, stdin: str = "", **more) -> subprocess.CompletedProcess[str]:
    """Run one of the commands, or any other, with a time limit."""
    first, *rest = map(str, command)
    program = BIN / first
    return subprocess.run(
        [str(program) if program.exists() else first, *rest],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def tree(folder: Path) -> list[str]:
    """Every path below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Subhost:
    """A subhost of one test: a folder with a configuration, and the commands on it."""

    def __init__(self, folder: Path, name: str, lower: Path) -> None:
        self.folder = folder
        self.name = name
        self.conf = folder / f"{name}.conf"
        self.log = folder / "log"
        for part in ("root", "work", "live"):
            (folder / part).mkdir()
        self.defaults = f"BASE=.\nSTART=none\nLOWER={lower}\nLOG=log\n"

    def write(self, text: str = "") -> Path:
        """The configuration: text first, so that it wins over the test's defaults."""
        names = {line.partition("=")[0] for line in text.splitlines()}
        rest = [line for line in self.defaults.splitlines() if line.partition("=")[0] not in names]
        self.conf.write_text("\n".join([*rest, text]) + "\n")
        return self.conf

    def boot(self, text: str = "", *options: str) -> subprocess.CompletedProcess[str]:
        """Boot it, expecting success."""
        done = run("overlay-boot", "--wait", *options, self.write(text))
        assert done.returncode == 0, done.stderr + self.log.read_text()
        return done

    def inside(self, commands: str) -> str:
        """What shell commands print inside it."""
        done = run("overlay-go", self.name, stdin=commands)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Stop it."""
        return run("overlay-stop", *options, self.name)

    def pid(self) -> int:
        """Its pid 1."""
        return int(os.readlink(f"/run/netns/{self.name}").split("/")[2])


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root file system: a static shell and its tools."""
    root = tmp_path_factory.mktemp("lower")
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed: make setup"
    for folder in ("bin", "etc", "root", "srv", "tmp"):
        (root / folder).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for tool in subprocess.check_output([busybox, "--list"], text=True).split():
        (root / "bin" / tool).symlink_to("busybox") if tool != "busybox" else None
    return root


@pytest.fixture
def subhost(tmp_path: Path, lower: Path, request: pytest.FixtureRequest):
    """A subhost with a name of its own; whatever the test does, it is gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("boots real subhosts: run as root")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    name = f"t{worker[2:]}{abs(hash(request.node.nodeid)) % 10**6}"
    made = Subhost(tmp_path, name, lower)
    yield made
    run("overlay-stop", "--timeout", "0", name)
    left = [
        path
        for path in (f"/run/netns/{name}", f"/run/overlay-boot/{name}")
        if os.path.lexists(path)
    ]
    left += [link for link in os.listdir("/sys/class/net") if link.startswith(name)]
    assert not left
