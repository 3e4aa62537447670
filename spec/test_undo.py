"""What a boot makes and undoes, and what it tells: identity, files, output, signals."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.plugin import precondition
from spec.subhost import TINY, Subhost

LONG = "9" * 5000


def second(subhost: Subhost, text: str) -> tuple[str, str]:
    """Another configuration, with folders of its own; its name and path."""
    name = f"{subhost.name}b"
    subhost.named.append(name)
    subhost.prepare_host(f"cd {subhost.folder} && mkdir b && cd b && mkdir root work live")
    given = {line.partition("=")[0] for line in text.splitlines()}
    defaults = {"BASE": ".", "LOWER": TINY, "START": "none", "LOG": f"{subhost.log}.b"}
    lines = [f"{key}= {value}" for key, value in defaults.items() if key not in given]
    conf = subhost.put(f"b/{name}.conf", "\n".join([*lines, text]) + "\n", 0o644)
    return name, conf


@clause("upper-one")
@pytest.mark.parametrize(
    "text",
    ["UPPER= ../root\nWORK= ../work", "UPPER= ../link", "WORK= ../work", "WORK= ../worklink"],
)
def test_two_subhosts_do_not_share_upper_or_work(subhost: Subhost, text: str) -> None:
    """A second subhost with the same UPPER or WORK is refused in one line that names the
    first, which runs on."""
    subhost.prepare_host(f"cd {subhost.folder} && ln -s root link && ln -s work worklink")
    subhost.boot()
    pid = subhost.pid1()
    name, conf = second(subhost, text)
    done = subhost.on_host(f"overlay-boot {conf} < /dev/null")
    one_line(done, 1)
    assert f"{subhost.name}:" in done.err or f"{subhost.name} " in done.err, done
    assert subhost.pid1() == pid
    assert not subhost.host.file(f"/run/netns/{name}").exists
    subhost.stop()
    done = subhost.on_host(f"overlay-boot {conf} < /dev/null")
    assert done.status == 0, done
    assert subhost.on_host(f"overlay-stop {name}").status == 0


@clause("upper-lost")
@pytest.mark.parametrize("text", ["UPPER= ../root", "WORK= ../work"])
def test_upper_and_work_of_a_lost_subhost_are_taken(subhost: Subhost, text: str) -> None:
    """UPPER and WORK of a running subhost are known to be taken without its record, the name
    of its namespace and its NAME; once it has ended they are free."""
    subhost.boot()
    pid = subhost.pid1()
    subhost.on_host(f"rm /run/overlay-boot/{subhost.name} /run/netns/{subhost.name}")
    _, conf = second(subhost, text)
    for again in (conf, subhost.conf):
        done = subhost.on_host(f"overlay-boot {again} < /dev/null")
        one_line(done, 1, f"subhost {subhost.name}:")
    subhost.on_host(f"kill -9 {pid}")
    assert subhost.ended(pid)
    done = subhost.on_host(f"overlay-boot {conf} < /dev/null")
    assert done.status == 0, done


@clause("bang-value")
def test_what_a_command_prints_is_not_run(subhost: Subhost) -> None:
    """Two exclamation marks run one command, and its output is checked as a value."""
    ran = f"{subhost.folder}/ran"
    done = subhost.refused(f"NAME=!echo '!touch {ran}; echo two'")
    one_line(done, 2, "NAME")
    done = subhost.refused("RAM_SIZE=!echo '!lots'")
    one_line(done, 2, "RAM_SIZE")
    assert not subhost.host.file(ran).exists


@clause("error-regular")
def test_a_configuration_that_is_a_pipe(subhost: Subhost) -> None:
    """A configuration that is a pipe is refused at once, in one line with status 2."""
    subhost.prepare_host(f"mkfifo {subhost.conf}")
    done = subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null", timeout=10)
    one_line(done, 2)


@clause("error-huge")
@pytest.mark.parametrize(
    "text",
    [
        f"RAM_SIZE= {LONG}",
        f"CABLES= = =.{LONG}",
        f"CABLES= {LONG}=",
        f"CABLES= ={LONG}",
        f"CABLES= {LONG}",
        f"CABLES= {'= ' * 100000}",
        f"NAME= {LONG * 20}",
        f"UPPER= /{LONG}",
        f"BASE= /{LONG}",
        f"LOG= /{LONG}",
        f"SHARE= {LONG}",
        f"SHARE= /{LONG}",
        f"PREMOUNT= /{LONG}",
        f"CAPABILITY= {LONG}",
    ],
    ids=[
        *("RAM_SIZE", "tag", "bridge", "MAC", "word", "cables", "NAME", "UPPER", "BASE", "LOG"),
        *("SHARE", "SHARE path", "PREMOUNT", "CAPABILITY"),
    ],
)
def test_values_of_any_length(subhost: Subhost, text: str) -> None:
    """A value of any length is refused in one line of less than 1,000 characters that names the
    variable."""
    done = subhost.refused(text)
    one_line(done, (1, 2), text.partition("=")[0])
    assert len(done.err) < 1000, done


@clause("log-full")
def test_a_log_without_room(subhost: Subhost) -> None:
    """Where the log has no room the message names it and the reason, and nothing is started."""
    subhost.prepare_host(
        f"mkdir {subhost.folder}/full && mount -t tmpfs -o size=4k none {subhost.folder}/full"
    )
    try:
        subhost.on_host(
            f"cat /dev/zero > {subhost.folder}/full/log; chmod 640 {subhost.folder}/full/log"
        )
        done = subhost.refused("LOG= full/log\nCABLES= =")
        one_line(done, 1, f"{subhost.folder}/full/log", "space")
        assert subhost.gone(0)
    finally:
        subhost.on_host(f"umount -l {subhost.folder}/full")


@clause("undo-hooks")
def test_hooks_of_ones_own_that_call_ours_leave_nothing_either(subhost: Subhost) -> None:
    """When a boot with hooks of one's own fails, what overlay-premount and overlay-postmount
    made for these hooks is undone as well."""
    before = subhost.put("before", '#!/bin/sh\nexec overlay-premount "$@"\n')
    after = subhost.put("after", '#!/bin/sh\noverlay-postmount "$@"\nexit 3\n')
    done = subhost.refused(f"PREMOUNT= {before}\nPOSTMOUNT= {after}")
    one_line(done, 1, "POSTMOUNT")
    assert subhost.target.run(
        f"ls -A {subhost.folder}/root {subhost.folder}/work"
    ).out.split() == [
        f"{subhost.folder}/root:",
        f"{subhost.folder}/work:",
    ]


@clause("undo-links")
def test_undoing_does_not_follow_links_onto_the_main_host(subhost: Subhost) -> None:
    """A link in UPPER to a folder of the main host that has what the boot would make is not
    followed when the boot is undone."""
    victim = f"{subhost.folder}/victim"
    subhost.prepare_host(
        f"mkdir -p {victim}/network {victim}/deep && echo theirs > {victim}/network/interfaces &&"
        f" cd {subhost.folder}/root && ln -s {victim} etc && ln -s {victim} shared"
    )
    done = subhost.refused(
        "INIT= "
        + subhost.put("init", "#!/bin/sh\nexit 1\n")
        + "\nSHARE= /srv:/shared/deep\nSHARE= /srv:/shared/new"
    )
    assert done.status == 1, done
    assert subhost.target.run(f"cd {victim}; find . | sort").out.split() == [
        ".",
        "./deep",
        "./network",
        "./network/interfaces",
    ]
    assert subhost.target.read(f"{victim}/network/interfaces") == "theirs\n"


@clause("reaper-odd")
@pytest.mark.parametrize("odd", ["pipe", "device", "socket", "link", "huge"])
def test_whatever_stands_in_the_place_of_the_reaper(subhost: Subhost, odd: str) -> None:
    """Whatever stands in the place of /.reaper is replaced, without a hang and without being
    read."""
    path = f"{subhost.folder}/root/.reaper"
    make = {
        "pipe": f"mkfifo {path}",
        "device": f"mknod {path} c 1 5",
        "socket": f"mknod {path} s 2> /dev/null || python3 -c 'import socket, sys; "
        f'socket.socket(socket.AF_UNIX).bind("{path}")\'',
        "link": f"ln -s /etc/passwd {path}",
        "huge": f"truncate -s 6G {path} && chmod 755 {path}",
    }[odd]
    subhost.prepare_host(make)
    subhost.boot()
    assert subhost.inside("readlink /proc/1/exe") == "/.reaper\n"


@clause("reaper-odd")
def test_a_folder_in_the_place_of_the_reaper(subhost: Subhost) -> None:
    """A folder in the place of /.reaper fails the boot, in one line that names it."""
    subhost.prepare_host(f"mkdir {subhost.folder}/root/.reaper")
    done = subhost.refused("")
    one_line(done, 1, ".reaper")


@clause("boot-killed")
def test_a_pid_1_that_cannot_run_its_shell(subhost: Subhost) -> None:
    """A subhost whose /bin/sh is no program does not run, and one line says so."""
    # One that is killed at that moment can only be made from inside: see tests/test_boot.py.
    subhost.fill("base")
    subhost.prepare_host(f"cd {subhost.folder}/base/bin && rm sh && touch sh && chmod 755 sh")
    done = subhost.refused("LOWER= base")
    one_line(done, 1)
    assert "running" not in done.out, done


@clause("boot-output")
@pytest.mark.parametrize("output", ["> /dev/full", "| true", ">&-", "> /dev/full 2> /dev/full"])
def test_output_that_cannot_be_written(subhost: Subhost, output: str) -> None:
    """Where output cannot be written the subhost runs, and the status says so."""
    subhost.write()
    done = subhost.on_host(
        f"{{ overlay-boot {subhost.conf} < /dev/null; echo $? > {subhost.folder}/status; }} {output}"
    )
    assert subhost.up(), done
    assert subhost.target.read(f"{subhost.folder}/status") == "0\n"
    assert subhost.name in subhost.on_host("overlay-list").out


@clause("boot-closed")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_descriptors_make_no_difference(subhost: Subhost, closed: str) -> None:
    """Boot, list, enter and stop work with any of the descriptors 0, 1 and 2 closed."""
    subhost.write("CABLES= =")
    done = subhost.on_host(f"overlay-boot {subhost.conf} {closed}")
    assert done.status == 0 and subhost.up(), done
    pid = subhost.pid1()
    assert subhost.on_host(f"overlay-list {closed}").status == 0
    assert subhost.on_host(f"overlay-go {subhost.name} touch /made {closed}").status == 0
    assert subhost.host.file(f"{subhost.folder}/root/made").exists
    files = subhost.target.run(f"readlink /proc/{pid}/fd/*").out.split()
    assert set(files) <= {"/dev/null", subhost.log}, files
    assert subhost.on_host(f"overlay-stop {subhost.name} {closed}").status == 0
    assert subhost.gone(pid)


@clause("pid1-limits")
def test_what_the_caller_may_not_reaches_no_service(subhost: Subhost) -> None:
    """The nice value, limits and ignored signals of a service are those of a machine's start,
    whatever the caller's are."""
    subhost.write()
    subhost.on_host(
        f"ulimit -S -n 64; ulimit -S -f 100000; trap '' HUP USR1; "
        f"nice -n 7 env overlay-boot {subhost.conf} < /dev/null"
    )
    assert subhost.up()
    pid = subhost.pid1()
    fields = subhost.target.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    assert fields[16] == "0"  # nice
    limits = subhost.target.read(f"/proc/{pid}/limits")
    assert "Max open files            1024 " in limits, limits
    assert "Max file size             unlimited " in limits, limits
    status = subhost.target.read(f"/proc/{pid}/status")
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    assert not ignored & (1 << 0 | 1 << 9), hex(ignored)


