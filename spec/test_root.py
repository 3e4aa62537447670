"""ROOT FILE SYSTEM: the three kinds of root, the hooks around them, what they set up, SHARE."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.subhost import TINY, Subhost


def fill(subhost: Subhost, folder: str) -> str:
    """Copy the tiny root into a folder of the subhost's, made if missing; its path."""
    path = f"{subhost.folder}/{folder}"
    subhost.target.succeed(f"mkdir -p {path} && cp -a {TINY}/. {path}/", timeout=60)
    return path


KINDS = {
    "overlay": "",
    "bind": "UPPER= {0}/root\nLOWER= {0}/root",
    "plain": "UPPER= {0}/root\nLOWER= {0}/root\nLIVE= {0}/root",
}


def of_kind(subhost: Subhost, kind: str) -> str:
    """The configuration for a kind of root."""
    if kind != "overlay":
        fill(subhost, "root")
    return KINDS[kind].format(subhost.folder)


@clause("boot-overlay", "root-overlay", "lower", "upper", "ns-mount")
def test_the_root_is_an_overlay(subhost: Subhost) -> None:
    """UPPER over LOWER, as an overlay, in a mount namespace of its own."""
    subhost.boot()
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] == "overlay"
    assert subhost.inside("ls /bin") == subhost.target.run(f"ls {TINY}/bin").out
    assert subhost.target.run(f"readlink /proc/{subhost.pid1()}/ns/mnt").out != (
        subhost.target.run("readlink /proc/self/ns/mnt").out
    )


@clause("boot-inherits", "lower-default")
def test_by_default_the_main_hosts_root_lies_under_it(subhost: Subhost) -> None:
    """What the main host has is there in the subhost."""
    subhost.boot("LOWER= ")
    said = subhost.inside("cat /etc/os-release; ls -i /etc/os-release")
    assert subhost.target.read("/etc/os-release") in said


@clause("boot-private", "lower-readonly", "upper-kept", "end-restart")
def test_changes_stay_in_upper_and_are_there_again(subhost: Subhost) -> None:
    """LOWER is only read; UPPER keeps what was made, changed and deleted, over a restart."""
    lower = fill(subhost, "lower")
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
    lower = fill(subhost, "lower")
    subhost.put("lower/etc/which", "lower\n")
    subhost.put("lower/etc/other", "lower\n")
    subhost.put("root/etc/which", "upper\n")
    subhost.boot(f"LOWER= {lower}")
    assert subhost.inside("cat /etc/which /etc/other") == "upper\nlower\n"


@clause("root-bind", "lower-equal", "work-unused")
def test_upper_that_is_lower_is_bind_mounted(subhost: Subhost) -> None:
    """The root is UPPER itself, not an overlay, and WORK is not needed."""
    text = of_kind(subhost, "bind")
    subhost.run(f"rmdir {subhost.folder}/work")
    subhost.boot(text)
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] != "overlay"
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"
    assert subhost.target.run(f"ls -A {subhost.folder}/live").out == ""


@clause("root-plain")
def test_one_folder_for_all_three_is_the_root_as_it_is(subhost: Subhost) -> None:
    """Its files are the folder's own."""
    subhost.boot(of_kind(subhost, "plain"))
    assert subhost.inside("grep ' / ' /proc/mounts").split()[2] != "overlay"
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"


@clause("root-plain")
def test_a_mounted_folder_for_all_three(subhost: Subhost) -> None:
    """A LIVE that the user has mounted is the root, with that mount."""
    subhost.target.succeed(f"mount -t tmpfs mine {subhost.folder}/root")
    subhost.boot(of_kind(subhost, "plain"))
    assert subhost.inside("grep ' / ' /proc/mounts").split()[:3] == ["mine", "/", "tmpfs"]
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"


