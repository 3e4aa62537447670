"""rtnetlink(7), as far as cables need it: links are asked for, made, changed and deleted.

pyroute2 encodes and decodes the messages (ifinfomsg.py). Its ready-made socket would import some 240
modules, asyncio among them; the kernel needs no more than a socket of the standard library.
"""

from __future__ import annotations

import errno
import gc
import os
import struct
import sys

from overlay_boot import OverlayBootError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Self

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200
IFF_UP = 1
SKIP_STATISTICS = ("IFLA_EXT_MASK", 8)
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
NUMBER = struct.Struct("=i")
LONGEST = 1 << 17  # bytes of an answer; the kernel's own limit is a quarter of that


def load() -> type[Any]:
    """The class of the message. Raises OverlayBootError where pyroute2 is missing.

    The package itself would import all that it has, so an empty one stands in for it."""
    if "pyroute2" not in sys.modules:
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise OverlayBootError("the Python package pyroute2 is missing: install it for CABLES")
        package = type(sys)("pyroute2")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["pyroute2"] = package
    gc.disable()  # nothing of an import is garbage, and looking for it takes a tenth of the time
    from overlay_boot.ifinfomsg import LinkMessage

    gc.enable()
    return LinkMessage


class Rtnetlink:
    """A connection to the rtnetlink of the current network namespace, to be used with `with`.
    Every method raises OSError with what the kernel says. Attributes are (name, value), see
    linux/if_link.h."""

    def __enter__(self) -> Self:
        self.message = load()
        import socket  # here, as load() is called: while the builder works

        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self.socket: socket.socket = socket.socket(socket.AF_NETLINK, kind, 0)  # NETLINK_ROUTE
        self.sequence = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def get(self, index: int = 0, name: str = "") -> Any:
        """The link of that index or name."""
        attributes = [("IFLA_IFNAME", name)] if name else []
        return self._request(RTM_GETLINK, 0, index, 0, SKIP_STATISTICS, *attributes)[0]

    def ports(self, bridge: int, address: str = "") -> list[Any]:
        """The links that are ports of the bridge of that index, and have that address if one is
        given. No others are decoded: with hundreds that would take longer than all of a boot."""
        wanted = ("IFLA_MASTER", bridge)
        holding = bytes.fromhex(address.replace(":", ""))
        links = self._request(
            RTM_GETLINK, NLM_F_DUMP, 0, 0, SKIP_STATISTICS, wanted, holding=holding
        )
        ports = [link for link in links if link.get_attr("IFLA_MASTER") == bridge]
        return [link for link in ports if not address or link.get_attr("IFLA_ADDRESS") == address]

    def add(self, kind: str, data: list[tuple[str, Any]], *attributes: tuple[str, Any]) -> None:
        """Make a link of that kind, such as "veth", of which data is the kind's own part."""
        info: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
        if data:
            info.append(("IFLA_INFO_DATA", {"attrs": data}))
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._request(RTM_NEWLINK, flags, 0, 0, *attributes, ("IFLA_LINKINFO", {"attrs": info}))

    def set(self, index: int, *attributes: tuple[str, Any], up: bool = False) -> None:
        """Change a link."""
        self._request(RTM_NEWLINK, 0, index, IFF_UP if up else 0, *attributes)

    def delete(self, index: int) -> None:
        """Delete a link."""
        self._request(RTM_DELLINK, 0, index, 0)

    def _request(
        self,
        kind: int,
        flags: int,
        index: int,
        state: int,
        *attributes: tuple[str, Any],
        holding: bytes = b"",
    ) -> list[Any]:
        """Send one request; what the kernel answers to it, up to its acknowledgement. Messages that
        have not these bytes in them are passed over."""
        self.sequence += 1
        message = self.message()
        message["index"] = index
        message["flags"] = message["change"] = state
        message["attrs"] = list(attributes)
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
        message["header"]["sequence_number"] = self.sequence
        message.encode()
        self.socket.send(message.data)
        answers: list[Any] = []
        while self._take(self.socket.recv(LONGEST), answers, holding):
            pass
        return answers

    def _take(self, packet: bytes, answers: list[Any], holding: bytes) -> bool:
        """Add the links of one packet; whether more are to come."""
        start = 0
        while start < len(packet):
            length, kind, _, sequence, _ = HEADER.unpack_from(packet, start)
            if sequence != self.sequence:
                raise OSError(errno.EPROTO, "rtnetlink: an answer to something else")
            if kind in (NLMSG_ERROR, NLMSG_DONE):  # an error of 0 is the acknowledgement
                number = -NUMBER.unpack_from(packet, start + HEADER.size)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return False
            if holding in (data := packet[start : start + length]):
                link = self.message(data)
                link.decode()
                answers.append(link)
            start += length + 3 & ~3
        return True
