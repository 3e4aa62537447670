"""What can come in between, for real: interruptions, a full disk, others, no root, broken states."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import leftovers, shared
from vm import booted, cli, folders, image, recipe, start
from vm.errors import HostError

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("ready")]
SUITE = os.environ.get("SUITE", "trixie")
ROOT = Path(__file__).parents[2]
#: A child of a test that is run in the background would ignore Ctrl-C.
SIGNALLED = ["env", "--default-signal=INT"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts or makes users: run as root")


def started(*words: str, **more: object) -> subprocess.Popen[str]:
    """A command of this project in a session of its own, as a terminal's foreground is one."""
    command = [*SIGNALLED, sys.executable, "-m", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **more
    )


def left_after(run: Path, within: float = 20) -> set[str]:
    """What is still there after some seconds: a killed process takes a moment to go."""
    deadline = time.monotonic() + within
    while (left := leftovers(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),
        (signal.SIGHUP, []),
        (signal.SIGINT, ["--cold", "--init", "small"]),
    ],
)
def test_up_interrupted_at_any_moment(own_run: Path, number: int, words: list[str]) -> None:
    """Ctrl-C reaches the whole group, the others one process; whoever was too late has a machine."""
    begin = time.monotonic()
    with started("vm", "up", SUITE, *words) as whole:
        name = whole.communicate(timeout=300)[0].strip()
    cli.main(["destroy", name])
    seconds = time.monotonic() - begin
    ends = []
    for step in range(8):
        with started("vm", "up", SUITE, *words) as run:
            time.sleep(0.15 + seconds * step / 8)
            os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
            out, err = run.communicate(timeout=120)
        ends.append(run.returncode)
        # Before and after Python knows what to do with a signal it ends by it.
        assert run.returncode in (0, 130, -number), err
        assert run.returncode != 130 or "vm: interrupted" in err
        if out.strip():
            assert cli.main(["destroy", out.strip()]) == 0
        assert not left_after(own_run), (step, err)
    assert 130 in ends, ends


