"""OPTIONS, STARTING AND ENDING, EXIT STATUS and FILES."""

from __future__ import annotations

import re

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import TINY, Subhost
from spec.waiting import PID1


def slow_init(subhost: Subhost) -> str:
    """An INIT whose script waits, at rest, for a line on /open before it comes to the reaper."""
    return "INIT= " + subhost.put(
        "init",
        "#!/bin/sh\necho 'mkfifo /open; read line < /open; sleep 99 & exec /.reaper'\n",
    )


@clause("boot-returns", "status-0")
def test_boot_returns_when_the_init_commands_run(subhost: Subhost) -> None:
    """overlay-boot returns with status 0 while INIT's commands still run, by the subhost's own shell."""
    subhost.write(slow_init(subhost))
    look = f"readlink /proc/$(pid1 {subhost.name})/exe"
    done = subhost.on_host(f"{PID1}\noverlay-boot {subhost.conf} < /dev/null && {look}")
    assert done.status == 0 and done.out.endswith("/bin/busybox\n"), done
    subhost.on_host(
        f"overlay-go {subhost.name} sh -c 'until [ -p /open ]; do :; done; echo > /open'"
    )
    assert subhost.up()


@clause("boot-wait")
def test_wait_returns_when_the_reaper_runs(subhost: Subhost) -> None:
    """overlay-boot --wait returns when INIT's commands have come to /.reaper, not before."""
    init = subhost.put("init", "#!/bin/sh\necho 'sleep 1; sleep 99 & exec /.reaper'\n")
    subhost.write(f"INIT= {init}")
    done = subhost.on_host(f"overlay-boot --wait {subhost.conf} < /dev/null")
    assert done.status == 0, done
    assert subhost.target.run(f"cat /proc/{subhost.pid1()}/comm").out == ".reaper\n"


@clause("boot-wait-failed")
def test_wait_names_what_could_not_be_started(subhost: Subhost) -> None:
    """overlay-boot --wait names those services that could not be started, ends with status 1,
    and the subhost runs with the others."""
    subhost.put("root/bad", "#!/bin/sh\necho starting; exit 3\n")
    subhost.put(
        "root/good", "#!/bin/sh\n[ $1 = stop ] || sleep 4321 < /dev/null > /dev/null 2>&1 &\n"
    )
    wait = f"overlay-boot --wait {subhost.conf} < /dev/null"
    subhost.write("START= /bad /good missing")
    done = subhost.on_host(wait)
    assert done.status == 1, done
    told = done.err.splitlines()[-1]
    assert "/bad" in told and "missing" in told and "/good" not in told, done
    assert subhost.pid1() and "sleep" in subhost.processes()
    subhost.stop()
    subhost.write("START= /good")
    done = subhost.on_host(wait)
    assert done.status == 0 and done.err == "", done


@clause("boot-foreground", "boot-foreground-signal")
@pytest.mark.parametrize("signal", ["INT", "TERM", "HUP"])
def test_foreground_stays_until_a_signal_stops_it(subhost: Subhost, signal: str) -> None:
    """overlay-boot --foreground stays; SIGINT, SIGTERM and SIGHUP stop it, its services first."""
    subhost.put("root/one", "#!/bin/sh\necho $1 >> /told\n")
    subhost.write("START= /one")
    subhost.on_host(
        f"""rm -f {subhost.folder}/status
        (setsid sh -c 'echo $$ > {subhost.folder}/pid; exec env --default-signal overlay-boot --foreground {subhost.conf}'
        echo $? > {subhost.folder}/status) < /dev/null > /dev/null 2>&1 &"""
    )
    assert subhost.up()
    pid = subhost.pid1()
    assert not subhost.host.file(f"{subhost.folder}/status").exists
    subhost.on_host(f"kill -{signal} $(cat {subhost.folder}/pid)")
    assert subhost.wait(f"[ -s {subhost.folder}/status ]", 20)
    assert subhost.target.read(f"{subhost.folder}/status") == "0\n"
    assert not subhost.host.file(f"/proc/{pid}").exists
    assert subhost.target.read(f"{subhost.folder}/root/told") == "start\nstop\n"


@clause("end-restart")
def test_a_subhost_that_has_ended_starts_again(subhost: Subhost) -> None:
    """A subhost whose last process has ended by itself, and one that was stopped, start again."""
    for _ in range(2):
        subhost.boot("CABLES= =")
        pid = subhost.pid1()
        subhost.end_by_itself()
        assert subhost.ended(pid)
    subhost.boot()
    subhost.stop()
    subhost.boot()


