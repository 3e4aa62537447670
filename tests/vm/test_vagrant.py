"""The same interface through Vagrant and libvirt, and the box that it takes; some ten minutes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import leftovers, shared
from vm import box, cli, folders, image, start, vagrant
from vm.errors import CommandTimeout, HostError, MachineError
from vm.image import Image
from vm.libvirt import Libvirt, virsh
from vm.machine import Machine
from vm.pool import Pool
from vm.vagrant import VagrantMachine

SUITE = os.environ.get("SUITE", "trixie")
ROOT = Path(__file__).parents[2]
here = pytest.mark.skipif(
    not (shutil.which("vagrant") and shutil.which("virsh")),
    reason="no Vagrant with libvirt: make vm-setup PROVIDER=vagrant",
)


def nothing_left(run: Path) -> None:
    """Of this run folder's machines there is nothing, in libvirt neither."""
    assert not leftovers(run)
    mine = vagrant._mine()
    with tempfile.TemporaryDirectory(prefix="watched-") as name:
        libvirt = Libvirt(Path(name), say=cli.say)  # the daemons ended with the machine
        try:
            assert mine not in virsh("list", "--all", "--name").stdout
            assert mine not in virsh("pool-list", "--all", "--name").stdout
        finally:
            libvirt.close()
    assert not list((folders.cache() / "vagrant").glob(f"{mine}pool/{mine}*"))


@here
@pytest.mark.vm
@pytest.mark.parametrize("moment", ["libvirt", "domain"])
def test_up_interrupted(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """While libvirt starts, and while Vagrant does: nothing is left of either. It comes before the
    fixture `machine`, since runs that start libvirt take turns."""
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        run = Path(name)
        monkeypatch.setenv("VM_RUN", name)
        code = f"import vm; vm.processes.end_in_order(); vm.up({SUITE!r}, provider='vagrant')"
        seen = {
            "libvirt": lambda: list(run.glob("*/libvirtd.pid")),
            "domain": lambda: vagrant._mine() in virsh("list", "--all", "--name").stdout,
        }[moment]
        up = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        try:
            deadline = time.monotonic() + 300
            while not seen():
                assert up.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            up.terminate()
            assert up.wait(200) != 0
        finally:
            up.kill()
            up.wait()
        nothing_left(run)
        shutil.rmtree(shared(run), ignore_errors=True)


@pytest.fixture(scope="module")
def machine(own_run: Path) -> Iterator[VagrantMachine]:
    """One machine for all tests, since it takes minutes. Closed, nothing of it is left."""
    said: list[str] = []
    made = start.up(SUITE, provider="vagrant", say=lambda line: (said.append(line), cli.say(line)))
    assert isinstance(made, VagrantMachine)
    name = made.domain
    with made:
        assert any("Starting" in line or "Waiting" in line for line in said), said
        assert name in virsh("list", "--name").stdout.split()
        yield made
    made.close()  # twice is fine
    nothing_left(own_run)


@here
@pytest.mark.vm
def test_run(machine: Machine) -> None:
    """Status, output apart from errors, input, root's plain environment, binary data."""
    done = machine.run("id -un; pwd; echo $HOME; echo error >&2; exit 7")
    assert (done.out, done.err, done.status) == ("root\n/\n/root", "error", 7)
    assert machine.run("kill -TERM $$").status == 128 + 15
    data = os.urandom(3 << 20)
    assert machine.succeed("cat", input=data).stdout == data
    names = {line.partition("=")[0] for line in machine.run("env").out.splitlines()}
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "PWD"}
    assert machine.succeed("systemctl is-system-running --wait", timeout=300).out == "running"


@here
@pytest.mark.vm
def test_libvirt_asks_qemu_once(machine: Machine) -> None:
    """What QEMU can do is kept, also where its user may not use /dev/kvm: asking takes half a minute."""
    kept = lambda: {
        path: path.stat().st_mtime_ns
        for path in Path("/var/cache/libvirt/qemu/capabilities").iterdir()
    }
    before = kept()
    assert before and virsh("domcapabilities").returncode == 0
    assert kept() == before


@here
@pytest.mark.vm
def test_time_limit(machine: Machine) -> None:
    begin = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        machine.run("echo begun; sleep 100", timeout=3)
    assert time.monotonic() - begin < 40 and caught.value.result.out == "begun"
    machine.succeed("true")


