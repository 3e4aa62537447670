"""Boots of real subhosts: what cannot be seen from outside, and faults that have to be made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overlay_boot import REAPER, OverlayBootError, running
from overlay_boot.waiting import Waiter

from .conftest import BIN, Subhost, needs_root, run, tree


def left_of(subhost: Subhost) -> list[str]:
    """What is there of a subhost on the main host: mounts, names, records, links."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = [line for line in mounts if str(subhost.folder) in line or subhost.name in line]
    for folder in ("/run/netns", "/run/overlay-boot", "/sys/class/net", "/sys/fs/cgroup/unified"):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found += [f"{folder}/{name}" for name in names if subhost.name in name]
    return found


def wait_until(condition, seconds: float = 10) -> None:
    """Wait until condition() is true; fail the test after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def boot_with(fault: str, subhost: Subhost) -> subprocess.CompletedProcess[str]:
    """Boot with a few lines of Python run first, in the process that boots."""
    code = f"import os, sys\nfrom overlay_boot import boot, cli, net\n{fault}\n"
    code += f"sys.argv = ['{BIN}/overlay-boot', '{subhost.conf}']\n"
    return run(sys.executable, "-c", code + "sys.exit(cli.main('overlay-boot'))")


def test_after_the_boot_no_python_stays_and_the_rest_is_tiny(subhost: Subhost) -> None:
    done = subhost.boot()
    assert done.stdout == f"{subhost.name}: running; its log is {subhost.log}\n"
    pid = subhost.pid()
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    wait_until(lambda: Path(f"/proc/{keeper}/comm").read_text() == "overlay-keeper\n")
    for process in (pid, keeper):
        kib = int(Path(f"/proc/{process}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
        assert kib < 100


def test_a_vlan_without_a_module_is_one_line_and_leaves_nothing(subhost: Subhost) -> None:
    if os.path.isdir("/proc/net/vlan"):
        pytest.skip("this kernel has VLANs, so this boot does not fail")
    started = run("overlay-boot", subhost.write("CABLES= = =.5\nSHARE=/srv:/new/place"))
    assert started.returncode == 1 and started.stderr.count("\n") == 1, started.stderr
    assert f"cannot make VLAN {subhost.name}0.5" in started.stderr
    assert tree(subhost.folder / "root") == [] and tree(subhost.folder / "work") == []
    wait_until(lambda: not left_of(subhost))


def test_a_keeper_that_cannot_start_leaves_nothing(subhost: Subhost) -> None:
    """A fault that needs a reaper that is no program, in a mount namespace of the test's own."""
    subhost.write("CABLES= =")
    broken = subhost.folder / "broken"
    broken.write_text("no program")
    command = (
        f"mount --make-rprivate / && mount --bind {broken} {REAPER} && exec {BIN}/overlay-boot"
    )
    done = run("unshare", "-m", "sh", "-c", f"{command} {subhost.conf}")
    assert done.returncode == 1 and "cannot start the keeper" in done.stderr
    assert tree(subhost.folder / "root") == []
    wait_until(lambda: not left_of(subhost))


def test_a_builder_that_fails_before_it_is_in_its_cgroup_tells_why(subhost: Subhost) -> None:
    """The kernel may take longer for the move than the builder lives."""
    subhost.write("PREMOUNT= /bin/false")
    fault = f"""
import time
boot.cgroup.wanted = lambda name: "{subhost.folder}/group"
boot.cgroup.join = lambda *words: time.sleep(0.5)"""
    done = boot_with(fault, subhost)
    assert done.returncode == 1 and "PREMOUNT" in done.stderr and "keeper" not in done.stderr, done
    assert not (subhost.folder / "group").exists()
    wait_until(lambda: not left_of(subhost))


KILLED = {
    "pid 1 before its exec": """
set_pid = boot.Record.set_pid
def killed(record, pid):
    set_pid(record, pid)
    os.kill(pid, 9)
boot.Record.set_pid = killed""",
    "the builder": """
os_symlink = os.symlink
def killed(*words):
    os_symlink(*words)
    os.kill(os.getpid(), 9)
os.symlink = killed""",
    "the builder once pid 1 may go on": """
from overlay_boot import builder
write = os.write
def killed(fd, data):
    write(fd, data)
    if data == builder.GO and os.path.basename(os.readlink("/proc/self/ns/net")) != HOST:
        os.kill(os.getpid(), 9)
HOST = os.path.basename(os.readlink("/proc/self/ns/net"))
os.write = killed""",
    "the keeper": """
execve = os.execve
def killed(program, *more):
    if program == boot.REAPER:
        os.kill(os.getpid(), 9)
    execve(program, *more)
os.execve = killed""",
}


