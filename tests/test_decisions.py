"""Real boots for the decisions on the man page's open questions (D3 to D23), from outside."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Subhost, run


def hook(subhost: Subhost, name: str, text: str) -> None:
    """A program beside the configuration."""
    (subhost.folder / name).write_text("#!/bin/sh\n" + text)
    (subhost.folder / name).chmod(0o755)


def test_d3_paths_are_relative_to_the_configuration_wherever_the_caller_is(
    subhost: Subhost, tmp_path: Path
) -> None:
    subhost.write()
    (tmp_path / "else").mkdir()
    relative = os.path.relpath(subhost.conf, tmp_path / "else")
    for path, folder in ((relative, tmp_path / "else"), (subhost.conf.name, subhost.folder)):
        assert run("overlay-boot", path, cwd=folder).returncode == 0
        assert subhost.stop().returncode == 0


def test_d4_a_command_runs_once_per_boot_and_never_for_stop_or_go(subhost: Subhost) -> None:
    subhost.boot("UPPER=!echo $ACTION $CONFIG $PWD >> ran; echo root; echo not this\n")
    subhost.inside("true")
    assert run("overlay-stop", subhost.conf).returncode == 0
    ran = (subhost.folder / "ran").read_text()
    assert ran == f"overlay-boot {subhost.conf} {subhost.folder}\n"


def test_d4_a_refused_boot_runs_no_command(subhost: Subhost) -> None:
    subhost.boot("UPPER=!echo ran >> ran; echo root\n")
    assert run("overlay-boot", subhost.conf).returncode == 1
    assert (subhost.folder / "ran").read_text() == "ran\n"
    subhost.write("LIVE=missing\nUPPER=!echo ran >> ran2; echo root\n")
    assert run("overlay-boot", subhost.conf).returncode == 2
    assert not (subhost.folder / "ran2").exists()


def test_d9_ifup_brings_up_what_interfaces_5_knows_and_ifdown_takes_it_down(
    subhost: Subhost,
) -> None:
    """In a mount namespace of the test's own, with its own /etc/network and /run/network."""
    name = subhost.name
    network = subhost.folder / "network"
    network.mkdir()
    (network / "interfaces").write_text(
        f"iface {name}0 inet static\n address 192.0.2.9/30\n"
        f" up echo up > {subhost.folder}/up\n down ip link show {name}0 > {subhost.folder}/down\n"
    )
    state = subhost.folder / "state"
    state.mkdir()
    subhost.write("CABLES= = =\n")
    script = f"""mount --make-rprivate / && mount --bind {network}/interfaces /etc/network/interfaces &&
        mkdir -p /run/network && mount --bind {state} /run/network &&
        overlay-boot --wait {subhost.conf} && ip -br address show {name}0 && overlay-stop {name}"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run("unshare", "-m", "sh", "-c", script, env={**os.environ, "PATH": path})
    assert done.returncode == 0 and "192.0.2.9/30" in done.stdout, done.stderr
    assert (subhost.folder / "up").exists()
    assert name in (subhost.folder / "down").read_text()  # the cable was there still
    assert f"{name}1: ifup failed, so the interface is only set up" in subhost.log.read_text()


def test_d8_d9_cables_are_made_named_bridged_and_addressed(subhost: Subhost) -> None:
    bridge = f"{subhost.name}br"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    try:
        subhost.boot(f"CABLES= = {bridge}=02:00:00:00:0A:01 =\n")
        links = {link["ifname"]: link for link in json.loads(run("ip", "-j", "-d", "link").stdout)}
        ends = [f"{subhost.name}{number}" for number in range(3)]
        assert [links[end]["linkinfo"]["info_kind"] for end in ends] == ["veth"] * 3
        assert [links[end].get("master") for end in ends] == [None, bridge, None]
        assert all("UP" in links[end]["flags"] for end in ends)
        inside = run("ip", "-n", subhost.name, "-br", "link").stdout.split()
        assert [w.partition("@")[0] for w in inside if w.startswith("eth")] == [
            "eth0",
            "eth1",
            "eth2",
        ]
        assert "02:00:00:00:0a:01" in inside
        interfaces = (subhost.folder / "root/etc/network/interfaces").read_text()
        assert [f"iface {end} inet" in interfaces for end in ("lo", "eth0", "eth1", "eth2")] == (
            [True] * 4
        )
    finally:
        subhost.stop()
        subprocess.run(["ip", "link", "delete", bridge], check=True)


def test_a_missing_bridge_is_one_line(subhost: Subhost) -> None:
    done = run("overlay-boot", subhost.write("CABLES= nosuch=\n"))
    assert done.returncode == 1 and done.stderr == (
        "overlay-boot: CABLES: nosuch is not there: make it with ip link add nosuch type bridge, "
        "or correct CABLES\n"
    )


@pytest.mark.parametrize("kind", ["overlay", "bind", "plain"])
def test_d12_hooks_get_arguments_and_variables_for_each_kind_of_root(
    subhost: Subhost, kind: str, lower: Path
) -> None:
    for name in ("premount", "postmount"):
        hook(
            subhost,
            name,
            f'echo "$@" > {subhost.folder}/{name}.ran; env >> {subhost.folder}/{name}.ran\n'
            f"exec overlay-{name} {'$UPPER' if name == 'premount' else '$LIVE $UPPER'}\n",
        )
    if kind != "overlay":
        subprocess.run(["cp", "-a", f"{lower}/.", subhost.folder / "root"], check=True)
    more = {"overlay": "", "bind": "LOWER=root", "plain": "LOWER=root\nLIVE=root"}[kind]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    text = f"PREMOUNT=premount one\nPOSTMOUNT=postmount\nCABLES= =\n{more}\n"
    subhost.write(text)
    done = run("overlay-boot", "--wait", subhost.conf, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr + subhost.log.read_text()
    live = subhost.folder / ("root" if kind == "plain" else "live")
    upper = subhost.folder / "root"
    after = (subhost.folder / "postmount.ran").read_text().splitlines()
    assert after[0] == f"{live} {upper}"
    assert {f"CONFIG={subhost.conf}", f"UPPER={upper}", "RAM_SIZE=50M", "CABLES=="} <= set(after)
    assert (subhost.folder / "premount.ran").exists() == (kind != "plain")
    if kind != "plain":
        before = (subhost.folder / "premount.ran").read_text().splitlines()
        assert before[0] == f"one {upper}"
    root = next(line for line in subhost.inside("cat /proc/mounts").splitlines() if " / " in line)
    assert (root.split()[2] == "overlay") == (kind == "overlay")
    listed = json.loads(run("overlay-list", "--json").stdout)
    assert [row["root"] for row in listed if row["name"] == subhost.name] == [kind]


def test_d13_the_default_hooks(subhost: Subhost) -> None:
    subhost.boot("CABLES= =\nRAM_SIZE=7M\n")
    devices = subhost.inside(
        "cd /dev; ls -l null zero full random urandom tty console"
    ).splitlines()
    numbers = {line.split()[-1]: line.split()[4:6] for line in devices}
    assert numbers["null"] == ["1,", "3"] and numbers["console"] == ["5,", "1"]
    mounts = {
        line.split()[1]: line.split() for line in subhost.inside("cat /proc/mounts").splitlines()
    }
    assert mounts["/dev/pts"][2] == "devpts" and mounts["/dev/shm"][2] == "tmpfs"
    assert mounts["/sys"][2] == "sysfs" and mounts["/sys"][3].startswith("ro,")
    assert "size=7168k" in mounts["/run"][3]
    assert subhost.inside("ls /sys/class/net").split() == ["eth0", "lo"]
    assert subhost.inside("stat -c %a /run/lock /dev/shm").split() == ["1777", "1777"]
    assert subhost.inside("readlink /dev/ptmx; readlink /dev/fd").split() == [
        "pts/ptmx",
        "/proc/self/fd",
    ]


def test_d13_ram_size_none_leaves_run_alone(subhost: Subhost) -> None:
    (subhost.folder / "root/run").mkdir()
    (subhost.folder / "root/run/kept").touch()
    subhost.boot("RAM_SIZE=none\n")
    assert "kept" in subhost.inside("ls /run")
    assert " /run " not in subhost.inside("cat /proc/mounts")


def test_d14_the_log_is_appended_to_and_never_another_users(subhost: Subhost) -> None:
    subhost.log.write_text("before\n")
    subhost.boot()
    assert subhost.log.read_text().startswith("before\n")
    assert stat.S_IMODE(subhost.log.stat().st_mode) == 0o640
    assert subhost.stop().returncode == 0
    os.chown(subhost.log, 1234, 1234)
    done = run("overlay-boot", subhost.conf)
    assert done.returncode == 1 and "belongs to user id 1234: remove it, or set LOG" in done.stderr
    subhost.log.unlink()
    subhost.log.symlink_to(subhost.folder / "victim")
    done = run("overlay-boot", subhost.conf)
    assert done.returncode == 1 and "it is a symbolic link" in done.stderr
    assert not (subhost.folder / "victim").exists()


def test_d15_wait_tells_of_a_subhost_that_never_reaches_the_reaper(subhost: Subhost) -> None:
    hook(subhost, "init", "echo exit 0\n")
    done = run("overlay-boot", "--wait", subhost.write("INIT=init\n"))
    assert done.returncode == 1 and "it ended before /.reaper ran: see" in done.stderr


def test_d16_a_running_subhost_is_refused_and_untouched(subhost: Subhost) -> None:
    subhost.boot("CABLES= =\n")
    pid, log = subhost.pid(), subhost.log.read_text()
    done = run("overlay-boot", subhost.conf)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"overlay-boot: {subhost.name} is running already: stop it first with "
        f"overlay-stop {subhost.name}\n"
    )
    assert subhost.pid() == pid and subhost.log.read_text() == log
    assert subhost.inside("hostname") == f"{subhost.name}\n"


def test_d17_stop_and_go_take_the_configuration_file_too(subhost: Subhost) -> None:
    subhost.boot()
    assert run("overlay-go", subhost.conf.name, "hostname", cwd=subhost.folder).returncode == 0
    assert run("overlay-stop", subhost.conf).returncode == 0
    done = run("overlay-stop", subhost.conf)
    assert (done.returncode, done.stderr) == (3, f"overlay-stop: {subhost.conf} is not running\n")


def test_d21_d22_namespaces_are_its_own_and_the_hosts_mounts_out_of_reach(
    subhost: Subhost,
) -> None:
    subhost.boot()
    pid = subhost.pid()
    for kind in ("mnt", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert str(subhost.folder) not in Path("/proc/self/mounts").read_text()
    points = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert sorted(points) == sorted(
        ["/", "/dev", "/dev/pts", "/dev/shm", "/sys", "/run", "/.reaper", "/proc"]
    )
    escape = "cd /proc/1/root; cd ../../..; ls -d ../*/; ls /proc/1/cwd/../../"
    assert "farm" not in subhost.inside(escape) and "/boot/" not in subhost.inside(escape)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["overlay-boot"], 2, "exactly one configuration file is wanted: see overlay-boot --help"),
        (["overlay-boot", "--nonsense", "x"], 2, "unknown option --nonsense"),
        (["overlay-boot", "--wait", "--check", "x"], 2, "exclude each other"),
        (["overlay-boot", "/no/such.conf"], 2, "cannot read the configuration: No such file"),
        (["overlay-stop", "--timeout", "x", "y"], 2, "--timeout takes seconds, not 'x'"),
        (["overlay-stop", "no-such"], 3, "no-such is not running"),
        (["overlay-go", "no-such"], 3, "no-such is not running"),
        (["overlay-go", "--nonsense"], 2, "unknown option --nonsense"),
        (["overlay-list", "x"], 2, "no argument is wanted"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], status: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == status and said in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["overlay-boot", "overlay-stop", "overlay-go", "overlay-list"])
def test_help_names_the_exit_statuses(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: {command} ")
    assert "Exit status: 0 done, 1 failed, 2 usage or configuration, 3 not running" in done.stdout
