"""INIT, START, dummy_service and the reaper."""

from __future__ import annotations

import re

import pytest

from spec.clauses import clause
from spec.subhost import Subhost


def service(subhost: Subhost, path: str, *, runs: bool = True) -> None:
    """A start/stop script in the subhost that notes its calls and may leave a process running,
    which is gone when it has been told to stop."""
    process = "sleep 4321 < /dev/null > /dev/null 2>&1 & echo $! > $0.pid" if runs else ":"
    subhost.put(
        f"root{path}",
        f"""#!/bin/sh
echo "{path.rpartition("/")[2]} $1" >> /services
case $1 in
start) {process} ;;
stop) [ ! -e $0.pid ] || {{ kill $(cat $0.pid); while [ -e /proc/$(cat $0.pid) ]; do sleep 0.02; done; }} ;;
esac
""",
    )


def calls(subhost: Subhost) -> list[str]:
    """What the services were told, in order."""
    return subhost.target.read(f"{subhost.folder}/root/services").splitlines()


@clause("start-initd")
def test_a_service_is_a_script_of_init_d(subhost: Subhost) -> None:
    """A name in START is that of a script in the subhost's /etc/init.d."""
    service(subhost, "/etc/init.d/one")
    subhost.boot("START= one")
    assert calls(subhost) == ["one start"]


@clause("start")
def test_services_are_started_in_order(subhost: Subhost) -> None:
    """Services are started one after the other, as START names them."""
    for name in ("one", "two", "three"):
        service(subhost, f"/etc/init.d/{name}")
    subhost.boot("START= two one three")
    assert calls(subhost) == ["two start", "one start", "three start"]


@clause("start-service")
def test_names_go_through_service(subhost: Subhost) -> None:
    """A name is started by `service NAME start`."""
    subhost.put("root/usr/sbin/service", '#!/bin/sh\necho "$@" >> /services\n')
    subhost.boot("START= some")
    assert calls(subhost) == ["some start"]


@clause("start-script", "start-mixed")
def test_scripts_by_full_path_and_names_mix(subhost: Subhost) -> None:
    """A full path is run with `start`; names and paths may be mixed."""
    service(subhost, "/opt/script")
    service(subhost, "/etc/init.d/name")
    subhost.boot("START= /opt/script name")
    assert calls(subhost) == ["script start", "name start"]


@clause("start-default")
def test_the_default_start(subhost: Subhost) -> None:
    """Without START, networking and ssh are started, in this order."""
    for name in ("networking", "ssh"):
        service(subhost, f"/etc/init.d/{name}")
    subhost.boot(omit=("START",))
    assert calls(subhost) == ["networking start", "ssh start"]


@clause("start-none", "dummy")
def test_none_starts_no_service_but_dummy_service(subhost: Subhost) -> None:
    """With START= none no service is started; a process named dummy_service runs."""
    subhost.put("root/usr/sbin/service", '#!/bin/sh\necho "$@" >> /services\n')
    for name in ("networking", "ssh", "none"):
        service(subhost, f"/etc/init.d/{name}")
    subhost.boot("START= none")
    assert subhost.runs("dummy_service")
    assert calls(subhost) == []


@clause("dummy-idle")
def test_dummy_service_runs_where_services_left_nothing(subhost: Subhost) -> None:
    """Where the services of START have left nothing running, dummy_service runs."""
    service(subhost, "/etc/init.d/once", runs=False)
    subhost.boot("START= once")
    assert subhost.runs("dummy_service")


@clause("dummy-not")
def test_no_dummy_service_beside_a_service(subhost: Subhost) -> None:
    """Where a service runs there is no dummy_service."""
    service(subhost, "/etc/init.d/one")
    subhost.boot("START= one")
    assert "sleep" in subhost.processes()
    assert not subhost.runs("dummy_service", 1)
    assert not subhost.inside("ls /run/dummy_service 2> /dev/null")


@clause("reaper-end")
def test_the_reaper_waits_for_the_last_process(subhost: Subhost) -> None:
    """/.reaper stays when one of two processes ends, and ends once the other one does."""
    subhost.put("root/two", "#!/bin/sh\nfor i in 1 2; do sleep 999 & echo $! > /pid$i; done\n")
    subhost.boot("START= /two")
    pid = subhost.pid1()
    subhost.inside("kill $(cat /pid1)")
    assert not subhost.wait(f"[ ! -e /proc/{pid} ]", 2)
    subhost.end_by_itself("kill $(cat /pid2)")
    assert subhost.ended(pid)


