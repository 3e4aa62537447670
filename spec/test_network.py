"""NETWORKING: cables, bridges, addresses, ifup, VLANs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.subhost import Subhost


def link(subhost: Subhost, name: str) -> str:
    """What ip-link(8) says of an interface of the main host; empty if it is not there."""
    return subhost.on_host(f"ip -details link show {name}").out


@pytest.fixture
def bridge(subhost: Subhost) -> Iterator[str]:
    """A bridge on the target."""
    name = f"{subhost.name}br"
    subhost.prepare_host(f"ip link add {name} type bridge && ip link set {name} up")
    subhost.target.run("udevadm settle")  # it may give a new bridge another address
    yield name
    subhost.target.run(f"ip link delete {name}")


@clause("cables", "cables-veth", "cables-host-name", "cables-subhost-name")
def test_cables_are_veth_pairs_numbered_from_0(subhost: Subhost) -> None:
    """NAME0 and NAME1 on the main host are the other ends of eth0 and eth1."""
    subhost.boot("CABLES= = =")
    assert sorted(subhost.interfaces()) == ["eth0", "eth1", "lo"]
    for number in range(2):
        host = link(subhost, f"{subhost.name}{number}")
        assert " veth " in host
        inside = subhost.on_host(f"ip -n {subhost.name} link show eth{number}").out
        assert f"eth{number}@if{host.split(':')[0]}:" in inside
    assert not link(subhost, f"{subhost.name}2")


@clause("cables-spec", "cables-bridge", "cables-mac")
def test_any_mix_of_bridge_and_address(subhost: Subhost, bridge: str) -> None:
    """A cable may have a bridge to the left, a MAC address to the right, both, or neither."""
    mac = "02:00:00:00:0a:{:02x}".format
    subhost.boot(f"CABLES= {bridge}= ={mac(1)}   {bridge}={mac(2)} =")
    masters = [f"master {bridge}" in link(subhost, f"{subhost.name}{n}") for n in range(4)]
    assert masters == [True, False, True, False]
    addresses = [subhost.interfaces()[f"eth{n}"][0] for n in range(4)]
    assert addresses[1:3] == [mac(1), mac(2)] and not {*addresses[::3]} & {mac(1), mac(2)}


@clause("cables-spec")
def test_a_cable_has_an_equal_sign(subhost: Subhost) -> None:
    """A word of CABLES without an equal sign makes no cable."""
    subhost.start("CABLES= x")
    assert subhost.settled() and not link(subhost, f"{subhost.name}0")


@clause("cables-up")
def test_a_host_end_in_a_bridge_is_up(subhost: Subhost, bridge: str) -> None:
    """The host end of a cable in a bridge is up without anyone setting it up."""
    subhost.boot(f"CABLES= {bridge}=")
    assert ",UP" in link(subhost, f"{subhost.name}0")


@clause("cables-mac-kernel")
def test_without_an_address_the_kernel_chooses(subhost: Subhost) -> None:
    """Without a MAC address in CABLES each end in the subhost has one of its own, for a single
    interface."""
    subhost.boot("CABLES= = =")
    found = [subhost.interfaces()[f"eth{n}"][0] for n in range(2)]
    assert found[0] != found[1]
    assert [int(address[:2], 16) & 3 for address in found] == [2, 2]


@clause("cables-mac-stable")
def test_a_stable_address_is_the_same_at_every_start(subhost: Subhost) -> None:
    """Three starts give each cable the same address, and each cable another one."""
    found = []
    for _ in range(3):
        subhost.boot("CABLES= =stable =stable")
        found.append([subhost.interfaces()[f"eth{n}"][0] for n in range(2)])
        subhost.stop()
    assert found[0] == found[1] == found[2] and found[0][0] != found[0][1]
    assert [int(address[:2], 16) & 3 for address in found[0]] == [2, 2]


@clause("cables-bridge-mac", "cables-bridge-mtu")
@pytest.mark.parametrize("kind", ["empty", "with a port", "jumbo", "empty jumbo"])
def test_a_bridge_keeps_its_address_and_mtu(subhost: Subhost, bridge: str, kind: str) -> None:
    """A bridge keeps its address and MTU, without ports and with one that has a high address or
    large frames, through two starts and ends of a subhost with three cables."""
    port = f"{subhost.name}p"
    if "port" in kind or kind == "jumbo":
        mtu = "mtu 9000" if kind == "jumbo" else ""
        subhost.prepare_host(
            f"ip link add {port} address f2:00:00:00:00:01 {mtu} type veth peer name {port}x && "
            f"ip link set {port} master {bridge} up && ip link set {port}x up"
        )
    if kind == "empty jumbo":
        subhost.prepare_host(f"ip link set {bridge} mtu 9000")
    look = f"cat /sys/class/net/{bridge}/address /sys/class/net/{bridge}/mtu"
    before = subhost.host.run(look).stdout
    try:
        for _ in range(2):
            subhost.boot(f"CABLES= {bridge}= {bridge}=02:00:00:00:00:01 {bridge}=stable")
            assert subhost.host.run(look).stdout == before
            mtu = before.split()[1]
            ends = subhost.on_host(
                f"ip -n {subhost.name} link show eth1; ip link show {subhost.name}1"
            )
            assert ends.out.count(f"mtu {mtu} ") == 2, ends
            subhost.stop()
            assert subhost.wait(f"[ ! -e /sys/class/net/{subhost.name}0 ]")
            assert subhost.host.run(look).stdout == before
    finally:
        subhost.on_host(f"ip link delete {port}")


@clause("cables-taken")
@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_an_interface_that_has_a_cables_name(subhost: Subhost, kind: str) -> None:
    """A boot names the interface that has the cable's name already in one line, and it is
    still the same interface afterwards."""
    name = f"{subhost.name}1"
    subhost.prepare_host(f"ip link add {name} type {kind}")
    try:
        before = link(subhost, name).split(":")[0]
        done = subhost.start("CABLES= = =")
        one_line(done, 1, name)
        assert link(subhost, name).split(":")[0] == before
        assert subhost.settled() and not link(subhost, f"{subhost.name}0")
    finally:
        subhost.on_host(f"ip link delete {name}")


@clause("cables-bridge-missing")
def test_a_missing_bridge_is_an_error(subhost: Subhost) -> None:
    """A bridge that does not exist fails the boot in one line that names it."""
    done = subhost.start("CABLES= nobridge=")
    one_line(done, (1, 2), "nobridge")
    assert not link(subhost, f"{subhost.name}0")


@clause("cables-ifup")
@pytest.mark.usefixtures("interfaces")
def test_ifup_is_tried_without_a_bridge(subhost: Subhost) -> None:
    """The main host's stanza for the host end of a cable without a bridge is brought up."""
    trace = subhost.stanza(f"{subhost.name}0")
    subhost.boot("CABLES= =")
    assert subhost.wait(f"[ -s {trace} ]")


