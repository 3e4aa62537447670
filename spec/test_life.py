"""STARTING AND ENDING, and the commands overlay-go, overlay-stop, overlay-list, overlay-share."""

from __future__ import annotations

import json
import re

import pytest

from spec.clauses import clause
from spec.subhost import Subhost


def slow_init(subhost: Subhost) -> str:
    """An INIT whose script waits for a file in the subhost before it comes to the reaper."""
    return "INIT= " + subhost.put(
        "init",
        "#!/bin/sh\necho 'until [ -e /open ]; do sleep 0.05; done; sleep 99 & exec /.reaper'\n",
    )


@clause("boot-returns", "status-0")
def test_boot_returns_when_the_init_commands_run(subhost: Subhost) -> None:
    """Status 0, while INIT's commands still run."""
    done = subhost.start(slow_init(subhost))
    assert done.status == 0 and subhost.pid1(), done
    assert subhost.target.run(f"cat /proc/{subhost.pid1()}/comm").out != ".reaper\n"
    subhost.run(f"overlay-go {subhost.name} touch /open")
    assert subhost.up()


@clause("boot-wait")
def test_wait_returns_when_the_reaper_runs(subhost: Subhost) -> None:
    """With --wait all services have been started."""
    init = subhost.put("init", "#!/bin/sh\necho 'sleep 1; sleep 99 & exec /.reaper'\n")
    subhost.write(f"INIT= {init}")
    done = subhost.run(f"overlay-boot --wait {subhost.conf} < /dev/null")
    assert done.status == 0, done
    assert subhost.target.run(f"cat /proc/{subhost.pid1()}/comm").out == ".reaper\n"


@clause("boot-foreground", "boot-foreground-signal")
@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_foreground_stays_until_a_signal_stops_it(subhost: Subhost, signal: str) -> None:
    """overlay-boot --foreground stays; SIGINT and SIGTERM stop the subhost."""
    subhost.write()
    subhost.run(
        f"""rm -f {subhost.folder}/status
        (setsid sh -c 'echo $$ > {subhost.folder}/pid; exec env --default-signal=INT overlay-boot --foreground {subhost.conf}'
        echo $? > {subhost.folder}/status) < /dev/null > /dev/null 2>&1 &"""
    )
    assert subhost.up()
    assert not subhost.target.exists(f"{subhost.folder}/status")
    subhost.run(f"kill -{signal} $(cat {subhost.folder}/pid)")
    assert subhost.wait(f"[ -s {subhost.folder}/status ]", 20)
    assert subhost.target.read(f"{subhost.folder}/status") == "0\n" and not subhost.pid1()


@clause("boot-foreground")
def test_foreground_returns_when_the_subhost_ends(subhost: Subhost) -> None:
    """It ends when the subhost does."""
    subhost.write("INIT= " + subhost.put("init", "#!/bin/sh\necho 'sleep 0.3'\n"))
    assert subhost.run(f"overlay-boot --foreground {subhost.conf}", timeout=20).status == 0
    assert not subhost.pid1()


@clause("boot-check", "boot-check-no-command")
def test_check_prints_and_does_nothing(subhost: Subhost) -> None:
    """The resolved configuration and the steps; no command is run and nothing is made."""
    subhost.write(f"CABLES= =\nRAM_SIZE=!touch {subhost.folder}/ran; echo 3M")
    everything = f"ls -AR {subhost.folder} /run/netns /run/overlay-boot; cat /proc/self/mounts"
    before = subhost.target.run(everything).out
    done = subhost.run(f"overlay-boot --check {subhost.conf}")
    assert done.status == 0, done
    assert f"UPPER={subhost.folder}/root" in done.out and "WORK=" in done.out
    assert f"{subhost.name}0" in done.out and "overlay" in done.out
    assert subhost.target.run(everything).out == before


