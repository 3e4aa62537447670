"""Ends that do not depend on the inside: stop scripts, hostile processes, lost keepers."""

from __future__ import annotations

import shlex

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import Subhost
from spec.waiting import PID1

SCRIPT = """#!/bin/sh
echo "$(basename $0) $1" >> /told
{}
"""


def scripts(subhost: Subhost, **bodies: str) -> str:
    """Start/stop scripts in the subhost that note what they are told; START for them."""
    for name, body in bodies.items():
        subhost.put(f"root/{name}", SCRIPT.format(body))
    return "START= " + " ".join(f"/{name}" for name in bodies)


def told(subhost: Subhost) -> list[str]:
    """What the scripts were told, in order."""
    return subhost.target.read(f"{subhost.folder}/root/told").splitlines()


def keeper(subhost: Subhost) -> str:
    """Shell text for the parent of pid 1, the process on the main host that waits for its end."""
    return f"$(sed 's/.*) . \\([0-9]*\\) .*/\\1/' /proc/{subhost.pid1()}/stat)"


@clause("reaper-entered")
def test_the_last_service_is_restarted_by_hand(subhost: Subhost) -> None:
    """A restart by hand goes on though its stop leaves the subhost no other process."""
    daemon = "setsid sleep 4321 < /dev/null > /dev/null 2>&1 & echo $! > /pid"
    subhost.boot(
        scripts(
            subhost,
            daemon=f"""case $1 in
            start) {daemon} ;;
            stop) kill -9 $(cat /pid) ;;
            restart) $0 stop; sleep 1; $0 start; echo done >> /told ;;
            esac""",
        )
    )
    pid = subhost.pid1()
    done = subhost.on_host(f"overlay-go {subhost.name} /daemon restart")
    assert done.status == 0, done
    assert told(subhost)[-3:] == ["daemon stop", "daemon start", "done"]
    assert subhost.pid1() == pid and "sleep" in subhost.processes()


@clause("reaper-entered")
def test_it_ends_when_the_last_entered_process_does(subhost: Subhost) -> None:
    """A shell of overlay-go outlives the services, and when it ends so does the subhost."""
    subhost.boot()
    pid = subhost.pid1()
    done = subhost.on_host(
        f"overlay-go {subhost.name}",
        input="echo > /run/dummy_service; sleep 1; cat /proc/1/comm\n",
    )
    assert done.out == ".reaper\n", done
    assert subhost.gone(pid)


@clause("stop-each", "stop-timeout", "stop-named")
def test_a_stop_script_that_hangs_keeps_no_other_from_its_time(subhost: Subhost) -> None:
    """With --timeout 2 five stop scripts are all told to stop, though one of them never ends."""
    slow = '[ $1 = start ] || { sleep 1; echo "$(basename $0) stopped" >> /told; }'
    bodies = dict.fromkeys(("one", "two", "three", "four"), slow)
    bodies["hangs"] = "[ $1 = start ] || { trap '' TERM HUP; sleep 99; sleep 99; }"
    subhost.boot(scripts(subhost, **bodies))
    pid = subhost.pid1()
    done = subhost.on_host(f"overlay-stop --timeout 2 {subhost.name}", timeout=60)
    one_line(done, 1, "hangs")
    assert "hangs" in subhost.target.read(subhost.log)
    assert not any(name in done.err for name in ("/one", "/two", "/three", "/four")), done
    stopped = [line.split()[0] for line in told(subhost) if line.endswith("stopped")]
    assert stopped == ["four", "three", "two", "one"]
    assert subhost.gone(pid)


