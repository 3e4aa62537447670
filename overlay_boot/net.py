"""Virtual cables and the network namespace's name (overlay-boot(8), NETWORKING).

rtnetlink is spoken by pyroute2. Its package imports everything it has at once (160 ms of a boot),
so only the part for routes and links is loaded here (80 ms), while the root is being set up.
"""

from __future__ import annotations

import os
import sys

from overlay_boot import PATH, OverlayBootError, commands
from overlay_boot.cables import Cable, derived_mac
from overlay_boot.linux import interface_index
from overlay_boot.records import Link
from overlay_boot.steps import Step
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyroute2 import IPRoute

    from overlay_boot.subhost import Subhost

IFUP = 90.0  # seconds for ifup, as long as the keeper gives ifdown


def iproute() -> type[IPRoute]:
    """pyroute2's rtnetlink socket in the current network namespace."""
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

    return IPRoute  # type: ignore[no-any-return]


def check_host(subhost: Subhost) -> None:
    """Raise if a bridge is missing or an interface's name is taken on the main host."""
    for cable in subhost.cables:
        bridge = cable.bridge
        what = "" if not bridge or interface_index(bridge) else "not there"
        folder = f"/sys/class/net/{bridge}"
        if bridge and not what and os.path.isdir(folder) and not os.path.isdir(f"{folder}/bridge"):
            what = "no bridge"
        if what:
            raise OverlayBootError(
                f"CABLES: {bridge} is {what}: create it with ip link add {bridge} type bridge, "
                "or correct CABLES"
            )
        if interface_index(cable.host):
            raise OverlayBootError(
                f"CABLES: the interface {cable.host} is there already: choose another NAME"
                + _advice(cable)
            )


def _advice(cable: Cable) -> str:
    """How to be rid of the interface that has a cable's name: only of what a subhost could have
    left, which is a veth or a VLAN."""
    with iproute()() as ip:
        found = ip.link("get", ifname=cable.host)[0]
    info = found.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else ""
    wanted = "vlan" if cable.tag else "veth"
    return f", or remove it with ip link delete {cable.host}" if kind == wanted else ""


class Cables:
    """The cables of one boot: makes them, and knows what it made by index and peer."""

    def __init__(self, subhost: Subhost, waiter: Waiter, say: Callable[[str], None]) -> None:
        self.subhost = subhost
        self.waiter = waiter
        self.say = say  # writes a line into the log
        self.links: list[Link] = []
        self.pid = 0  # a process in the subhost's network namespace

    def load(self) -> None:
        """Load what speaks rtnetlink, while the builder works."""
        iproute()

    def steps(self) -> list[Step]:
        """A step for each cable or VLAN."""
        plan = []
        for cable in self.subhost.cables:

            def do(cable: Cable = cable) -> None:
                self.make(cable)

            plan.append(Step(f"make {cable}", do, self.undo_last))
        return plan

    def make(self, cable: Cable) -> None:
        """Make one cable or VLAN interface, set it up, and put it into its bridge or try ifup."""
        link: Link | None = None
        with iproute()() as ip:
            try:
                self._create(ip, cable)
                link = _look_up(ip, cable.host)
                if cable.bridge:
                    self._join_bridge(ip, cable, link.index)
                if cable.bridge or not self._ifup(cable.host):
                    ip.link("set", index=link.index, state="up")
            except BaseException as error:
                if link:
                    delete_links([link])
                if not isinstance(error, Exception) or isinstance(error, OverlayBootError):
                    raise
                reason = error.args[-1] if error.args else error
                raise OverlayBootError(f"cannot make {cable}: {reason}") from error
        self.links.append(link)

    def _create(self, ip: IPRoute, cable: Cable) -> None:
        """Make the pair, or the VLAN; an error, with nothing changed, where the name is taken."""
        if cable.tag:
            carrier = next(link for link in self.links if link.name == cable.carrier)
            vlan: dict[str, Any] = {"link": carrier.index, "vlan_id": cable.tag}
            if cable.bridge:
                vlan["mtu"] = _mtu(ip, cable.bridge)
            ip.link("add", ifname=cable.host, kind="vlan", **vlan)
            return
        # An address above all others: a bridge takes the lowest one of its ports for its own. The
        # smallest MTU of its ports becomes the bridge's, so the cable has that already.
        host: dict[str, Any] = {"ifname": cable.host, "address": derived_mac(cable.host, 0xFE)}
        peer: dict[str, Any] = {"ifname": cable.peer, "net_ns_pid": self.pid}
        if cable.mac:
            peer["address"] = cable.mac
        on_it = [c for c in self.subhost.cables if cable.host in (c.host, c.carrier)]
        if mtus := [_mtu(ip, c.bridge) for c in on_it if c.bridge]:
            host["mtu"] = peer["mtu"] = max(mtus)
        ip.link("add", kind="veth", peer=peer, **host)

    def _join_bridge(self, ip: IPRoute, cable: Cable, index: int) -> None:
        """Make an interface a port. A bridge that has an address of no port, such as one without
        any, would lose it to the first that comes: it is told to keep the one it has."""
        bridge = interface_index(cable.bridge)
        address = ip.link("get", index=bridge)[0].get_attr("IFLA_ADDRESS")
        ports = [link.get_attr("IFLA_ADDRESS") for link in ip.get_links(master=bridge)]
        if address not in ports:
            ip.link("set", index=bridge, address=address)
        ip.link("set", index=index, master=bridge)

    def undo_last(self) -> None:
        """Delete the cable that was made last."""
        delete_links([self.links.pop()])

    def _ifup(self, interface: str) -> bool:
        """Try ifup(8) on an interface; False, with a line in the log, where that does not work.

        --force, since ifupdown may think it up still after a crash.
        """
        program = commands.find("ifup")
        if not program:
            self.say(f"{interface}: ifup is not installed, so the interface is only set up")
            return False
        command = [program, "--force", interface]
        environment = {**os.environ, "PATH": PATH}
        done = commands.run(
            command, environment, self.waiter, capture=True, errors_too=True, seconds=IFUP
        )
        message = " ".join(os.fsdecode(done.output).split())
        if done.late:
            message = f"it did not end within {IFUP:.0f} s and was killed; {message}"
        if done.late or done.status:
            self.say(f"{interface}: ifup failed, so the interface is only set up: {message}")
        elif message:
            self.say(f"{interface}: {message}")
        return not done.late and not done.status


def _mtu(ip: IPRoute, interface: str) -> int:
    return int(ip.link("get", ifname=interface)[0].get_attr("IFLA_MTU"))


def _look_up(ip: IPRoute, name: str) -> Link:
    """What an interface of that name is, so that it can be known again."""
    found = ip.link("get", ifname=name)[0]
    return Link(name, found["index"], found.get_attr("IFLA_LINK") or 0)


def delete_links(links: list[Link]) -> None:
    """Delete those of the interfaces that are there still: by index, and only where that is the
    one which was made, whose other end or carrier is as it was."""
    with iproute()() as ip:
        for link in reversed(links):
            try:
                found = ip.link("get", index=link.index)[0]
                if (found.get_attr("IFLA_LINK") or 0) == link.peer:
                    ip.link("del", index=link.index)
            except Exception as error:
                # A cable goes by itself when its namespace does, also just now.
                if interface_index(link.name) == link.index:
                    raise OverlayBootError(f"cannot remove {link.name}: {error}") from error
