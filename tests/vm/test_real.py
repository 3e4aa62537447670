"""Real machines: what the harness promises, under the worst that was thought of."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import leftovers
from vm import backend, cli, folders, recipe, start
from vm.errors import CommandTimeout, MachineError, RequestError
from vm.image import Image
from vm.pool import Pool
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
SUITE = os.environ.get("SUITE", "trixie")


@pytest.fixture(scope="module")
def base(own_run: Path) -> Iterator[QemuMachine]:
    """A machine with a snapshot `ready`."""
    machine = start.up(SUITE, say=cli.say)
    assert isinstance(machine, QemuMachine)
    with machine:
        machine.succeed("date -s 2001-01-01")
        machine.snapshot("ready")
        yield machine


@pytest.fixture
def machine(base: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh one for each test."""
    with base.clone("ready") as clone:
        yield clone


@pytest.mark.parametrize("init", ["small", "systemd"])
def test_cold_boot_and_reboot(init: str) -> None:
    with start.up(SUITE, init=init, cold=True, say=cli.say) as machine:
        first = machine.succeed("cat /proc/sys/kernel/random/boot_id").out
        assert machine.succeed("cat /proc/1/comm").out == {"small": "vm-init"}.get(init, init)
        machine.succeed("echo kept > /root/file")
        machine.reboot()
        assert machine.succeed("cat /root/file").out == "kept"
        assert machine.succeed("cat /proc/sys/kernel/random/boot_id").out != first
        machine.wait_until("ping -c 1 -W 1 10.0.2.2", timeout=60)
        machine.wait_until("ss -ltn | grep -q :22", timeout=60)
        assert subprocess.run([*machine.ssh_command(), "exit 3"], check=False).returncode == 3


def test_image_is_what_the_recipe_says(machine: QemuMachine) -> None:
    """Packages, the guest's own files, keys that we know, and nothing of how it was made."""
    wanted, made = recipe.recipe(SUITE), Image(Path(machine.shape.kernel).parent)
    query = "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "
    listed = machine.succeed(query + " ".join(wanted.packages)).out.splitlines()
    assert listed == [f"ii  {name}" for name in sorted(wanted.packages)]
    for file in (file for file in recipe.GUEST.rglob("*") if file.name != "customize"):
        if file.is_file():
            inside = f"/{file.relative_to(recipe.GUEST)}"
            assert machine.succeed(f"cat {inside}").stdout == file.read_bytes(), inside
            assert bool(machine.run(f"test -x {inside}").ok) == os.access(file, os.X_OK), inside
    assert machine.succeed("systemctl is-enabled vm-agent").out == "enabled"
    assert machine.succeed("find / -xdev -uid +60000 ! -uid 65534").out == ""
    host_keys = machine.succeed("cat /etc/ssh/ssh_host_*_key.pub").out.splitlines()
    known = (made.folder / "known_hosts").read_text().splitlines()
    assert known == [f"* {key}" for key in host_keys] and len(known) >= 2
    allowed = machine.succeed("cat /root/.ssh/authorized_keys").stdout
    assert allowed == (made.folder / "id_ed25519.pub").read_bytes()
    assert machine.succeed("stat -c '%U %a' /root /root/.ssh").out == "root 700\nroot 700"
    left = "/customize /scripts /tmp/mm* /var/cache/apt/archives/*.deb /etc/dpkg/dpkg.cfg.d/99mm*"
    assert machine.run(f"ls -d {left} 2>/dev/null").out == ""


def test_machine_is_a_whole_debian(machine: QemuMachine) -> None:
    assert machine.run("systemctl is-system-running").out == "running"
    machine.succeed("ip link add link eth0 name eth0.302 type vlan id 302; ip link show eth0.302")
    machine.succeed("ip link add br0 type bridge; ip link add v0 type veth peer v1")
    machine.succeed(
        "cd /tmp; mkdir l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o m"
    )
    machine.succeed("unshare --mount --pid --net --ipc --uts --fork --mount-proc true")