@clause("stop-timeout-default")
def test_stop_scripts_have_a_minute_and_a_half_by_default(subhost: Subhost) -> None:
    """A stop script that does not end is ended after 90 s."""
    endless = "[ $1 = start ] || { sleep 998; echo late >> /told; }"
    subhost.boot(scripts(subhost, endless=endless))
    done, took, stood = subhost.timed(f"overlay-stop {subhost.name}", timeout=180)
    one_line(done, 1, "endless")
    assert "late" not in told(subhost)
    assert not subhost.target.run("pgrep -f 'sleep 99[8]'").out, done
    limit = 90 + 10 + 5 * subhost.target.patience
    assert took >= 89 and subhost.in_time(took - stood, limit), took


@clause("stop-starting")
def test_a_stop_while_services_are_being_started(subhost: Subhost) -> None:
    """The start that is under way is ended, the next one is never begun, and those that were begun
    are stopped in reverse."""
    subhost.write(
        scripts(
            subhost,
            one=":",
            two="[ $1 = stop ] || { touch /begun; sleep 60; echo late >> /told; }",
            three=":",
        )
    )
    subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null")
    assert subhost.wait(f"[ -e {subhost.folder}/root/begun ]")
    pid = subhost.pid1()
    subhost.on_host(f"overlay-stop --timeout 5 {subhost.name}", timeout=40)
    assert told(subhost) == ["one start", "two start", "two stop", "one stop"]
    assert subhost.gone(pid)


@clause("stop-log")
@pytest.mark.parametrize("how", ["link", "owner", "folder", "full"])
def test_a_log_that_cannot_be_written_does_not_keep_it_up(subhost: Subhost, how: str) -> None:
    """A log that cannot be written costs a warning; all scripts are run, and the status is 0."""
    small = f"{subhost.folder}/small"
    subhost.prepare_host(f"mkdir {small} && mount -t tmpfs -o size=64k none {small}")
    log = f"{small}/log"
    try:
        subhost.boot(scripts(subhost, one="setsid sleep 999 &") + f"\nLOG= {log}")
        pid = subhost.pid1()
        spoil = {
            "link": f"rm {log}; ln -s {subhost.folder}/elsewhere {log}",
            "owner": f"chown 1234 {log}",
            "folder": f"rm {log}; mkdir {log}",
            "full": f"cat /dev/zero > {small}/rest; head -c 4096 /dev/zero >> {log}; :",
        }[how]
        subhost.on_host(spoil)
        done = subhost.on_host(f"overlay-stop {subhost.name}")
        assert done.status == 0 and log in done.err, done
        assert told(subhost) == ["one start", "one stop"]
        assert subhost.gone(pid)
        assert not subhost.host.file(f"{subhost.folder}/elsewhere").exists
    finally:
        subhost.on_host(f"overlay-stop --timeout 0 {subhost.name}; umount -l {small}")


@clause("stop-forced-stopping")
def test_processes_that_stop_each_other_do_not_hold_it_up(subhost: Subhost) -> None:
    """A process that sends SIGSTOP to all others for ever ends with them after the grace."""
    evil = (
        "[ -p /go ] || mkfifo /go; setsid sh -c 'read go < /go; while :; do kill -STOP -1; done' &"
    )
    subhost.boot(scripts(subhost, evil=f"[ $1 = stop ] || {{ {evil} }}"))
    pid = subhost.pid1()
    # Not before the services have been started: it would stop the start of them for good, too.
    subhost.on_host(f"echo > /proc/{pid}/root/go")
    done = subhost.on_host(f"overlay-stop --timeout 1 {subhost.name}", timeout=60)
    # Whether SIGTERM or SIGKILL ends it depends on whom it stops when.
    assert done.status in (0, 1) and subhost.gone(pid), done


@clause("stop-forced-keeper")
def test_a_keeper_that_is_stopped_does_not_hold_it_up(subhost: Subhost) -> None:
    """All of a subhost is cleared in time though the process that waits for it is stopped."""
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    subhost.on_host(f"kill -STOP {keeper(subhost)}")
    done = subhost.on_host(f"overlay-stop {subhost.name}", timeout=30)
    assert done.status == 0 and subhost.gone(pid), done


