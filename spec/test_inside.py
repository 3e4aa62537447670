"""THE MAIN HOST'S KERNEL: what root in a subhost can do to the main host, tried from inside."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from spec.clauses import clause
from spec.plugin import precondition
from spec.subhost import Subhost
from spec.terminal import drive, fulfilled

PROBE = Path(__file__).with_name("probe.py")
GIVEN_UP = {
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_TIME": 25,
    "SYSLOG": 34,
    "PERFMON": 38,
    "BPF": 39,
}
SETS = ("Inh", "Prm", "Eff", "Bnd", "Amb")
FILES = ("sys/kernel/core_pattern", "sys/vm/drop_caches", "sysrq-trigger", "irq", "bus")
"""Of /proc; files and folders."""


def holds(status: str, name: str) -> set[str]:
    """The sets in which a /proc/PID/status has one of the capabilities."""
    rows = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
    return {each for each in SETS if int(rows[f"Cap{each}"], 16) >> GIVEN_UP[name] & 1}


def kept(status: str) -> set[str]:
    """Those of the capabilities that are in any of the sets."""
    assert status.count("\nCap") >= len(SETS) - 1, status
    return {name for name in GIVEN_UP if holds(status, name)}


def known(subhost: Subhost) -> set[str]:
    """Those that whoever boots the subhost has."""
    return kept(subhost.target.read("/proc/self/status"))


def status_of(subhost: Subhost, shell: str = "cat /proc/self/status") -> str:
    """What a command prints in the subhost."""
    return subhost.inside(shell)


def writable(subhost: Subhost, *paths: str) -> set[str]:
    """Which of these of the subhost's are on no read-only mount. Nothing is written: files are
    opened, and folders get a time."""
    said = subhost.inside(
        f"for file in {' '.join(paths)}; do [ -e $file ] || continue\n"
        "if [ -d $file ]; then touch $file; else (: >> $file); fi 2>&1 |\n"
        'grep -q "Read-only" || echo $file; done'
    )
    return set(said.split())


def probe(subhost: Subhost, *words: str) -> dict[str, Any]:
    """What came of spec/probe.py in a subhost that lies over the main host's root."""
    if subhost.inside("command -v python3 > /dev/null || echo none"):
        precondition("python3 is not installed")
    subhost.target.put(f"{subhost.folder}/probe.py", PROBE.read_text())
    done = subhost.run(
        f"overlay-go {subhost.name} python3 - {shlex.join(words)} < {subhost.folder}/probe.py"
    )
    assert done.out.startswith("{"), done
    found: dict[str, Any] = json.loads(done.out)
    return found


@clause("kernel-capabilities", "go-capabilities", "capability-none")
def test_no_process_has_what_changes_the_kernel(subhost: Subhost) -> None:
    """Neither pid 1 nor a service nor its stop script nor a command of overlay-go has one of the
    capabilities in any set, and overlay-go's command has those that pid 1 has."""
    service = "cat /proc/self/status > /$1; [ $1 = stop ] || setsid sleep 4330 > /dev/null 2>&1 &"
    subhost.put("root/service", f"#!/bin/sh\n{service}\n")
    subhost.boot("START= /service")
    assert known(subhost) == set(GIVEN_UP), "the main host's own root has all of them"
    pid1 = subhost.target.read(f"/proc/{subhost.pid1()}/status")
    command = status_of(subhost)
    subhost.stop()
    upper = f"{subhost.folder}/root"
    start, stop = (subhost.target.read(f"{upper}/{action}") for action in ("start", "stop"))
    for status in (pid1, command, start, stop):
        assert kept(status) == set(), status
    bounds = [next(x for x in s.splitlines() if x.startswith("CapBnd")) for s in (pid1, command)]
    assert bounds[0] == bounds[1]


