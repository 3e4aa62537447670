"""rtnetlink spoken with this kernel, each time in a network namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overlay_boot import linux
from overlay_boot.rtnetlink import Rtnetlink


def apart(use: Callable[[Rtnetlink], None]) -> None:
    """Use a connection in a new namespace, which is a thread's and ends with it."""

    def inside() -> None:
        linux.unshare(linux.CLONE_NEWNET)
        with Rtnetlink() as ip:
            use(ip)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(inside).result()


def add_veth(ip: Rtnetlink, name: str, *attributes: tuple[str, object]) -> None:
    peer = ("VETH_INFO_PEER", {"attrs": [("IFLA_IFNAME", f"{name}p")]})
    ip.add("veth", [peer], ("IFLA_IFNAME", name), *attributes)


def test_what_the_kernel_refuses_is_an_error_and_the_connection_goes_on() -> None:
    def use(ip: Rtnetlink) -> None:
        add_veth(ip, "one")
        with pytest.raises(FileExistsError):
            add_veth(ip, "one")
        index = ip.get(name="one")["index"]
        ip.delete(index)
        for refused in (ip.delete, ip.get):
            with pytest.raises(OSError, match="No such device"):
                refused(index)
        with pytest.raises(OSError, match="No such device"):
            ip.set(index, up=True)
        assert ip.get(name="lo")["index"] == 1

    apart(use)


def test_a_list_of_many_packets_is_whole_and_of_one_bridge_alone() -> None:
    def use(ip: Rtnetlink) -> None:
        bridges = []
        for name in ("few", "many"):
            ip.add("bridge", [], ("IFLA_IFNAME", name))
            bridges.append(ip.get(name=name)["index"])
        few, many = bridges
        names = [f"p{number}" for number in range(60)]  # a packet holds some twenty
        for name in names:
            add_veth(ip, name, ("IFLA_MASTER", many))
        add_veth(ip, "other", ("IFLA_MASTER", few))
        assert sorted(link.get_attr("IFLA_IFNAME") for link in ip.ports(many)) == sorted(names)
        assert [link.get_attr("IFLA_IFNAME") for link in ip.ports(few)] == ["other"]

    apart(use)


def test_a_missing_pyroute2_is_told_in_one_line() -> None:
    folder = str(Path(linux.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r}); from overlay_boot.rtnetlink import load; load()"
    command = [sys.executable, "-IS", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("the Python package pyroute2 is missing: install it for CABLES"), done
