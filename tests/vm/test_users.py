"""Users and folders that are not as usual: no entry in passwd, no home, no rights, a tree to read only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import SUITE, leftovers, shared
from vm import folders, image
from vm.shape import PROGRAM

ROOT = Path(__file__).parents[2]
UID = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: run as root")


@pytest.fixture
def tree() -> Iterator[Path]:
    """The harness as unpacked from a tarball, which nobody may write to, and a folder of that user."""
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(
            ROOT / "vm", folder / "tree/vm", ignore=shutil.ignore_patterns("__pycache__")
        )
        subprocess.run(["mount", "--bind", folder / "tree", folder / "tree"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder / "tree"], check=True)
        try:
            (folder / "own").mkdir()
            (folder / "tools").mkdir()
            for tool in (PROGRAM, *image.TOOLS):  # for a machine that has not had make vm-setup
                (folder / "tools" / tool).write_text("#!/bin/sh\n")
                (folder / "tools" / tool).chmod(0o755)
            os.chown(folder / "own", UID, UID)
            yield folder
        finally:
            subprocess.run(["umount", folder / "tree"], check=True)


def as_nobody_known(
    tree: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m vm` by a user without an entry in passwd(5), whose umask is 077."""
    path = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{tree}/tools"
    given = [f"{name}={value}" for name, value in environment.items()]
    user = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
    script = 'umask 077; exec "$@"'
    command = ["env", "-i", f"PATH={path}", *given, *user, "sh", "-c", script, "sh"]
    return subprocess.run(
        [*command, "/usr/bin/python3", "-m", "vm", *words],
        cwd=tree / "tree",
        capture_output=True,
        text=True,
        check=False,
    )


@needs_root
@pytest.mark.parametrize(
    ("words", "status"), [(["list"], 1), (["up"], 1), (["prune"], 1), (["build"], 1)]
)
def test_without_a_home_one_line(tree: Path, words: list[str], status: int) -> None:
    done = as_nobody_known(tree, *words)
    assert (done.stdout, done.returncode) == ("", status)
    assert done.stderr == f"vm: VM_CACHE: user {UID} has no home folder: name a folder\n"
    done = as_nobody_known(tree, *words, HOME="/nonexistent")
    assert done.returncode == status
    assert done.stderr.startswith(
        "vm: VM_CACHE: /nonexistent/.cache/disposable-vm: Permission denied"
    )


@needs_root
def test_who_cannot_make_an_image_is_told_why(tree: Path) -> None:
    done = as_nobody_known(
        tree, "build", SUITE, VM_CACHE=f"{tree}/own/cache", MIRROR="http://mirror.invalid/debian"
    )
    assert done.returncode == 1
    assert "no entry in passwd(5), so no namespace" in done.stderr.splitlines()[-1]


@needs_root
@pytest.mark.vm
@pytest.mark.usefixtures("ready")
def test_a_user_who_is_nobody_runs_a_machine_of_an_image_that_is_there(tree: Path) -> None:
    """With umask 077, from a tree without git that cannot be written; by ssh as well."""
    source = image.build(SUITE).folder
    images = tree / "own/cache/images"
    shutil.copytree(
        source, images / source.name, ignore=shutil.ignore_patterns("booted-*", "used")
    )
    (images.parent / ".claims").touch()
    (tree / "own/new/usr/bin").mkdir(parents=True)
    (tree / "own/new/usr/bin/command").write_text("#!/bin/sh\necho by $(id -un)\n")
    (tree / "own/new/usr/bin/command").chmod(0o700)
    (tree / "own/new/usr").chmod(0o700)
    for path in (tree / "own", *(tree / "own").rglob("*")):
        os.chown(path, UID, UID)
    own = {"VM_CACHE": f"{tree}/own/cache", "VM_RUN": f"{tree}/own/run", "VM_ACCEL": "tcg"}
    began = as_nobody_known(tree, "up", SUITE, "--install", f"{tree}/own/new", **own)
    name = began.stdout.strip()
    assert name, began.stderr
    try:
        done = as_nobody_known(tree, "run", name, "runuser -u nobody command", **own)
        assert (done.stdout, done.stderr) == ("by nobody\n", "")
        assert as_nobody_known(tree, "ssh", name, "id -un", **own).stdout == "root\n"
    finally:
        as_nobody_known(tree, "destroy", "--all", **own)
    assert not leftovers(tree / "own/run")
    shutil.rmtree(shared(tree / "own/run"), ignore_errors=True)


@needs_root
@pytest.mark.vm
def test_an_image_is_made_without_privileges(own_run: Path) -> None:
    """As root of a container that may neither mount nor make namespaces, like many CI runners."""
    drop = "-sys_admin,-net_admin,-sys_ptrace,-sys_resource,-sys_module,-syslog"
    with tempfile.TemporaryDirectory(prefix="own-", dir=folders.cache()) as name:
        command = f"""
            ! unshare --mount true 2>/dev/null && ! mount -t tmpfs none /mnt 2>/dev/null || exit 9
            export VM_CACHE={name}/cache && python=$1
            $python -m vm build {SUITE} && name=$($python -m vm up {SUITE}) || exit 8
            $python -m vm run $name 'systemctl is-system-running && dpkg --audit'
            $python -m vm destroy $name"""
        words = ["setpriv", f"--bounding-set={drop}", "sh", "-c", command, "sh"]
        python = str(ROOT / ".venv/bin/python")
        done = subprocess.run(
            [*words, python], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "running\n" in done.stdout, (done.stdout, done.stderr)
        assert not list(Path(name).glob("cache/building/*/"))