@pytest.mark.parametrize("who", KILLED)
def test_whoever_is_killed_it_is_a_failure_that_leaves_nothing(subhost: Subhost, who: str) -> None:
    subhost.write("CABLES= =")
    done = boot_with(KILLED[who], subhost)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "running" not in done.stdout
    assert tree(subhost.folder / "root") == [] and tree(subhost.folder / "work") == []
    wait_until(lambda: not left_of(subhost))


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_a_lost_race_leaves_the_winners_interface_alone(subhost: Subhost, kind: str) -> None:
    """Somebody else makes an interface of a cable's name after all was checked."""
    name = f"{subhost.name}0"
    fault = f"""
check = net.check_host
def slow(subhost):
    check(subhost)
    os.system("ip link add {name} type {kind}")
net.check_host = slow"""
    subhost.write("CABLES= =")
    try:
        done = boot_with(fault, subhost)
        assert done.returncode == 1 and "File exists" in done.stderr, done
        assert os.path.isdir(f"/sys/class/net/{name}")
        subprocess.run(["ip", "link", "delete", name], check=True)
        wait_until(lambda: not left_of(subhost))
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@needs_root
def test_a_record_without_room_is_a_failure(subhost: Subhost) -> None:
    """/run is full, in a mount namespace of the test's own."""
    subhost.write()
    run_folder = subhost.folder / "run"
    run_folder.mkdir()
    script = (
        f"mount --make-rprivate / && mount -t tmpfs -o size=8k none {run_folder} && "
        f"mkdir {run_folder}/netns {run_folder}/overlay-boot && cat /dev/zero > {run_folder}/rest; "
        f"mount --bind {run_folder}/overlay-boot /run/overlay-boot; {BIN}/overlay-boot {subhost.conf}"
    )
    os.makedirs("/run/overlay-boot", 0o700, exist_ok=True)
    done = run("unshare", "-m", "sh", "-c", script)
    assert done.returncode == 1 and "/run/overlay-boot" in done.stderr, done
    assert "No space left on device" in done.stderr
    wait_until(lambda: not left_of(subhost))


def test_ifup_and_ifdown_that_hang_end_at_a_limit(subhost: Subhost) -> None:
    """With what they have started, and a word in the log; the limits are shortened here."""
    hangs = subhost.folder / "hangs"
    hangs.write_text("#!/bin/sh\nsleep 7777 | sleep 7777\n")
    hangs.chmod(0o755)
    subhost.write("CABLES= =")
    fault = "net.IFUP = 1\nboot.IFDOWN = 1"
    code = f"from overlay_boot import boot, cli, net\n{fault}\nimport sys\n"
    code += f"sys.argv = ['{BIN}/overlay-boot', '{subhost.conf}']\ncli.main('overlay-boot')\n"
    (subhost.folder / "boot.py").write_text(code)
    script = (
        f"mount --make-rprivate / && for end in up down; do "
        f"mount --bind {hangs} $(command -v if$end); done && "
        f"{sys.executable} {subhost.folder}/boot.py && {BIN}/overlay-stop {subhost.name}"
    )
    started = time.monotonic()
    done = run("unshare", "-m", "sh", "-c", script)
    assert done.returncode == 0 and time.monotonic() - started < 20, done
    log = subhost.log.read_text()
    assert "ifup failed, so the interface is only set up: it did not end within 1 s" in log
    assert "ifdown did not end in time and was killed" in log
    assert subprocess.run(["pgrep", "-f", "sleep 7777"], check=False).returncode == 1
    wait_until(lambda: not left_of(subhost))


def test_what_ifup_and_ifdown_leave_running_holds_nothing_back(subhost: Subhost) -> None:
    """Such as a hook's DHCP client: the name is free at once, and they live on."""
    leaves = subhost.folder / "leaves"
    leaves.write_text(f"#!/bin/sh\nsetsid sleep 7776 & echo $! >> {subhost.folder}/pids\n")
    leaves.chmod(0o755)
    subhost.write("CABLES= =")
    again = f"{BIN}/overlay-boot {subhost.conf} && {BIN}/overlay-stop {subhost.name}"
    script = f"mount --make-rprivate / && mount --bind {leaves} $(command -v ifdown) && {again} && {again}"
    started = time.monotonic()
    done = run("unshare", "-m", "sh", "-c", script)
    assert done.returncode == 0 and time.monotonic() - started < 8, done
    left = (subhost.folder / "pids").read_text().split()
    assert len(left) == 4  # ifup and ifdown are one program
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not left_of(subhost))


def test_ifup_is_found_whatever_the_callers_path(subhost: Subhost) -> None:
    """As ifdown is: an administrator's PATH may lack /usr/sbin."""
    subhost.write("CABLES= =")
    done = run(BIN / "overlay-boot", subhost.conf, env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done
    assert "not installed" not in subhost.log.read_text()


KEYRING = "import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 0))"  # keyctl(2) of x86-64


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of keyctl(2) is x86-64's")
def test_the_session_keyring_is_nobody_elses(subhost: Subhost) -> None:
    """Neither the caller's, nor one that two of overlay-go's commands share."""
    subhost.boot("LOWER=/")
    ours = run("/usr/bin/python3", "-c", KEYRING).stdout
    theirs = [run("overlay-go", subhost.name, "python3", "-c", KEYRING).stdout for _ in range(2)]
    assert len({ours, *theirs}) == 3 and all(int(serial) > 0 for serial in theirs)


@pytest.mark.parametrize("holders", [1, 6])
def test_a_boot_waits_for_others_as_long_as_they_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holders: int
) -> None:
    """Six have the lock one after the other, and for longer together than one of them may have it."""
    for name, value in {"FOLDER": str(tmp_path), "HELD": 1.5, "LOOK": 0.1}.items():
        monkeypatch.setattr(running, name, value)
    each = f"flock -o {tmp_path} -c 'echo; exec sleep {0.5 if holders > 1 else 5}' & "
    with subprocess.Popen(["sh", "-c", each * holders], stdout=subprocess.PIPE) as others:
        assert others.stdout
        others.stdout.read(1)  # one has it
        if holders > 1:
            with running.FolderLock(Waiter()):
                pass
            return
        lock = running.FolderLock(Waiter())
        with pytest.raises(OverlayBootError, match="is stuck"), lock:
            pass
