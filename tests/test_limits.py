"""Faults that want of room, processes or descriptors makes, on real kernels' limits."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay_boot import REAPER

from .conftest import BIN, Subhost, needs_root, run, tree


@pytest.fixture
def pids() -> Iterator[Path]:
    """A cgroup that counts processes."""
    for mount in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        folder = Path(mount) / f"test{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "pids.max").exists():
            break
        folder.rmdir()
    else:
        pytest.skip("no cgroup here that can be limited to a number of processes")
    yield folder
    deadline = time.monotonic() + 10
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def within(pids: Path, limit: int, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command as the last process that the cgroup takes, or so many before that."""
    (pids / "pids.max").write_text("max")
    script = f"echo $$ > {pids}/cgroup.procs && read n < {pids}/pids.current && "
    script += f"echo $((n + {limit})) > {pids}/pids.max && exec {command}"
    return run("sh", "-c", script)


def test_a_full_pids_limit_does_not_keep_it_up(subhost: Subhost, pids: Path) -> None:
    """overlay-stop itself cannot start any process: the subhost is killed, and that is told."""
    script = subhost.folder / "root/one"
    script.write_text("#!/bin/sh\n[ $1 = stop ] || setsid sleep 999 < /dev/null &\n")
    script.chmod(0o755)
    subhost.boot("START=/one\nCABLES= =")
    pid = subhost.pid()
    done = within(pids, 0, f"{BIN}/overlay-stop --timeout 1 {subhost.name}")
    assert done.returncode == 1 and "/one could not be told to stop" in done.stderr, done
    assert "Traceback" not in done.stderr
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.lexists(f"/run/netns/{subhost.name}")


def test_a_boot_that_may_start_no_process_is_one_line(subhost: Subhost, pids: Path) -> None:
    subhost.write("CABLES= =")
    for limit in (0, 1, 2):
        done = within(pids, limit, f"{BIN}/overlay-boot {subhost.conf}")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (limit, done)
        assert "Resource temporarily unavailable" in done.stderr, (limit, done)
        assert tree(subhost.folder / "root") == [] and tree(subhost.folder / "work") == []
        assert not os.path.lexists(f"/run/overlay-boot/{subhost.name}")
        assert not os.path.lexists(f"/run/netns/{subhost.name}")


@needs_root
def test_a_reaper_that_cannot_start_dummy_service_says_so(pids: Path) -> None:
    done = within(pids, 0, f"{REAPER} --or-dummy")
    assert done.returncode == 1 and "cannot start dummy_service" in done.stderr, done


def test_want_of_room_in_upper_leaves_no_empty_file(subhost: Subhost) -> None:
    """The file system of UPPER and WORK has room for names, but not for what is in a file."""
    room = subhost.folder / "room"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", room], check=True)
    try:
        (room / "root").mkdir()
        (room / "work").mkdir()
        rest = os.open(room / "rest", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(rest, bytes(4096)):
                pass
        os.close(rest)
        done = run("overlay-boot", subhost.write("UPPER=room/root\nWORK=room/work"))
        assert done.returncode == 1 and "No space left on device" in done.stderr, done
        assert tree(room / "root") == [] and tree(room / "work") == []
    finally:
        subprocess.run(["umount", "-l", room], check=True)


def test_a_few_descriptors_are_enough_or_told(subhost: Subhost) -> None:
    for limit in (8, 12, 16, 20, 24, 32):
        done = run("sh", "-c", f"ulimit -n {limit}; exec {BIN}/overlay-boot {subhost.write()}")
        if done.returncode == 0:
            assert subhost.stop().returncode == 0
            continue
        assert "Too many open files" in done.stderr, (limit, done)
        assert not os.path.lexists(f"/run/overlay-boot/{subhost.name}"), limit
        assert not os.path.lexists(f"/run/netns/{subhost.name}"), limit


def test_seventeen_hundred_shares(subhost: Subhost) -> None:
    """The record is read whatever is in the configuration."""
    (subhost.folder / "shared").write_text("one\n")
    shares = "".join(f"SHARE={subhost.folder}/shared:/shares/{number}\n" for number in range(1700))
    subhost.boot(shares)
    assert subhost.inside("cat /shares/0 /shares/1699; ls /shares | wc -l") == "one\none\n1700\n"
    assert f"{subhost.name} " in run("overlay-list").stdout
    assert subhost.stop().returncode == 0
