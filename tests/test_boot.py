"""Boots of real subhosts: what the inside of overlay_boot promises beyond the black-box spec."""

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from overlay_boot.tree import REAPER

from .conftest import BIN, Subhost, run, tree


def left_of(subhost: Subhost) -> list[str]:
    """What is there of a subhost on the main host: mounts, names, records, links."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = [line for line in mounts if str(subhost.folder) in line or subhost.name in line]
    for folder in ("/run/netns", "/run/overlay-boot", "/sys/class/net"):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found += [f"{folder}/{name}" for name in names if name.startswith(subhost.name)]
    return found


def wait_until(condition, seconds: float = 10) -> None:
    """Wait until condition() is true; fail the test after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def test_boot_go_list_stop(subhost: Subhost) -> None:
    done = subhost.boot()
    assert done.stdout == f"{subhost.name}: running; its log is {subhost.log}\n"
    assert subhost.inside("echo $$; cat /proc/1/comm; hostname; cat /proc/*/comm").split()[
        1:4
    ] == [
        ".reaper",
        subhost.name,
        ".reaper",
    ]
    assert "dummy_service" in subhost.inside("cat /proc/*/comm")
    listed = run("overlay-list").stdout.splitlines()
    assert listed[0].split() == ["NAME", "PID", "SINCE", "ROOT", "CABLES", "CONFIGURATION"]
    assert [line.split()[1] for line in listed[1:] if line.split()[0] == subhost.name] == [
        str(subhost.pid())
    ]
    assert run("overlay-go", subhost.name, "sh", "-c", "exit 42").returncode == 42
    assert run("overlay-go", subhost.name, "nosuch").returncode == 127
    assert run("overlay-go", subhost.name, "sh", "-c", "kill -9 $$").returncode == 137
    pid = subhost.pid()
    assert subhost.stop().returncode == 0
    assert not left_of(subhost)
    assert not os.path.exists(f"/proc/{pid}")
    stopped = subhost.stop()
    assert (stopped.returncode, stopped.stderr) == (
        3,
        f"overlay-stop: {subhost.name} is not running\n",
    )


