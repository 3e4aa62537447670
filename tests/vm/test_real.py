"""Real machines: what the harness promises, under the worst that was thought of."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import backend, cli, folders, start
from vm.machine import CommandTimeout, MachineError
from vm.pool import Pool
from vm.qemu import QemuMachine

pytestmark = pytest.mark.vm
SUITE = os.environ.get("SUITE", "trixie")


@pytest.fixture(scope="module")
def base() -> Iterator[QemuMachine]:
    """A machine with a snapshot `ready`, in a run folder of this module's own."""
    with tempfile.TemporaryDirectory(prefix="vm-") as run, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VM_RUN", run)
        machine = start.up(SUITE, say=cli.say)
        assert isinstance(machine, QemuMachine)
        with machine:
            machine.succeed("date -s 2001-01-01")
            machine.snapshot("ready")
            yield machine
        folders.sweep()  # what a failed test left
        shutil.rmtree(folders.memory(), ignore_errors=True)


@pytest.fixture
def machine(base: QemuMachine) -> Iterator[QemuMachine]:
    """A fresh one for each test."""
    with base.clone("ready") as clone:
        yield clone


def leftovers() -> set[str]:
    """Processes and folders of machines of this run folder that there are now."""
    processes = subprocess.run(
        ["pgrep", "-f", f"qemu-system.*{folders.run()}/"], stdout=subprocess.PIPE, check=False
    )
    shared = folders.memory().glob("*/")
    found = {*processes.stdout.decode().split(), *map(str, folders.run().glob("*/"))}
    return {*found, *map(str, shared)}


@pytest.mark.parametrize("init", ["small", "systemd"])
def test_cold_boot_and_reboot(init: str) -> None:
    with start.up("trixie", init=init, cold=True, say=cli.say) as machine:
        first = machine.succeed("cat /proc/sys/kernel/random/boot_id").out
        assert machine.succeed("cat /proc/1/comm").out == {"small": "vm-init"}.get(init, init)
        machine.succeed("echo kept > /root/file")
        machine.reboot()
        assert machine.succeed("cat /root/file").out == "kept"
        assert machine.succeed("cat /proc/sys/kernel/random/boot_id").out != first
        machine.wait_until("ping -c 1 -W 1 10.0.2.2", timeout=60)
        machine.wait_until("ss -ltn | grep -q :22", timeout=60)
        assert subprocess.run([*machine.ssh_command(), "exit 3"], check=False).returncode == 3


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


def test_fifty_restores_leave_nothing(base: QemuMachine) -> None:
    before, descriptors = leftovers(), len(os.listdir("/proc/self/fd"))
    times = []
    for _ in range(50):
        begin = time.monotonic()
        with base.clone("ready") as clone:
            clone.succeed("test ! -e /root/mark; touch /root/mark")
            times.append(time.monotonic() - begin)
    assert leftovers() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    print(f"restore: median {sorted(times)[25]:.2f} s, longest {max(times):.2f} s")


def test_restore_puts_back_memory_and_disk(base: QemuMachine) -> None:
    with (
        Pool(base, "ready") as pool,
        pool.take() as machine,
        pytest.raises(MachineError, match="freeze that other"),
    ):
        machine.snapshot("no")
    base.succeed("touch /root/disk /dev/shm/memory")
    base.restore("ready")
    base.fail("ls /root/disk"), base.fail("ls /dev/shm/memory")
    base.snapshot("again")
    with pytest.raises(MachineError, match="already"):
        base.snapshot("again")


def test_another_process_shares_the_frozen_state(base: QemuMachine) -> None:
    with Pool(base, "ready") as pool:
        assert pool.handle is not None
        with Pool.attach(pool.handle) as other, other.take() as machine:
            machine.succeed("true")


def test_testinfra_reaches_a_machine(machine: QemuMachine) -> None:
    host = backend.host(machine)
    assert host.package("iproute2").is_installed
    assert host.file("/etc/hostname").content_string.strip() == "debian"
    assert host.run("exit %s", "7").rc == 7


def test_detached_machine_from_the_command_line() -> None:
    def vm(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vm", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    name = vm("up", "trixie")
    try:
        assert vm("run", name, "echo", "hello") == "hello"
        assert name in vm("list")
        folders.sweep()
        assert vm("run", name, "echo", "still") == "still"
    finally:
        assert vm("destroy", name) == name
    assert name not in " ".join(leftovers())


def test_aborted_run_is_cleared_by_the_next() -> None:
    """Python killed without a chance to clean up: QEMU goes on until somebody sweeps."""
    before = leftovers()
    code = (
        "import vm, sys; m = vm.up('trixie', say=len); print(m.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        assert name and leftovers() > before
        run.kill()
        run.wait()
    assert name in folders.sweep()
    assert leftovers() == before
