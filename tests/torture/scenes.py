"""The configurations that are tried, and how the life of a subhost goes in each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scene:
    """One configuration; {0} in it is the subhost's folder."""

    name: str
    text: str = ""
    fill: str = ""  # the folder that gets a whole root file system
    options: tuple[str, ...] = ()  # of overlay-boot
    ends: tuple[str, ...] = ("stop",)  # "stop", or "end": its pid 1 is killed
    files: dict[str, str] = field(default_factory=dict)


SERVICE = """#!/bin/sh
case $1 in
start) sleep 1000 & ;;
stop) killall sleep 2>/dev/null; : ;;
esac
"""
HOOK = """#!/bin/sh
{bin}/overlay-{0} "$@"
"""

SCENES = [
    Scene("overlay", ends=("stop", "end")),
    Scene("bind", "UPPER= {0}/root\nLOWER= {0}/root", fill="root"),
    Scene("plain", "UPPER= {0}/root\nLOWER= {0}/root\nLIVE= {0}/root", fill="root"),
    Scene("cables", "CABLES= = =", ends=("stop", "end")),
    Scene("bridge", "CABLES= br0=stable br0="),
    Scene("share", "SHARE= /srv\nSHARE= /srv:/new/place\nSHARE= {0}/one:/one"),
    Scene(
        "hooks",
        "PREMOUNT= ./premount\nPOSTMOUNT= ./postmount\nINIT= ./init",
        files={name: HOOK.format(name, bin="{bin}") for name in ("premount", "postmount", "init")},
    ),
    Scene(
        "start",
        "START= /srv/one /srv/two",
        options=("--wait",),
        files={f"root/srv/{name}": SERVICE for name in ("one", "two")},
    ),
]
"""The kinds of root, the network, and commands of one's own."""
