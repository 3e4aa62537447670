"""The three default hooks: INIT, PREMOUNT and POSTMOUNT (overlay-boot(8), What the default hooks
do).

A boot calls the functions itself where the configuration names no others; for hooks of one's own
to call there are the programs overlay-premount, overlay-postmount and overlay-init (cli.py).
"""

from __future__ import annotations

import os

from overlay_boot.linux import MS_NODEV, MS_NOEXEC
from overlay_boot.tree import Made, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlay_boot.cables import Cable

DEVICES = {  # name: major, minor, mode (Documentation/admin-guide/devices.txt)
    "null": (1, 3, 0o666),
    "zero": (1, 5, 0o666),
    "full": (1, 7, 0o666),
    "random": (1, 8, 0o666),
    "urandom": (1, 9, 0o666),
    "tty": (5, 0, 0o666),
    "console": (5, 1, 0o600),
}
LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
POLICY = """\
#!/bin/sh
# Made by overlay-boot; yours to change. See "What the default hooks do" in overlay-boot(8).
# Without a runlevel invoke-rc.d(8) does not know whether an init script is enabled. It asks in
# parentheses then: yes for one of START, and for one that is enabled in any runlevel.
while [ "${1#-}" != "$1" ]; do shift; done
case $2 in "("*)
    grep -qsxF -e "$1" -e "/etc/init.d/$1" /run/overlay-start ||
        ls /etc/rc[2-5S].d/S[0-9][0-9]"$1" > /dev/null 2>&1 || exit 101 ;;
esac
exit 104
"""


def premount(upper: str, lower: str, name: str, cables: list[Cable], made: Made) -> None:
    """Give UPPER what it has none of: an interfaces(5) file, so that the main host's network set-up
    is not used, hostname(5), and hosts(5)."""
    with Tree(upper, made) as tree:
        if not tree.has("etc/network/interfaces"):
            tree.write("etc/network/interfaces", _interfaces(name, cables).encode(), 0o644)
        if not tree.has("etc/hostname"):
            tree.write("etc/hostname", f"{name}\n".encode(), 0o644)
        if not tree.has("etc/hosts"):
            tree.write("etc/hosts", _hosts(lower, name), 0o644)


def _interfaces(name: str, cables: list[Cable]) -> str:
    """lo, and one manual stanza for each cable."""
    text = f"""\
# Made by overlay-boot for the subhost {name}; yours to change: give an interface "inet dhcp", or
# "inet static" with its address, then run "ifup" on it. "auto" brings it up at each start.

auto lo
iface lo inet loopback
"""
    for cable in cables:
        if cable.peer:  # without "auto", so that ifup takes up what is written here later
            text += f"\niface {cable.peer} inet manual\n"
    return text


def _hosts(lower: str, name: str) -> bytes:
    """LOWER's, with NAME on 127.0.1.1. The same address as IPv6 writes it comes along: programs that
    ask for an IPv6 address first, as getent(1), would wait for a name server else."""
    with Tree(lower) as tree:
        text = tree.read("etc/hosts") or b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"
    if not text.endswith(b"\n"):
        text += b"\n"
    return text + f"127.0.1.1\t{name}\n::ffff:127.0.1.1\t{name}\n".encode()


def postmount(live: str, ram_size: str, start: list[str], made: Made) -> None:
    """Set up /dev, /sys, /run, policy-rc.d and /.reaper below LIVE, in the subhost's mount and
    network namespaces. ram_size is tmpfs's size of /run, or "none" to mount nothing there."""
    umask = os.umask(0)
    with Tree(live, made) as tree:
        tree.mount("dev", "tmpfs", MS_NOEXEC, "size=1M,mode=755")
        dev = tree.open("dev")
        for name, (major, minor, mode) in DEVICES.items():
            os.mknod(name, mode | 0o020000, os.makedev(major, minor), dir_fd=dev)
        for name, target in LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        os.close(dev)
        tree.mount("dev/pts", "devpts", MS_NOEXEC, "newinstance,ptmxmode=666,mode=620,gid=5")
        tree.mount("dev/shm", "tmpfs", MS_NODEV, "mode=1777")
        tree.mount("sys", "sysfs", MS_NODEV | MS_NOEXEC)  # pid 1 makes it read-only
        if ram_size != "none":
            tree.mount("run", "tmpfs", MS_NODEV, f"size={ram_size},mode=755")
            run = tree.open("run")
            os.mkdir("lock", 0o1777, dir_fd=run)
            os.close(run)
        tree.remove("run/overlay-start")  # of the boot before, where /run is no tmpfs
        tree.write("run/overlay-start", "\n".join([*start, ""]).encode(), 0o644)
        if tree.has("usr/sbin/invoke-rc.d") and not tree.has("usr/sbin/policy-rc.d"):
            tree.write("usr/sbin/policy-rc.d", POLICY.encode(), 0o755)
        tree.install_reaper()
    os.umask(umask)


def init(start: list[str]) -> str:
    """The commands of pid 1, for any POSIX shell: start the services in order, then become the
    reaper, which starts dummy_service where no process of a service runs."""
    words = ["'" + service.replace("'", "'\\''") + "'" for service in start]
    services = " ".join(["/.reaper --start", *words]) + "\n" if words else ""
    return services + "exec /.reaper --or-dummy\n"