@clause("dummy-pipe", "dummy-end", "reaper-end")
def test_writing_to_the_pipe_ends_it(subhost: Subhost) -> None:
    """dummy_service ends when anything is written to its pipe, and with it the subhost."""
    subhost.boot()
    pid = subhost.pid1()
    assert subhost.runs("dummy_service")
    assert subhost.inside("[ -p /run/dummy_service ] && echo pipe") == "pipe\n"
    subhost.end_by_itself()
    assert subhost.ended(pid)


@clause("start-failure")
def test_a_service_that_fails_does_not_stop_the_others(subhost: Subhost) -> None:
    """A service that fails is noted in the log, and the next one is started."""
    service(subhost, "/etc/init.d/good")
    subhost.put("root/etc/init.d/bad", "#!/bin/sh\nexit 3\n")
    subhost.boot("START= bad missing good")
    assert calls(subhost) == ["good start"]
    log = subhost.target.read(subhost.log)
    assert "bad" in log and "missing" in log


@clause("log-services")
def test_the_log_tells_what_services_took(subhost: Subhost) -> None:
    """The log has a line for each start and stop of a service, in order, with the seconds, and
    so it has for one that fails."""
    subhost.put("root/slow", "#!/bin/sh\nsleep 0.3\n")
    subhost.put("root/bad", "#!/bin/sh\nexit 3\n")
    subhost.boot("START= /slow /bad")
    subhost.stop()
    lines = [
        (match[1], match[2], float(match[4]) >= 0.3)
        for line in subhost.target.read(subhost.log).splitlines()
        if (match := re.search(r"(start|stop) of (\S+?)(:| failed: .*) (\d+\.\d+) s$", line))
    ]
    assert [line[:2] for line in lines] == [
        ("start", "/slow"),
        ("start", "/bad"),
        ("stop", "/bad"),
        ("stop", "/slow"),
    ]
    assert lines[0][2] and lines[3][2]


@clause("log-end")
@pytest.mark.parametrize(
    ("end", "told"),
    [("echo > /proc/{0}/root/run/dummy_service", "exit status 0"), ("kill -9 {0}", "signal 9")],
)
def test_the_log_tells_how_the_subhost_ended(subhost: Subhost, end: str, told: str) -> None:
    """The log tells whether pid 1 ended by itself or was killed."""
    subhost.boot()
    pid = subhost.pid1()
    assert subhost.runs("dummy_service")
    subhost.on_host(end.format(pid))
    assert subhost.gone(pid)
    assert told in subhost.target.read(subhost.log).splitlines()[-1]


@clause("init", "init-config")
def test_inits_output_is_what_pid_1_runs(subhost: Subhost) -> None:
    """INIT gets CONFIG, and its output is the script that the subhost's pid 1 runs."""
    subhost.put(
        "init",
        '#!/bin/sh\necho "echo $CONFIG \\$\\$ > /said"; echo "sleep 99 &"\necho "exec /.reaper"\n',
    )
    subhost.boot(f"INIT= {subhost.folder}/init")
    assert subhost.target.read(f"{subhost.folder}/root/said").split() == [subhost.conf, "1"]


@clause("init-default", "boot-init-last")
def test_the_default_init_ends_in_the_reaper(subhost: Subhost) -> None:
    """By default pid 1 comes to execute /.reaper."""
    subhost.boot()
    assert subhost.inside("cat /proc/1/comm; readlink /proc/1/exe").split() == [
        ".reaper",
        "/.reaper",
    ]


@clause("init-subhost-shell")
def test_the_subhosts_own_shell_runs_the_script(subhost: Subhost) -> None:
    """The subhost's own shell runs INIT's script, and a busybox will do: it has neither Python
    nor this package."""
    subhost.put(
        "init", "#!/bin/sh\necho 'readlink /proc/$$/exe > /said; sleep 99 & exec /.reaper'\n"
    )
    subhost.boot(f"INIT= {subhost.folder}/init")
    assert subhost.target.read(f"{subhost.folder}/root/said") == "/bin/busybox\n"


