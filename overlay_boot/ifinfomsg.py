"""The message of a link, struct ifinfomsg of rtnetlink(7), with those attributes of linux/if_link.h
that cables have: declared as pyroute2 declares messages, which encodes and decodes them.

pyroute2's own class of that name knows all attributes and kinds of links, and takes twice as long to
import. rtnetlink.load() imports this module: the package pyroute2 has to be ready for it.
"""

from __future__ import annotations

from pyroute2.netlink import nla, nlmsg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIELDS = (
    ("family", "B"),
    ("align", "x"),
    ("type", "H"),
    ("index", "i"),
    ("flags", "I"),
    ("change", "I"),
)
END = (  # of either end of a cable
    (1, "IFLA_ADDRESS", "l2addr"),
    (3, "IFLA_IFNAME", "asciiz"),
    (4, "IFLA_MTU", "uint32"),
    (19, "IFLA_NET_NS_PID", "uint32"),
)


class Peer(nla):  # type: ignore[misc]  # pyroute2 has no types
    """The other end of a veth pair: a message of its own."""

    fields = FIELDS
    nla_map = END


class Veth(nla):  # type: ignore[misc]
    """The part of a veth, VETH_INFO_* of linux/veth.h."""

    nla_map = ((1, "VETH_INFO_PEER", "peer"),)
    peer = Peer


class Vlan(nla):  # type: ignore[misc]
    """The part of a VLAN, IFLA_VLAN_*."""

    nla_map = ((1, "IFLA_VLAN_ID", "uint16"),)


class LinkInfo(nla):  # type: ignore[misc]
    """A link's kind, IFLA_INFO_*; the part of other kinds is not taken apart."""

    nla_map = ((1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "part"))

    @staticmethod
    def part(info: LinkInfo, *_: Any, **__: Any) -> Any:
        """The class of a kind's part; pyroute2 asks for it."""
        return {"veth": Veth, "vlan": Vlan}.get(info.get_attr("IFLA_INFO_KIND"), nla.hex)


class LinkMessage(nlmsg):  # type: ignore[misc]
    """A link: RTM_NEWLINK, RTM_GETLINK, RTM_DELLINK."""

    fields = FIELDS
    nla_map = (
        *END,
        (5, "IFLA_LINK", "uint32"),
        (10, "IFLA_MASTER", "uint32"),
        (18, "IFLA_LINKINFO", "linkinfo"),
        (29, "IFLA_EXT_MASK", "uint32"),
    )
    linkinfo = LinkInfo