@clause("boot-detached", "pid1-descriptors", "pid1-terminal", "pid1-directory")
def test_nothing_of_the_caller_reaches_pid_1(subhost: Subhost) -> None:
    """No descriptor, no terminal, no folder: it runs on when the caller's session has ended."""
    subhost.write()
    subhost.put("caller", "secret")
    subhost.run(
        f"cd {subhost.folder} && exec 7< caller && "
        f"script -qec 'overlay-boot {subhost.conf}' /dev/null < /dev/null > /dev/null"
    )
    assert subhost.up()
    pid = subhost.pid1()
    files = subhost.target.run(f"readlink /proc/{pid}/fd/*").out.split()
    assert f"{subhost.folder}/caller" not in files
    assert not any(file.startswith(("/dev/pts", "/dev/tty")) for file in files)
    assert subhost.target.run(f"readlink /proc/{pid}/cwd").out == "/\n"
    fields = subhost.target.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    assert fields[4] == "0"  # tty_nr


@clause("boot-running", "status-1")
def test_a_running_subhost_is_refused_and_untouched(subhost: Subhost) -> None:
    """One line, status 1; the same pid 1 runs on, and still answers."""
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    done = subhost.start()
    assert done.status == 1 and done.err.count("\n") == 1 and subhost.name in done.err, done
    assert subhost.pid1() == pid
    assert sorted(subhost.interfaces()) == ["eth0", "lo"]


@clause("boot-race")
def test_of_several_at_once_one_wins(subhost: Subhost) -> None:
    """Exactly one of eight boots ends with status 0."""
    subhost.write()
    said = subhost.run(
        f"for i in 1 2 3 4 5 6 7 8; do (overlay-boot {subhost.conf} > /dev/null 2>&1 < /dev/null; echo $?) & done; wait"
    ).out.split()
    assert sorted(said) == ["0"] + ["1"] * 7
    assert subhost.up()


def gone(subhost: Subhost) -> bool:
    """Whether name, cables, record and processes go away."""
    name = subhost.name
    return subhost.wait(
        f"! ls -d /run/netns/{name} && ! pid1 {name} && "
        f"[ ! -e /sys/class/net/{name}0 ] && [ ! -e /run/overlay-boot/{name} ]"
    )


def crash(subhost: Subhost) -> None:
    """Kill all of its processes at once, the keeper on the main host first."""
    pid = subhost.pid1()
    subhost.run(
        f"parent=$(sed 's/.*) . \\([0-9]*\\) .*/\\1/' /proc/{pid}/stat)\n"
        f"kill -STOP $parent; kill -9 $parent {pid}"
    )
    assert subhost.wait(f"! pid1 {subhost.name}")


@clause("end-cleanup")
def test_a_subhost_that_ends_is_cleaned_up(subhost: Subhost) -> None:
    """Without anyone asking: name, cables and record go with its pid 1."""
    subhost.boot("CABLES= = =")
    subhost.run(f"kill -9 {subhost.pid1()}")
    assert gone(subhost)


@clause("interrupted")
@pytest.mark.parametrize("signal", ["INT", "KILL"])
def test_an_interrupted_boot_leaves_nothing(subhost: Subhost, signal: str) -> None:
    """Neither a name, nor a cable, nor a record, nor files in UPPER."""
    hook = subhost.put("hook", f"#!/bin/sh\ntouch {subhost.folder}/started\nsleep 2\n")
    subhost.write(f"POSTMOUNT= {hook}\nCABLES= =")
    subhost.run(
        f"setsid sh -c 'echo $$ > {subhost.folder}/pid; exec env --default-signal=INT overlay-boot {subhost.conf}'"
        " < /dev/null > /dev/null 2>&1 &"
    )
    assert subhost.wait(f"[ -e {subhost.folder}/started ]")
    subhost.run(f"kill -{signal} $(cat {subhost.folder}/pid)")
    assert gone(subhost)
    assert subhost.wait(f'[ -z "$(ls -A {subhost.folder}/root)" ]')


@clause("help", "status-0")
@pytest.mark.parametrize("command", ["boot", "go", "stop", "list", "share", "diskfile"])
def test_help(subhost: Subhost, command: str) -> None:
    """Every command tells its usage and its exit statuses."""
    done = subhost.run(f"overlay-{command} --help")
    assert (
        done.status == 0 and f"overlay-{command}" in done.out and "status" in done.out.lower()
    ), done


