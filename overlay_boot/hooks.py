"""The three default hooks (INIT, PREMOUNT, POSTMOUNT; decisions 11 to 13).

boot calls the functions itself where the configuration names no others. The programs
overlay-premount, overlay-postmount and overlay-init are for hooks of one's own to call; they find
the variables in their environment.
"""

from __future__ import annotations

import os
import sys

from overlay_boot import explain
from overlay_boot.cables import parse_cables
from overlay_boot.linux import MS_NODEV, MS_NOEXEC, MS_RDONLY
from overlay_boot.tree import Tree, at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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


def premount(upper: str, name: str, cables: str, made: list[str]) -> None:
    """Give UPPER an interfaces(5) file of its own where it has none, so that the main host's
    network set-up is not used: lo, and one manual stanza for each cable."""
    with Tree(upper, upper, made) as tree:
        folder = tree.open("etc/network")
        try:
            if os.path.lexists(f"{at(folder)}/interfaces"):
                return
            ends = ["lo", *(cable.peer for cable in parse_cables(name, cables)[0] if cable.peer)]
            text = f"# Made by overlay-boot for the subhost {name}; yours to change.\n"
            for end in ends:
                method = "loopback" if end == "lo" else "manual"
                text += f"\nauto {end}\niface {end} inet {method}\n"
            tree.note("etc/network/interfaces")
            with open(tree.create("interfaces", folder, 0o644), "w") as file:
                file.write(text)
        finally:
            os.close(folder)


def postmount(live: str, upper: str, ram_size: str, made: list[str]) -> None:
    """Set up /dev, /sys, /run and /.reaper below LIVE, in the subhost's mount and network
    namespaces. ram_size is tmpfs's size of /run, or "none" to leave /run alone."""
    umask = os.umask(0)
    with Tree(live, upper, made) as tree:
        tree.mount("dev", "tmpfs", MS_NOEXEC, "size=1M,mode=755")
        dev = tree.open("dev")
        for name, (major, minor, mode) in DEVICES.items():
            os.mknod(name, mode | 0o020000, os.makedev(major, minor), dir_fd=dev)
        for name, target in LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        os.close(dev)
        tree.mount("dev/pts", "devpts", MS_NOEXEC, "newinstance,ptmxmode=666,mode=620,gid=5")
        tree.mount("dev/shm", "tmpfs", MS_NODEV, "mode=1777")
        tree.mount("sys", "sysfs", MS_RDONLY | MS_NODEV | MS_NOEXEC)
        if ram_size != "none":
            tree.mount("run", "tmpfs", MS_NODEV, f"size={ram_size},mode=755")
            run = tree.open("run")
            os.mkdir("lock", 0o1777, dir_fd=run)
            os.close(run)
        tree.install_reaper()
    os.umask(umask)


def init(start: list[str]) -> str:
    """The commands of pid 1: start the services in order, then become the reaper, which starts
    dummy_service where no service process runs. For any POSIX shell."""
    return services(start, "start") + "exec /.reaper --or-dummy\n"


def services(start: list[str], action: str) -> str:
    """Shell commands that do action ("start" or "stop") on services in turn: names go through
    service(8), full paths are run as they are. One that fails is reported; the others go on."""
    lines = []
    for service in start:
        program = [service] if service.startswith("/") else ["service", service]
        words = " ".join("'" + word.replace("'", "'\\''") + "'" for word in [*program, action])
        failed = f"overlay-boot: {action} of {service} failed: exit status".replace("'", "'\\''")
        lines.append(f"{words} || echo '{failed}' $? >&2\n")
    return "".join(lines)


def _program(usage: str, do: Callable[..., None]) -> int:
    """Run one of the hook programs: its arguments and the variables of its environment."""
    name = usage.split()[0]
    if len(sys.argv) != len(usage.split()) or "--help" in sys.argv:
        print(f"Usage: {usage}\nA default hook of overlay-boot(8), for other hooks to call.")
        return 0 if "--help" in sys.argv else 2
    try:
        do(*sys.argv[1:])
    except KeyError as missing:
        print(f"{name}: {missing} is not set: only overlay-boot runs this", file=sys.stderr)
    except OSError as error:
        print(f"{name}: {explain(error)}", file=sys.stderr)
    else:
        return 0
    return 1


def premount_program() -> int:
    """overlay-premount"""
    variable = os.environ
    return _program(
        "overlay-premount UPPER",
        lambda upper: premount(upper, variable["NAME"], variable["CABLES"], []),
    )


def postmount_program() -> int:
    """overlay-postmount"""
    return _program(
        "overlay-postmount LIVE UPPER",
        lambda live, upper: postmount(live, upper, os.environ["RAM_SIZE"], []),
    )


def init_program() -> int:
    """overlay-init"""

    def do() -> None:
        start = os.environ["START"]
        sys.stdout.write(init([] if start == "none" else start.split()))

    return _program("overlay-init", do)
