"""Virtual cables and the network namespace's name (overlay-boot(8), Networking; decisions 6 to 9).

rtnetlink is spoken by pyroute2. Its package imports everything it has at once (160 ms of a boot),
so only the part for routes and links is loaded here (80 ms), while the root is being set up.
"""

from __future__ import annotations

import os
import sys
from socket import if_nametoindex

from overlay_boot import OverlayBootError
from overlay_boot.cables import Cable
from overlay_boot.config import Subhost
from overlay_boot.linux import interface_exists
from overlay_boot.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyroute2 import IPRoute


def iproute() -> IPRoute:
    """An rtnetlink socket in the current network namespace."""
    if "pyroute2" not in sys.modules:
        import importlib.util
        import types

        spec = importlib.util.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise OverlayBootError("the Python package pyroute2 is missing: install it for CABLES")
        package = types.ModuleType("pyroute2")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["pyroute2"] = package
    from pyroute2.iproute.linux import IPRoute

    return IPRoute()


def check_host(subhost: Subhost) -> None:
    """Raise if a bridge is missing or an interface's name is taken on the main host."""
    for cable in subhost.cables:
        bridge = cable.bridge
        what = "" if not bridge or interface_exists(bridge) else "not there"
        folder = f"/sys/class/net/{bridge}"
        if bridge and not what and os.path.isdir(folder) and not os.path.isdir(f"{folder}/bridge"):
            what = "no bridge"
        if what:
            raise OverlayBootError(
                f"CABLES: {bridge} is {what}: make it with ip link add {bridge} type bridge, "
                "or correct CABLES"
            )
        if interface_exists(cable.host):
            raise OverlayBootError(
                f"CABLES: the interface {cable.host} is there already: remove it with "
                f"ip link delete {cable.host}, or choose another NAME"
            )


def steps(subhost: Subhost, pid: Callable[[], int], say: Callable[[str], None]) -> list[Step]:
    """What makes the cables. pid gives a process in the subhost's network namespace, say writes a
    line into the log."""
    plan = []
    for cable in subhost.cables:

        def do(cable: Cable = cable) -> None:
            make_cable(cable, pid(), say)

        def undo(cable: Cable = cable) -> None:
            delete_links([cable.host])

        plan.append(Step(f"make {cable}", do, undo))
    return plan


def make_cable(cable: Cable, pid: int, say: Callable[[str], None]) -> None:
    """Make one cable or VLAN interface, set it up, and put it into its bridge or try ifup."""
    with iproute() as ip:
        try:
            if cable.tag:
                carrier = if_nametoindex(cable.carrier)
                ip.link("add", ifname=cable.host, kind="vlan", link=carrier, vlan_id=cable.tag)
            else:
                peer: dict[str, str | int] = {"ifname": cable.peer, "net_ns_pid": pid}
                if cable.mac:
                    peer["address"] = cable.mac
                ip.link("add", ifname=cable.host, kind="veth", peer=peer)
            index = if_nametoindex(cable.host)
            if cable.bridge:
                ip.link("set", index=index, master=if_nametoindex(cable.bridge))
            elif ifup(cable.host, say):
                return
            ip.link("set", index=index, state="up")
        except Exception as error:
            if interface_exists(cable.host):
                ip.link("del", ifname=cable.host)
            reason = error.args[-1] if error.args else error
            raise OverlayBootError(f"cannot make {cable}: {reason}") from error


def ifup(interface: str, say: Callable[[str], None]) -> bool:
    """Try ifup(8) on an interface; False, with a line in the log, where that does not work.

    --force, since ifupdown may think it up still after a crash.
    """
    import subprocess

    try:
        done = subprocess.run(
            ["ifup", "--force", interface],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except FileNotFoundError:
        say(f"{interface}: ifup is not installed, so the interface is only set up")
        return False
    message = " ".join(os.fsdecode(done.stdout).split())
    if done.returncode:
        say(f"{interface}: ifup failed, so the interface is only set up: {message}")
    elif message:
        say(f"{interface}: {message}")
    return done.returncode == 0


def delete_links(names: list[str]) -> None:
    """Delete those of the interfaces that are there still."""
    with iproute() as ip:
        for name in names:
            if interface_exists(name):
                try:
                    ip.link("del", index=if_nametoindex(name))
                except Exception:
                    # A cable goes by itself when its namespace does, also just now.
                    if interface_exists(name):
                        raise