@clause("cables-bridge-only")
@pytest.mark.usefixtures("interfaces")
def test_ifup_is_not_tried_on_a_cable_with_a_bridge(subhost: Subhost, bridge: str) -> None:
    """The stanza of a host end in a bridge is passed over; that of a cable without a bridge is
    not."""
    traces = [subhost.stanza(f"{subhost.name}{number}") for number in range(2)]
    subhost.boot(f"CABLES= {bridge}= =")
    assert subhost.wait(f"[ -s {traces[1]} ]")
    assert not subhost.host.file(traces[0]).exists


@clause("cables-no-entry")
@pytest.mark.parametrize("installed", [True, False])
def test_without_a_stanza_the_host_end_is_set_up(subhost: Subhost, installed: bool) -> None:
    """A host end without a stanza is up, and the log says that there was no more to do; so it
    is where there is no ifup."""
    subhost.write("CABLES= =")
    hide = "" if installed else "mount -t overlay -o lowerdir=$at,upperdir=up,workdir=wk hide $at"
    done = subhost.on_host(
        f"""cd {subhost.folder} && mkdir up wk && mknod up/ifup c 0 0 || exit  # a whiteout
        at=$(dirname "$(realpath "$(command -v ifup || echo /sbin/ifup)")")
        unshare --mount sh -ec '{hide.replace("$at", "'$at'")}
        exec overlay-boot {subhost.conf}' < /dev/null""",
        timeout=60,
    )
    assert done.status == 0 and subhost.up(), done
    assert ",UP" in link(subhost, f"{subhost.name}0")
    said = subhost.target.read(subhost.log)
    assert re.search(rf"\b{subhost.name}0\b.*\b(ifup|entry|only|unknown)\b", said), said