@clause("boot-foreground")
def test_foreground_returns_when_the_subhost_ends(subhost: Subhost) -> None:
    """overlay-boot --foreground ends when the subhost does."""
    subhost.write("INIT= " + subhost.put("init", "#!/bin/sh\necho 'sleep 0.3'\n"))
    assert subhost.on_host(f"overlay-boot --foreground {subhost.conf}", timeout=20).status == 0
    assert not subhost.pid1()


@clause("boot-check", "boot-check-no-command")
def test_check_prints_and_does_nothing(subhost: Subhost) -> None:
    """overlay-boot --check prints the resolved configuration and the steps; no command is run
    and nothing is made."""
    subhost.write(f"CABLES= =\nRAM_SIZE=!touch {subhost.folder}/ran; echo 3M")
    everything = f"ls -AR {subhost.folder} /run/netns /run/overlay-boot; cat /proc/self/mounts"
    before = subhost.target.run(everything).out
    done = subhost.on_host(f"overlay-boot --check {subhost.conf}")
    assert done.status == 0, done
    assert f"UPPER={subhost.folder}/root" in done.out and "WORK=" in done.out
    assert f"{subhost.name}0" in done.out and " overlay " in done.out
    assert subhost.target.run(everything).out == before


@clause("boot-detached", "pid1-descriptors", "pid1-terminal", "pid1-directory")
def test_nothing_of_the_caller_reaches_pid_1(subhost: Subhost) -> None:
    """No descriptor, terminal or folder of the caller reaches pid 1, which runs on when the
    caller's session has ended."""
    subhost.write()
    subhost.put("caller", "secret")
    subhost.on_host(
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
    """A second boot is refused in one line with status 1; the same pid 1 runs on, and its
    cables are still there."""
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    done = subhost.start()
    one_line(done, 1, subhost.name)
    assert subhost.pid1() == pid
    assert sorted(subhost.interfaces()) == ["eth0", "lo"]


@clause("boot-race")
def test_of_several_at_once_one_wins(subhost: Subhost) -> None:
    """Of eight boots of the same subhost at once exactly one ends with status 0."""
    subhost.write()
    said = subhost.on_host(
        f"for i in 1 2 3 4 5 6 7 8; do (overlay-boot {subhost.conf} > /dev/null 2>&1 < /dev/null; echo $?) & done; wait"
    ).out.split()
    assert sorted(said) == ["0"] + ["1"] * 7
    assert subhost.up()


@clause("end-cleanup")
def test_a_subhost_that_ends_is_cleaned_up(subhost: Subhost) -> None:
    """When pid 1 is killed, the subhost's name, its cables and its record go without anyone
    asking."""
    subhost.boot("CABLES= = =")
    pid = subhost.pid1()
    subhost.on_host(f"kill -9 {pid}")
    assert subhost.gone(pid)


@clause("interrupted", "interrupted-status")
@pytest.mark.parametrize("signal", ["INT", "TERM", "HUP", "KILL"])
def test_an_interrupted_boot_leaves_nothing(subhost: Subhost, signal: str) -> None:
    """An interrupted boot leaves neither a name, nor a cable, nor a record, nor files in UPPER, though
    one of its hooks would wait."""
    hook = subhost.put(
        "hook",
        f"#!/bin/sh\ntouch {subhost.folder}/started\n"
        f"until [ -e {subhost.folder}/released ]; do sleep 0.05; done\n",
    )
    subhost.write(f"POSTMOUNT= {hook}\nCABLES= =")
    subhost.on_host(
        f"""(setsid sh -c 'echo $$ > {subhost.folder}/pid
        exec env --default-signal overlay-boot {subhost.conf}'
        echo $? > {subhost.folder}/status) < /dev/null > /dev/null 2>&1 &"""
    )
    assert subhost.wait(f"[ -e {subhost.folder}/started ]")
    release = f"; touch {subhost.folder}/released" if signal == "KILL" else ""
    subhost.on_host(f"kill -{signal} $(cat {subhost.folder}/pid){release}")
    assert subhost.wait(f"[ -s {subhost.folder}/status ]")
    status = int(subhost.target.read(f"{subhost.folder}/status"))
    assert status == 128 + {"INT": 2, "TERM": 15, "HUP": 1, "KILL": 9}[signal]
    assert subhost.gone(0)
    assert subhost.wait(f'[ -z "$(ls -A {subhost.folder}/root)" ]')


@clause("help", "status-0")
@pytest.mark.parametrize("command", ["boot", "go", "stop", "list", "share", "diff", "diskfile"])
def test_help(subhost: Subhost, command: str) -> None:
    """Every command tells its usage and its exit statuses."""
    done = subhost.on_host(f"overlay-{command} --help")
    assert (
        done.status == 0 and f"overlay-{command}" in done.out and "status" in done.out.lower()
    ), done


@clause("version")
@pytest.mark.parametrize("command", ["boot", "go", "stop", "list", "share", "diff", "diskfile"])
def test_version(subhost: Subhost, command: str) -> None:
    """Every command tells which version it is of."""
    done = subhost.on_host(f"overlay-{command} --version")
    assert done.status == 0 and re.fullmatch(rf"overlay-{command} \d+(\.\d+)+\n", done.out), done


@clause("see-also")
def test_the_commands_come_together(subhost: Subhost) -> None:
    """overlay-boot, overlay-go and overlay-stop are all on PATH."""
    assert (
        subhost.on_host("for end in boot go stop; do command -v overlay-$end || exit; done").status
        == 0
    )


@clause("files-records")
def test_records_are_roots(subhost: Subhost) -> None:
    """What runs is recorded in a place that only root can read."""
    subhost.boot()
    for path, mode in (("/run/overlay-boot", 0o700), (f"/run/overlay-boot/{subhost.name}", 0o600)):
        file = subhost.host.file(path)
        assert (file.mode, file.user) == (mode, "root"), path


@clause("stop-term")
def test_what_pid_1_starts_after_sigterm_ends_by_it_too(subhost: Subhost) -> None:
    """When a subhost is stopped while INIT's commands run, the dummy_service that is started
    then holds nothing up."""
    init = subhost.put("init", "#!/bin/sh\necho 'mkfifo /open; sleep 99'\nexec overlay-init\n")
    subhost.write(f"INIT= {init}")
    subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null")
    assert subhost.wait(f"[ -p {subhost.folder}/root/open ]")
    done = subhost.stop()
    assert done.status == 0 and "dummy" not in done.err, done


@clause("boot-running", "files-records-lost")
def test_one_without_a_record_is_not_booted_again(subhost: Subhost) -> None:
    """A boot says that the subhost runs already, also where its record has been removed by
    hand."""
    subhost.boot()
    pid = subhost.pid1()
    subhost.on_host(f"rm /run/overlay-boot/{subhost.name}")
    done = subhost.start()
    one_line(done, 1, "running")
    assert "namespace" not in done.err, done
    assert subhost.pid1() == pid


@clause("stop-descriptors")
@pytest.mark.parametrize("limit", [16, 20])
def test_a_caller_with_few_descriptors_stops_it_as_any_other(subhost: Subhost, limit: int) -> None:
    """overlay-stop of a caller that may open only 16 or 20 files tells the service to stop, and
    ends with status 0."""
    told = f"{subhost.folder}/root/told"
    subhost.put("root/one", "#!/bin/sh\necho $1 >> /told\n[ $1 = stop ] || sleep 999 &\n")
    subhost.boot("START= /one")
    pid = subhost.pid1()
    done = subhost.on_host(f"ulimit -S -n {limit}; exec overlay-stop {subhost.name}")
    assert (done.status, done.err) == (0, ""), done
    assert subhost.target.read(told) == "start\nstop\n" and subhost.gone(pid)


@clause("boot-many")
def test_many_boots_at_the_same_time(subhost: Subhost) -> None:
    """Sixteen subhosts, booted at the same time, all run."""
    names = [f"{subhost.name}{letter}" for letter in "abcdefghijklmnop"]
    subhost.named += names
    folders = " ".join(f"{subhost.folder}/{name}" for name in names)
    subhost.prepare_host(
        f"for each in {folders}; do mkdir -p $each/root $each/work $each/live; done"
    )
    for name in names:
        text = f"BASE= .\nLOWER= {TINY}\nSTART= none\nLOG= log\n"
        subhost.put(f"{name}/{name}.conf", text, 0o644)
    boots = [f"overlay-boot {subhost.folder}/{name}/{name}.conf > /dev/null &" for name in names]
    done = subhost.on_host("\n".join([*boots, "wait"]), timeout=120)
    assert not done.err, done
    listed = subhost.on_host("overlay-list").out
    assert all(f"{name} " in listed for name in names), listed