def spy(subhost: Subhost, name: str, then: str = "") -> str:
    """A hook that writes down how it was run, all at once; its path."""
    return subhost.put(
        name,
        f"""#!/bin/sh
{{  echo "arguments=$*"; env; echo "mounts=$(readlink /proc/self/ns/mnt)"
    echo "root=$(stat -c %i /)"; grep -c ' {subhost.folder}/live ' /proc/mounts
}} > {subhost.folder}/{name}.part
mv {subhost.folder}/{name}.part {subhost.folder}/{name}.ran
{then}
""",
    )


@clause("premount", "premount-kinds", "premount-not-plain", "postmount", "postmount-always")
@pytest.mark.parametrize("kind", KINDS)
def test_which_hooks_run_for_which_root(subhost: Subhost, kind: str) -> None:
    """PREMOUNT before an overlay or bind mount and not for a plain root; POSTMOUNT for all."""
    pre = spy(subhost, "pre")
    post = spy(subhost, "post")
    subhost.start(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}\n{of_kind(subhost, kind)}")
    assert subhost.wait(f"[ -s {subhost.folder}/post.ran ]", 20)
    before, after = (
        subhost.target.read(f"{subhost.folder}/{name}.ran") for name in ("pre", "post")
    )
    if kind == "plain":
        assert before == ""
    else:
        assert before.splitlines()[-1] == "0" and after.splitlines()[-1] == "1"


@clause("premount-config", "premount-namespace", "postmount-config", "postmount-namespace")
def test_where_hooks_run(subhost: Subhost) -> None:
    """In the subhost's mount namespace, with the main host's root, CONFIG in the environment."""
    pre, post = spy(subhost, "pre"), spy(subhost, "post")
    subhost.start(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}")
    assert subhost.wait(f"[ -s {subhost.folder}/post.ran ]", 20)
    mine = subhost.target.run("readlink /proc/self/ns/mnt; stat -c %i /").out.split()
    for name in ("pre", "post"):
        said = subhost.target.read(f"{subhost.folder}/{name}.ran").splitlines()
        assert f"CONFIG={subhost.conf}" in said and f"root={mine[1]}" in said
        assert f"mounts={mine[0]}" not in said


@clause("premount-arguments", "postmount-arguments", "hooks-environment", "hooks-callable")
def test_what_hooks_get(subhost: Subhost) -> None:
    """UPPER, or LIVE and UPPER, as arguments; all variables; the default hooks to call."""
    pre = spy(subhost, "pre", 'exec overlay-premount "$@"')
    post = spy(subhost, "post", 'exec overlay-postmount "$@"')
    init = spy(subhost, "init", "exec overlay-init")
    subhost.boot(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}\nINIT= {init}\nCABLES= =\nRAM_SIZE= 3M")
    live, upper = f"{subhost.folder}/live", f"{subhost.folder}/root"
    for name, arguments in (("pre", upper), ("post", f"{live} {upper}"), ("init", "")):
        said = subhost.target.read(f"{subhost.folder}/{name}.ran").splitlines()
        assert said[0] == f"arguments={arguments}"
        for setting in (
            f"NAME={subhost.name}",
            f"BASE={subhost.folder}",
            "CABLES==",
            f"INIT={init}",
            f"LIVE={live}",
            f"LOG={subhost.log}",
            f"LOWER={TINY}",
            f"POSTMOUNT={post}",
            f"PREMOUNT={pre}",
            "RAM_SIZE=3M",
            "START=none",
            f"UPPER={upper}",
            f"WORK={subhost.folder}/work",
        ):
            assert setting in said, f"{name} has no {setting}"


@clause("hooks-fail", "boot-failure", "boot-undo", "status-1")
@pytest.mark.parametrize("hook", ["PREMOUNT", "POSTMOUNT", "INIT"])
def test_a_hook_that_fails_fails_the_boot(subhost: Subhost, hook: str) -> None:
    """One line that names it, status 1, and nothing of the boot is left."""
    before = subhost.target.run(f"ls -AR {subhost.folder}/root {subhost.folder}/work").out
    failing = subhost.put("fails", "#!/bin/sh\nexit 5\n")
    done = subhost.start(f"{hook}= {failing}\nCABLES= =\nSHARE= /etc:/new/etc")
    assert done.status == 1 and done.err.count("\n") == 1 and failing in done.err, done
    assert subhost.wait(f"[ ! -e /sys/class/net/{subhost.name}0 ]")
    assert not subhost.target.exists(f"/run/netns/{subhost.name}")
    after = subhost.target.run(f"ls -AR {subhost.folder}/root {subhost.folder}/work").out
    assert after == before


