"""overlay-go beside a local program: what goes in and out, and what shows inside."""

from __future__ import annotations

import shlex

import pytest

from spec.clauses import clause
from spec.errors import FAILED, one_line
from spec.subhost import Subhost
from spec.terminal import drive, fulfilled


@clause("go-relay")
@pytest.mark.parametrize("echo", ["echo", "-echo"])
def test_much_is_typed_while_it_is_echoed(subhost: Subhost, echo: str) -> None:
    """Lines of 200 KB in all go in by a terminal and come out again, with and without echo."""
    subhost.boot()
    count = 200_000
    command = (
        f"overlay-go {subhost.name} sh -c 'stty {echo}; echo ready; head -c {count}; echo END'"
    )
    result = fulfilled(
        drive(
            subhost,
            command,
            ["see", "ready", 20],
            ["paste", count],
            ["see", "END", 60],  # what is echoed may stand right before it
            ["end", 10],
            timeout=150,
        )
    )
    assert result["status"] == 0
    # What is echoed stands between what is printed, and a busy terminal may drop some of it.
    if echo == "-echo":
        lines = result["screen"].replace("\r", "").split()
        assert lines == ["ready", *(f"{number:09}" for number in range(count // 10)), "END"]
    else:
        assert len(result["screen"]) > 1.9 * 1.1 * count


@clause("go-relay")
@pytest.mark.parametrize("count", [85_000, 140_000, 190_000])
def test_a_terminal_that_is_slow_gets_all(subhost: Subhost, count: int) -> None:
    """What a command has printed comes out to the last byte, though the command has ended before
    the terminal takes the first."""
    subhost.boot()
    inside = f"head -c {count} /dev/zero | tr '\\0' x; echo END"
    command = f"overlay-go {subhost.name} sh -c {shlex.quote(inside)}"
    screen = fulfilled(drive(subhost, command, ["wait", 1], ["end", 30]))["screen"]
    assert screen == "x" * count + "END\r\n", (len(screen), screen[-20:])


@clause("go-relay")
def test_much_is_printed(subhost: Subhost) -> None:
    """All of the 200 KB that a command prints at a terminal come out, to the last byte."""
    subhost.boot()
    command = f"overlay-go {subhost.name} sh -c 'seq 100000 133332; exit 5'"
    result = fulfilled(drive(subhost, command, ["end", 30]))
    lines = result["screen"].replace("\r", "").split()
    assert lines == [str(number) for number in range(100000, 133333)]
    assert result["status"] == 5


@clause("go-redirect")
@pytest.mark.parametrize("redirected", ["", "0", "1", "2", "01", "02", "12", "012"])
def test_what_is_no_terminal_goes_in_as_it_is(subhost: Subhost, redirected: str) -> None:
    """Whatever mix of terminals and files the caller's 0, 1 and 2 are, the command finds the
    same."""
    subhost.boot()
    folder = subhost.folder
    subhost.prepare_host(f"echo given > {folder}/in")
    looks = "".join(f"[ -t {fd} ] && found=${{found}}{fd}; " for fd in (0, 1, 2))
    inside = f"{looks} echo is-out; echo is-err >&2; cat < /dev/null; echo t$found > /found"
    if "0" in redirected:
        inside = f"read word; echo $word > /read; {inside}"
    files = {"0": f"< {folder}/in", "1": f"> {folder}/out", "2": f"2> {folder}/err"}
    mix = " ".join(files[fd] for fd in redirected)
    command = f"overlay-go {subhost.name} sh -c {shlex.quote(inside)} {mix}"
    result = fulfilled(drive(subhost, command, ["end", 20]))
    assert result["status"] == 0, result
    found = subhost.target.read(f"{folder}/root/found").strip()
    assert found == "t" + "".join(fd for fd in "012" if fd not in redirected)
    for fd, name, word in (("1", "out", "is-out\n"), ("2", "err", "is-err\n")):
        if fd in redirected:
            assert subhost.target.read(f"{folder}/{name}") == word
        else:
            assert f"{word.strip()}\r\n" in result["screen"]
    if "0" in redirected:
        assert subhost.target.read(f"{folder}/root/read") == "given\n"


@clause("go-size")
def test_the_window_has_the_callers_size(subhost: Subhost) -> None:
    """The command's terminal has the size of the caller's at the start and after a change, of
    which SIGWINCH tells the command."""
    subhost.boot()
    inside = "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done"
    fulfilled(
        drive(
            subhost,
            f"stty rows 30 cols 100; overlay-go {subhost.name} sh -c {shlex.quote(inside)}",
            ["see", "30 100", 20],
            ["size", 41, 123],
            ["see", "41 123", 20],
            ["type", "\x03"],
            ["end", 20],
        )
    )


@clause("go-descriptors")
def test_only_three_descriptors_get_in(subhost: Subhost) -> None:
    """Only 0, 1 and 2 get in, whatever else the caller has open, and whichever of these it has
    closed."""
    subhost.boot()
    look = "cd /proc/self/fd; for fd in *; do readlink $fd; done"
    for ends in ("", "<&-", ">&2 2>&1", "2>&-"):
        for terminal in (False, True):
            command = (
                f"exec 5< /etc/passwd 7> {subhost.folder}/x 9< / 200> {subhost.folder}/y; "
                f"overlay-go {subhost.name} sh -c {shlex.quote(look)} {ends}"
            )
            command = f"bash -c {shlex.quote(command)}"
            if terminal:
                said = fulfilled(drive(subhost, command, ["end", 20]))["screen"]
            else:
                done = subhost.on_host(command)
                said = done.out + done.err
            assert len(said.strip().splitlines()) == 3, (ends, terminal, said)


@clause("go-starting")
def test_one_that_is_being_started_is_waited_for(subhost: Subhost) -> None:
    """overlay-go, called during the boot, comes to the subhost's root, never to the main host's."""
    mark = f"{subhost.folder}/root/mark"
    hook = subhost.put(
        "hook",
        f"#!/bin/sh\ntouch {subhost.folder}/held\n"
        f"until [ -e {subhost.folder}/released ]; do sleep 0.05; done\n"
        'exec overlay-postmount "$@"\n',
    )
    subhost.write(f"POSTMOUNT= {hook}")
    subhost.prepare_host(f"mkdir -p {subhost.folder}/root && echo subhost > {mark}")
    go = f"overlay-go {subhost.name} cat /mark"
    held = (
        f"overlay-boot {subhost.conf} < /dev/null & "
        f"until [ -e {subhost.folder}/held ]; do sleep 0.05; done; "
        f"for i in 1 2 3 4; do {{ {go}; echo $?; }} > {subhost.folder}/go$i 2>&1 & done; "
        f"touch {subhost.folder}/released; wait; "
        f"echo --; cat {subhost.folder}/go*; rm {subhost.folder}/held {subhost.folder}/released"
    )
    for _ in range(3):
        done = subhost.on_host(held, timeout=60)
        assert done.out.partition("--\n")[2] == "subhost\n0\n" * 4, done
        assert subhost.on_host(f"overlay-stop {subhost.name}").status == 0


@clause("go-starting")
def test_one_that_takes_long_to_start_is_given_up(subhost: Subhost) -> None:
    """overlay-go waits ten seconds for a boot that takes longer, and then says so in one line."""
    held, released = f"{subhost.folder}/held", f"{subhost.folder}/released"
    wait = f"until [ -e {released} ]; do sleep 0.05; done"
    hook = subhost.put("hook", f"#!/bin/sh\ntouch {held}; {wait}\n")
    subhost.write(f"PREMOUNT= {hook}")
    subhost.on_host(
        f"overlay-boot {subhost.conf} < /dev/null > /dev/null 2>&1 & "
        f"until [ -e {held} ]; do sleep 0.05; done"
    )
    done, took, stood = subhost.timed(f"overlay-go {subhost.name} true", timeout=60)
    subhost.on_host(f"touch {released}")
    one_line(done, FAILED, subhost.name)
    assert took > 9 and subhost.in_time(took - stood, 10 + 5 * subhost.target.patience), done


@clause("go-hidden")
def test_nothing_of_the_main_host_shows_inside(subhost: Subhost) -> None:
    """A watcher inside looks at every process as often as it can, while overlay-go, overlay-share
    and overlay-stop work: it finds no interpreter, no environment and no record of theirs."""
    watcher = subhost.put(
        "watch.py",
        """import os
seen = set()
own = os.getpid()
with open("/watching", "w"): pass
while not os.path.exists("/enough"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in (1, own):
            continue
        try:
            seen.add("exe " + os.readlink(f"/proc/{pid}/exe"))
            with open(f"/proc/{pid}/environ", "rb") as file:
                seen.add("secret" if b"SECRET" in file.read() else "none")
            for fd in os.listdir(f"/proc/{pid}/fd"):
                seen.add("fd " + os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
with open("/seen", "w") as file:
    file.write("\\n".join(sorted(seen)))
""",
    )
    subhost.put("root/service", "#!/bin/sh\n[ $1 = start ] || sleep 0.3\n")
    shared = f"{subhost.folder}/shared"
    subhost.prepare_host(f"mkdir {shared}")
    subhost.boot(f"LOWER= /\nSTART= /service\nSHARE= {watcher}:/watch.py")
    subhost.on_host(
        f"overlay-go {subhost.name} python3 /watch.py > /dev/null 2>&1 < /dev/null &", timeout=5
    )
    upper = f"{subhost.folder}/root"
    assert subhost.wait(f"[ -e {upper}/watching ]", 20)
    subhost.on_host(
        f"export SECRET=x; for i in 1 2 3 4 5 6 7 8; do overlay-go {subhost.name} true; "
        f"overlay-share {shared} {subhost.name}; overlay-share --remove {shared} {subhost.name}; "
        "done"
    )
    drive(subhost, f"SECRET=x overlay-go {subhost.name} sh -c 'sleep 0.2'", ["end", 20])
    subhost.on_host(f"overlay-go {subhost.name} touch /enough")
    assert subhost.wait(f"[ -e {upper}/seen ]", 20)
    seen = subhost.target.read(f"{upper}/seen").splitlines()
    assert "secret" not in seen
    assert not [line for line in seen if "/run/overlay-boot" in line], seen
    programs = [line.rpartition("/")[2] for line in seen if line.startswith("exe ")]
    assert not [program for program in programs if program.startswith("python")], seen
    assert any("sleep" in line or "busybox" in line or "sh" in line for line in seen), seen


@clause("go-hidden")
def test_a_stop_at_a_terminal_lends_it_to_nobody(subhost: Subhost) -> None:
    """While overlay-stop waits for a stop script nobody inside has the caller's terminal, and what
    is typed goes to no one there."""
    subhost.put(
        "root/service",
        "#!/bin/sh\n[ $1 = start ] || { ls -l /proc/*/fd > /open; sleep 2; }\n",
    )
    subhost.boot("START= /service")
    result = fulfilled(
        drive(
            subhost,
            f"overlay-stop {subhost.name}; echo over",
            ["type", "echo typed-$((40 + 2))\n"],
            ["see", "over", 30],
            ["end", 10],
        )
    )
    assert "typed-42" not in result["screen"]
    files = subhost.target.read(f"{subhost.folder}/root/open")
    assert "/dev/null" in files and "/dev/pts" not in files and "/dev/tty" not in files, files


@clause("go-unread")
def test_a_terminal_that_nobody_reads(subhost: Subhost) -> None:
    """While no output is taken SIGTERM ends a command that prints for ever, and one that is done."""
    subhost.boot()
    for command in ("yes", "seq 60000"):
        subhost.prepare_host(f"rm -f {subhost.go_pid}")
        result = fulfilled(
            drive(
                subhost,
                f"exec {subhost.go(command)}",
                ["wait", 2],
                ["kill", "SIGTERM", subhost.go_pid],
                ["wait", 2],
                ["end", 10],
            )
        )
        assert result["status"] in (0, 143), result["status"]
        assert not subhost.target.run(f"pgrep -f '[o]verlay-go {subhost.name} '").out


@clause("go-redirect")
def test_two_terminals_stay_two(subhost: Subhost) -> None:
    """What the command writes to another terminal than the first arrives there."""
    subhost.boot()
    inside = "echo is-out; echo is-err >&2; [ -t 2 ] && echo both"
    outer = f"tty > {subhost.folder}/tty; until [ -e {subhost.folder}/over ]; do sleep 0.1; done"
    subhost.prepare_host(f"rm -f {subhost.folder}/over")
    result = fulfilled(
        drive(
            subhost,
            f"script -qec {shlex.quote(outer)} {subhost.folder}/second < /dev/null > /dev/null & "
            f"until [ -s {subhost.folder}/tty ]; do sleep 0.1; done; "
            f"overlay-go {subhost.name} sh -c '{inside}' 2> $(cat {subhost.folder}/tty); "
            f"touch {subhost.folder}/over; wait",
            ["end", 30],
        )
    )
    assert "is-out" in result["screen"] and "both" in result["screen"], result
    assert "is-err" not in result["screen"]
    assert "is-err" in subhost.target.read(f"{subhost.folder}/second")
