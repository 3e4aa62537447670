"""The commands overlay-go, overlay-stop and overlay-list."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.subhost import TINY, Subhost


@clause("go-shell", "go-setup")
def test_go_is_a_root_shell_inside(subhost: Subhost) -> None:
    """overlay-go runs as root, in the root and the namespaces of the subhost."""
    subhost.put("root/etc/which", "subhost\n")
    subhost.boot()
    look = "for kind in mnt net pid; do readlink /proc/self/ns/$kind; done"
    theirs = "".join(subhost.namespace(kind) for kind in ("mnt", "net", "pid"))
    assert subhost.inside(f"cat /etc/which; id -u; {look}") == f"subhost\n0\n{theirs}"


@clause("go-all-namespaces")
def test_go_enters_all_namespaces(subhost: Subhost) -> None:
    """overlay-go enters the ipc and uts namespaces of the subhost, too."""
    subhost.boot()
    for kind in ("ipc", "uts"):
        assert subhost.inside(f"readlink /proc/self/ns/{kind}") == subhost.namespace(kind)


@clause("go-pipe")
def test_go_reads_commands_from_a_pipe(subhost: Subhost) -> None:
    """What is written to overlay-go's standard input is run inside, and its output comes back."""
    subhost.boot()
    done = subhost.on_host(f"overlay-go {subhost.name}", input="echo one; echo two\n")
    assert (done.status, done.out) == (0, "one\ntwo\n"), done


@clause("go-not-child")
def test_gos_shell_is_no_child_of_pid_1(subhost: Subhost) -> None:
    """The parent of overlay-go's shell is not pid 1 of the subhost."""
    subhost.boot()
    assert subhost.parent_of_shell() not in ("", "1")


@clause("go-bash")
def test_gos_shell_is_bash(subhost: Subhost) -> None:
    """overlay-go's shell is the bash that the subhost has itself."""
    subhost.put("root/bin/bash", '#!/bin/sh\nexport I_AM=bash\nexec /bin/sh "$@"\n')
    subhost.boot()
    assert subhost.inside("echo $I_AM") == "bash\n"


@clause("go-sh")
def test_gos_shell_is_sh_without_a_bash(subhost: Subhost) -> None:
    """Where the subhost has no bash, overlay-go's shell is its sh."""
    subhost.put("root/bin/sh", '#!/bin/busybox sh\nexport I_AM=sh\nexec /bin/busybox sh "$@"\n')
    subhost.boot()
    subhost.inside("rm /bin/bash")
    assert subhost.inside("echo $I_AM") == "sh\n"


def typed(subhost: Subhost, commands: str) -> str:
    """What is on the terminal when commands are typed at overlay-go's."""
    done = subhost.on_host(
        f"echo '{commands}; exit' | script -qec 'overlay-go {subhost.name}' /dev/null", timeout=20
    )
    return done.out.replace("\r", "")


@clause("go-interactive")
def test_gos_shell_is_interactive(subhost: Subhost) -> None:
    """On a terminal overlay-go's shell is interactive: its flags have an i."""
    subhost.boot()
    said = typed(subhost, "echo flags: $-")
    assert re.search("^flags: .*i", said, re.MULTILINE), said


@clause("go-terminal")
def test_go_has_a_terminal_of_the_subhosts(subhost: Subhost) -> None:
    """tty(1) names a terminal on the subhost's own /dev/pts, and the shell has job control."""
    subhost.boot()
    said = typed(subhost, "tty; set -o | grep monitor")
    assert "/dev/pts/0" in said, said
    assert re.search(r"^monitor\s+on", said, re.MULTILINE), said


@clause("go-command", "go-command-words", "go-conf")
def test_go_runs_a_command(subhost: Subhost) -> None:
    """overlay-go, given a NAME or a configuration file, hands the words of a command on as
    they are, and its exit status back."""
    subhost.boot()
    for who in (subhost.name, subhost.conf):
        done = subhost.on_host(f"overlay-go {who} sh -c 'echo \"$#:$2\"; exit 42' x 'a  b' '$c;'")
        assert (done.status, done.out) == (42, "2:$c;\n"), done


@clause("go-list")
def test_go_without_a_name_lists(subhost: Subhost) -> None:
    """Without a name overlay-go lists the names of the subhosts that run."""
    subhost.boot()
    done = subhost.on_host("overlay-go < /dev/null")
    assert done.status == 0 and subhost.name in done.out, done