def test_network_reaches_nothing(machine: QemuMachine) -> None:
    """Not even this machine's loopback, which one with network=True does reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"timeout 9 bash -c 'exec 3<>/dev/tcp/10.0.2.2/{server.getsockname()[1]}'"
        machine.fail(connect, timeout=30)
        with start.up(SUITE, network=True, say=cli.say) as another:
            another.succeed(connect, timeout=30)


def test_large_copies(machine: QemuMachine, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 100
    machine.copy_in(data, "/root/large", timeout=120)
    assert machine.succeed("sha256sum < /root/large").out[:64] == hashlib.sha256(data).hexdigest()
    machine.copy_out("/root/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    machine.copy_in(b"", "/root/empty ' \n file")
    machine.copy_out("/root/empty ' \n file", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_much_output(machine: QemuMachine) -> None:
    result = machine.succeed(
        "head -c 10000000 /dev/urandom | tee /tmp/sent; sha256sum /tmp/sent >&2"
    )
    assert hashlib.sha256(result.stdout).hexdigest() == result.err[:64]


def test_time_limit(machine: QemuMachine) -> None:
    with pytest.raises(CommandTimeout):
        machine.run("sleep 60", timeout=1)
    assert machine.succeed("echo alive").out == "alive"


def test_guest_that_panics(machine: QemuMachine) -> None:
    with pytest.raises(MachineError, match="(?s)process ended.*panic"):
        machine.run("echo c > /proc/sysrq-trigger", timeout=30)
    with pytest.raises(MachineError):
        machine.run("true")


def test_guest_that_hangs(machine: QemuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen processors: nothing in the guest can answer."""
    monkeypatch.setattr("vm.channel.GRACE", 1.0)
    assert machine._qmp is not None
    machine._qmp.execute("stop")
    with pytest.raises(MachineError, match="hangs"):
        machine.run("true", timeout=1)
    assert "not to be had" in machine.dump()


def test_qemu_killed(machine: QemuMachine) -> None:
    assert machine._process is not None
    machine._process.kill()
    with pytest.raises(MachineError, match="gone"):
        machine.run("true")


def test_disk_full_in_the_guest(machine: QemuMachine) -> None:
    machine.succeed('fallocate -l "$(($(df --output=avail -B1M / | tail -n 1) - 9))M" /root/fill')
    assert "No space left" in machine.fail("head -c 20M /dev/zero > /root/more").err
    machine.succeed("rm /root/fill; head -c 20M /dev/zero > /root/more")


def test_a_clone_boots_again(base: QemuMachine) -> None:
    with base.clone("ready") as clone:
        clone.succeed("echo kept > /root/kept; sync")
        clone.reboot()
        assert clone.succeed("cat /root/kept").out == "kept"


def test_clock_and_entropy_after_a_restore(base: QemuMachine) -> None:
    with base.clone("ready") as one, base.clone("ready") as two:
        seen = [
            m.succeed("date +%s.%N; head -c 16 /dev/urandom | od -An -tx1") for m in (one, two)
        ]
    (time_one, random_one), (time_two, random_two) = (r.out.splitlines() for r in seen)
    assert abs(float(time_two) - time.time()) < 5 and abs(float(time_one) - time.time()) < 5
    assert random_one != random_two


def test_four_at_once_do_not_meet(base: QemuMachine) -> None:
    clones = [base.clone("ready") for _ in range(4)]
    try:
        for number, clone in enumerate(clones):
            clone.succeed(f"echo {number} > /root/own; echo {number} > /run/own")
        assert [clone.succeed("cat /root/own /run/own").out for clone in clones] == [
            f"{number}\n{number}" for number in range(4)
        ]
        base.fail("ls /root/own")
    finally:
        for clone in clones:
            clone.close()


def test_fifty_restores_leave_nothing(base: QemuMachine, own_run: Path) -> None:
    before, descriptors = leftovers(own_run), len(os.listdir("/proc/self/fd"))
    times = []
    for _ in range(50):
        begin = time.monotonic()
        with base.clone("ready") as clone:
            clone.succeed("test ! -e /root/mark; touch /root/mark")
            times.append(time.monotonic() - begin)
    assert leftovers(own_run) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    print(f"restore: median {sorted(times)[25]:.2f} s, longest {max(times):.2f} s")