@here
@pytest.mark.vm
def test_copies(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "a b'c"
    source.write_bytes(os.urandom(1 << 20))
    source.chmod(0o750)
    machine.copy_in(source, "/root/new/a b'c")
    assert machine.succeed("stat -c %a /root/new/*").out == "750"
    machine.copy_out("/root/new/a b'c", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@here
@pytest.mark.vm
def test_another_user_of_a_box_becomes_root(machine: VagrantMachine) -> None:
    """Debian's public boxes have a user vagrant, who may use sudo."""
    machine.succeed("""
        useradd -m -s /bin/bash vagrant
        echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/vagrant
        install -d -o vagrant -m 700 ~vagrant/.ssh
        install -o vagrant -m 600 /root/.ssh/authorized_keys ~vagrant/.ssh/
        rm /root/.ssh/authorized_keys""")
    machine._leave()
    file = machine.folder / "ssh_config"
    file.write_text(re.sub(r"(?m)^( *User ).*", r"\1vagrant", file.read_text()))
    assert machine._ssh("id -un", 60).out == "vagrant"
    machine._become_root()
    assert machine.succeed("id -un").out == "root"
    machine.succeed("rm /etc/sudoers.d/vagrant; userdel -r vagrant 2>/dev/null")


@here
@pytest.mark.vm
def test_snapshot_restore_and_pool(machine: Machine) -> None:
    """Memory and disk come back, the clock is right, and random numbers are not the same again."""
    machine.succeed("date -s 2001-01-01; touch /dev/shm/kept /root/kept; sync")
    machine.snapshot("kept")
    seen = []
    with Pool(machine, "kept") as pool:
        for _ in range(2):
            with pool.take() as same:
                assert same is machine
                machine.succeed("ls /dev/shm/kept /root/kept")
                machine.fail("ls /root/lost")
                machine.succeed("touch /root/lost")
                assert abs(float(machine.succeed("date +%s.%N").out) - time.time()) < 10
                seen.append(machine.succeed("head -c 16 /dev/urandom | od -An -tx1").out)
    assert seen[0] != seen[1]


@here
@pytest.mark.vm
def test_reboot(machine: Machine) -> None:
    machine.succeed("touch /dev/shm/memory /root/disk; sync")
    machine.reboot(timeout=300)
    machine.succeed("ls /root/disk")
    machine.fail("ls /dev/shm/memory")


@here
@pytest.mark.vm
def test_what_vagrant_cannot_do(machine: VagrantMachine) -> None:
    """Within a limit, and in its own words."""
    with pytest.raises(MachineError, match="vagrant ssh_config was not done after 1 s"):
        machine._call("ssh_config", limit=1)
    with pytest.raises(MachineError, match="vagrant snapshot_restore failed:\n  .*`none`"):
        machine._call("snapshot_restore", "none")
    machine.succeed("true")


def test_a_limit_on_virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virsh").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match="libvirt: no answer to version in 0.2 s"):
        virsh("version", limit=0.2)


def test_pack(own_folders: Path, tmp_path: Path) -> None:
    """What libvirt's provider wants, for its owner's eyes; packed once for each image."""
    source = Image(own_folders / "trixie-plain-abc")
    source.folder.mkdir()
    for name in ("disk.qcow2", "vmlinuz", "initrd", "id_ed25519"):
        (source.folder / name).write_bytes(name.encode())
    said: list[str] = []
    file = box.pack(source, tmp_path / "dist", say=said.append)
    assert box.pack(source, tmp_path / "dist", say=said.append) == file
    assert len(said) == 1 and list((tmp_path / "dist").iterdir()) == [file]
    assert file.name.startswith("trixie-plain-abc-") and file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as whole:
        held = {member.name: member for member in whole}
        assert all(member.isfile() for member in held.values())
        about = json.load(whole.extractfile("metadata.json"))  # type: ignore[arg-type]
        disk = whole.extractfile("box.img").read()  # type: ignore[union-attr]
    assert set(held) == {
        *("metadata.json", "Vagrantfile", "box.img", "vmlinuz", "initrd", "id_ed25519")
    }
    assert about == {"provider": "libvirt", "format": "qcow2", "virtual_size": 6}
    assert disk == b"disk.qcow2"
    assert not list(folders.building().glob("*/"))


@pytest.mark.vm
def test_pack_a_real_image(own_run: Path, tmp_path: Path) -> None:
    source = image.build(SUITE, say=cli.say)
    with tarfile.open(box.pack(source, tmp_path, say=cli.say)) as whole:
        whole.extract("box.img", tmp_path, filter="data")
    packed = (tmp_path / "box.img").read_bytes()
    assert hashlib.sha256(packed).digest() == hashlib.sha256(source.disk.read_bytes()).digest()
    listing = ["qemu-img", "info", "--output=json", tmp_path / "box.img"]
    size = json.loads(subprocess.run(listing, check=True, capture_output=True).stdout)
    assert size["virtual-size"] == 6 << 30