@clause("go-not-running", "stop-not-running", "runtime-share-not-running", "status-3")
@pytest.mark.parametrize("command", ["go", "stop", "share /srv"])
def test_a_subhost_that_does_not_run(subhost: Subhost, command: str) -> None:
    """Each command says in one line that the subhost does not run, and ends with status 3,
    whether it is given its NAME or its configuration file."""
    subhost.write()
    for who in (subhost.name, subhost.conf):
        done = subhost.on_host(f"overlay-{command} {who} < /dev/null")
        one_line(done, 3, "not running")


@clause("go-clean-environment")
def test_gos_environment_is_clean(subhost: Subhost) -> None:
    """A variable of the caller's does not get into the subhost; the kind of terminal and the
    language do, and PATH is root's usual one."""
    subhost.boot()
    done = subhost.on_host(
        f"SECRET=x TERM=xterm COLORTERM=24bit LANG=C.UTF-8 LC_ALL=C overlay-go {subhost.name} env"
    )
    assert "SECRET" not in done.out and "TERM=xterm\n" in done.out, done
    assert all(f"{x}\n" in done.out for x in ("COLORTERM=24bit", "LANG=C.UTF-8", "LC_ALL=C"))
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" in done.out


@clause("stop")
def test_stop_ends_it(subhost: Subhost) -> None:
    """After overlay-stop none of the subhost's processes runs on."""
    subhost.boot()
    subhost.inside("setsid sleep 4321 > /dev/null 2>&1 &")
    assert subhost.wait("pgrep -f '^sleep 4321'")
    subhost.stop()
    assert subhost.wait("! pgrep -f '^sleep 4321'")


@clause("stop-netns")
def test_stop_takes_namespace_and_cables_away(subhost: Subhost) -> None:
    """Network namespace and cables are gone once the subhost has been stopped."""
    subhost.boot("CABLES= =")
    name = subhost.name
    subhost.stop()
    assert subhost.wait(f"! ls -d /run/netns/{name} && ! ls -d /sys/class/net/{name}0")


@clause("stop-forced")
def test_stop_ends_what_does_not_want_to(subhost: Subhost) -> None:
    """overlay-stop also ends a pid 1 and a process that ignore SIGHUP, SIGINT and SIGTERM."""
    subhost.put("root/deaf", "#!/bin/sh\ntrap '' HUP INT TERM\nsleep 4321\n")
    subhost.put("init", "#!/bin/sh\necho \"trap '' HUP INT TERM\"; echo '/deaf & exec /.reaper'\n")
    subhost.boot(f"INIT= {subhost.folder}/init")
    assert subhost.wait("pgrep -f '[/]deaf'")
    subhost.stop()
    assert subhost.wait("! pgrep -f '[/]deaf'")


@clause("stop-name")
def test_stop_takes_the_name(subhost: Subhost) -> None:
    """overlay-stop takes the subhost's NAME in place of its configuration file."""
    subhost.boot()
    pid = subhost.pid1()
    assert subhost.on_host(f"overlay-stop {subhost.name}").status == 0
    assert not subhost.host.file(f"/proc/{pid}").exists


@clause("stop-waits")
def test_stop_returns_when_all_is_gone(subhost: Subhost) -> None:
    """When overlay-stop returns, the subhost's name, cables, record and processes are gone."""
    subhost.boot("CABLES= = =")
    pid = subhost.pid1()
    name = subhost.name
    done = subhost.on_host(
        f"overlay-stop {name} || echo failed; ls -d /run/netns/{name} /sys/class/net/{name}[01] "
        f"/run/overlay-boot/{name} /proc/{pid} 2>/dev/null"
    )
    assert done.out == "", done


@clause("stop-waits")
def test_stop_leaves_no_mount_in_use(subhost: Subhost) -> None:
    """When overlay-stop returns, the file system of UPPER and WORK can be unmounted at once."""
    disk = f"{subhost.folder}/disk"
    subhost.prepare_host(
        f"mkdir {disk} && mount -t tmpfs disk {disk} && mkdir {disk}/up {disk}/wk"
    )
    subhost.boot(f"UPPER= {disk}/up\nWORK= {disk}/wk")
    done = subhost.on_host(f"overlay-stop {subhost.name} && umount {disk}")
    assert done.status == 0, done