@clause("cables-ifup-again")
@pytest.mark.usefixtures("interfaces")
def test_ifup_is_tried_again_at_the_next_start(subhost: Subhost) -> None:
    """What ifupdown remembers of the last start does not keep the next one from being up."""
    trace = subhost.stanza(f"{subhost.name}0")
    for _ in range(2):
        subhost.boot("CABLES= =")
        assert subhost.wait(f"[ -s {trace} ]")
        subhost.stop()
        assert subhost.wait(f"[ ! -e /sys/class/net/{subhost.name}0 ]")
        subhost.on_host(f"rm {trace}")


@clause("stop-waits")
@pytest.mark.usefixtures("interfaces")
def test_stop_waits_for_the_host_ends_own_ending(subhost: Subhost) -> None:
    """When overlay-stop returns all is gone, however long the stanza's down command takes."""
    subhost.stanza(f"{subhost.name}0", "down sleep 0.5")
    subhost.boot("CABLES= =")
    name = subhost.name
    left = f"ls -d /run/netns/{name} /sys/class/net/{name}0 /run/overlay-boot/{name} 2> /dev/null"
    done = subhost.on_host(f"overlay-stop {name} || echo failed; {left}")
    assert done.out == "", done


@clause("interfaces-file")
@pytest.mark.usefixtures("interfaces")
def test_a_sourced_file_beside_the_configuration(subhost: Subhost) -> None:
    """A source line brings in the stanzas of a file beside the configuration file."""
    trace = f"{subhost.folder}/up"
    subhost.put(
        "interfaces", f"iface {subhost.name}0 inet manual\n    up echo up > {trace}\n", 0o644
    )
    subhost.prepare_host(f"echo source {subhost.folder}/interfaces >> /etc/network/interfaces")
    subhost.boot("CABLES= =")
    assert subhost.wait(f"[ -s {trace} ]")


@clause("vlan", "vlan-name", "vlan-ifup")
@pytest.mark.usefixtures("vlans", "interfaces")
def test_a_tag_makes_a_vlan_interface_by_its_stanza(subhost: Subhost) -> None:
    """The tag .302 makes NAME0.302, which is VLAN 302 on NAME0 and is brought up by ifup with
    the main host's entry."""
    trace = subhost.stanza(f"{subhost.name}0.302")
    subhost.boot("CABLES= = =.302")
    assert subhost.wait(f"[ -s {trace} ]")
    said = link(subhost, f"{subhost.name}0.302")
    assert "vlan protocol 802.1Q id 302" in said and f".302@{subhost.name}0:" in said


@clause("vlan-subhost")
@pytest.mark.usefixtures("vlans")
def test_a_tag_makes_nothing_in_the_subhost(subhost: Subhost) -> None:
    """A subhost with a tag has its eth0 and lo, and no VLAN interface."""
    subhost.boot("CABLES= = =.302")
    assert sorted(subhost.interfaces()) == ["eth0", "lo"]


