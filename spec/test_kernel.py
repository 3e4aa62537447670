"""KERNEL: what a subhost gives up, and what is read-only in it."""

from __future__ import annotations

import json

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.probing import PROBE, outside, probe
from spec.subhost import Subhost

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


def status_of(subhost: Subhost) -> str:
    """The /proc/self/status of a command of overlay-go."""
    return subhost.inside("cat /proc/self/status")


def writable(subhost: Subhost, *paths: str) -> set[str]:
    """Which of these of the subhost's are on no read-only mount. Nothing is written: files are
    opened, and folders get a time."""
    said = subhost.inside(
        f"for file in {' '.join(paths)}; do [ -e $file ] || continue\n"
        "if [ -d $file ]; then touch $file; else (: >> $file); fi 2>&1 |\n"
        'grep -q "Read-only" || echo $file; done'
    )
    return set(said.split())


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
    """Only what pid 1 was started with counts for overlay-go, even where root inside has
    covered the status of pid 1."""
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
    """CAPABILITY keeps several capabilities, whose names are separated by spaces."""
    subhost.boot("CAPABILITY= SYS_TIME  CAP_SYSLOG")
    assert kept(status_of(subhost)) == {"SYS_TIME", "SYSLOG"}


@clause("capability-all")
@pytest.mark.parametrize("postmount", ["", "POSTMOUNT= {0}/post"])
def test_all_leaves_everything_as_it_is(subhost: Subhost, postmount: str) -> None:
    """With CAPABILITY= all the capabilities are those of the main host's root, and the
    kernel's files can be written."""
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
    """A CAPABILITY that is none of the six names, or stands beside all, is refused in one line
    that names the line of the file."""
    done = subhost.refused(f"CAPABILITY= {value}")
    one_line(done, 2, f"{subhost.conf}:5: CAPABILITY: ")


@clause("kernel-inherited")
def test_the_callers_capabilities_are_not_inherited(subhost: Subhost) -> None:
    """Inheritable and ambient sets are empty inside, whatever the caller's are."""
    given = "setpriv --inh-caps +sys_time,+net_raw --ambient-caps +net_raw"
    assert subhost.on_host(f"{given} grep -c 'CapAmb:.*2000' /proc/self/status").out == "1\n"
    subhost.write()
    subhost.prepare_host(f"{given} overlay-boot {subhost.conf} < /dev/null")
    assert subhost.up()
    pid1 = subhost.target.read(f"/proc/{subhost.pid1()}/status")
    command = subhost.on_host(f"{given} overlay-go {subhost.name} cat /proc/self/status").out
    for status in (pid1, command):
        assert "CapInh:\t0000000000000000\n" in status and "CapAmb:\t0000000000000000\n" in status


@clause("kernel-refused")
def test_the_kernel_refuses_what_would_change_it(subhost: Subhost) -> None:
    """The kernel refuses to change its modules and the clock, and to give access to memory and
    ports, by the system call or device that is for it."""
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
    """The kernel's files in /proc, and all of /sys, are read-only for each kind of root, and
    for services too."""
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
    """A /sys that POSTMOUNT itself mounts is read-only, and what it mounts below that is not."""
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
    """Where POSTMOUNT mounts nothing on /sys it is a folder of the subhost's, which can be
    written."""
    subhost.put("post", '#!/bin/sh\noverlay-postmount "$@" && umount $1/sys\n')
    subhost.boot(f"POSTMOUNT= {subhost.folder}/post")
    assert subhost.inside("echo yes > /sys/file; cat /sys/file") == "yes\n"


@clause("kernel-undone")
def test_root_inside_can_undo_it(subhost: Subhost) -> None:
    """What is read-only can be made writable by root inside on purpose, for the subhost alone:
    it is no prison."""
    subhost.boot()
    subhost.inside("mount -o remount,bind,rw /proc/sys")
    assert writable(subhost, "/proc/sys/kernel/core_pattern")
    subhost.inside("mkdir /p; mount -t proc proc /p")
    assert writable(subhost, "/p/sys/kernel/core_pattern")


@clause("kernel-nested")
def test_a_user_namespace_inside_gets_no_proc(subhost: Subhost) -> None:
    """A user namespace inside cannot mount a new /proc, in which nothing would be read-only;
    with CAPABILITY= all it can."""
    command = "unshare -Urmpf --mount-proc true 2> /dev/null; echo $?"
    for text, status in (("", "1\n"), ("CAPABILITY= all", "0\n")):
        subhost.boot(text, omit=("LOWER",))
        assert subhost.inside(command) == status
        subhost.stop()


@clause("kernel-keyring", "go-keyring")
def test_the_session_keyring_is_new(subhost: Subhost) -> None:
    """The session keyring of pid 1 is not the caller's, and that of overlay-go's command is
    neither pid 1's nor another command's."""
    subhost.put(
        "root/service",
        "#!/bin/sh\n[ $1 = stop ] || python3 - < /probe.py > /probed 2> /probe-failed\n",
    )
    subhost.put("root/probe.py", PROBE.read_text())
    subhost.boot("START= /service", omit=("LOWER",))
    rings = [probe(subhost)["session keyring"] for _ in range(2)]
    rings.append(json.loads(subhost.inside("cat /probed"))["session keyring"])
    rings.append(outside(subhost)["session keyring"])
    assert len(set(rings)) == 4, rings