@clause("stop-term", "stop-kill", "stop-grace", "stop-named")
def test_stop_terminates_then_kills(subhost: Subhost) -> None:
    """overlay-stop sends SIGTERM to each process that is left and, after the grace period,
    SIGKILL to what ignores it, which it names."""
    subhost.put(
        "root/deaf",
        "#!/bin/sh\ntrap 'echo $1 >> /said' TERM\ntouch /ready$1; while :; do sleep 999 & wait; done\n",
    )
    subhost.put("init", "#!/bin/sh\necho '/deaf 1 & setsid /deaf 2 & exec /.reaper'\n")
    subhost.boot(f"INIT= {subhost.folder}/init")
    assert subhost.wait(f"cd {subhost.folder}/root && [ -e ready1 ] && [ -e ready2 ]")
    done, took, stood = subhost.timed(f"overlay-stop --timeout 1 {subhost.name}")
    assert done.status == 1 and "deaf" in done.err, done
    assert "deaf" in subhost.target.read(subhost.log)
    assert not subhost.target.run("pgrep -f '[/]deaf'").out, done
    assert took >= 1 and subhost.in_time(took - stood, 6), took
    assert set(subhost.target.read(f"{subhost.folder}/root/said").split()) == {"1", "2"}


@clause("stop-grace")
def test_the_grace_is_ten_seconds_by_default(subhost: Subhost) -> None:
    """Without --timeout, overlay-stop kills what ignores SIGTERM once 10 seconds have
    passed."""
    subhost.put(
        "init",
        "#!/bin/sh\necho '(trap : TERM; while :; do sleep 999 & wait; done) & exec /.reaper'\n",
    )
    subhost.boot(f"INIT= {subhost.folder}/init")
    _, took, stood = subhost.timed(f"overlay-stop {subhost.name}", timeout=40)
    assert took >= 10 and subhost.in_time(took - stood, 15), took


@clause("stop-leftovers")
def test_what_a_crash_left_is_cleared(subhost: Subhost) -> None:
    """After all processes of a subhost were killed at once, overlay-stop clears away its name,
    its cables and its records."""
    subhost.boot("CABLES= =")
    subhost.crash()
    assert subhost.host.file(f"/run/overlay-boot/{subhost.name}").exists
    assert subhost.on_host(f"overlay-stop {subhost.name}").status == 3
    assert subhost.gone(0)


@clause("stop-others", "list")
def test_another_subhost_runs_on(subhost: Subhost) -> None:
    """Of two subhosts that run, each with its line in overlay-list, overlay-stop ends the one
    that is named, and no other."""
    subhost.boot()
    first, pid = subhost.name, subhost.pid1()
    second = f"{first}b"
    subhost.on_host(
        f"cd {subhost.folder} && mkdir {second} && mkdir {second}/root {second}/work {second}/live"
    )
    conf = subhost.put(
        f"{second}/{second}.conf",
        f"BASE= .\nLOWER= {TINY}\nSTART= none\nLOG= {subhost.log}.b\n",
        0o644,
    )
    subhost.named.append(second)
    done = subhost.on_host(f"overlay-boot --wait {conf} < /dev/null", timeout=60)
    assert done.status == 0, done
    lines = subhost.on_host("overlay-list").out.splitlines()
    assert [len([x for x in lines if x.startswith(f"{n} ")]) for n in (first, second)] == [1, 1]
    assert subhost.on_host(f"overlay-stop {second}").status == 0
    assert subhost.wait(f"! pid1 {second} && [ ! -e /run/overlay-boot/{second} ]")
    assert subhost.pid1() == pid
    assert subhost.inside("echo on") == "on\n"


@clause("stop-others")
def test_others_are_left_in_peace(subhost: Subhost) -> None:
    """Where the pid in a record belongs to another process by now, overlay-stop says with
    status 3 that nothing runs, and leaves that process alone."""
    subhost.boot()
    pid = subhost.pid1()
    record = f"/run/overlay-boot/{subhost.name}"
    other = int(subhost.on_host("setsid sleep 60 > /dev/null 2>&1 < /dev/null & echo $!").out)
    try:
        subhost.on_host(f"cp {record} {subhost.folder}/old")
        subhost.stop()
        subhost.on_host(
            f"sed 's/{pid}/{other}/' {subhost.folder}/old > {record}; chmod 600 {record}"
        )
        assert subhost.on_host(f"overlay-stop {subhost.name}").status == 3
        assert subhost.host.file(f"/proc/{other}").exists
    finally:
        subhost.on_host(f"kill {other}; rm -f {record}")


@clause("list-dead")
def test_list_without_the_dead(subhost: Subhost) -> None:
    """overlay-list leaves out a subhost whose processes were all killed, whatever is still
    recorded of it."""
    subhost.boot()
    subhost.crash()
    assert subhost.name not in subhost.on_host("overlay-list; overlay-list --json").out


