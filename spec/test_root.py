"""ROOT FILE SYSTEM: the three kinds of root, and the namespaces."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.subhost import TINY, Subhost


@clause("boot-overlay", "root-overlay", "lower", "upper", "ns-mount")
def test_the_root_is_an_overlay(subhost: Subhost) -> None:
    """The root is UPPER over LOWER, as an overlay, in a mount namespace of its own."""
    subhost.boot()
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] == "overlay"
    assert subhost.inside("ls /bin") == subhost.target.run(f"ls {TINY}/bin").out
    assert subhost.namespace("mnt") != subhost.namespace("mnt", main_host=True)


@clause("boot-inherits", "lower-default")
def test_by_default_the_main_hosts_root_lies_under_it(subhost: Subhost) -> None:
    """What the main host has is there in the subhost."""
    subhost.boot(omit=("LOWER",))
    said = subhost.inside("cat /etc/os-release; ls -i /etc/os-release")
    assert subhost.target.read("/etc/os-release") in said


@clause("boot-private", "lower-readonly", "upper-kept", "end-restart")
def test_changes_stay_in_upper_and_are_there_again(subhost: Subhost) -> None:
    """LOWER is only read, and UPPER keeps what was made, changed and deleted, over a restart."""
    lower = subhost.fill("lower")
    subhost.put("lower/changed", "old\n")
    subhost.put("lower/deleted", "old\n")
    before = subhost.target.run(
        f"cd {lower} && find . | sort | xargs ls -ld --time-style=full-iso"
    ).out
    subhost.boot(f"LOWER= {lower}")
    subhost.inside("echo new > /made; echo new > /changed; rm /deleted")
    after = subhost.target.run(
        f"cd {lower} && find . | sort | xargs ls -ld --time-style=full-iso"
    ).out
    assert after == before
    subhost.stop()
    subhost.boot(f"LOWER= {lower}")
    assert subhost.inside("cat /made /changed; [ -e /deleted ] || echo gone") == "new\nnew\ngone\n"


@clause("root-upper-wins")
def test_upper_is_seen_where_both_have_a_file(subhost: Subhost) -> None:
    """UPPER's file hides LOWER's, and what only LOWER has is there."""
    lower = subhost.fill("lower")
    subhost.put("lower/etc/which", "lower\n")
    subhost.put("lower/etc/other", "lower\n")
    subhost.put("root/etc/which", "upper\n")
    subhost.boot(f"LOWER= {lower}")
    assert subhost.inside("cat /etc/which /etc/other") == "upper\nlower\n"


@clause("work-unused")
def test_without_an_overlay_no_work_is_needed(subhost: Subhost) -> None:
    """A bind mounted root needs no folder for WORK."""
    text = subhost.of_kind("bind")
    subhost.on_host(f"rmdir {subhost.folder}/work")
    subhost.boot(text)


@clause("root-bind", "lower-equal")
def test_upper_that_is_lower_is_bind_mounted(subhost: Subhost) -> None:
    """Where UPPER is LOWER the root is UPPER itself, not an overlay."""
    subhost.boot(subhost.of_kind("bind"))
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] != "overlay"
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"
    assert subhost.target.run(f"ls -A {subhost.folder}/live").out == ""


@clause("root-plain")
def test_one_folder_for_all_three_is_the_root_as_it_is(subhost: Subhost) -> None:
    """The files of a plain root are the folder's own."""
    subhost.boot(subhost.of_kind("plain"))
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] != "overlay"
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"


@clause("root-plain")
def test_a_mounted_folder_for_all_three(subhost: Subhost) -> None:
    """A LIVE that the user has mounted is the root, with that mount."""
    subhost.prepare_host(f"mount -t tmpfs mine {subhost.folder}/root")
    subhost.boot(subhost.of_kind("plain"))
    assert subhost.inside("grep ' / ' /proc/mounts").split()[:3] == ["mine", "/", "tmpfs"]
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"


@clause("ns-pid")
def test_the_pid_namespace_is_its_own(subhost: Subhost) -> None:
    """The subhost's pid 1 is another process for the main host."""
    subhost.boot()
    assert subhost.pid1() != 1
    assert subhost.namespace("pid") != subhost.namespace("pid", main_host=True)


@clause("proc-own")
def test_proc_shows_its_own_processes_only(subhost: Subhost) -> None:
    """The subhost has a /proc that fits its pid namespace."""
    subhost.boot()
    assert subhost.inside("cat /proc/1/comm") == ".reaper\n"
    assert len(subhost.inside("ls -d /proc/[0-9]*").split()) < 9


@clause("ns-net", "cables-default")
def test_the_network_is_its_own(subhost: Subhost) -> None:
    """The subhost has a network namespace of its own, with lo and nothing else."""
    subhost.boot()
    assert subhost.namespace("net") != subhost.namespace("net", main_host=True)
    interfaces = subhost.interfaces()
    assert list(interfaces) == ["lo"]


@clause("netns-lo")
def test_lo_is_up(subhost: Subhost) -> None:
    """The loopback interface is up without any service of the subhost's."""
    subhost.boot()
    assert "UP" in subhost.interfaces()["lo"][1]