@clause("go-capabilities")
def test_an_edited_configuration_gives_overlay_go_nothing(subhost: Subhost) -> None:
    """Only what pid 1 was started with counts, also where root inside has covered its status."""
    subhost.boot()
    subhost.write("CAPABILITY= all")
    assert kept(status_of(subhost)) == set()
    subhost.inside("sed 's/Cap\\(...\\):.*/Cap\\1:\\t000001ffffffffff/' /proc/1/status > /faked")
    subhost.inside("mount --bind /faked /proc/1/status")
    assert "CapBnd:\t000001ffffffffff" in subhost.inside("cat /proc/1/status")
    assert kept(status_of(subhost)) == set()


@clause("capability")
@pytest.mark.parametrize("name", sorted(GIVEN_UP))
def test_capability_keeps_what_it_names(subhost: Subhost, name: str) -> None:
    """One name keeps one capability, for pid 1 and overlay-go; the kernel's files stay read-only."""
    if name not in known(subhost):
        precondition(f"this kernel or its root has no {name}")
    spelled = {"SYSLOG": "CAP_SYSLOG", "SYS_TIME": "cap_sys_time"}.get(name, name)
    subhost.boot(f"CAPABILITY= {spelled}")
    pid1 = subhost.target.read(f"/proc/{subhost.pid1()}/status")
    assert kept(pid1) == kept(status_of(subhost)) == {name}
    assert writable(subhost, "/proc/sys/kernel/core_pattern") == set()


@clause("capability")
def test_capability_keeps_several(subhost: Subhost) -> None:
    """Names are separated by spaces."""
    subhost.boot("CAPABILITY= SYS_TIME  CAP_SYSLOG")
    assert kept(status_of(subhost)) == {"SYS_TIME", "SYSLOG"}


@clause("capability-all")
@pytest.mark.parametrize("postmount", ["", "POSTMOUNT= {0}/post"])
def test_all_leaves_everything_as_it_is(subhost: Subhost, postmount: str) -> None:
    """With all the capabilities are those of the main host's root, and the files can be written."""
    subhost.put("post", '#!/bin/sh\nexec overlay-postmount "$@"\n')
    subhost.boot(f"CAPABILITY= all\n{postmount.format(subhost.folder)}")
    assert kept(status_of(subhost)) == known(subhost)
    assert writable(subhost, "/proc/sys/kernel/core_pattern", "/sys/class/net/lo/mtu") == {
        "/proc/sys/kernel/core_pattern",
        "/sys/class/net/lo/mtu",
    }


@clause("error-capability")
@pytest.mark.parametrize("value", ["NET_ADMIN", "SYS_TIME,SYSLOG", "all SYS_TIME", "none", "16"])
def test_a_bad_capability_is_refused(subhost: Subhost, value: str) -> None:
    """What is none of the six names, or stands beside all, is a mistake that names the line."""
    done = subhost.refused(f"CAPABILITY= {value}")
    assert done.status == 2 and f"{subhost.conf}:5: CAPABILITY: " in done.err, done


@clause("kernel-inherited")
def test_the_callers_capabilities_are_not_inherited(subhost: Subhost) -> None:
    """Inheritable and ambient sets are empty inside, whatever the caller's are."""
    given = "setpriv --inh-caps +sys_time,+net_raw --ambient-caps +net_raw"
    assert subhost.run(f"{given} grep -c 'CapAmb:.*2000' /proc/self/status").out == "1\n"
    subhost.write()
    subhost.prepare(f"{given} overlay-boot {subhost.conf} < /dev/null")
    assert subhost.up()
    pid1 = subhost.target.read(f"/proc/{subhost.pid1()}/status")
    command = subhost.run(f"{given} overlay-go {subhost.name} cat /proc/self/status").out
    for status in (pid1, command):
        assert "CapInh:\t0000000000000000\n" in status and "CapAmb:\t0000000000000000\n" in status


@clause("kernel-refused")
def test_the_kernel_refuses_what_would_change_it(subhost: Subhost) -> None:
    """Modules, the clock, memory and ports, each by the system call or device that is for it."""
    subhost.boot(omit=("LOWER",))
    found = probe(subhost)
    allowed = {"EPERM", "ENOSYS", "ENOENT", "ENXIO", "EACCES"}
    for name in ("memory", "kcore", "ports"):
        assert found.get(name, "EPERM") in allowed, found
    for name in ("load a module", "remove a module", "set the clock"):
        assert found[name] in {"EPERM", "ENOSYS"}, found