@clause("init-no-reaper")
def test_a_script_without_the_reaper_just_ends(subhost: Subhost) -> None:
    """A subhost whose script does not come to the reaper ends with it, and is cleared up."""
    subhost.put(
        "init", "#!/bin/sh\necho 'echo spoken; until [ -e /go-on ]; do sleep 0.05; done'\n"
    )
    subhost.start(f"INIT= {subhost.folder}/init")
    assert subhost.wait(f"grep -q ^spoken {subhost.log}", 20)
    pid = subhost.pid1()
    subhost.on_host(f"overlay-go {subhost.name} touch /go-on")
    assert pid and subhost.gone(pid)


@clause("reaper-reaps")
def test_orphans_are_reaped(subhost: Subhost) -> None:
    """Processes whose parent has gone leave no zombie."""
    subhost.put(
        "root/orphans", "#!/bin/sh\nfor i in 1 2 3; do (sleep 0.2; echo > /end$i) & done\n"
    )
    subhost.boot()
    pid = subhost.pid1()
    subhost.inside("setsid /orphans")
    root = f"{subhost.folder}/root"
    assert subhost.wait(f"[ -e {root}/end1 ] && [ -e {root}/end2 ] && [ -e {root}/end3 ]")
    children = f"grep -ls '^PPid:.{pid}$' /proc/[0-9]*/status"
    assert subhost.wait(f"! {children} | xargs grep -s '^Name:.orphans'")
    assert subhost.pid1() == pid


@clause("stop-recorded")
def test_what_was_started_is_stopped(subhost: Subhost) -> None:
    """overlay-stop stops what the boot started, whatever the configuration file says by now."""
    for name in ("one", "two"):
        service(subhost, f"/etc/init.d/{name}")
    subhost.boot("START= one")
    subhost.write("START= two")
    subhost.stop()
    assert calls(subhost) == ["one start", "one stop"]


@clause("stop-services-inside")
def test_services_are_stopped_inside(subhost: Subhost) -> None:
    """A script that is told to stop sees the subhost's root and processes."""
    subhost.put("root/one", "#!/bin/sh\necho $1 $(cat /proc/1/comm) >> /seen\nsetsid sleep 99 &\n")
    subhost.boot("START= /one")
    subhost.stop()
    seen = subhost.target.read(f"{subhost.folder}/root/seen").splitlines()
    assert seen[1:] == ["stop .reaper"]


@clause("stop-services-init")
def test_services_are_stopped_whatever_init_is(subhost: Subhost) -> None:
    """overlay-stop stops the services also where an INIT of one's own has started them, whether
    that comes to the reaper or stays a shell."""
    service(subhost, "/one")
    for stays in ("exec /.reaper", "sleep 99 & wait"):
        script = f"trap 'exit 0' TERM; /one start; {stays}"
        init = subhost.put("init", f"#!/bin/sh\ncat << 'END'\n{script}\nEND\n")
        subhost.write(f"START= /one\nINIT= {init}")
        done = subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null")
        assert done.status == 0, done
        told = f"{subhost.folder}/root/services"
        assert subhost.wait(f"grep -q start {told}")
        subhost.stop()
        assert calls(subhost) == ["one start", "one stop"], stays
        subhost.prepare_host(f"rm {told}")


@clause("stop-services", "stop-script")
@pytest.mark.parametrize("given", ["/etc/init.d/one /etc/init.d/two", "one two"])
def test_services_are_stopped_in_reverse(subhost: Subhost, given: str) -> None:
    """overlay-stop stops the services inside the subhost, the last one first."""
    for name in ("one", "two"):
        service(subhost, f"/etc/init.d/{name}")
    subhost.boot(f"START= {given}")
    subhost.stop()
    assert calls(subhost) == ["one start", "two start", "two stop", "one stop"]


@clause("stop-services")
def test_all_services_are_stopped_when_no_process_is_left(subhost: Subhost) -> None:
    """When a stop script has ended the subhost's last process, the services yet to be stopped
    are told to stop all the same."""
    service(subhost, "/one", runs=False)
    service(subhost, "/two")
    subhost.boot("START= /one /two")
    subhost.stop()
    assert calls(subhost) == ["one start", "two start", "two stop", "one stop"]
