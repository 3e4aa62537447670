"""systemd as pid 1 of a subhost, and how overlay-stop ends it. In most tests it is a real one."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.plugin import precondition
from spec.subhost import Subhost
from spec.targets import Result
from spec.waiting import PID1

INIT = "LOWER= /\nINIT= overlay-init-systemd\n"
HAVE = "[ -e /sys/fs/cgroup/cgroup.controllers ] && [ -w /sys/fs/cgroup ] && [ -x /lib/systemd/systemd ]"
SLEEP = "[Service]\nExecStart=/bin/sleep 4321\n"


@pytest.fixture
def systemd(subhost: Subhost) -> Subhost:
    """A subhost over a main host that has systemd and nothing but cgroup v2."""
    if subhost.target.run(HAVE).status:
        precondition("the target has no systemd, or not cgroup v2 alone")
    return subhost


def unit(subhost: Subhost, name: str, text: str = SLEEP) -> None:
    """A unit in the subhost."""
    subhost.put(f"root/etc/systemd/system/{name}", text, 0o644)


def boot(subhost: Subhost, text: str, status: int = 0) -> Result:
    """Boot it, and wait until systemd has started all of START."""
    __tracebackhide__ = True
    subhost.write(INIT + text)
    done = subhost.on_host(f"overlay-boot --wait {subhost.conf} < /dev/null", timeout=180)
    assert done.status == status, done
    return done


def active(subhost: Subhost) -> set[str]:
    """The units that are active, or have failed to be."""
    said = subhost.inside("systemctl list-units -a --plain --no-legend --state=active,failed")
    return {line.split()[0] for line in said.splitlines() if line}


def told(subhost: Subhost) -> list[str]:
    """What the log has of starts: the words of START, and whether they failed."""
    lines = subhost.target.read(subhost.log).splitlines()
    starts = [line.partition("start of ")[2] for line in lines if "start of " in line]
    return [line.split(":")[0].removesuffix(" failed") for line in starts]


@clause("init-systemd", "systemd-units", "systemd-initd", "systemd-log")
def test_the_words_of_start_are_units(systemd: Subhost) -> None:
    """The words of START are units with and without a suffix; pid 1 is systemd, and the log
    has a line for each."""
    for name in ("one.service", "at@.service", "tick.service"):
        unit(systemd, name)
    unit(systemd, "tick.timer", "[Timer]\nOnBootSec=1h\n")
    systemd.put("root/etc/init.d/old", "#!/bin/sh\nsleep 4321 &\necho $1 >> /old\n")
    boot(systemd, "START= one tick.timer at@7 old")
    assert systemd.inside("cat /proc/1/comm") == "systemd\n"
    found = active(systemd)
    assert {"one.service", "tick.timer", "at@7.service", "old.service"} <= found, found
    assert "tick.service" not in found
    assert systemd.inside("cat /old") == "start\n"
    assert told(systemd) == ["one", "tick.timer", "at@7", "old"]


@clause("systemd-script", "systemd-stop")
def test_scripts_and_units_start_and_stop_in_order(systemd: Subhost) -> None:
    """A unit starts behind the one that it needs and a script behind the words before it; they
    stop in the reverse order, and nothing is started anew meanwhile."""
    note = "ExecStartPre=/bin/sh -c 'echo %N start >> /calls'\nExecStop=/bin/sh -c 'echo %N stop >> /calls'\n"
    unit(systemd, "first.service", f"{SLEEP}Restart=always\n{note}")
    unit(systemd, "then.service", f"[Unit]\nAfter=first.service\n{SLEEP}Restart=always\n{note}")
    script = "#!/bin/sh\necho script $1 >> /calls\n[ $1 = stop ] || sleep 4321 &\n"
    systemd.put("root/opt/a script's".replace(" ", "-"), script)
    boot(systemd, "START= then first /opt/a-script's")
    said = systemd.stop(timeout=180)
    assert said.status == 0 and said.err == "", said
    calls = systemd.target.read(f"{systemd.folder}/root/calls").splitlines()
    names = ["first", "then", "script"]
    assert calls == [f"{n} start" for n in names] + [f"{n} stop" for n in reversed(names)]


@clause("systemd-only", "systemd-login", "systemd-console")
def test_nothing_else_is_started(systemd: Subhost) -> None:
    """Beside what START's units need nothing is started, whether it is enabled, wanted by a
    target, or looks after a machine; users may log in, and the subhost's console is not the
    main host's."""
    enabled = ["sysinit", "local-fs", "sockets", "timers", "network-online", "multi-user"]
    for target in enabled:
        unit(systemd, f"for-{target}.service")
        unit(systemd, f"{target}.target.wants/for-{target}.service")
    for name in ("systemd-resolved", "systemd-udevd"):
        unit(systemd, f"{name}.service")
    systemd.put("root/etc/fstab", "none /srv tmpfs defaults 0 0\n", 0o644)
    wants = "Wants=systemd-resolved.service systemd-udevd.service network-online.target getty@tty1.service"
    unit(systemd, "one.service", f"[Unit]\n{wants}\nAfter=network-online.target\n{SLEEP}")
    boot(systemd, "START= one")
    services = {name for name in active(systemd) if name.endswith((".service", ".timer"))}
    expected = {"one", "systemd-journald", "systemd-tmpfiles-setup", "systemd-user-sessions"}
    expected |= {"systemd-journal-flush", "systemd-update-utmp"}
    assert "one.service" in services
    assert services <= {f"{name}.service" for name in expected}, services
    assert systemd.processes() <= {"systemd", "systemd-journald", "systemd-journal", "sleep"} | {
        *("bash", "sh", "cat", "tr", "head", "ps", "(sd-pam)")
    }
    assert "/srv" not in systemd.inside("cat /proc/self/mounts")
    assert systemd.inside("ls /run/nologin 2> /dev/null") == ""
    assert systemd.inside("[ ! -e /dev/console ] || stat -c %t,%T /dev/console") in ("", "1,3\n")