@clause("kernel-files", "kernel-files-sys")
@pytest.mark.parametrize("kind", ["overlay", "bind", "plain"])
def test_the_kernels_files_are_read_only(subhost: Subhost, kind: str) -> None:
    """Those of /proc and all of /sys, for each kind of root, for services too."""
    files = [f"/proc/{name}" for name in FILES] + ["/sys/class/net/lo/mtu"]
    service = (
        f"for f in {' '.join(files[:3])}; do (: >> $f) && echo $f; done > /wrote 2> /dev/null"
    )
    text = subhost.of_kind(kind)
    subhost.put("root/service", f"#!/bin/sh\n[ $1 = stop ] || {{ {service}; }}\n")
    subhost.boot(f"{text}\nSTART= /service")
    assert writable(subhost, *files) == set()
    assert subhost.inside("ls /wrote && cat /wrote") == "/wrote\n"
    assert subhost.target.run(": >> /proc/sys/kernel/core_pattern").status == 0


@clause("kernel-files-net")
def test_its_own_network_can_be_set_up(subhost: Subhost) -> None:
    """What is below /proc/sys/net takes values, and they are those of the subhost's network."""
    subhost.boot()
    name = "/proc/sys/net/ipv4/ip_forward"
    before = subhost.target.read(name)
    other = "0" if before == "1\n" else "1"
    assert subhost.inside(f"echo {other} > {name}; cat {name}") == f"{other}\n"
    assert subhost.target.read(name) == before


@clause("kernel-files-sys", "kernel-files-below")
def test_sys_is_read_only_and_what_is_mounted_on_it_is_not(subhost: Subhost) -> None:
    """A POSTMOUNT that mounts /sys itself, and something below that."""
    subhost.put(
        "post",
        '#!/bin/sh\noverlay-postmount "$@" && umount $1/sys && mount -t sysfs sysfs $1/sys && '
        "mount -t tmpfs below $1/sys/fs\n",
    )
    subhost.boot(f"POSTMOUNT= {subhost.folder}/post")
    assert subhost.inside("(: >> /sys/class/net/lo/mtu) 2> /dev/null || echo no") == "no\n"
    assert subhost.inside("echo yes > /sys/fs/file; cat /sys/fs/file") == "yes\n"


@clause("kernel-files-sys")
def test_a_sys_that_is_not_mounted_is_a_folder(subhost: Subhost) -> None:
    """A POSTMOUNT that mounts nothing there leaves a folder of the subhost's, which can be written."""
    subhost.put("post", '#!/bin/sh\noverlay-postmount "$@" && umount $1/sys\n')
    subhost.boot(f"POSTMOUNT= {subhost.folder}/post")
    assert subhost.inside("echo yes > /sys/file; cat /sys/file") == "yes\n"


@clause("kernel-undone")
def test_root_inside_can_undo_it(subhost: Subhost) -> None:
    """It is no prison: what is read-only can be made writable on purpose, for the subhost alone."""
    subhost.boot()
    subhost.inside("mount -o remount,bind,rw /proc/sys")
    assert writable(subhost, "/proc/sys/kernel/core_pattern")
    subhost.inside("mkdir /p; mount -t proc proc /p")
    assert writable(subhost, "/p/sys/kernel/core_pattern")


@clause("kernel-keyring", "go-keyring")
def test_the_session_keyring_is_new(subhost: Subhost) -> None:
    """It is neither the caller's nor, for overlay-go, that of pid 1 or of another command."""
    subhost.put(
        "root/service",
        "#!/bin/sh\n[ $1 = stop ] || python3 - < /probe.py > /probed 2> /probe-failed\n",
    )
    subhost.put("root/probe.py", PROBE.read_text())
    subhost.boot("START= /service", omit=("LOWER",))
    rings = [probe(subhost)["session keyring"] for _ in range(2)]
    rings.append(json.loads(subhost.inside("cat /probed"))["session keyring"])
    caller = subhost.run(f"python3 {subhost.folder}/probe.py").out
    rings.append(json.loads(caller)["session keyring"])
    assert len(set(rings)) == 4, rings