@clause("stop-forced-keeper", "stop-waits")
def test_a_keeper_that_is_lost_is_done_without(subhost: Subhost) -> None:
    """A subhost whose waiting process was killed runs on, is not started a second time, and is
    cleared wholly by overlay-stop."""
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    subhost.on_host(f"kill -9 {keeper(subhost)}")
    assert subhost.start().status == 1
    assert subhost.inside("echo on") == "on\n"
    done = subhost.on_host(f"overlay-stop {subhost.name}")
    assert done.status == 0 and subhost.gone(pid), done


@clause("end-cables")
@pytest.mark.parametrize("how", ["stop", "stop without the keeper", "by itself"])
def test_cables_go_though_the_namespace_is_held(subhost: Subhost, how: str) -> None:
    """Cables go with the subhost though a process of the main host is in its network namespace,
    and though one of them was renamed."""
    subhost.boot("CABLES= = =")
    name, pid = subhost.name, subhost.pid1()
    held = int(
        subhost.on_host(
            f"ip netns exec {name} setsid sleep 60 > /dev/null 2>&1 < /dev/null & echo $!"
        ).out
    )
    try:
        assert subhost.wait(
            f"[ $(readlink /proc/{held}/ns/net) = $(readlink /proc/{pid}/ns/net) ]"
        )
        subhost.prepare_host(f"ip link set {name}1 down && ip link set {name}1 name {name}x")
        if "keeper" in how:
            subhost.on_host(f"kill -9 {keeper(subhost)}")
        if how == "by itself":
            subhost.end_by_itself()
        else:
            subhost.on_host(f"overlay-stop {name}")
        assert subhost.gone(pid)
        assert not subhost.host.file(f"/sys/class/net/{name}x").exists
        assert subhost.host.file(f"/proc/{held}").exists
    finally:
        subhost.on_host(f"kill {held}; ip link delete {name}x")


@clause("stop-not-running")
@pytest.mark.parametrize("name", ["..", ".", "/", "''", "a/../b", "-- -x"])
def test_odd_names_are_just_not_running(subhost: Subhost, name: str) -> None:
    """For an odd name overlay-stop says in one line that no such subhost runs, with status 3."""
    done = subhost.on_host(f"overlay-stop {name}")
    one_line(done, 3)


@clause("stop-not-running")
def test_a_boot_that_fails_is_not_waited_for(subhost: Subhost) -> None:
    """An overlay-stop during a boot ends with status 3 as soon as that boot has failed."""
    hook = subhost.put("hook", "#!/bin/sh\nsleep 2; exit 1\n")
    subhost.write(f"PREMOUNT= {hook}")
    done = subhost.on_host(
        f"overlay-boot {subhost.conf} < /dev/null > /dev/null 2>&1 & {PID1}\n"
        f"until [ -e /run/overlay-boot/{subhost.name} ]; do sleep 0.05; done\n"
        f"date +%s%N; overlay-stop {subhost.name}; echo $?; date +%s%N"
    )
    start, status, end = done.out.split()
    assert status == "3" and (int(end) - int(start)) / 1e9 < 2 + 3 * subhost.target.patience, done