@clause("names-odd", "error-printable")
def test_odd_names_of_mount_points_and_processes(subhost: Subhost) -> None:
    """With a newline, a carriage return, a sequence for terminals and a byte of no encoding in the
    path of a mount of the main host, and of one inside, and in the name of a process there, all
    commands work, and a message shows them on one line."""
    name = "$(printf 'odd\\033[31m\\rn\\n\\233')"
    shared = f"{subhost.folder}/shared"
    mount = 'mkdir "$at" && mount -t tmpfs none "$at"'
    subhost.prepare_host(f'at="{subhost.folder}/{name}"; {mount}; mkdir {shared}')
    try:
        subhost.boot()
        stay = f'trap "" TERM; printf %s "{name}" > /proc/self/comm; while :; do sleep 1; done'
        subhost.inside(f'at="/{name}"; {mount}; ({stay}) > /dev/null 2>&1 < /dev/null &')
        done = subhost.on_host(f"overlay-share {shared} {subhost.name} && overlay-list")
        assert (done.status, done.err) == (0, ""), done
        done = subhost.on_host(f"overlay-stop --timeout 1 {subhost.name}", timeout=40)
    finally:
        subhost.prepare_host(f'umount "{subhost.folder}/{name}"')
    one_line(done, 1, r"odd\x1b[31m\x0dn\x0a\x9b")
    assert "\x1b" not in done.err, done