def test_build_killed(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it started ends at once, and what it left goes with the next run's sweep."""
    with tempfile.TemporaryDirectory(prefix="own-", dir=folders.cache()) as name:
        monkeypatch.setenv("VM_CACHE", f"{name}/cache")
        for number in (signal.SIGKILL, signal.SIGTERM):
            with started("vm", "build", SUITE) as run:
                deadline = time.monotonic() + 300
                while not list(Path(name).glob("cache/building/*/tree/usr/bin/dpkg")):
                    assert time.monotonic() < deadline and run.poll() is None
                    time.sleep(0.1)
                run.send_signal(number)
                run.communicate(timeout=60)
            busy = ["pgrep", "-f", name]
            deadline = time.monotonic() + 20
            while subprocess.run(busy, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                assert time.monotonic() < deadline, "something of the build runs on"
                time.sleep(0.1)
            left = list(Path(name).glob("cache/building/*/"))
            assert len(left) == (1 if number == signal.SIGKILL else 0)
            assert folders.sweep() == [folder.name for folder in left]
            assert not list(Path(name).glob("cache/building/*/"))
        assert not list(Path(tempfile.gettempdir()).glob("mmdebstrap.*"))


def test_a_failed_build_leaves_only_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real mmdebstrap, pointed at a mirror that cannot be."""
    with tempfile.TemporaryDirectory(prefix="own-", dir=folders.cache()) as name:
        monkeypatch.setenv("VM_CACHE", f"{name}/cache")
        monkeypatch.setenv("MIRROR", "http://127.0.0.1:9/debian")
        with pytest.raises(HostError, match="cannot be reached.*log: "):
            image.build(SUITE, say=lambda line: None)
        assert not image.cached()
        assert not list(folders.building().glob("*/"))
        assert list((folders.cache() / "images").glob("*.log"))


SPEC = ["spec", "run", "--target", f"vm://{SUITE}", "-n", "2", "-k", "list or go_"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["prepare", "install", "test"])
def test_spec_interrupted(own_run: Path, tmp_path: Path, moment: str, number: int) -> None:
    """A run with two workers, interrupted as by Ctrl-C and as by kill, leaves no machine."""
    command = tmp_path / "usr/bin/overlay-boot"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\nsleep 3\nexit 1\n")
    command.chmod(0o755)
    machines = {"prepare": 1, "install": 2, "test": 4}[
        moment
    ]  # each worker's, and theirs restored
    with started(*SPEC, "--implementation", str(tmp_path)) as run:
        deadline = time.monotonic() + 120
        while len(list(own_run.glob("*/machine.json"))) < machines:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
        assert run.poll() is None, run.communicate()
        os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
        out, err = run.communicate(timeout=120)
    assert run.returncode != 0
    assert not left_after(own_run, 5), out + err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@needs_root
@pytest.mark.parametrize(
    ("variable", "words"), [("VM_CACHE", ["build", SUITE]), ("VM_RUN", ["up", SUITE])]
)
def test_a_full_disk_here_is_one_line(small_disk: Path, variable: str, words: list[str]) -> None:
    """A build in a full cache, a machine in a full run folder."""
    if variable == "VM_RUN":
        (small_disk / "fill").write_bytes(bytes((40 << 20) - 150_000))
    own = {variable: f"{small_disk}/own"}
    with tempfile.TemporaryDirectory(prefix="vm-") as short:
        if variable == "VM_RUN":  # a path that is short enough
            subprocess.run(["mount", "--bind", small_disk, short], check=True)
            own = {variable: f"{short}/own"}
        try:
            with started("vm", *words, env=os.environ | own) as run:
                _, err = run.communicate(timeout=300)
        finally:
            if variable == "VM_RUN":
                subprocess.run(["umount", "-l", short], check=True)
                shutil.rmtree(shared(Path(short) / "own"), ignore_errors=True)
    assert run.returncode == 1
    assert not list(small_disk.glob("own/*/")) or variable == "VM_CACHE"
    assert "no space left" in err.splitlines()[-1] and err.splitlines()[-1].startswith("vm: ")
    assert "Traceback" not in err


def test_a_broken_state_is_made_anew(own_run: Path, own_cache: Path) -> None:
    source = image.build(SUITE)
    state = booted.kept(source, booted.shape(source, os.environ["VM_ACCEL"], "systemd"))
    said: list[str] = []
    start.up(SUITE, say=said.append).close()
    assert state.exists() and sum("booting" in line for line in said) == 1
    (state / "state").write_bytes(b"nonsense" * 999)
    said.clear()
    with start.up(SUITE, say=said.append) as machine:
        machine.succeed("true")
        assert "clone" in machine.can
    assert any("made anew" in line for line in said), said
    assert sum("booting" in line for line in said) == 1
    assert not leftovers(own_run)


def test_two_at_once_boot_one_state(own_run: Path, own_cache: Path) -> None:
    """The second waits for the first's, and says so."""
    with started("vm", "up", SUITE) as one, started("vm", "up", SUITE) as two:
        said = [run.communicate(timeout=300) for run in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    errors = "".join(err for _, err in said)
    assert errors.count("booting (") == 1
    assert errors.count("waiting for another run that boots it") == 1
    for out, _ in said:
        assert cli.main(["destroy", out.strip()]) == 0
    assert not leftovers(own_run)


@needs_root
def test_all_of_it_without_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A user with subordinate ids builds an image, boots it, and leaves nothing."""
    user = f"vmtest{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--home-dir", f"/home/{user}", user], check=True)
    home = Path(pwd.getpwnam(user).pw_dir)
    try:
        home.chmod(0o700)
        shutil.copytree(ROOT / "vm", home / "vm")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = [f"PATH={path}", f"HOME={home}", "VM_ACCEL=tcg"]
        environment += [f"MIRROR={mirror}"] if (mirror := os.environ.get("MIRROR")) else []
        as_user = ["runuser", "-u", user, "--", "env", "-i", *environment, "/usr/bin/python3"]

        def mine(*words: str) -> str:
            done = subprocess.run(
                [*as_user, "-m", "vm", *words],
                cwd=home,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            return done.stdout.strip()

        name = mine("up", SUITE)
        try:
            assert mine("run", name, "id -un; systemctl is-system-running") == "root\nrunning"
            assert f"image    {recipe.recipe(SUITE).key}" in mine("list")
        finally:
            assert mine("destroy", "--all") == name
        assert not list((home / ".cache/disposable-vm/building").glob("*/"))
        run = Path(f"/tmp/vm-{pwd.getpwnam(user).pw_uid}")
        assert not leftovers(run)
        shutil.rmtree(run)
        shutil.rmtree(shared(run), ignore_errors=True)
    finally:
        subprocess.run(["userdel", "--remove", user], check=True, capture_output=True)


CHECKS = """
def test_fresh(vm_restored):
    vm_restored.succeed("test ! -e /mark; touch /mark")

def test_fresh_again(vm_restored):
    vm_restored.succeed("test ! -e /mark; touch /mark")
"""
INFRA = """
def test_host(host):
    assert host.package("iproute2").is_installed
    assert host.file("/etc/hostname").content_string.strip() == "debian"
    assert host.process.filter(comm="vm-init")
    assert host.run("exit %s", "7").rc == 7
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (CHECKS, ["-p", "vm.fixtures", "--vm-suite", SUITE]),
        (INFRA, ["-p", "vm.fixtures", f"--hosts=vm://{SUITE}?init=small"]),
    ],
    ids=["fixtures", "testinfra"],
)
def test_as_a_plugin(own_run: Path, tmp_path: Path, code: str, words: list[str]) -> None:
    """In a pytest of its own, as somebody else's tests would use it."""
    (tmp_path / "test_it.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and f"{code.count('def ')} passed" in done.stdout, done.stdout
    assert not leftovers(own_run)
