"""Virtual cables and the network namespace's name (overlay-boot(8), NETWORKING).

What speaks rtnetlink is loaded while the root is being set up: that takes as long as the rest of a
boot.
"""

from __future__ import annotations

import os

from overlay_boot import PATH, OverlayBootError, commands, explain, lines_of
from overlay_boot.cables import Cable, derived_mac
from overlay_boot.records import Link, interface_index, interface_name
from overlay_boot.rtnetlink import Rtnetlink, load
from overlay_boot.steps import Step
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from overlay_boot.subhost import Subhost

NET_ADDR_SET = "3"
IFUP = 90.0  # seconds for ifup, as long as the keeper gives ifdown


def check_host(subhost: Subhost) -> None:
    """Raise if an interface's name is taken on the main host."""
    for cable in subhost.cables:
        if not interface_index(cable.host):
            continue
        try:
            advice = _advice(cable)
        except OSError:
            continue  # it has gone just now, with a subhost that has ended
        raise OverlayBootError(
            f"CABLES: the interface {cable.host} already exists: choose another NAME" + advice
        )


def _advice(cable: Cable) -> str:
    """How to be rid of the interface that has a cable's name: only of what a subhost could have
    left, which is a veth or a VLAN."""
    with Rtnetlink() as ip:
        found = ip.get(name=cable.host)
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
        load()

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
        with Rtnetlink() as ip:
            try:
                self._create(ip, cable)
                link = _look_up(ip, cable.host)
                if cable.bridge:
                    self._join_bridge(ip, cable, link.index)
                if cable.bridge or not self._ifup(cable.host):
                    ip.set(link.index, up=True)
            except BaseException as error:
                if link:
                    delete_links([link])
                if isinstance(error, OSError):
                    raise OverlayBootError(f"cannot make {cable}: {explain(error)}") from error
                raise
        self.links.append(link)

    def _create(self, ip: Rtnetlink, cable: Cable) -> None:
        """Make the pair, or the VLAN; an error, with nothing changed, where the name is taken."""
        host: list[tuple[str, Any]] = [("IFLA_IFNAME", cable.host)]
        if cable.tag:
            carrier = next(link for link in self.links if link.name == cable.carrier)
            host.append(("IFLA_LINK", carrier.index))
            if cable.bridge:
                host.append(("IFLA_MTU", _mtu(ip, cable.bridge)))
            ip.add("vlan", [("IFLA_VLAN_ID", cable.tag)], *host)
            return
        # An address above all others: a bridge takes the lowest one of its ports for its own. The
        # smallest MTU of its ports becomes the bridge's, so the cable has that already.
        host.append(("IFLA_ADDRESS", derived_mac(cable.host, 0xFE)))
        peer = [("IFLA_IFNAME", cable.peer), ("IFLA_NET_NS_PID", self.pid)]
        if cable.mac:
            peer.append(("IFLA_ADDRESS", cable.mac))
        on_it = [c for c in self.subhost.cables if cable.host in (c.host, c.carrier)]
        if mtus := [_mtu(ip, c.bridge) for c in on_it if c.bridge]:
            host.append(("IFLA_MTU", max(mtus)))
            peer.append(("IFLA_MTU", max(mtus)))
        ip.add("veth", [("VETH_INFO_PEER", {"attrs": peer})], *host)

    def _join_bridge(self, ip: Rtnetlink, cable: Cable, index: int) -> None:
        """Make an interface a port. A bridge that has an address of no port, such as one without
        any, would lose it to the first that comes: it is told to keep the one it has."""
        bridge = interface_index(cable.bridge)
        address = ip.get(bridge).get_attr("IFLA_ADDRESS")
        if not _is_told(cable.bridge, address) and not ip.ports(bridge, address):
            ip.set(bridge, ("IFLA_ADDRESS", address))
        ip.set(index, ("IFLA_MASTER", bridge))

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


def _is_told(bridge: str, address: str) -> bool:
    """Whether a bridge has been told its address already, as by the boot before: then it needs no
    look at all its ports, which would take longer with each subhost (sysfs-class-net)."""
    folder = f"/sys/class/net/{bridge}"
    try:
        told = lines_of(f"{folder}/addr_assign_type")[0] == NET_ADDR_SET
        return told and lines_of(f"{folder}/address")[0] == address
    except OSError:
        return False  # there is no /sys, or another network's


def _mtu(ip: Rtnetlink, interface: str) -> int:
    return int(ip.get(name=interface).get_attr("IFLA_MTU"))


def _look_up(ip: Rtnetlink, name: str) -> Link:
    """What an interface of that name is, so that it can be known again."""
    found = ip.get(name=name)
    return Link(name, found["index"], found.get_attr("IFLA_LINK") or 0)


def is_there(link: Link) -> bool:
    """Whether what has the index of an interface is the one that was made: its other end or carrier
    is as it was."""
    with Rtnetlink() as ip:
        try:
            return _is(ip, link)
        except OSError:
            if interface_name(link.index):
                raise
            return False  # it has gone just now


def _is(ip: Rtnetlink, link: Link) -> bool:
    return (ip.get(link.index).get_attr("IFLA_LINK") or 0) == link.peer


def delete_links(links: list[Link]) -> None:
    """Delete those of the interfaces that are there still, whatever they are called by now."""
    with Rtnetlink() as ip:
        for link in reversed(links):
            try:
                if _is(ip, link):
                    ip.delete(link.index)
            except OSError as error:
                # A cable goes by itself when its namespace does, also just now.
                if interface_name(link.index):
                    raise OverlayBootError(
                        f"cannot remove {link.name}: {explain(error)}"
                    ) from error