def test_restore_puts_back_memory_and_disk(base: QemuMachine) -> None:
    with (
        Pool(base, "ready") as pool,
        pool.take() as machine,
        pytest.raises(RequestError, match="freeze that other"),
    ):
        machine.snapshot("no")
    base.succeed("touch /root/disk /dev/shm/memory")
    base.restore("ready")
    base.fail("ls /root/disk"), base.fail("ls /dev/shm/memory")
    base.snapshot("again")
    with pytest.raises(RequestError, match="already"):
        base.snapshot("again")


def test_testinfra_reaches_a_machine(machine: QemuMachine) -> None:
    host = backend.host(machine)
    assert host.package("iproute2").is_installed
    assert host.file("/etc/hostname").content_string.strip() == "debian"
    assert host.run("exit %s", "7").rc == 7


def vm(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`python -m vm`."""
    command = [sys.executable, "-m", "vm", *words]
    return subprocess.run(
        command, capture_output=True, text=True, errors="surrogateescape", check=False, **more
    )


def test_detached_machine_from_the_command_line(own_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_text("brought")
    began = vm("up", SUITE, "--json", "--install", str(tmp_path / "new"))
    about = json.loads(began.stdout)
    name = about["name"]
    assert 0 < about["seconds"] < 300
    assert vm("run", name, "cat", "/file").stdout == "brought"
    assert vm("run", name, "printf", "%s,", "a b", "$HOME").stdout == "a b,$HOME,"
    assert vm("run", name, "printf '%s,' a  b $HOME; exit 7").stdout == "a,b,/root,"
    assert vm("run", name, "exit 7").returncode == 7
    assert vm("run", "-i", name, "cat", input="some input").stdout == "some input"
    late = vm("run", "--timeout", "1", name, "echo begun; sleep 100")
    assert (late.stdout, late.returncode) == ("begun\n", cli.LATE) and "killed" in late.stderr
    assert vm("run", name, "--timeout", "inf", "-i", "cat", input="after").stdout == "after"
    long = vm("run", name, "printf", "%s,", *["x" * 9999] * 20, os.fsdecode(b"\xff"))
    assert (long.stdout.count("x"), long.returncode) == (20 * 9999, 0)
    assert long.stdout.endswith(os.fsdecode(b",\xff,"))
    first = subprocess.run(
        f"{sys.executable} -m vm run {name} yes | head -1",
        shell=True,
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert first.stdout == b"y\n" and first.stderr == b""
    assert vm("run", name, "pgrep -x yes").returncode == 1
    assert name in vm("list").stdout
    machines = json.loads(vm("list", "--json").stdout)["machines"]
    assert [one["name"] for one in machines if one["detached"]] == [name]
    folders.sweep()
    assert vm("ssh", name[:-3], "hostname; exit 3").stdout == "debian\n"
    second = vm("up", SUITE).stdout.strip()
    assert second != name
    gone = vm("destroy", "--all").stdout.split()
    assert sorted(gone) == sorted([name, second])
    assert not {name, second} & set(" ".join(leftovers(own_run)).replace("/", " ").split())
    assert vm("run", name, "true").returncode == cli.BROKEN


def test_one_command_at_a_time(own_run: Path) -> None:
    """A second one is told so at once; a shell over ssh is not in its way."""
    name = vm("up", SUITE).stdout.strip()
    try:
        long = subprocess.Popen([sys.executable, "-m", "vm", "run", name, "touch /mark; sleep 9"])
        with long:
            deadline = time.monotonic() + 60
            while vm("ssh", name, "test -e /mark").returncode:
                assert time.monotonic() < deadline
            second = vm("run", name, "true")
            assert second.returncode == cli.BROKEN
            assert second.stderr == f"vm: {name} is busy: another command runs in it\n"
            assert vm("ssh", name, "echo beside").stdout == "beside\n"
            assert long.wait(60) == 0
        assert vm("run", name, "true").returncode == 0
    finally:
        vm("destroy", name)


def test_aborted_run_is_cleared_by_the_next(own_run: Path) -> None:
    """Python killed without a chance to clean up: QEMU goes on until somebody sweeps."""
    before = leftovers(own_run)
    code = f"import vm, sys; m = vm.up({SUITE!r}, say=len); print(m.name, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        assert name and leftovers(own_run) > before
        run.kill()
        run.wait()
    assert name in folders.sweep()
    assert leftovers(own_run) == before
