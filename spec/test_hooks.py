"""PREMOUNT and POSTMOUNT, and what the default hooks do."""

from __future__ import annotations

import time

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.subhost import KINDS, TINY, Subhost


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
    """PREMOUNT runs before an overlay or a bind mount and not for a plain root; POSTMOUNT runs
    for all."""
    pre = spy(subhost, "pre")
    post = spy(subhost, "post")
    subhost.start(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}\n{subhost.of_kind(kind)}")
    assert subhost.wait(f"[ -s {subhost.folder}/post.ran ]", 20)
    before, after = (
        subhost.target.read(f"{subhost.folder}/{name}.ran") for name in ("pre", "post")
    )
    if kind == "plain":
        assert before == ""
    else:
        assert before.splitlines()[-1] == "0" and after.splitlines()[-1] == "1"


@clause("premount")
def test_premount_has_ended_before_the_root_is_mounted(subhost: Subhost) -> None:
    """While PREMOUNT runs, however long that takes, no root is mounted."""
    over = f"{subhost.folder}/over"
    pre = spy(
        subhost, "pre", f"sleep 2; grep -c ' {subhost.folder}/live ' /proc/mounts > {over}; :"
    )
    post = spy(subhost, "post")
    subhost.start(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}")
    assert subhost.wait(f"[ -s {subhost.folder}/post.ran ]", 20)
    assert subhost.target.read(over) == "0\n"


@clause("premount-config", "postmount-config")
def test_hooks_get_the_configuration(subhost: Subhost) -> None:
    """Hooks have the configuration's path as CONFIG in their environment."""
    pre, post = spy(subhost, "pre"), spy(subhost, "post")
    subhost.start(f"PREMOUNT= {pre}\nPOSTMOUNT= {post}")
    assert subhost.wait(f"[ -s {subhost.folder}/post.ran ]", 20)
    for name in ("pre", "post"):
        said = subhost.target.read(f"{subhost.folder}/{name}.ran").splitlines()
        assert f"CONFIG={subhost.conf}" in said


@clause("premount-namespace", "postmount-namespace")
def test_where_hooks_run(subhost: Subhost) -> None:
    """Hooks see the main host's root, and what they mount is there for the subhost alone."""
    lower, live = f"{subhost.folder}/lower", f"{subhost.folder}/live"
    subhost.on_host(f"mkdir {lower}")
    pre = spy(subhost, "pre", f"mount --bind {TINY} {lower}")
    post = spy(subhost, "post", f"mount -t tmpfs posted {live}/srv && mkdir {live}/srv/posted")
    init = subhost.put("init", "#!/bin/sh\necho '[ ! -d /srv/posted ] || mkdir /seen; sleep 99'\n")
    subhost.start(f"LOWER= {lower}\nPREMOUNT= {pre}\nPOSTMOUNT= {post}\nINIT= {init}")
    assert subhost.wait(f"[ -d {subhost.folder}/root/seen ]", 20)
    mounts = subhost.target.read("/proc/self/mounts")
    assert f" {lower} " not in mounts and "posted" not in mounts
    root = "root=" + subhost.target.run("stat -c %i /").out
    for name in ("pre", "post"):
        assert root in subhost.target.read(f"{subhost.folder}/{name}.ran")


@clause("postmount-first")
def test_postmount_has_ended_before_services_start(subhost: Subhost) -> None:
    """What POSTMOUNT does last is done when the first command of INIT runs."""
    post = subhost.put("post", f"#!/bin/sh\nsleep 0.5; mkdir {subhost.folder}/live/posted\n")
    init = subhost.put("init", "#!/bin/sh\necho '[ ! -d /posted ] || mkdir /in-time; sleep 99'\n")
    subhost.start(f"POSTMOUNT= {post}\nINIT= {init}")
    assert subhost.wait(f"[ -d {subhost.folder}/root/posted ]", 20)
    assert subhost.wait(f"[ -d {subhost.folder}/root/in-time ]")