@clause("see-also")
def test_the_commands_come_together(subhost: Subhost) -> None:
    """overlay-go and overlay-stop are there where overlay-boot is."""
    assert (
        subhost.run("for end in boot go stop; do command -v overlay-$end || exit; done").status
        == 0
    )


@clause("files-records")
def test_records_are_roots(subhost: Subhost) -> None:
    """What runs is recorded where only root can read."""
    subhost.boot()
    modes = subhost.run(f"cd /run/overlay-boot && stat -c %a:%U . {subhost.name}").out
    assert modes == "700:root\n600:root\n"


# --- overlay-go


@clause("go-shell", "go-pipe", "go-setup", "go-all-namespaces")
def test_go_is_a_root_shell_inside(subhost: Subhost) -> None:
    """It reads commands from a pipe, as root, in the root and the namespaces of the subhost."""
    subhost.put("root/etc/which", "subhost\n")
    subhost.boot()
    said = subhost.inside(
        "cat /etc/which; id -u; for n in mnt net pid ipc uts; do readlink /proc/self/ns/$n; done"
    )
    pid = subhost.pid1()
    theirs = subhost.target.run(
        f"for n in mnt net pid ipc uts; do readlink /proc/{pid}/ns/$n; done"
    ).out
    assert said == "subhost\n0\n" + theirs


@clause("go-not-child")
def test_gos_shell_is_no_child_of_pid_1(subhost: Subhost) -> None:
    """Its parent is outside of the subhost."""
    subhost.boot()
    assert (
        subhost.inside("while read n v; do [ $n != PPid: ] || echo $v; done < /proc/$$/status")
        == "0\n"
    )


@clause("go-bash")
def test_gos_shell_is_bash_or_sh(subhost: Subhost) -> None:
    """bash where the subhost has one, else sh."""
    subhost.put("root/bin/bash", '#!/bin/sh\nexport I_AM=bash\nexec /bin/sh "$@"\n')
    subhost.boot()
    assert subhost.inside("echo $I_AM") == "bash\n"
    subhost.target.succeed(f"rm {subhost.folder}/root/bin/bash")
    subhost.stop()
    subhost.boot()
    subhost.inside("[ ! -e /.reaper ] || rm /bin/bash")
    assert subhost.inside("echo ${I_AM:-sh}") == "sh\n"


@clause("go-terminal")
def test_go_has_a_terminal_of_the_subhosts(subhost: Subhost) -> None:
    """tty names one on the subhost's own /dev/pts, and the shell has job control."""
    subhost.boot()
    done = subhost.run(
        f"echo 'tty; set -o | grep monitor; exit' | script -qec 'overlay-go {subhost.name}' /dev/null",
        timeout=20,
    )
    assert "/dev/pts/0" in done.out, done
    assert re.search(r"^monitor\s+on", done.out, re.MULTILINE), done


@clause("go-command", "go-command-words", "go-conf")
def test_go_runs_a_command(subhost: Subhost) -> None:
    """Words as they were given, the exit status handed on, by name or configuration file."""
    subhost.boot()
    for who in (subhost.name, subhost.conf):
        done = subhost.run(f"overlay-go {who} sh -c 'echo \"$#:$2\"; exit 42' x 'a  b' '$c;'")
        assert (done.status, done.out) == (42, "2:$c;\n"), done


@clause("go-list")
def test_go_without_a_name_lists(subhost: Subhost) -> None:
    """The names of those that run."""
    subhost.boot()
    done = subhost.run("overlay-go < /dev/null")
    assert done.status == 0 and subhost.name in done.out, done


@clause("go-not-running", "stop-not-running", "runtime-share-not-running", "status-3")
@pytest.mark.parametrize("command", ["go", "stop", "share /srv"])
def test_a_subhost_that_does_not_run(subhost: Subhost, command: str) -> None:
    """One clear line and status 3, by name and by configuration file."""
    subhost.write()
    for who in (subhost.name, subhost.conf):
        done = subhost.run(f"overlay-{command} {who} < /dev/null")
        assert done.status == 3 and done.err.count("\n") == 1 and "not running" in done.err, done