@clause("cgroup", "go-cgroup")
def test_each_has_a_cgroup_of_its_own(subhost: Subhost) -> None:
    """The cgroup of a subhost lies below the one that its boot came from; overlay-go's
    commands are in it, and it goes with the subhost."""
    if not subhost.can_have_cgroup():
        precondition("the target has no cgroup v2 that can be written")
    subhost.boot()
    pid = subhost.pid1()
    own = subhost.target.run("sed -n 's/^0:://p' /proc/self/cgroup").out.strip()
    theirs = subhost.target.run(f"sed -n 's/^0:://p' /proc/{pid}/cgroup").out.strip()
    assert theirs.startswith(own.rstrip("/") + "/") and subhost.name in theirs, (own, theirs)
    entered = subhost.inside("sed -n 's/^0:://p' /proc/self/cgroup").strip()
    assert entered == theirs
    folders = f"/sys/fs/cgroup{theirs} /sys/fs/cgroup/unified{theirs}"
    assert subhost.target.run(f"ls -d {folders}").out
    subhost.stop()
    assert subhost.wait(f"! ls -d {folders}")


@clause("lower-foreign")
def test_a_shell_that_this_machine_cannot_run(subhost: Subhost) -> None:
    """Where this machine cannot run the subhost's /bin/sh, the boot fails with one line that
    names it and the reason, and leaves nothing."""
    subhost.put("root/bin/sh", "no program of this architecture\n")
    subhost.write("CABLES= =")
    done = subhost.on_host(f"overlay-boot {subhost.conf} < /dev/null")
    one_line(done, 1, "/bin/sh", "architecture")
    assert subhost.gone(0)