@clause("mounts-hidden")
def test_the_main_hosts_mount_table_does_not_show_it(subhost: Subhost) -> None:
    """No mount of the subhost's root is seen on the main host."""
    subhost.boot()
    assert f" {subhost.folder}/live" not in subhost.target.read("/proc/self/mounts")


@clause("pid1-pivot")
def test_no_path_leads_back_to_the_main_host(subhost: Subhost) -> None:
    """Nothing of the main host's mounts is in the subhost's table, and /.. is /."""
    subhost.boot()
    table = subhost.target.read(f"/proc/{subhost.pid1()}/mountinfo")
    points = {line.split()[4] for line in table.splitlines()}
    assert {point.split("/")[1] for point in points} <= {
        "",
        "dev",
        "proc",
        "run",
        "sys",
        ".reaper",
    }
    ids = subhost.inside("stat -c %i / /.. /proc/1/root/../.. /proc/1/cwd/../../..").split()
    pid = subhost.pid1()
    bottom = subhost.on_host(f"nsenter --mount --target {pid} stat -c %i /").out.split()
    root = subhost.on_host(f"stat -Lc %i /proc/{pid}/root").out.split()
    assert {*ids} == {*bottom} == {*root} and len(root) == 1


WORLDS = {
    "a mount": "mount --rbind / {0} && mount --make-rprivate {0}",
    "a folder": """set -e
        for there in /*; do
            world={0}$there
            if [ -L $there ]; then cp -a $there $world; continue; fi
            [ -d $there ] || continue
            mkdir $world && mount --rbind $there $world && mount --make-rprivate $world
        done""",
}


@clause("pid1-chroot")
@pytest.mark.parametrize("kind", WORLDS)
def test_what_is_around_a_chroot_is_not_reached(subhost: Subhost, kind: str) -> None:
    """Where overlay-boot and overlay-go run in a chroot(2), be its root a mount or not, neither a
    command of overlay-go nor a process that enters the mount namespace of pid 1 from inside comes
    to what is around that."""
    world = f"{subhost.folder}/world"
    subhost.prepare_host(f"mkdir {world} && touch {world}/../root/own")
    subhost.prepare_host(WORLDS[kind].format(world))
    subhost.write()
    inside = f"chroot {world} overlay-go {subhost.name}"
    done = subhost.on_host(f"chroot {world} overlay-boot {subhost.conf} < /dev/null")
    assert done.status == 0 and subhost.up(), done
    for enter in ("", "nsenter -t 1 -m"):
        done = subhost.on_host(f"{inside} {enter} /bin/ls /own")
        assert done.out == "/own\n", done
    assert subhost.on_host(f"chroot {world} overlay-stop {subhost.name}").status == 0


@clause("mounts-private")
def test_later_mounts_do_not_cross(subhost: Subhost) -> None:
    """What either side mounts after the boot does not appear on the other."""
    subhost.put("shared/.x", "")
    subhost.boot(f"SHARE= {subhost.folder}/shared:/srv/shared")
    subhost.prepare_host(f"mount -t tmpfs outside {subhost.folder}/shared")
    try:
        assert "outside" not in subhost.inside("cat /proc/mounts")
        assert subhost.inside("mount -t tmpfs inside /srv && echo done") == "done\n"
        assert "inside /" not in subhost.target.read("/proc/self/mounts")
    finally:
        subhost.target.run(f"umount {subhost.folder}/shared")


@clause("ns-ipc", "ns-uts")
def test_ipc_and_uts_namespaces(subhost: Subhost) -> None:
    """The ipc and uts namespaces are the subhost's own, and its host name is NAME."""
    subhost.boot()
    for kind in ("ipc", "uts"):
        assert subhost.namespace(kind) != subhost.namespace(kind, main_host=True)
    assert subhost.inside("hostname") == f"{subhost.name}\n"


@clause("ns-shared")
def test_users_are_the_main_hosts(subhost: Subhost) -> None:
    """There is no namespace of the subhost's own for users."""
    subhost.boot()
    assert subhost.namespace("user") == subhost.namespace("user", main_host=True)


@clause("root-layers")
def test_a_subhost_can_walk_through_its_whole_root(subhost: Subhost) -> None:
    """A subhost whose UPPER and WORK lie below LOWER can walk through its whole root; the
    folder around them keeps its mode and owner, and a boot that fails leaves nothing of it in
    UPPER."""
    lower = subhost.fill("lower")
    subhost.prepare_host(
        f"cd {lower} && mkdir -p s/of/root s/of/work && chown 12:34 s && chmod 751 s"
    )
    layers = f"LOWER= {lower}\nUPPER= {lower}/s/of/root\nWORK= {lower}/s/of/work"
    assert subhost.start(f"{layers}\nPOSTMOUNT= /bin/false").status == 1
    assert subhost.on_host(f"ls -A {lower}/s/of/root").out == ""
    for _ in range(2):
        subhost.boot(layers)
        assert subhost.inside("stat -c '%a %u %g' /s") == "751 12 34\n"
        assert subhost.inside("find /s 2>&1 | sort").split() == [
            f"/s{path}" for path in ("", "/of", "/of/root", "/of/work")
        ]
        assert subhost.inside("tar cf /dev/null /s 2> /dev/null; echo $?") == "0\n"
        subhost.inside("mkdir -p /s/of/root/made; rm -r /s/of/root/made")
        subhost.stop()