@clause("go-clean-environment")
def test_gos_environment_is_clean(subhost: Subhost) -> None:
    """Of the caller's environment terminal and language alone get in."""
    subhost.boot()
    done = subhost.run(
        f"SECRET=x TERM=xterm COLORTERM=24bit LANG=C.UTF-8 LC_ALL=C overlay-go {subhost.name} env"
    )
    assert "SECRET" not in done.out and "TERM=xterm\n" in done.out, done
    assert all(f"{x}\n" in done.out for x in ("COLORTERM=24bit", "LANG=C.UTF-8", "LC_ALL=C"))
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" in done.out


# --- overlay-stop


@clause("stop", "stop-conf", "stop-netns")
def test_stop_ends_it(subhost: Subhost) -> None:
    """None of its processes runs on, and namespace and cables are gone."""
    subhost.boot("CABLES= =")
    subhost.inside("setsid sleep 4321 > /dev/null 2>&1 &")
    subhost.stop()
    name = subhost.name
    assert subhost.wait(f"! ls -d /run/netns/{name} && ! ls -d /sys/class/net/{name}0")
    assert subhost.wait("! pgrep -f '^sleep 4321'")


@clause("stop-name")
def test_stop_takes_the_name(subhost: Subhost) -> None:
    """A subhost can be named by its NAME."""
    subhost.boot()
    pid = subhost.pid1()
    assert subhost.run(f"overlay-stop {subhost.name}").status == 0
    assert not subhost.target.exists(f"/proc/{pid}")


@clause("stop-waits")
def test_stop_returns_when_all_is_gone(subhost: Subhost) -> None:
    """Name, cables, record, processes: gone at once when it returns."""
    subhost.boot("CABLES= = =")
    pid = subhost.pid1()
    name = subhost.name
    done = subhost.run(
        f"overlay-stop {name} || echo failed; ls -d /run/netns/{name} /sys/class/net/{name}[01] "
        f"/run/overlay-boot/{name} /proc/{pid} 2>/dev/null"
    )
    assert done.out == "", done


@clause("stop-term", "stop-kill", "stop-timeout")
def test_stop_terminates_then_kills(subhost: Subhost) -> None:
    """SIGTERM to all that is left; SIGKILL, after the grace, to what ignores it."""
    subhost.put(
        "root/deaf", "#!/bin/sh\ntrap 'echo term >> /said' TERM\nwhile :; do sleep 0.05; done\n"
    )
    subhost.put("init", "#!/bin/sh\necho '/deaf & exec /.reaper'\n")
    subhost.boot(f"INIT= {subhost.folder}/init")
    done = subhost.run(f"date +%s%N; overlay-stop --timeout 1 {subhost.name}; echo $?; date +%s%N")
    start, status, end = done.out.split()
    assert status == "0" and not subhost.target.run("pgrep -f '[/]deaf'").out, done
    assert 1 <= (int(end) - int(start)) / 1e9 < 1 + 5 * subhost.target.patience
    assert set(subhost.target.read(f"{subhost.folder}/root/said").split()) == {"term"}


@clause("stop-timeout-default")
def test_the_grace_is_ten_seconds_by_default(subhost: Subhost) -> None:
    """What ignores SIGTERM is killed after 10 seconds."""
    subhost.put(
        "init", "#!/bin/sh\necho '(trap : TERM; while :; do sleep 0.05; done) & exec /.reaper'\n"
    )
    subhost.boot(f"INIT= {subhost.folder}/init")
    done = subhost.run(f"date +%s%N; overlay-stop {subhost.name}; date +%s%N", timeout=40)
    start, end = map(int, done.out.split())
    assert 10 <= (end - start) / 1e9 < 10 + 5 * subhost.target.patience


@clause("stop-leftovers")
def test_what_a_crash_left_is_cleared(subhost: Subhost) -> None:
    """After its processes were all killed at once, overlay-stop clears its name, cables, records."""
    subhost.boot("CABLES= =")
    crash(subhost)
    assert subhost.run(f"overlay-stop {subhost.name}").status == 3
    assert gone(subhost)