@clause("premount-arguments", "postmount-arguments", "hooks-environment", "hooks-callable")
def test_what_hooks_get(subhost: Subhost) -> None:
    """Hooks get UPPER, or LIVE and UPPER, as arguments, all variables in the environment, and
    the default hooks to call."""
    pre = spy(subhost, "pre", 'exec overlay-premount "$@"')
    post = spy(subhost, "post", 'exec overlay-postmount "$@"')
    init = spy(subhost, "init", "exec overlay-init")
    subhost.boot(
        f"PREMOUNT= {pre}\nPOSTMOUNT= {post}\nINIT= {init}\nCABLES= =\nRAM_SIZE= 3M\n"
        "SHARE= /etc\nSHARE= /tmp"
    )
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
        assert said[said.index("SHARE=/etc") + 1] == "/tmp"


@clause("hooks-fail", "boot-failure", "boot-undo", "status-1")
@pytest.mark.parametrize("hook", ["PREMOUNT", "POSTMOUNT", "INIT"])
def test_a_hook_that_fails_fails_the_boot(subhost: Subhost, hook: str) -> None:
    """A hook that fails is named in one line, the status is 1, and nothing of the boot is left."""
    before = subhost.target.run(f"ls -AR {subhost.folder}/root {subhost.folder}/work").out
    failing = subhost.put("fails", "#!/bin/sh\nexit 5\n")
    done = subhost.start(f"{hook}= {failing}\nCABLES= =\nSHARE= /etc:/new/etc")
    one_line(done, 1, failing)
    assert subhost.gone(0)
    after = subhost.target.run(f"ls -AR {subhost.folder}/root {subhost.folder}/work").out
    assert after == before


@clause("premount-default")
def test_the_default_premount(subhost: Subhost) -> None:
    """Without PREMOUNT, UPPER gets what the overlay-premount beside overlay-boot puts there."""
    found = []
    hook = subhost.on_host(
        "echo $(dirname $(realpath $(command -v overlay-boot)))/overlay-premount"
    ).out
    for text in ("", f"PREMOUNT= {hook.strip()}", "PREMOUNT= /bin/true"):
        subhost.boot(text)
        subhost.stop()
        found.append(subhost.on_host(f"cd {subhost.folder}/root && find . | sort").out)
        subhost.on_host(f"cd {subhost.folder} && rm -r root work && mkdir root work")
    if found[1] == found[2]:
        precondition("overlay-premount does nothing here that could be seen")
    assert found[0] == found[1]


@clause("premount-interfaces")
def test_premount_gives_upper_an_interfaces_file(subhost: Subhost) -> None:
    """overlay-premount writes an interfaces(5) with lo and a manual stanza for each cable."""
    subhost.boot("CABLES= = =")
    text = subhost.target.read(f"{subhost.folder}/root/etc/network/interfaces")
    stanzas = [line.split() for line in text.splitlines() if line.startswith("iface ")]
    assert stanzas == [
        ["iface", "lo", "inet", "loopback"],
        ["iface", "eth0", "inet", "manual"],
        ["iface", "eth1", "inet", "manual"],
    ]


@clause("premount-interfaces-edit")
def test_an_edited_stanza_is_taken_up(subhost: Subhost) -> None:
    """An address that is written for eth0 is given by `ifup eth0` with the main host's
    ifupdown, though `ifup -a` has run."""
    if subhost.target.run("command -v ifup").status:
        precondition("the target has no ifupdown")
    subhost.put("root/up", "#!/bin/sh\n[ $1 = start ] || exit 0\nmkdir -p /run/network; ifup -a\n")
    subhost.boot("LOWER= /\nCABLES= =\nSTART= /up")
    edit = (
        "sed -i 's/iface eth0 inet manual/iface eth0 inet static\\n  address 192.0.2.7\\/24/' "
        "/etc/network/interfaces"
    )
    done = subhost.on_host(f'overlay-go {subhost.name} sh -c "{edit}; ifup eth0"')
    assert done.status == 0 and "already" not in done.err, done
    assert "192.0.2.7/24" in subhost.on_host(f"ip -n {subhost.name} address show eth0").out


@clause("premount-interfaces-kept")
def test_an_interfaces_file_is_left_alone(subhost: Subhost) -> None:
    """An interfaces(5) that UPPER has already stays as it is."""
    subhost.put("root/etc/network/interfaces", "# mine\n")
    subhost.boot("CABLES= =")
    assert subhost.target.read(f"{subhost.folder}/root/etc/network/interfaces") == "# mine\n"