@clause("list", "list-json", "list-dead", "list-empty")
def test_list(subhost: Subhost) -> None:
    """overlay-list prints a line for each subhost that runs, and the same as JSON; where none
    runs it says so."""
    subhost.boot("CABLES= = =")
    name, pid = subhost.name, subhost.pid1()
    line = next(
        x for x in subhost.on_host("overlay-list").out.splitlines() if x.startswith(f"{name} ")
    )
    assert all(
        word in line for word in (str(pid), "overlay", f"{name}0", f"{name}1", subhost.conf)
    )
    rows = [
        row
        for row in json.loads(subhost.on_host("overlay-list --json").out)
        if row["name"] == name
    ]
    assert (
        rows[0].items()
        >= {
            "pid": pid,
            "root": "overlay",
            "cables": [f"{name}0", f"{name}1"],
            "configuration": subhost.conf,
        }.items()
        and "since" in rows[0]
    )
    subhost.stop()
    done = subhost.on_host("overlay-list")
    assert done.status == 0 and name not in done.out and done.err, done
    assert json.loads(subhost.on_host("overlay-list --json").out) == []


def listed(subhost: Subhost) -> tuple[dict[str, Any], str]:
    """What overlay-list says of a subhost: its JSON object, and its line."""
    rows = json.loads(subhost.on_host("overlay-list --json").out)
    lines = subhost.on_host("overlay-list").out.splitlines()
    row = next(row for row in rows if row["name"] == subhost.name)
    return row, next(line for line in lines if line.startswith(f"{subhost.name} "))


@clause("list-usage")
def test_list_shows_what_a_subhost_uses(subhost: Subhost) -> None:
    """overlay-list shows how many processes a subhost has, what memory they take, and what
    processor time it has used."""
    if not subhost.can_have_cgroup():
        precondition("the target has no cgroup v2 that can be written")
    subhost.boot()
    before, _ = listed(subhost)
    keep_16_mib = (
        "{ head -c 16777216 /dev/zero; exec sleep 600; } | tail -c 16777216 > /dev/null &"
    )
    work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    subhost.inside(f"{work}; {keep_16_mib}")
    row = f"^{subhost.name} .* {before['processes'] + 2} +(1[6-9]|2[0-9])[.][0-9]M "
    assert subhost.wait(f"overlay-list | grep -E '{row}'")  # head has ended, and tail has all
    after, line = listed(subhost)
    assert after["processes"] == before["processes"] + 2, (before, after)
    assert before["memory"] + 2**24 < after["memory"] < before["memory"] + 2**26, (before, after)
    assert before["cpu"] + 0.02 < after["cpu"] < before["cpu"] + 60, (before, after)
    subhost.on_host(work)  # which is none of the subhost's
    idle, _ = listed(subhost)
    assert idle["cpu"] - after["cpu"] < (after["cpu"] - before["cpu"]) / 2, (before, after, idle)
    found = re.search(rf" {after['processes']} +([0-9.]+)M +[0-9.]+s ", line)
    assert found and abs(float(found[1]) - after["memory"] / 2**20) < 1, (line, after)


@clause("list-any")
def test_list_tells_of_a_subhost_with_threaded_cgroups(subhost: Subhost) -> None:
    """overlay-list shows a subhost in whose cgroup root inside has made a threaded one, of which
    the kernel tells no processes."""
    subhost.boot()
    tree = subhost.inside(
        "mkdir /g; mount -t cgroup2 none /g && sed -n s/^0:://p /proc/self/cgroup"
    )
    if not tree.endswith(f"overlay-{subhost.name}\n"):
        precondition("the subhost has no cgroup v2 of its own, or can mount none")
    part = f"/g{tree.strip()}/part"
    subhost.inside(f"mkdir {part} && echo threaded > {part}/cgroup.type")
    assert subhost.inside(f"cat {part}/cgroup.procs 2>&1 || :").endswith("not supported\n")
    row, line = listed(subhost)
    assert row["processes"] and row["pid"] == subhost.pid1(), (row, line)
    subhost.stop()


@clause("list-usage-unknown")
def test_list_says_nothing_of_what_nobody_counts(subhost: Subhost) -> None:
    """overlay-list shows "-" for each of the figures of a subhost that was booted where there
    is no cgroup v2."""
    subhost.write("CABLES= =")
    hidden = "mount -t tmpfs none /sys/fs/cgroup"
    boot = f"exec overlay-boot --wait {subhost.conf} < /dev/null"
    done = subhost.on_host(f"unshare --mount sh -c '{hidden} && {boot}'", timeout=60)
    assert done.status == 0, done
    row, line = listed(subhost)
    assert [row[key] for key in ("processes", "memory", "cpu")] == [None] * 3, row
    assert re.search(rf" overlay( +-){{3}} +{subhost.name}0 ", line), line