@clause("vlan-carrier")
@pytest.mark.usefixtures("vlans", "interfaces")
def test_tags_in_a_row_share_a_cable(subhost: Subhost) -> None:
    """`= =.10 =.20` puts both VLANs on NAME0."""
    traces = [subhost.stanza(f"{subhost.name}0.{tag}") for tag in (10, 20)]
    subhost.boot("CABLES= = =.10 =.20")
    assert subhost.wait(" && ".join(f"[ -s {trace} ]" for trace in traces))
    for tag in (10, 20):
        said = link(subhost, f"{subhost.name}0.{tag}")
        assert f".{tag}@{subhost.name}0:" in said and f"id {tag} " in said


@clause("vlan-made", "vlan-number")
@pytest.mark.usefixtures("vlans")
def test_vlans_need_no_entry_and_use_up_no_number(subhost: Subhost) -> None:
    """`= =.302 =` makes NAME0, NAME0.302 and NAME1, all up."""
    subhost.boot("CABLES= = =.302 =")
    for name in ("0", "0.302", "1"):
        assert ",UP" in link(subhost, f"{subhost.name}{name}"), name
    assert not link(subhost, f"{subhost.name}2")


@clause("vlan-range")
@pytest.mark.usefixtures("vlans", "interfaces")
@pytest.mark.parametrize("tag", [1, 4094])
def test_the_range_of_tags(subhost: Subhost, tag: int) -> None:
    """The first and the last tag that the kernel takes make a VLAN."""
    trace = subhost.stanza(f"{subhost.name}0.{tag}")
    subhost.boot(f"CABLES= = =.{tag}")
    assert subhost.wait(f"[ -s {trace} ]")
    assert f"id {tag} " in link(subhost, f"{subhost.name}0.{tag}")


@clause("vlan-bridge")
@pytest.mark.usefixtures("vlans", "interfaces")
def test_a_vlan_in_a_bridge(subhost: Subhost, bridge: str) -> None:
    """With a bridge to the left the VLAN interface is a port of it."""
    subhost.stanza(f"{subhost.name}0.302")
    subhost.boot(f"CABLES= = {bridge}=.302")
    assert subhost.wait(f"ip link show {subhost.name}0.302 | grep -q 'master {bridge} '")


@clause("vlan-subhost-end")
@pytest.mark.usefixtures("vlans", "interfaces")
def test_the_subhost_sets_up_its_end_of_a_vlan(subhost: Subhost) -> None:
    """A VLAN interface that the subhost makes on its eth0 reaches the main host's."""
    trace = subhost.stanza(f"{subhost.name}0.302")
    subhost.boot("CABLES= = =.302")
    assert subhost.wait(f"[ -s {trace} ]")
    if subhost.target.run("command -v ping").status:
        precondition("the target has no ping")
    inside = f"ip netns exec {subhost.name} ip"
    subhost.prepare_host(
        f"""{inside} link add link eth0 name eth0.302 type vlan id 302
        {inside} link set eth0 up; {inside} link set eth0.302 up
        {inside} address add 192.0.2.2/30 dev eth0.302
        ip link set {subhost.name}0 up; ip link set {subhost.name}0.302 up
        ip address add 192.0.2.1/30 dev {subhost.name}0.302"""
    )
    assert subhost.wait("ping -c 1 -W 1 192.0.2.2")


@clause("files-netns")
@pytest.mark.parametrize("how", ["stop", "its own"])
def test_the_name_of_the_namespace_goes_with_the_subhost(subhost: Subhost, how: str) -> None:
    """/run/netns/NAME is there while the subhost runs, and gone once it has been stopped or has
    come to its own end."""
    subhost.boot()
    name = f"/run/netns/{subhost.name}"
    assert subhost.host.file(name).exists
    if how == "stop":
        subhost.stop()
    else:
        assert subhost.runs("dummy_service")
        subhost.end_by_itself()
    assert subhost.wait(f"[ ! -e {name} ]"), f"{name} is still there though nothing is at work"