@clause("premount-hostname", "premount-hosts")
@pytest.mark.parametrize("known", ["192.0.2.9 other", ""])
def test_premount_gives_upper_its_names(subhost: Subhost, known: str) -> None:
    """/etc/hostname has NAME alone, and the subhost's own /etc/hosts what LOWER's says, and
    NAME as 127.0.1.1. LOWER's stays as it was."""
    lower = subhost.fill("lower")
    subhost.put("lower/etc/hostname", "lower\n", 0o644)
    if known:
        subhost.put("lower/etc/hosts", known, 0o644)
    subhost.boot("LOWER= lower")
    assert subhost.inside("cat /etc/hostname") == f"{subhost.name}\n"
    lines = [line.split() for line in subhost.inside("cat /etc/hosts").splitlines()]
    assert ["127.0.1.1", subhost.name] in lines
    assert (known.split() or ["127.0.0.1", "localhost"]) in lines
    assert subhost.target.read(f"{lower}/etc/hosts") == known


@clause("premount-names-kept")
def test_names_that_are_there_are_left_alone(subhost: Subhost) -> None:
    """/etc/hostname and /etc/hosts that UPPER has already stay as they are."""
    for name in ("hostname", "hosts"):
        subhost.put(f"root/etc/{name}", "# mine\n", 0o644)
    subhost.boot()
    for name in ("hostname", "hosts"):
        assert subhost.inside(f"cat /etc/{name}") == "# mine\n"


@clause("names-at-once")
def test_the_subhost_knows_its_name_without_a_name_server(subhost: Subhost) -> None:
    """With the main host's own programs the subhost's name is found at once, though its cable
    leads nowhere and no name server can answer."""
    if subhost.target.run("command -v getent && command -v hostname").status:
        precondition("the target has no getent, or no hostname")
    resolver = "nameserver 192.0.2.53\noptions timeout:30 attempts:1\n"
    seconds = min(4 * subhost.target.patience, 25)  # before a resolver gives up
    subhost.put("root/etc/resolv.conf", resolver, 0o644)
    subhost.put("root/etc/nsswitch.conf", "hosts: files dns\n", 0o644)
    subhost.boot("LOWER= /\nCABLES= =")
    subhost.prepare_host(
        f"ip -n {subhost.name} link set eth0 up arp off; "
        f"ip -n {subhost.name} address add 192.0.2.1/24 dev eth0"
    )
    limit = f"timeout {seconds:.0f}"
    began = time.monotonic()
    said = subhost.inside(
        f"{limit} hostname -f; {limit} getent hosts {subhost.name} | tr -s ' '; "
        f"! command -v sudo || {limit} sudo -n true",
        timeout=60,
    )
    took = time.monotonic() - began
    full, address, *_ = [*said.splitlines(), "", ""]
    assert full == subhost.name and address.endswith(f"127.0.1.1 {subhost.name}"), said
    assert subhost.in_time(took, seconds), said


@clause("resolv-own")
def test_name_servers_of_ones_own(subhost: Subhost) -> None:
    """A resolv.conf in UPPER is read where LOWER has a link into /run."""
    subhost.fill("lower")
    subhost.prepare_host(
        f"ln -s ../run/systemd/resolve/stub-resolv.conf {subhost.folder}/lower/etc/resolv.conf"
    )
    subhost.put("root/etc/resolv.conf", "nameserver 192.0.2.1\n", 0o644)
    subhost.boot("LOWER= lower")
    assert subhost.inside("cat /etc/resolv.conf") == "nameserver 192.0.2.1\n"


@clause("postmount-default")
def test_the_default_postmount_makes_the_root_usable(subhost: Subhost) -> None:
    """With the default overlay-postmount there are devices, and a reaper for pid 1 to become."""
    subhost.boot()
    assert (
        subhost.inside("echo gone > /dev/null; ls /.reaper /dev/null") == "/.reaper\n/dev/null\n"
    )


@clause("dev-private", "dev-nodes", "dev-pts", "dev-shm", "dev-links")
def test_dev(subhost: Subhost) -> None:
    """/dev is a tmpfs with working devices, a pts and a shm of its own, and the links."""
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