def test_nothing_of_the_caller_reaches_pid_1(subhost: Subhost, tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    subhost.write()
    environment = {**os.environ, "SECRET": "x"}
    done = run(
        "overlay-boot", "--wait", subhost.conf, pass_fds=[secret], env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    proc = Path(f"/proc/{subhost.pid()}")
    assert {os.readlink(fd) for fd in (proc / "fd").iterdir()} == {"/dev/null", str(subhost.log)}
    assert os.readlink(proc / "cwd") == "/"
    assert b"SECRET" not in (proc / "environ").read_bytes()
    assert (proc / "stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
    status = dict(
        line.split(":\t", 1)
        for line in (proc / "status").read_text().splitlines()
        if ":\t" in line
    )
    assert int(status["SigBlk"], 16) == 0
    # The C library keeps signals 32 and 33 for itself, whatever the caller has made of them.
    assert int(status["SigIgn"], 16) & ~(0b11 << 31) == 0
    mounts = (proc / "mounts").read_text()
    assert str(tmp_path) not in "\n".join(line.split()[1] for line in mounts.splitlines())
    os.close(secret)


def test_after_the_boot_no_python_stays_and_the_rest_is_tiny(subhost: Subhost) -> None:
    subhost.boot()
    pid = subhost.pid()
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    wait_until(lambda: Path(f"/proc/{keeper}/comm").read_text() == "overlay-keeper\n")
    for process in (pid, keeper):
        kib = int(Path(f"/proc/{process}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
        assert kib < 100


@pytest.mark.parametrize("how", ["dummy_service", "kill"])
def test_a_subhost_that_ends_by_itself_is_cleared(subhost: Subhost, how: str) -> None:
    subhost.boot("CABLES= =")
    if how == "kill":
        os.kill(subhost.pid(), signal.SIGKILL)
    else:
        run("overlay-go", subhost.name, stdin="echo > /run/dummy_service")
    wait_until(lambda: not left_of(subhost))


FAILURES = {
    "PREMOUNT": "PREMOUNT=/bin/false\nCABLES= =",
    "POSTMOUNT": "POSTMOUNT=/bin/false\nCABLES= =",
    "INIT": "INIT=/bin/false\nCABLES= =",
    "no shell": "LOWER=empty\nCABLES= =",
    "a VLAN without a module": "CABLES= = =.5",
}


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failed_boot_leaves_nothing(subhost: Subhost, fault: str) -> None:
    (subhost.folder / "empty").mkdir()
    if fault == "a VLAN without a module" and os.path.isdir("/proc/net/vlan"):
        pytest.skip("this kernel has VLANs, so this boot does not fail")
    files = tree(subhost.folder / "root")
    started = run("overlay-boot", subhost.write(FAILURES[fault] + "\nSHARE=/srv:/new/place"))
    assert started.returncode == 1 and started.stderr.count("\n") == 1, started.stderr
    assert "Traceback" not in started.stderr + subhost.log.read_text()
    assert tree(subhost.folder / "root") == files and tree(subhost.folder / "work") == []
    wait_until(lambda: not left_of(subhost))


def test_an_interrupted_boot_leaves_nothing(subhost: Subhost) -> None:
    hook = subhost.folder / "slow"
    hook.write_text("#!/bin/sh\n: > started\nexec sleep 60\n")
    hook.chmod(0o755)
    subhost.write("POSTMOUNT=slow\nCABLES= =")
    boot = subprocess.Popen(  # a shell's background job would have been told to ignore Ctrl-C
        ["env", "--default-signal=INT", BIN / "overlay-boot", subhost.conf],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((subhost.folder / "started").exists)
    boot.send_signal(signal.SIGINT)
    _, said = boot.communicate(timeout=20)
    assert (boot.returncode, said) == (130, "overlay-boot: interrupted\n")
    assert tree(subhost.folder / "root") == []
    wait_until(lambda: not left_of(subhost))


def test_a_killed_boot_leaves_nothing(subhost: Subhost) -> None:
    hook = subhost.folder / "slow"
    hook.write_text("#!/bin/sh\n: > started\nwhile ! [ -e end ]; do sleep 0.01; done\n")
    hook.chmod(0o755)
    subhost.write("POSTMOUNT=slow\nCABLES= =")
    boot = subprocess.Popen([BIN / "overlay-boot", subhost.conf])
    wait_until((subhost.folder / "started").exists)
    boot.kill()
    boot.wait()
    (subhost.folder / "end").touch()
    wait_until(lambda: not left_of(subhost))


def test_of_several_boots_at_once_one_wins(subhost: Subhost) -> None:
    subhost.write()
    command = [BIN / "overlay-boot", subhost.conf]
    boots = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    said = [boot.communicate(timeout=60)[1] for boot in boots]
    assert sorted(boot.returncode for boot in boots) == [0, 1, 1, 1, 1, 1]
    assert sum("already: stop it first" in text for text in said) == 5
    assert subhost.stop().returncode == 0


def test_a_lost_keeper_is_survived(subhost: Subhost) -> None:
    """Its subhost still runs, is refused a second boot, and stops."""
    subhost.boot("CABLES= =")
    keeper = int(Path(f"/proc/{subhost.pid()}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    assert run("overlay-boot", subhost.conf).returncode == 1
    assert subhost.inside("hostname") == subhost.name + "\n"
    assert subhost.stop().returncode == 0
    assert not left_of(subhost)


@pytest.mark.parametrize("command", ["overlay-stop", "overlay-boot"])
def test_what_a_crash_left_is_cleared(subhost: Subhost, command: str) -> None:
    subhost.boot("CABLES= =")
    pid = subhost.pid()
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert os.path.lexists(f"/run/netns/{subhost.name}")
    if command == "overlay-boot":
        assert run(command, subhost.conf).returncode == 0
        assert subhost.stop().returncode == 0
    else:
        stopped = subhost.stop()
        assert stopped.returncode == 3 and "a crash left has been cleared" in stopped.stderr
    assert not left_of(subhost)


def test_stop_kills_what_ignores_sigterm_after_the_grace(subhost: Subhost) -> None:
    script = subhost.folder / "init"
    script.write_text(
        "#!/bin/sh\necho \"(trap '' TERM; while :; do sleep 0.05; done) &\"\necho exec /.reaper\n"
    )
    script.chmod(0o755)
    subhost.boot("INIT=init")
    started = time.monotonic()
    assert subhost.stop("--timeout", "0.5").returncode == 0
    assert 0.5 <= time.monotonic() - started < 5


def test_services_start_in_order_and_stop_in_reverse(subhost: Subhost) -> None:
    for name in ("one", "two"):
        script = subhost.folder / "root" / name
        script.write_text(
            f"#!/bin/sh\necho {name} $1 >> /services\n[ {name} = one ] && sleep 99 &\n"
        )
        script.chmod(0o755)
    subhost.boot("START=/one /two /missing")
    assert "dummy_service" not in subhost.inside("cat /proc/*/comm")
    assert subhost.stop("--timeout", "5").returncode == 0
    services = (subhost.folder / "root/services").read_text().splitlines()
    assert services == ["one start", "two start", "two stop", "one stop"]
    assert "start of /missing failed: exit status 127" in subhost.log.read_text()


def test_zombies_and_orphans_are_reaped(subhost: Subhost) -> None:
    subhost.boot()
    subhost.inside("(sleep 0.01 &) ; (sleep 0.02 &)")

    def only_two() -> bool:
        return subhost.inside("ls -d /proc/[0-9]*").count("/proc/") <= 4  # with the shell and ls

    wait_until(only_two)


def test_foreground_stays_and_a_signal_stops_it(subhost: Subhost) -> None:
    command = [BIN / "overlay-boot", "--foreground", subhost.write()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as boot:
        assert boot.stdout and "running" in boot.stdout.readline()
        assert boot.poll() is None
        boot.terminate()
        assert boot.wait(timeout=20) == 0
    assert not left_of(subhost)


def test_check_touches_nothing(subhost: Subhost) -> None:
    files = tree(subhost.folder)
    subhost.write("CABLES= = br9=\nSHARE=/etc\nLIVE=!echo ran > ran; echo live")
    done = run("overlay-boot", "--check", subhost.conf)
    assert done.returncode == 0, done.stderr
    assert f"UPPER={subhost.folder}/root   (default)" in done.stdout
    assert "LIVE=!echo ran > ran; echo live\n" in done.stdout
    assert "make cable" in done.stdout and "share /etc as /etc" in done.stdout
    assert not left_of(subhost) and tree(subhost.folder) == sorted([*files, subhost.conf.name])


def test_a_shell_at_a_terminal_has_one_of_the_subhosts_own(subhost: Subhost) -> None:
    subhost.boot()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(BIN / "overlay-go", ["overlay-go", subhost.name])
    os.write(terminal, b"tty; sleep 60 & exit $((40 + 2))\n")
    seen = b""
    while select.select([terminal], [], [], 20)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    else:
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42, seen
    assert b"/dev/pts/0" in seen
    os.close(terminal)


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