@clause("systemd-named")
def test_start_may_name_what_is_kept_back(systemd: Subhost) -> None:
    """A service of the kind that is kept back otherwise runs where it is a word of START."""
    unit(systemd, "systemd-resolved.service")
    boot(systemd, "START= systemd-resolved")
    assert "systemd-resolved.service" in active(systemd)


@clause("systemd-name", "systemd-identity")
def test_it_is_a_machine_of_its_own(systemd: Subhost) -> None:
    """The subhost has a host name and a machine id of its own, which stays the same from then
    on."""
    systemd.put("root/etc/hostname", "another\n", 0o644)
    boot(systemd, "START= none")
    look = "cat /proc/sys/kernel/hostname /etc/machine-id; journalctl -q -n 1 -o export | grep -a MACHINE"
    name, own, journal = systemd.inside(look).split()
    assert name == systemd.name
    assert own != systemd.target.read("/etc/machine-id").strip() and len(own) == 32
    assert journal == f"_MACHINE_ID={own}"
    systemd.stop(timeout=180)
    boot(systemd, "START= none")
    assert systemd.inside("cat /etc/machine-id").strip() == own


@clause("systemd-wait")
def test_wait_returns_when_all_has_been_started(systemd: Subhost) -> None:
    """overlay-boot --wait returns when all units have been started, and names those that could
    not be, for whatever reason; the subhost runs on."""
    unit(systemd, "good.service", f"{SLEEP}ExecStartPre=/bin/sleep 2\n")
    unit(systemd, "bad.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
    unit(systemd, "needy.service", f"[Unit]\nRequires=bad.service\nAfter=bad.service\n{SLEEP}")
    unit(systemd, "odd.service", f"[Unit]\nConditionPathExists=/nowhere\n{SLEEP}")
    systemd.put("root/opt/script", "#!/bin/sh\nexit 3\n")
    done = boot(systemd, "START= good bad needy odd /opt/script missing", status=1)
    last = done.err.splitlines()[-1]
    assert "could not be started: bad needy odd /opt/script missing:" in last, done
    assert systemd.inside("systemctl is-active good").strip() == "active"
    assert told(systemd) == ["good", "bad", "needy", "odd", "/opt/script", "missing"]


@clause("systemd-cgroup", "go-cgroup")
def test_all_processes_are_in_the_cgroup(systemd: Subhost) -> None:
    """All processes, those of overlay-go too, are in the subhost's cgroup, and nothing of the
    main host's hierarchy is seen."""
    unit(systemd, "one.service")
    boot(systemd, "START= one")
    systemd.inside("sleep 4321 < /dev/null > /dev/null 2>&1 &")
    own = systemd.target.run("sed -n 's/^0:://p' /proc/self/cgroup").out.strip().rstrip("/")
    space = f"/proc/{systemd.pid1()}/ns/pid"
    said = systemd.target.run(
        f"for p in /proc/[0-9]*; do [ ! $p/ns/pid -ef {space} ] || cat $p/comm $p/cgroup; done"
    ).out.split()
    processes = dict(zip(said[::2], said[1::2], strict=True))
    assert {"systemd", "sleep", "systemd-journal"} <= processes.keys(), processes
    inside = f"0::{own}/overlay-{systemd.name}/"
    assert all(path.startswith(inside) for path in processes.values()), processes
    assert systemd.inside("cat /proc/self/cgroup; ls -d /sys/fs/cgroup/init.scope").split() == [
        "0::/init.scope",
        "/sys/fs/cgroup/init.scope",
    ]


@clause("systemd-packages")
def test_packages_restart_their_services(systemd: Subhost) -> None:
    """invoke-rc.d and deb-systemd-invoke, by which packages restart their services, restart a
    unit of the subhost."""
    unit(systemd, "one.service")
    boot(systemd, "START= one")
    show = "systemctl show -p MainPID --value one"
    said = systemd.inside(
        f"{show}; invoke-rc.d one restart; {show}; deb-systemd-invoke restart one.service; {show}"
    ).split()
    assert len(set(said)) == 3 and "0" not in said, said


@clause("systemd-poweroff", "systemd-left")
@pytest.mark.parametrize("verb", ["poweroff", "reboot"])
def test_it_can_end_itself(systemd: Subhost, verb: str) -> None:
    """A subhost that powers itself off, or reboots, leaves nothing, as after overlay-stop."""
    unit(systemd, "one.service")
    boot(systemd, "START= one")
    pid = systemd.pid1()
    systemd.on_host(f"overlay-go {systemd.name} systemctl --no-block {verb}")
    assert systemd.wait(f"[ ! -e /proc/{pid} ]", 60)
    assert systemd.gone(pid)
    assert no_cgroup(systemd)


def no_cgroup(subhost: Subhost) -> bool:
    """Whether no cgroup of it is left."""
    return subhost.wait(f"[ ! \"$(find /sys/fs/cgroup -name 'overlay-{subhost.name}')\" ]")


@clause("systemd-left")
def test_a_crash_leaves_nothing_that_matters(systemd: Subhost) -> None:
    """Where pid 1 is killed nothing of the subhost is left; where the process that would clear
    up is killed as well, the next boot clears it up."""
    unit(systemd, "one.service")
    boot(systemd, "START= one")
    pid = systemd.pid1()
    systemd.on_host(f"kill -9 {pid}")
    assert systemd.gone(pid) and no_cgroup(systemd)
    boot(systemd, "START= one")
    systemd.crash()
    boot(systemd, "START= one")
    assert "one.service" in active(systemd)
    systemd.stop(timeout=180)
    assert no_cgroup(systemd)


@clause("systemd-stop-early")
@pytest.mark.parametrize("executed", [False, True], ids=["at once", "when it runs"])
def test_systemd_can_be_stopped_at_once(systemd: Subhost, executed: bool) -> None:
    """overlay-stop stops a systemd that has yet to be executed, and one that has only just
    been and is not ready for signals."""
    unit(systemd, "one.service", f"{SLEEP}ExecStartPre=/bin/sleep 4321\n")
    systemd.write(f"{INIT}START= one")
    if not executed:  # what INIT does first takes a while
        systemd.put(
            "root/usr/bin/mount",
            '#!/bin/sh\ntrap "" TERM\nsleep 5\nexec /usr/bin/mount.real "$@"\n',
        )
        systemd.prepare_host(f"cp /usr/bin/mount {systemd.folder}/root/usr/bin/mount.real")
    until = f'until [ "$(cat /proc/$(pid1 {systemd.name})/comm)" = systemd ]; do :; done &&'
    steps = f"overlay-boot {systemd.conf} && {until * executed} overlay-stop {systemd.name}"
    done = systemd.on_host(f"{PID1}\n{steps}", timeout=180)
    assert done.status == 0, done
    assert not systemd.pid1() and no_cgroup(systemd)


@clause("systemd-warn", "systemd-warn-missing")
def test_what_systemd_will_not_find_is_told(systemd: Subhost) -> None:
    """Words of START without a unit, and a subhost without systemd, draw a warning."""
    for name in ("here.service", "at@.service"):
        unit(systemd, name)
    systemd.put("root/etc/init.d/script", "#!/bin/sh\n")
    check = f"overlay-boot --check {systemd.conf} 2>&1 >/dev/null | grep -v LOWER:"
    words = ["here", "here.timer", "at@1", "script", "nowhere", "/nowhere"]
    systemd.write(f"{INIT}START= {' '.join(words)}")
    lines = systemd.on_host(check).out.splitlines()
    told = [line.partition("START: ")[2].replace(":", " ").split() for line in lines]
    named = [word for line in told for word in words if word in line]
    assert named == ["here.timer", "nowhere", "/nowhere"], lines
    systemd.write("INIT= overlay-init-systemd\nSTART= none")
    said = systemd.on_host(check).out
    assert said.startswith(f"{systemd.conf}:") and "warning: INIT: " in said, said


@clause("systemd-refused")
@pytest.mark.parametrize("flag", ["--check", ""])
def test_it_is_refused_without_cgroup_v2(subhost: Subhost, flag: str) -> None:
    """Without cgroup v2 the systemd of a subhost is refused, together with other mistakes,
    with status 2, and nothing is started or made."""
    subhost.write("INIT= overlay-init-systemd\nRAM_SIZE= much")
    hidden = "mount -t tmpfs none /sys/fs/cgroup 2> /dev/null || [ ! -e /sys/fs/cgroup ]"
    done = subhost.on_host(
        f"unshare -m sh -c '{hidden} || exit 9; exec overlay-boot {flag} {subhost.conf} < /dev/null'"
    )
    assert done.status == 2, done
    first, second = (line for line in done.err.splitlines() if "warning: " not in line)
    assert "cgroup v2" in first and "INIT: " in first and "RAM_SIZE" in second, done
    assert not subhost.pid1()
    assert subhost.target.run(f"ls {subhost.folder}/root {subhost.log}").out.split() == [
        f"{subhost.folder}/root:"
    ]


# --- pid 1 by its name alone: what goes for any program that does as these do


def as_pid1(subhost: Subhost, name: str, text: str) -> str:
    """An INIT whose script executes a script of that name."""
    subhost.put(f"root/opt/{name}", f"#!/bin/sh\n{text}")
    return "INIT= " + subhost.put("init", f"#!/bin/sh\necho exec /opt/{name}\n")


def executed(subhost: Subhost, name: str) -> bool:
    """Whether pid 1 has that name, in time."""
    return subhost.wait(f'[ "$(cat /proc/$(pid1 {subhost.quoted})/comm)" = {name} ]', 20)


@clause("boot-wait-init")
def test_wait_returns_when_another_init_is_executed(subhost: Subhost) -> None:
    """overlay-boot --wait returns when another program than /.reaper has been executed as pid
    1, not before that, and does not wait for the subhost's end."""
    init = subhost.put("init", "#!/bin/sh\necho 'sleep 1; exec /opt/other'\n")
    subhost.put("root/opt/other", "#!/bin/sh\nmkfifo /never; read line < /never\n")
    subhost.write(f"INIT= {init}")
    done = subhost.on_host(f"overlay-boot --wait {subhost.conf} < /dev/null")
    assert done.status == 0, done
    assert subhost.target.run(f"cat /proc/{subhost.pid1()}/comm").out == "other\n"


@clause("stop-systemd")
def test_a_systemd_is_asked_by_its_signal(subhost: Subhost) -> None:
    """overlay-stop asks a systemd to power off by its signal, and runs no stop script of
    START: that is systemd's to do."""
    init = as_pid1(
        subhost, "systemd", "trap 'echo asked > /asked; exit' 38\nwhile :; do sleep 0.1; done\n"
    )
    subhost.put("root/one", "#!/bin/sh\necho $1 >> /calls\n")
    subhost.start(f"{init}\nSTART= /one")
    assert executed(subhost, "systemd")
    done = subhost.stop("--timeout", "5")
    assert done.status == 0 and done.err == "", done
    root = f"{subhost.folder}/root"
    assert subhost.target.read(f"{root}/asked") == "asked\n"
    assert not subhost.host.file(f"{root}/calls").exists


@clause("stop-systemd", "stop-named")
@pytest.mark.parametrize("trap", ["trap : 38", ":"], ids=["passes over", "never listens"])
def test_a_systemd_that_does_not_end_is_ended(subhost: Subhost, trap: str) -> None:
    """A systemd that does not end in the time of the stop scripts is ended, with status 1, as
    any subhost."""
    init = as_pid1(subhost, "systemd", f"{trap}\nwhile :; do sleep 0.1; done\n")
    subhost.start(init)
    assert executed(subhost, "systemd")
    done = subhost.stop("--timeout", "0.5")
    assert done.status == 1 and "systemd" in done.err, done
    assert not subhost.pid1()


@clause("stop-sysvinit")
def test_a_sysvinit_is_told_its_runlevel(subhost: Subhost) -> None:
    """A sysvinit is told runlevel 0 by telinit, once the services of START have been stopped."""
    init = as_pid1(
        subhost, "init", "mkfifo /told; read level < /told; echo runlevel $level >> /calls\n"
    )
    subhost.put("root/one", "#!/bin/sh\necho $1 >> /calls\n")
    subhost.put("root/sbin/telinit", "#!/bin/sh\necho $1 > /told\n")
    subhost.start(f"{init}\nSTART= /one")
    assert executed(subhost, "init")
    done = subhost.stop()
    assert done.status == 0 and done.err == "", done
    assert subhost.target.read(f"{subhost.folder}/root/calls") == "stop\nrunlevel 0\n"
