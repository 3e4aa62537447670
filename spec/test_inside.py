"""KERNEL: what root inside can do to the main host, and to the commands there."""

from __future__ import annotations

import shlex

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.probing import PROBE, outside, probe
from spec.subhost import Subhost
from spec.terminal import drive, fulfilled


@clause("inside-processes")
def test_no_process_of_the_main_host_is_reached(subhost: Subhost) -> None:
    """The numbers of the main host's processes mean nothing inside, and kill -1 reaches the
    subhost's alone."""
    subhost.boot()
    other = subhost.prepare_host("sleep 4331 > /dev/null 2>&1 & echo $!").strip()
    try:
        inside = subhost.inside(f"kill -0 {other} 2> /dev/null && cat /proc/{other}/comm")
        assert "sleep" not in inside
        seen = subhost.inside("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "sleep 4331" not in seen, seen
        subhost.inside("trap '' TERM; kill -TERM -1; sleep 0.2")
        assert subhost.on_host(f"cat /proc/{other}/comm").out == "sleep\n"
    finally:
        subhost.on_host(f"kill {other}")


@clause("inside-ipc")
def test_no_system_v_memory_is_shared(subhost: Subhost) -> None:
    """A memory segment and a message queue of the main host are not there inside."""
    made = subhost.prepare_host("ipcmk -M 4096; ipcmk -Q")
    ids = [line.rpartition(" ")[2] for line in made.splitlines()]
    try:
        subhost.boot()
        for table in ("shm", "msg"):
            assert len(subhost.target.read(f"/proc/sysvipc/{table}").splitlines()) > 1
            assert len(subhost.inside(f"cat /proc/sysvipc/{table}").splitlines()) == 1
    finally:
        subhost.on_host(f"ipcrm -m {ids[0]}; ipcrm -q {ids[1]}")


@clause("inside-sockets")
def test_no_abstract_socket_is_reached(subhost: Subhost) -> None:
    """An abstract socket that answers on the main host is not there inside."""
    name = f"spec-{subhost.name}"
    script = (
        f"import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen()\n"
        "while True: s.accept()"
    )
    subhost.put("listen.py", script, 0o644)
    pid = subhost.prepare_host(
        f"python3 {subhost.folder}/listen.py > /dev/null 2>&1 & echo $!"
    ).strip()
    try:
        assert subhost.wait(f"grep -q @{name} /proc/net/unix")
        subhost.boot(omit=("LOWER",))
        assert probe(subhost, name)["abstract socket"] == "ECONNREFUSED"
        assert outside(subhost, name)["abstract socket"] == "done"
    finally:
        subhost.on_host(f"kill {pid}")


@clause("inside-reboot")
@pytest.mark.parametrize("how", ["reboot", "poweroff"])
def test_reboot_ends_the_subhost_alone(subhost: Subhost, how: str) -> None:
    """The system call reboot(2) kills pid 1 of the subhost, which is cleared up; the main host
    goes on."""
    subhost.boot()
    pid = subhost.pid1()
    if subhost.namespace("pid") == subhost.namespace("pid", main_host=True):
        pytest.fail("it would be the main host's")
    subhost.on_host(f"overlay-go {subhost.name} /bin/busybox {how} -f")
    assert subhost.gone(pid)
    assert subhost.target.run("echo still here").out == "still here\n"


@clause("inside-mounts")
def test_mounts_inside_stay_inside(subhost: Subhost) -> None:
    """What is mounted, moved and removed inside, even after it was made shared, changes no
    mount of the main host."""
    subhost.put("shared/.x", "")
    subhost.boot(f"SHARE= {subhost.folder}/shared:/srv")
    before = subhost.target.read("/proc/self/mountinfo")
    subhost.inside(
        "mount --make-rshared /; mount -t tmpfs one /srv; mount -t tmpfs two /tmp; "
        "mount --move /tmp /mnt; umount /srv; umount -l /srv; umount -l /dev /sys"
    )
    assert subhost.target.read("/proc/self/mountinfo") == before


@clause("go-program")
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_no_program_of_the_main_host_can_be_written(subhost: Subhost, terminal: bool) -> None:
    """No program that works inside for overlay-go and overlay-stop can be written through
    /proc/PID/exe, neither while it runs nor, held open, later; nor can its mode be changed."""
    own = "/proc/self/fd/$n -ef /bin/busybox"
    subhost.put(
        "root/keep",
        f"""#!/bin/sh
n=10
for exe in /proc/[0-9]*/exe; do
    [ $exe != /proc/$$/exe ] && eval "exec $n< $exe" || continue
    [ {own} ] || ! chmod 755 /proc/self/fd/$n 2> /dev/null || echo "chmod $n" >> /changed
    n=$((n + 1))
done
echo $n >> /held
rm -f /started
setsid /later $n > /dev/null 2>&1 < /dev/null &
until [ -e /started ]; do sleep 0.1; done
""",
    )
    subhost.put(
        "root/later",
        f"""#!/bin/sh
touch /started
sleep 1
n=10
while [ $n -lt $1 ]; do
    [ {own} ] || ! (: >> /proc/self/fd/$n) || echo "write $n" >> /changed
    n=$((n + 1))
done
echo over >> /over
""",
    )
    subhost.put("root/service", "#!/bin/sh\n[ $1 = start ] || { /keep; sleep 2; }\n")
    subhost.boot("START= /service")
    if terminal:
        fulfilled(drive(subhost, f"overlay-go {subhost.name} /keep", ["end", 20]))
    else:
        subhost.on_host(f"overlay-go {subhost.name} sh -c '/keep; :'")
    upper = f"{subhost.folder}/root"
    assert subhost.wait(f"[ -e {upper}/over ]")
    assert subhost.target.read(f"{upper}/changed") == ""
    subhost.stop()
    assert subhost.target.read(f"{upper}/over") == "over\nover\n"
    assert min(int(n) for n in subhost.target.read(f"{upper}/held").split()) > 11
    assert subhost.target.read(f"{upper}/changed") == ""


@clause("runtime-share-symlink")
def test_a_link_that_is_swapped_leads_no_share_onto_the_main_host(subhost: Subhost) -> None:
    """While root inside makes the mount point a folder and a link in turn, overlay-share works: what
    the link names on the main host stays as it is."""
    beyond = f"{subhost.folder}/beyond"
    source = f"{subhost.folder}/shared/a/b"
    subhost.prepare_host(f"mkdir -p {source} {beyond}")
    subhost.boot()
    place = f"{subhost.folder}/shared"
    subhost.on_host(
        f"overlay-go {subhost.name} sh -c 'while [ ! -e /enough ]; do "
        f"mkdir -p {place}; rm -rf {place}/a; ln -s {beyond} {place}/a; rm -f {place}/a; done' "
        "> /dev/null 2>&1 < /dev/null &",
        timeout=5,
    )
    for _ in range(15):
        subhost.on_host(
            f"overlay-share {source} {subhost.name}; overlay-share --remove {source} {subhost.name}"
        )
    subhost.inside(f"touch /enough; sleep 0.2; rm -rf {place}/a; ln -s {beyond} {place}/a")
    subhost.prepare_host(f"overlay-share {source} {subhost.name}")
    assert subhost.inside(f"ls -d {beyond}/b") == f"{beyond}/b\n"
    assert subhost.target.run(f"ls -A {beyond}").out == ""
    assert beyond not in subhost.target.read("/proc/self/mounts")


@clause("inside-open")
def test_what_a_subhost_is_not(subhost: Subhost) -> None:
    """Root in a subhost can make and open a device of the main host, and as much of its disks,
    of BPF and of watching files as root outside can."""
    subhost.boot(omit=("LOWER",))
    found = probe(subhost, "open")
    assert found["a device"] == "done"
    assert found == outside(subhost, "open")


@clause("inside-open")
def test_the_cgroups_of_the_main_host_can_be_mounted(subhost: Subhost) -> None:
    """Root in a subhost can mount the whole tree of the main host's cgroups, and write to it."""
    subhost.boot()
    tree = subhost.inside("mkdir /g; mount -t cgroup2 none /g && ls -d /g/cgroup.procs")
    if not tree:
        precondition("no cgroup v2 can be mounted here")
    assert tree == "/g/cgroup.procs\n"
    assert subhost.inside("[ -w /g/cgroup.procs ] && echo yes") == "yes\n"


@clause("inside-open")
def test_files_beside_a_share_can_be_opened(subhost: Subhost) -> None:
    """Root in a subhost can open files beside a share by a handle."""
    subhost.put("shared/.x", "")
    secret = subhost.put("secret", "not shared\n")
    subhost.boot(f"SHARE= {subhost.folder}/shared:/srv", omit=("LOWER",))
    handle = outside(subhost, "handle", secret)["handle"]
    assert probe(subhost, "handle", handle, "/srv")["text"] == "not shared\n"


@clause("inside-open")
def test_keys_of_root_can_be_found(subhost: Subhost) -> None:
    """Root in a subhost finds the keys of root's user keyring, which is one for all processes
    of the user."""
    subhost.boot(omit=("LOWER",))
    assert outside(subhost, "keep key", f"spec-{subhost.name}")["key"] == "done"
    assert probe(subhost, "key", f"spec-{subhost.name}")["key"] == "done"
    assert probe(subhost, "key", "spec-none")["key"] == "ENOKEY"


@clause("inside-open")
def test_events_of_devices_are_seen(subhost: Subhost) -> None:
    """What the kernel tells udev on the main host, it tells the subhost's network namespace
    too."""
    subhost.boot(omit=("LOWER",))
    upper = f"{subhost.folder}/root"
    subhost.put("probe.py", PROBE.read_text(), 0o644)
    subhost.on_host(
        f"overlay-go {subhost.name} python3 - 'watch devices' < {subhost.folder}/probe.py "
        f"> {subhost.folder}/event 2>&1 &",
        timeout=5,
    )
    assert subhost.wait(f"[ -e {upper}/watching ]")
    subhost.prepare_host("echo change > /sys/class/mem/null/uevent")
    assert subhost.wait(f"grep -q done {subhost.folder}/event")


SILENT = """import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in sys.argv[1:]:
    fuse = os.open("/fuse", os.O_RDWR)
    mounted, tell = os.pipe()
    if os.fork() == 0:  # takes what is asked, so that who asks cannot even be killed
        os.setsid()
        os.read(mounted, 1)
        length, opcode, unique = struct.unpack_from("=IIQ", os.read(fuse, 1 << 20))
        answer = struct.pack("=IIIIHHIIHH", 7, 31, 0, 0, 12, 10, 65536, 1, 0, 0) + bytes(32)
        os.write(fuse, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
        while os.read(fuse, 1 << 20):
            pass
    data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"silent", path.encode(), b"fuse", 0, data):
        sys.exit(os.strerror(ctypes.get_errno()))
    os.write(tell, b"x")
print("silent", flush=True)
os._exit(0)
"""


def silence(subhost: Subhost, *paths: str) -> None:
    """Mount a file system on each of these folders of the subhost that never answers."""
    subhost.put("root/silent.py", SILENT)
    command = f"mknod /fuse c 10 229; exec python3 /silent.py {' '.join(paths)} > /said 2>&1"
    subhost.on_host(f"overlay-go {subhost.name} sh -c {shlex.quote(command)} < /dev/null")
    said = subhost.target.read(f"{subhost.folder}/root/said")
    if said != "silent\n":
        precondition(f"no FUSE here: {said}")


@clause("stop-forced-silent")
@pytest.mark.parametrize("path", ["/", "/etc", "/proc", "/dev"])
def test_a_file_system_that_never_answers_does_not_hold_up_the_end(
    subhost: Subhost, path: str
) -> None:
    """overlay-stop ends a subhost whose root has mounted a file system that never answers on a
    folder that a stop script, or a shell, cannot do without."""
    subhost.put("root/etc/init.d/slow", "#!/bin/sh\n[ $1 = start ] || cat /etc/passwd\n")
    subhost.boot("START= slow", omit=("LOWER",))
    silence(subhost, path)
    pid = subhost.pid1()
    limit = 40 * subhost.target.patience
    done = subhost.on_host(
        f"timeout {limit:.0f} overlay-stop --timeout 2 {subhost.conf}", timeout=60
    )
    assert done.status in (0, 1), done
    assert subhost.gone(pid)


@clause("go-silent", "runtime-share-silent")
def test_a_file_system_that_never_answers_does_not_hold_up_the_commands(subhost: Subhost) -> None:
    """overlay-go at a terminal works though nothing below the subhost's /dev answers, and
    overlay-share gives up."""
    subhost.put("shared/file", "")
    subhost.boot(omit=("LOWER",))
    silence(subhost, "/dev", "/opt")
    result = fulfilled(
        drive(subhost, f"overlay-go {subhost.name} echo works", ["see", "works", 20], ["end", 10])
    )
    assert result["status"] == 0
    done = subhost.on_host(f"overlay-share {subhost.folder}/shared {subhost.name}", timeout=40)
    one_line(done, 1, "did not answer")