@clause("premount-default")
def test_the_default_premount_keeps_the_hosts_network_setup_out(subhost: Subhost) -> None:
    """UPPER gets an interfaces(5) file of its own, whatever the main host has."""
    subhost.boot()
    text = subhost.target.read(f"{subhost.folder}/root/etc/network/interfaces")
    assert "iface lo inet loopback" in text


@clause("premount-interfaces")
def test_premount_gives_upper_an_interfaces_file(subhost: Subhost) -> None:
    """lo, and a manual stanza for each cable; the VLANs are not the subhost's."""
    subhost.boot("CABLES= = =")
    text = subhost.target.read(f"{subhost.folder}/root/etc/network/interfaces")
    stanzas = [line.split() for line in text.splitlines() if line.startswith("iface ")]
    assert stanzas == [
        ["iface", "lo", "inet", "loopback"],
        ["iface", "eth0", "inet", "manual"],
        ["iface", "eth1", "inet", "manual"],
    ]


@clause("premount-interfaces-kept")
def test_an_interfaces_file_is_left_alone(subhost: Subhost) -> None:
    """One that UPPER has already stays as it is."""
    subhost.put("root/etc/network/interfaces", "# mine\n")
    subhost.boot("CABLES= =")
    assert subhost.target.read(f"{subhost.folder}/root/etc/network/interfaces") == "# mine\n"


@clause("postmount-default")
def test_the_default_postmount_makes_the_root_usable(subhost: Subhost) -> None:
    """With it there are devices, and a reaper for pid 1 to become."""
    subhost.boot()
    assert (
        subhost.inside("echo gone > /dev/null; ls /.reaper /dev/null") == "/.reaper\n/dev/null\n"
    )