@clause("inside-processes")
def test_no_process_of_the_main_host_is_reached(subhost: Subhost) -> None:
    """The numbers of the main host's processes mean nothing inside, and kill -1 reaches the
    subhost's alone."""
    subhost.boot()
    other = subhost.prepare("sleep 4331 > /dev/null 2>&1 & echo $!").strip()
    try:
        inside = subhost.inside(f"kill -0 {other} 2> /dev/null && cat /proc/{other}/comm")
        assert "sleep" not in inside
        seen = subhost.inside("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "sleep 4331" not in seen, seen
        subhost.inside("trap '' TERM; kill -TERM -1; sleep 0.2")
        assert subhost.run(f"cat /proc/{other}/comm").out == "sleep\n"
    finally:
        subhost.run(f"kill {other}")


@clause("inside-ipc")
def test_no_system_v_memory_is_shared(subhost: Subhost) -> None:
    """A segment and a queue of the main host are not there inside."""
    made = subhost.prepare("ipcmk -M 4096; ipcmk -Q")
    ids = [line.rpartition(" ")[2] for line in made.splitlines()]
    try:
        subhost.boot()
        for table in ("shm", "msg"):
            assert len(subhost.target.read(f"/proc/sysvipc/{table}").splitlines()) > 1
            assert len(subhost.inside(f"cat /proc/sysvipc/{table}").splitlines()) == 1
    finally:
        subhost.run(f"ipcrm -m {ids[0]}; ipcrm -q {ids[1]}")


@clause("inside-sockets")
def test_no_abstract_socket_is_reached(subhost: Subhost) -> None:
    """One that listens on the main host refuses nobody there, and is not there inside."""
    name = f"spec-{subhost.name}"
    script = (
        f"import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen()\n"
        "while True: s.accept()"
    )
    subhost.target.put(f"{subhost.folder}/listen.py", script)
    pid = subhost.prepare(f"python3 {subhost.folder}/listen.py > /dev/null 2>&1 & echo $!").strip()
    try:
        assert subhost.wait(f"grep -q @{name} /proc/net/unix")
        subhost.boot(omit=("LOWER",))
        assert probe(subhost, name)["abstract socket"] == "ECONNREFUSED"
        outside = subhost.run(f"python3 {subhost.folder}/probe.py {name}").out
        assert json.loads(outside)["abstract socket"] == "done"
    finally:
        subhost.run(f"kill {pid}")


@clause("inside-reboot")
@pytest.mark.parametrize("how", ["reboot", "poweroff"])
def test_reboot_ends_the_subhost_alone(subhost: Subhost, how: str) -> None:
    """The system call kills pid 1 of the subhost, which is cleared up; the main host goes on."""
    subhost.boot()
    pid = subhost.pid1()
    if subhost.namespace("pid") == subhost.namespace("pid", main_host=True):
        pytest.fail("it would be the main host's")
    subhost.run(f"overlay-go {subhost.name} /bin/busybox {how} -f")
    assert subhost.gone(pid)
    assert subhost.target.run("echo still here").out == "still here\n"


@clause("inside-mounts")
def test_mounts_inside_stay_inside(subhost: Subhost) -> None:
    """Also those that are moved and removed, and those that are made shared first."""
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
    """Not through /proc/PID/exe of whatever works inside for overlay-go and overlay-stop, neither
    while it runs nor, held open, later; nor can its mode be changed."""
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
        subhost.run(f"overlay-go {subhost.name} sh -c '/keep; :'")
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
    outside = f"{subhost.folder}/outside"
    source = f"{subhost.folder}/shared/a/b"
    subhost.prepare(f"mkdir -p {source} {outside}")
    subhost.boot()
    place = f"{subhost.folder}/shared"
    subhost.run(
        f"overlay-go {subhost.name} sh -c 'while [ ! -e /enough ]; do "
        f"mkdir -p {place}; rm -rf {place}/a; ln -s {outside} {place}/a; rm -f {place}/a; done' "
        "> /dev/null 2>&1 < /dev/null &",
        timeout=5,
    )
    for _ in range(15):
        subhost.run(
            f"overlay-share {source} {subhost.name}; overlay-share --remove {source} {subhost.name}"
        )
    subhost.inside(f"touch /enough; sleep 0.2; rm -rf {place}/a; ln -s {outside} {place}/a")
    subhost.prepare(f"overlay-share {source} {subhost.name}")
    assert subhost.inside(f"ls -d {outside}/b") == f"{outside}/b\n"
    assert subhost.target.run(f"ls -A {outside}").out == ""
    assert outside not in subhost.target.read("/proc/self/mounts")


@clause("inside-open")
def test_what_a_subhost_is_not(subhost: Subhost) -> None:
    """Its root makes and opens a device of the main host, and mounts what belongs to the kernel."""
    subhost.boot()
    assert subhost.inside("mknod /null c 1 3 && echo x > /null && echo open") == "open\n"
    tree = subhost.inside("mkdir /g; mount -t cgroup2 none /g && ls -d /g/cgroup.procs")
    if not tree:
        precondition("no cgroup v2 can be mounted here")
    assert tree == "/g/cgroup.procs\n"


SILENT = """import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in sys.argv[1:]:
    fuse = os.open("/fuse", os.O_RDWR)
    data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"silent", path.encode(), b"fuse", 0, data):
        sys.exit(os.strerror(ctypes.get_errno()))
    if os.fork() == 0:  # takes what is asked, so that who asks cannot even be killed
        os.setsid()
        length, opcode, unique = struct.unpack_from("=IIQ", os.read(fuse, 1 << 20))
        answer = struct.pack("=IIIIHHIIHH", 7, 31, 0, 0, 12, 10, 65536, 1, 0, 0) + bytes(32)
        os.write(fuse, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
        while os.read(fuse, 1 << 20):
            pass
print("silent")
"""


def silence(subhost: Subhost, *paths: str) -> None:
    """Mount a file system on each of these folders of the subhost that never answers."""
    subhost.put("root/silent.py", SILENT)
    command = f"mknod /fuse c 10 229; exec python3 /silent.py {' '.join(paths)} > /said 2>&1"
    subhost.run(f"overlay-go {subhost.name} sh -c {shlex.quote(command)} < /dev/null")
    said = subhost.target.read(f"{subhost.folder}/root/said")
    if said != "silent\n":
        precondition(f"no FUSE here: {said}")


@clause("stop-forced-silent")
@pytest.mark.parametrize("path", ["/", "/etc", "/proc", "/dev"])
def test_a_file_system_that_never_answers_does_not_hold_up_the_end(
    subhost: Subhost, path: str
) -> None:
    """Mounted by root inside on a folder that a stop script, or a shell, cannot do without."""
    subhost.put("root/etc/init.d/slow", "#!/bin/sh\n[ $1 = start ] || cat /etc/passwd\n")
    subhost.boot("START= slow", omit=("LOWER",))
    silence(subhost, path)
    pid = subhost.pid1()
    begun = time.monotonic()
    subhost.run(f"overlay-stop --timeout 2 {subhost.conf}", timeout=60)
    assert subhost.gone(pid)
    assert subhost.in_time(time.monotonic() - begun, 40)


@clause("go-silent", "runtime-share-silent")
def test_a_file_system_that_never_answers_does_not_hold_up_the_commands(subhost: Subhost) -> None:
    """overlay-go at a terminal works though nothing below /dev answers, and overlay-share gives up."""
    subhost.put("shared/file", "")
    subhost.boot(omit=("LOWER",))
    silence(subhost, "/dev", "/opt")
    result = fulfilled(
        drive(subhost, f"overlay-go {subhost.name} echo works", ["see", "works", 20], ["end", 10])
    )
    assert result["status"] == 0
    done = subhost.run(f"overlay-share {subhost.folder}/shared {subhost.name}", timeout=40)
    assert done.status == 1 and "did not answer" in done.err, done
