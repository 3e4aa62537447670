"""CABLES to interfaces: the grammar and the naming (overlay-boot(8), Networking)."""

from __future__ import annotations

from overlay_boot.check import Mistake

MAX_NAME = 15  # IFNAMSIZ less the terminating zero
MAX_CABLES = 1024  # also the number of ports that a bridge can have


STABLE = "stable"  # in the place of a MAC address


class Cable:
    """One specifier: a veth pair, or a VLAN interface on the pair before it."""

    def __init__(self, host: str, bridge: str, peer: str = "", mac: str = "", tag: int = 0):
        self.host = host  # the interface on the main host
        self.bridge = bridge  # empty: ifup is tried
        self.peer = peer  # the subhost's end; empty for a VLAN
        self.mac = mac  # of the subhost's end; empty: the kernel's choice
        self.tag = tag  # 0: not a VLAN
        self.carrier = host.rpartition(".")[0] if tag else ""

    def __str__(self) -> str:
        ends = f"VLAN {self.host}" if self.tag else f"cable {self.host} - {self.peer}"
        return ends + (f" in bridge {self.bridge}" if self.bridge else "")


def parse_cables(name: str, text: str) -> list[Cable]:
    """The cables that CABLES declares for the subhost name. Raises Mistake."""
    words = text.split()
    if len(words) > MAX_CABLES:
        raise Mistake(f"CABLES: {len(words)} cables are more than {MAX_CABLES}: name fewer")
    cables: list[Cable] = []
    wrong: list[str] = []
    count = 0
    for word in words:
        bridge, equals, right = word.partition("=")
        problem = "" if equals else "it has no =: write [bridge]=[MAC address, stable or .tag]"
        if equals and right.startswith("."):
            problem = _tag_problem(right[1:]) or ("" if count else "no cable stands before it")
            if not problem:
                tag = int(right[1:])
                cables.append(Cable(f"{name}{count - 1}.{tag}", bridge, tag=tag))
        elif equals:
            host = f"{name}{count}"
            problem = "" if right == STABLE else _mac_problem(right)
            mac = derived_mac(host, 0x02) if right == STABLE else right.lower()
            cables.append(Cable(host, bridge, f"eth{count}", mac))
            count += 1
        if problem:
            wrong.append(f"CABLES: {word!r}: {problem}")
    seen: set[str] = set()
    for cable in cables:
        wrong += [f"CABLES: {text}" for text in _name_problems(cable)]
        if cable.host in seen:
            wrong.append(f"CABLES: {cable.host} is declared twice: give each VLAN once")
        seen.add(cable.host)
    if wrong:
        raise Mistake(*wrong)
    return cables


def derived_mac(host: str, first: int) -> str:
    """The MAC address that always belongs to a host end of that name: its first octet, which is to
    say that it is locally administered (IEEE 802), and five that depend on the name."""
    from zlib import crc32

    name = host.encode()
    octets = [first, crc32(name[::-1]) & 0xFF, *crc32(name).to_bytes(4, "big")]
    return ":".join(f"{octet:02x}" for octet in octets)


def _tag_problem(tag: str) -> str:
    if not (tag.isascii() and tag.isdigit() and len(tag) <= 4 and 1 <= int(tag) <= 4095):
        return "a VLAN tag is a number from 1 to 4095"
    if int(tag) == 4095:
        return "the kernel refuses VLAN 4095, which 802.1Q reserves: choose 1 to 4094"
    return ""


def _mac_problem(mac: str) -> str:
    if not mac:
        return ""
    parts = mac.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        return "a MAC address is six pairs of hexadecimal digits with colons between"
    try:
        address = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        return "a MAC address is six pairs of hexadecimal digits with colons between"
    if address[0] & 1 or not any(address):
        return "not an address for one interface: the first pair must be even, and not all zero"
    return ""


def _name_problems(cable: Cable) -> list[str]:
    problems = []
    if len(cable.host) > MAX_NAME:
        problems.append(
            f"the interface name {cable.host} has {len(cable.host)} characters, "
            f"the kernel takes {MAX_NAME}: shorten NAME"
        )
    if set(cable.host) & set(":%"):
        problems.append(f"the kernel takes no : or % in an interface name: {cable.host}")
    if len(cable.bridge) > MAX_NAME or set(cable.bridge) & set("/:"):
        problems.append(f"{cable.bridge!r} cannot be the name of a bridge")
    return problems