@clause("dev-private", "dev-nodes", "dev-pts", "dev-shm", "dev-links")
def test_dev(subhost: Subhost) -> None:
    """A tmpfs with working devices, its own pts and shm, and the links."""
    subhost.boot()
    mounts = {m.split()[1]: m.split() for m in subhost.inside("cat /proc/mounts").splitlines()}
    assert mounts["/dev"][2] == mounts["/dev/shm"][2] == "tmpfs"
    assert mounts["/dev/pts"][2] == "devpts" and "ptmxmode=666" in mounts["/dev/pts"][3]
    said = subhost.inside(
        """cd /dev; echo x > null; head -c 3 zero | od -An -tx1; (echo x > full) 2>&1 | grep -o 'No space'; head -c 4 random | wc -c
        head -c 5 urandom | wc -c; stat -c '%n %t,%T' tty console; [ -c ptmx ] && echo ptmx
        stat -c %a shm; ls pts; readlink fd; readlink stdin; readlink stdout; readlink stderr"""
    ).split("\n")
    assert said[:6] == [" 00 00 00", "No space", "4", "5", "tty 5,0", "console 5,1"]
    assert said[6:9] == ["ptmx", "1777", "ptmx"]
    assert said[9:13] == ["/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3))]


@clause("proc-own", "ns-pid")
def test_proc_shows_its_own_processes_only(subhost: Subhost) -> None:
    """A pid namespace of its own, with a /proc that fits it."""
    subhost.boot()
    assert subhost.inside("cat /proc/1/comm") == ".reaper\n"
    assert len(subhost.inside("ls -d /proc/[0-9]*").split()) < 9


@clause("ns-net", "netns-lo", "cables-default")
def test_the_network_is_its_own_with_lo_up(subhost: Subhost) -> None:
    """A network namespace of its own, with lo, up, and nothing else."""
    subhost.boot()
    assert subhost.target.run(f"readlink /proc/{subhost.pid1()}/ns/net").out != (
        subhost.target.run("readlink /proc/self/ns/net").out
    )
    interfaces = subhost.interfaces()
    assert list(interfaces) == ["lo"] and "UP" in interfaces["lo"][1]


@clause("sys-own")
def test_sys_shows_its_own_network_and_is_read_only(subhost: Subhost) -> None:
    """No interface of the main host is in /sys, and it cannot be written."""
    subhost.boot()
    assert subhost.inside("ls /sys/class/net") == "lo\n"
    assert " ro" in subhost.inside("grep ' /sys ' /proc/mounts")


@clause("ram-size")
def test_ram_size(subhost: Subhost) -> None:
    """The size of the tmpfs on /run."""
    subhost.boot("RAM_SIZE= 7M")
    run = subhost.inside("grep ' /run ' /proc/mounts").split()
    assert run[2] == "tmpfs" and "size=7168k" in run[3]


@clause("ram-size-default", "run-lock")
def test_ram_size_by_default(subhost: Subhost) -> None:
    """50M, with a /run/lock that everyone may write."""
    subhost.boot()
    assert "size=51200k" in subhost.inside("grep ' /run ' /proc/mounts")
    assert subhost.inside("stat -c %a /run/lock") == "1777\n"


@clause("ram-size-none")
def test_ram_size_none(subhost: Subhost) -> None:
    """Nothing is mounted on /run."""
    subhost.put("root/run/mine", "")
    subhost.boot("RAM_SIZE= none")
    assert "/run/mine\n" in subhost.inside("ls /run/mine; grep ' /run ' /proc/mounts")
    assert subhost.inside("grep -c ' /run ' /proc/mounts") == "0\n"


@clause("reaper-installed", "reaper-static", "reaper-unchanged")
def test_the_reaper_is_a_static_program_put_in_place_once(subhost: Subhost) -> None:
    """/.reaper runs without the subhost's libraries, and is not written again."""
    subhost.boot()
    text = subhost.target.run(f"grep -c ld-linux {subhost.folder}/root/.reaper").out
    assert text == "0\n"
    stamp = f"stat -c '%i %y' {subhost.folder}/root/.reaper"
    before = subhost.target.run(stamp).out
    subhost.stop()
    subhost.boot()
    assert subhost.target.run(stamp).out == before != ""


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
    bottom = subhost.run(f"nsenter --mount --target {pid} stat -c %i /").out.split()
    root = subhost.run(f"stat -Lc %i /proc/{pid}/root").out.split()
    assert {*ids} == {*bottom} == {*root} and len(root) == 1


@clause("mounts-private")
def test_later_mounts_do_not_cross(subhost: Subhost) -> None:
    """What either side mounts after the boot does not appear on the other."""
    subhost.put("shared/.x", "")
    subhost.boot(f"SHARE= {subhost.folder}/shared:/srv/shared")
    subhost.target.succeed(f"mount -t tmpfs outside {subhost.folder}/shared")
    try:
        assert "outside" not in subhost.inside("cat /proc/mounts")
        assert subhost.inside("mount -t tmpfs inside /srv && echo done") == "done\n"
        assert "inside /" not in subhost.target.read("/proc/self/mounts")
    finally:
        subhost.target.succeed(f"umount {subhost.folder}/shared")


@clause("share", "share-many", "share-mountpoint")
def test_shares_are_seen_by_both(subhost: Subhost) -> None:
    """Every SHARE has the same folder on both sides; mount points are made in UPPER."""
    lower = fill(subhost, "lower")
    for name in ("one", "two"):
        subhost.put(f"lower/srv/{name}/from", "host\n")
    # 1.6 looks a single path up on the main host, 1.2 under LOWER: here they are the same.
    subhost.target.succeed(
        f"mkdir -p /srv/{subhost.name} && mount --bind {lower}/srv /srv/{subhost.name}"
    )
    try:
        subhost.target.succeed(
            f"mkdir -p {lower}/srv/{subhost.name} && mount --bind {lower}/srv {lower}/srv/{subhost.name}"
        )
        subhost.boot(
            f"LOWER= {lower}\nSHARE= /srv/{subhost.name}/one\nSHARE= /srv/{subhost.name}/two"
        )
        inside = f"/srv/{subhost.name}"
        assert subhost.inside(
            f"cat {inside}/one/from {inside}/two/from; echo sub > {inside}/two/new"
        ) == ("host\nhost\n")
        assert subhost.target.read(f"{lower}/srv/two/new") == "sub\n"
    finally:
        subhost.stop()
        subhost.target.run(
            f"umount {lower}/srv/{subhost.name}; umount /srv/{subhost.name}; rmdir /srv/{subhost.name}"
        )


@clause("share-lower")
def test_a_single_path_is_lowers(subhost: Subhost) -> None:
    """Without a colon the path is looked up under LOWER."""
    lower = fill(subhost, "lower")
    subhost.put("lower/srv/only/from", "lower\n")
    subhost.boot(f"LOWER= {lower}\nSHARE= /srv/only")
    subhost.inside("echo sub > /srv/only/new")
    assert subhost.target.read(f"{lower}/srv/only/new") == "sub\n"


@clause("share-other-path")
def test_a_share_on_another_path(subhost: Subhost) -> None:
    """host:subhost mounts the main host's folder elsewhere in the subhost."""
    subhost.put("outside/from", "host\n")
    subhost.boot(f"SHARE= {subhost.folder}/outside:/srv/inside")
    assert subhost.inside("cat /srv/inside/from; echo sub > /srv/inside/new") == "host\n"
    assert subhost.target.read(f"{subhost.folder}/outside/new") == "sub\n"


@clause("share-file", "share-submounts", "share-mountpoint")
def test_files_and_submounts_are_shared(subhost: Subhost) -> None:
    """A file can be shared, and what is mounted below a shared folder comes along."""
    subhost.put("outside/sub/x", "hidden\n")
    subhost.put("file", "file\n")
    subhost.target.succeed(f"mount -t tmpfs deep {subhost.folder}/outside/sub")
    try:
        subhost.put("outside/sub/x", "deep\n")
        subhost.boot(
            f"SHARE= {subhost.folder}/outside:/new/place\nSHARE= {subhost.folder}/file:/new/file"
        )
        assert subhost.inside("cat /new/place/sub/x /new/file") == "deep\nfile\n"
        assert subhost.target.exists(f"{subhost.folder}/root/new/file")
    finally:
        subhost.stop()
        subhost.target.succeed(f"umount {subhost.folder}/outside/sub")


@clause("share-no-command")
def test_share_runs_no_command(subhost: Subhost) -> None:
    """A ! has no special meaning in SHARE."""
    subhost.start(f"SHARE=!touch {subhost.folder}/ran; echo /etc")
    subhost.wait(f"[ -e {subhost.log} ]", 2)
    assert not subhost.target.exists(f"{subhost.folder}/ran")


@clause("share-symlink")
def test_links_in_the_subhost_do_not_lead_a_share_out(subhost: Subhost) -> None:
    """A link in UPPER is resolved inside the subhost: nothing is made or mounted on the host."""
    subhost.put("outside/from", "host\n")
    subhost.put("victim/.x", "")
    subhost.put(f"root{subhost.folder}/victim/inside", "")
    subhost.target.succeed(f"ln -s {subhost.folder}/victim {subhost.folder}/root/link")
    subhost.boot(f"SHARE= {subhost.folder}/outside:/link/new")
    assert subhost.inside("cat /link/new/from") == "host\n"
    assert subhost.target.run(f"ls -A {subhost.folder}/victim").out == ".x\n"


@clause("ns-ipc", "ns-uts")
def test_ipc_and_uts_namespaces(subhost: Subhost) -> None:
    """They are its own, and the host name is NAME."""
    subhost.boot()
    for kind in ("ipc", "uts"):
        assert subhost.target.run(f"readlink /proc/{subhost.pid1()}/ns/{kind}").out != (
            subhost.target.run(f"readlink /proc/self/ns/{kind}").out
        )
    assert subhost.inside("hostname") == f"{subhost.name}\n"