@clause("interrupted-status", "interrupted")
def test_signals_at_any_moment(subhost: Subhost) -> None:
    """Of fifteen boots, each sent a signal some milliseconds later than the last, each either
    runs and has status 0, or ends with the signal's status and leaves nothing."""
    subhost.write("CABLES= =")
    before = subhost.target.run(f"find {subhost.folder}/root {subhost.folder}/work").out
    for number in range(15):
        signal, status = (("INT", 130), ("TERM", 143), ("HUP", 129))[number % 3]
        delay = 0.02 * number * subhost.target.patience
        done = subhost.on_host(
            f"""(exec env --default-signal overlay-boot {subhost.conf}) < /dev/null > /dev/null 2>&1 &
            sleep {delay:.3f}; kill -{signal} $!; wait $!; echo $?"""
        )
        said = int(done.out)
        begun = not subhost.target.run(f"rm {subhost.log}").status
        if said and not begun:
            assert subhost.gone(0), done  # that was the interpreter's own start, not the boot's
        elif said == 0:
            assert subhost.pid1(), done
            assert subhost.on_host(f"overlay-stop {subhost.name}").status == 0
            subhost.prepare_host(f"rm -rf {subhost.folder}/root/* {subhost.folder}/root/.reaper")
            subhost.prepare_host(f"rm -rf {subhost.folder}/work/*")
        else:
            assert said == status, done
            assert subhost.gone(0), done
            assert (
                subhost.target.run(f"find {subhost.folder}/root {subhost.folder}/work").out
                == before
            )


@clause("stop-starting")
@pytest.mark.parametrize("name", ["starting 0", "starting \N{SUPERSCRIPT TWO}", "starting 99999"])
def test_a_process_that_pretends_to_start_services(subhost: Subhost, name: str) -> None:
    """A process inside that goes by the name that tells how many services were begun may
    mislead overlay-stop about that, but the subhost is stopped."""
    forge = f"printf '{name}' > /proc/self/comm 2> /dev/null; exec 3< /dev/zero; read x <&3"
    init = subhost.put(
        "init", f"#!/bin/sh\ncat << 'EOF'\nsh -c {shlex.quote(forge)} &\nexec sleep 1000\nEOF\n"
    )
    subhost.write(scripts(subhost, one=":") + f"\nINIT= {init}")
    assert subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null").status == 0
    pid = subhost.pid1()
    done = subhost.on_host(f"overlay-stop --timeout 1 {subhost.name}", timeout=40)
    assert "Traceback" not in done.err and done.status in (0, 1), done
    assert told(subhost) == ["one stop"]
    assert subhost.gone(pid)


@clause("stop-once")
def test_several_stops_at_once_run_each_script_once(subhost: Subhost) -> None:
    """Of five overlay-stop at once each ends with 0 or 3, and no stop script runs twice."""
    subhost.boot(scripts(subhost, slow="[ $1 = start ] || sleep 1"))
    pid = subhost.pid1()
    said = subhost.on_host(
        f"for i in 1 2 3 4 5; do (overlay-stop {subhost.name}; echo $?) & done; wait"
    )
    assert set(said.out.split()) <= {"0", "3"} and "0" in said.out.split(), said
    assert told(subhost) == ["slow start", "slow stop"]
    assert "failed" not in subhost.target.read(subhost.log)
    assert subhost.gone(pid)


@clause("stop-forced-keeper")
@pytest.mark.usefixtures("interfaces")
def test_without_a_keeper_ifdown_runs_all_the_same(subhost: Subhost) -> None:
    """What ifup took up is taken down before the cable goes, though nobody waited for the end."""
    down = f"{subhost.folder}/down"
    subhost.stanza(f"{subhost.name}0", f"down ip -br link show {subhost.name}0 > {down}")
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    subhost.on_host(f"kill -9 {keeper(subhost)}")
    done = subhost.on_host(f"overlay-stop {subhost.name}")
    assert done.status == 0 and subhost.gone(pid), done
    assert subhost.name in subhost.target.read(down)


@clause("end-again")
@pytest.mark.usefixtures("interfaces")
def test_a_boot_waits_for_the_clean_up(subhost: Subhost) -> None:
    """A boot waits for the clean-up after an end that nobody asked for, a slow ifdown included."""
    subhost.stanza(f"{subhost.name}0", "down sleep 11")
    subhost.boot("CABLES= =")
    pid = subhost.pid1()
    subhost.on_host(f"kill -9 {pid}")
    assert subhost.wait(f"[ ! -e /proc/{pid} ]")
    subhost.boot("CABLES= =")
    assert subhost.pid1() not in (None, pid)