@clause("stop-others")
def test_others_are_left_in_peace(subhost: Subhost) -> None:
    """A record whose pid is another process's by now harms nobody."""
    subhost.boot()
    pid = subhost.pid1()
    record = f"/run/overlay-boot/{subhost.name}"
    other = int(subhost.run("setsid sleep 60 > /dev/null 2>&1 < /dev/null & echo $!").out)
    try:
        subhost.run(f"cp {record} {subhost.folder}/old")
        subhost.stop()
        subhost.run(f"sed 's/{pid}/{other}/' {subhost.folder}/old > {record}; chmod 600 {record}")
        assert subhost.run(f"overlay-stop {subhost.name}").status == 3
        assert subhost.target.exists(f"/proc/{other}")
    finally:
        subhost.run(f"kill {other}; rm -f {record}")


# --- overlay-list


@clause("list-dead")
def test_list_without_the_dead(subhost: Subhost) -> None:
    """One whose processes were all killed is not listed, whatever is recorded still."""
    subhost.boot()
    crash(subhost)
    assert subhost.name not in subhost.run("overlay-list; overlay-list --json").out


@clause("list", "list-json", "list-dead", "list-empty")
def test_list(subhost: Subhost) -> None:
    """A line for each that runs, the same as JSON; a clear word where none does."""
    subhost.boot("CABLES= = =")
    name, pid = subhost.name, subhost.pid1()
    line = next(
        x for x in subhost.run("overlay-list").out.splitlines() if x.startswith(f"{name} ")
    )
    assert all(
        word in line for word in (str(pid), "overlay", f"{name}0", f"{name}1", subhost.conf)
    )
    rows = [
        row for row in json.loads(subhost.run("overlay-list --json").out) if row["name"] == name
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
    done = subhost.run("overlay-list")
    assert done.status == 0 and name not in done.out and done.err, done
    assert json.loads(subhost.run("overlay-list --json").out) == []


# --- overlay-share, overlay-diskfile


def shared_folder(subhost: Subhost) -> str:
    """A folder of the main host that is there in the subhost, too."""
    shared = subhost.put("shared/from", "host\n").removesuffix("/from")
    subhost.put(f"root{shared}/.here", "")
    return shared


@clause("runtime-share", "runtime-share-both", "runtime-share-end", "runtime-share-example")
def test_share_with_a_running_subhost(subhost: Subhost) -> None:
    """Both sides have the folder in common, until the subhost ends."""
    shared = shared_folder(subhost)
    subhost.boot()
    done = subhost.run(f"overlay-share {shared} {subhost.name}")
    assert done.status == 0, done
    assert subhost.inside(f"cat {shared}/from; echo sub > {shared}/new") == "host\n"
    subhost.stop()
    assert subhost.target.read(f"{shared}/new") == "sub\n"


@clause("runtime-share-mountpoint")
def test_share_makes_the_mount_point(subhost: Subhost) -> None:
    """A folder that the subhost does not have is shared all the same."""
    shared = subhost.put("shared/from", "host\n").removesuffix("/from")
    subhost.boot()
    assert subhost.run(f"overlay-share {shared} {subhost.name}").status == 0
    assert subhost.inside(f"cat {shared}/from") == "host\n"


@clause("runtime-share-conf")
def test_share_takes_the_configuration_file(subhost: Subhost) -> None:
    """The subhost can be named by its configuration file."""
    shared = shared_folder(subhost)
    subhost.boot()
    assert subhost.run(f"overlay-share {shared} {subhost.conf}").status == 0
    assert subhost.inside(f"cat {shared}/from") == "host\n"


@clause("runtime-share-directory")
def test_share_refuses_what_is_no_folder(subhost: Subhost) -> None:
    """In one line."""
    subhost.boot()
    done = subhost.run(f"overlay-share {subhost.conf} {subhost.name}")
    assert done.status != 0 and done.err.count("\n") == 1 and subhost.conf in done.err, done