@clause("sys-own")
def test_sys_shows_its_own_network_and_is_read_only(subhost: Subhost) -> None:
    """No interface of the main host is in the subhost's /sys, which cannot be written."""
    subhost.boot()
    assert subhost.inside("ls /sys/class/net") == "lo\n"
    assert " ro" in subhost.inside("grep ' /sys ' /proc/mounts")


@clause("ram-size")
def test_ram_size(subhost: Subhost) -> None:
    """RAM_SIZE is the size of the tmpfs on the subhost's /run."""
    subhost.boot("RAM_SIZE= 7M")
    run = subhost.inside("grep ' /run ' /proc/mounts").split()
    assert run[2] == "tmpfs" and "size=7168k" in run[3]


@clause("ram-size-default")
def test_ram_size_by_default(subhost: Subhost) -> None:
    """Without RAM_SIZE the tmpfs on /run has 50M."""
    subhost.boot()
    assert "size=51200k" in subhost.inside("grep ' /run ' /proc/mounts")


@clause("run-lock")
def test_run_lock(subhost: Subhost) -> None:
    """Everyone may write in the subhost's /run/lock, as in /tmp."""
    subhost.boot()
    assert subhost.inside("stat -c %a /run/lock") == "1777\n"


@clause("ram-size-none")
def test_ram_size_none(subhost: Subhost) -> None:
    """With RAM_SIZE none nothing is mounted on /run."""
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


#: An init script, enabled or not, and no policy-rc.d, whatever LOWER has.
INIT_SCRIPT = """
mkdir -p root/etc/init.d root/etc/rc2.d root/usr/sbin
printf '#!/bin/sh\\necho "$1" >> /told\\n' > root/etc/init.d/own
chmod +x root/etc/init.d/own
ln -s ../init.d/own root/etc/rc2.d/{link}own
[ -e root/usr/sbin/policy-rc.d ] || mknod root/usr/sbin/policy-rc.d c 0 0
"""


@clause("policy-rc", "policy-rc-disabled")
@pytest.mark.parametrize(("link", "told"), [("S01", "restart\nstart\n"), ("K01", "")])
def test_package_upgrades_restart_what_is_enabled(subhost: Subhost, link: str, told: str) -> None:
    """A maintainer script's invoke-rc.d restarts a service that is enabled; what update-rc.d
    has disabled stays down."""
    subhost.prepare_host(f"cd {subhost.folder}; {INIT_SCRIPT.format(link=link)}")
    subhost.boot("LOWER= /")
    subhost.inside("touch /told; invoke-rc.d own restart; invoke-rc.d --quiet own start")
    assert subhost.inside("cat /told") == told


@clause("policy-rc-start")
@pytest.mark.parametrize("word", ["own", "/etc/init.d/own"])
def test_what_start_names_is_enabled(subhost: Subhost, word: str) -> None:
    """A service that START names is restarted also where update-rc.d has disabled it, as on a
    main host that is not to run it; each boot's own START counts."""
    subhost.prepare_host(f"cd {subhost.folder}; {INIT_SCRIPT.format(link='K01')}")
    for start, told in ((word, "start\nstop\nstart\n"), ("none", "stop\n")):
        subhost.prepare_host(f"rm -f {subhost.folder}/root/told")
        subhost.boot(f"LOWER= /\nRAM_SIZE= none\nSTART= {start}")
        subhost.inside("invoke-rc.d own stop; invoke-rc.d own start")
        assert subhost.inside("cat /told") == told
        subhost.on_host(f"overlay-stop {subhost.name}")


@clause("policy-rc-kept")
def test_a_policy_of_ones_own_is_kept(subhost: Subhost) -> None:
    """A policy-rc.d of one's own that forbids everything still does so at the second boot."""
    text = "#!/bin/sh\nexit 101\n"
    subhost.put("root/usr/sbin/policy-rc.d", text)
    for _ in range(2):
        subhost.boot("LOWER= /")
        assert subhost.inside("cat /usr/sbin/policy-rc.d") == text
        subhost.on_host(f"overlay-stop {subhost.name}")
