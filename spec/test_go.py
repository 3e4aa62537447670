"""overlay-go beside a local program: terminals, signals, descriptors, and what shows inside."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from spec.clauses import clause
from spec.subhost import Subhost

DRIVER = Path(__file__).with_name("drive.py")


def drive(
    subhost: Subhost, command: str, *steps: list[Any], timeout: float = 60
) -> dict[str, Any]:
    """Run a shell command of the main host on a terminal and type at it: see drive.py."""
    driver = subhost.put("drive.py", DRIVER.read_text())
    done = subhost.run(
        f"python3 {driver} sh -c {shlex.quote(command)}", input=json.dumps(steps), timeout=timeout
    )
    assert done.status == 0 and done.out.startswith("{"), done
    result: dict[str, Any] = json.loads(done.out)
    return result


def fulfilled(result: dict[str, Any]) -> dict[str, Any]:
    """A result of drive in which no step failed."""
    assert result["failed"] is None, result
    return result


@clause("go-relay")
@pytest.mark.parametrize("echo", ["echo", "-echo"])
def test_much_is_typed_while_it_is_echoed(subhost: Subhost, echo: str) -> None:
    """200 KB of lines go in by a terminal and come out again, with and without echo."""
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
            ["see", f"{count // 10 - 1:09}\r\nEND", 60],
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
def test_much_is_printed(subhost: Subhost) -> None:
    """200 KB come out of a command at a terminal, to the last byte."""
    subhost.boot()
    command = f"overlay-go {subhost.name} sh -c 'seq 100000 133332; exit 5'"
    result = fulfilled(drive(subhost, command, ["end", 30]))
    lines = result["screen"].replace("\r", "").split()
    assert lines == [str(number) for number in range(100000, 133333)]
    assert result["status"] == 5


@clause("go-redirect")
@pytest.mark.parametrize("redirected", ["", "0", "1", "2", "01", "02", "12", "012"])
def test_what_is_no_terminal_goes_in_as_it_is(subhost: Subhost, redirected: str) -> None:
    """Each mix of terminals and files of 0, 1 and 2 is what the command finds."""
    subhost.boot()
    folder = subhost.folder
    subhost.prepare(f"echo given > {folder}/in")
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
    """At the start, and when it changes, which SIGWINCH tells the command."""
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


@clause("go-signals", "go-signal-status")
@pytest.mark.parametrize("key", ["\x03", "\x1c"], ids=["INT", "QUIT"])
def test_keys_that_are_signals_reach_the_command(subhost: Subhost, key: str) -> None:
    """Ctrl-C and Ctrl-\\ end a command at a terminal; the status tells the signal."""
    subhost.boot()
    result = fulfilled(
        drive(
            subhost,
            f"overlay-go {subhost.name} sh -c 'echo ready; exec sleep 60'",
            ["see", "ready", 20],
            ["press", key, 10],  # a shell may lose one while it executes sleep
        )
    )
    assert result["status"] == 128 + {"\x03": 2, "\x1c": 3}[key], result


@clause("go-signals")
@pytest.mark.parametrize("signal", ["INT", "QUIT", "TERM", "HUP", "USR1", "USR2"])
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_signals_reach_the_command(subhost: Subhost, signal: str, terminal: bool) -> None:
    """One that handles the signal ends as it likes, and its status comes back."""
    subhost.boot()
    inside = f"trap 'echo caught; exit 7' {signal}; echo ready; while :; do sleep 0.05; done"
    command = f"exec overlay-go {subhost.name} sh -c {shlex.quote(inside)}"
    if terminal:
        result = fulfilled(
            drive(
                subhost,
                command,
                ["see", "ready", 20],
                ["kill", f"SIG{signal}", f"^[^ ]*python3? [^ ]*overlay-go {subhost.name} "],
                ["see", "caught", 10],
                ["end", 10],
            )
        )
        assert result["status"] == 7
        return
    done = subhost.run(
        f"""rm -f out; (env --default-signal sh -c {shlex.quote(command)} > out 2>&1; echo $? >> out) &
        until grep -q ready out; do sleep 0.05; done
        pkill -{signal} -f '^[^ ]*python3? [^ ]*overlay-go {subhost.name} '; wait; cat out"""
    )
    # Beside that, the shell may tell what became of its sleep.
    assert done.out.startswith("ready\n") and done.out.endswith("caught\n7\n"), done


@clause("go-signal-status")
def test_timeout_sees_what_it_expects(subhost: Subhost) -> None:
    """timeout(1) ends a command inside as it would a local one."""
    subhost.boot()
    assert subhost.run(f"timeout 1 overlay-go {subhost.name} sleep 60").status == 124
    done = subhost.run(f"timeout -s USR1 1 overlay-go {subhost.name} sleep 60; echo $?")
    assert done.out == "124\n", done
    assert subhost.run(f"overlay-go {subhost.name} sh -c 'kill -SEGV $$'").status == 139


@clause("go-killed")
def test_killed_at_a_terminal_it_leaves_nothing(subhost: Subhost) -> None:
    """After SIGKILL neither the command nor what it started in its group runs on."""
    subhost.boot()
    fulfilled(
        drive(
            subhost,
            f"overlay-go {subhost.name} sh -c 'echo ready; sleep 4322 | sleep 4322; :'; echo back",
            ["see", "ready", 20],
            ["kill", "SIGKILL", f"^[^ ]*python3? [^ ]*overlay-go {subhost.name} "],
            ["see", "back", 20],
            ["end", 20],
        )
    )
    assert subhost.wait("! pgrep -f 'sleep 432[2]'", 10)


@clause("go-killed")
def test_killed_on_pipes_it_leaves_nothing(subhost: Subhost) -> None:
    """The same without a terminal, also for one that ignores SIGHUP."""
    subhost.boot()
    subhost.run(
        f"overlay-go {subhost.name} sh -c 'trap \"\" HUP; sleep 4323 | sleep 4323; :' "
        "> /dev/null 2>&1 < /dev/null &"
    )
    assert subhost.wait("pgrep -f '^sleep 432[3]'")
    subhost.run(f"pkill -KILL -f '^[^ ]*python3? [^ ]*overlay-go {subhost.name} '")
    assert subhost.wait("! pgrep -f 'sleep 432[3]'", 10)


@clause("go-restored")
@pytest.mark.parametrize("end", ["exit", "INT", "TERM", "KILL"])
def test_the_terminal_is_put_right(subhost: Subhost, end: str) -> None:
    """However it ends, the terminal's settings are as they were."""
    subhost.boot()
    steps: list[list[Any]] = [["see", "ready", 20]]
    if end == "exit":
        steps.append(["type", "x\n"])
    elif end == "INT":
        steps.append(["type", "\x03"])
    else:
        steps.append(["kill", f"SIG{end}", f"^[^ ]*python3? [^ ]*overlay-go {subhost.name} "])
    result = fulfilled(
        drive(
            subhost,
            f"stty -a > {subhost.folder}/before; "
            f"overlay-go {subhost.name} sh -c 'stty raw; echo ready; exec head -n 1'; sleep 1; "
            f"stty -a > {subhost.folder}/after; echo over"
            if end != "INT"
            else f"trap : INT; stty -a > {subhost.folder}/before; "
            f"overlay-go {subhost.name} sh -c 'echo ready; exec head -n 1'; "
            f"stty -a > {subhost.folder}/after; echo over",
            *([*steps[:-1], ["type", "x\r\n"]] if end == "exit" else steps),
            ["see", "over", 20],
            ["end", 10],
        )
    )
    assert result["status"] == 0
    before, after = (subhost.target.read(f"{subhost.folder}/{x}") for x in ("before", "after"))
    assert before == after


@clause("go-stop")
def test_ctrl_z_and_fg(subhost: Subhost) -> None:
    """Ctrl-Z at a command stops the job; fg lets it go on, in the same terminal."""
    subhost.boot()
    counting = "n=0; while :; do n=$((n+1)); echo count $n; sleep 0.3; done"
    fulfilled(
        drive(
            subhost,
            "PS1='prompt> ' exec bash --norc -i",
            ["see", "prompt> ", 20],
            ["type", f"overlay-go {subhost.name} sh -c {shlex.quote(counting)}\n"],
            ["see", "count 2", 20],
            ["type", "\x1a"],
            ["see", "Stopped", 20],
            ["type", "jobs; echo it is $((40 + 2))\n"],
            ["see", "it is 42", 20],
            ["type", "fg\n"],
            ["see", "count 4", 20],
            ["type", "\x03"],
            ["see", "prompt> ", 20],
            ["type", "exit\n"],
            ["end", 20],
        )
    )


@clause("go-background")
def test_a_background_job_runs_on(subhost: Subhost) -> None:
    """Started with & in an interactive shell, it ends by itself; then it comes to the foreground."""
    subhost.boot()
    fulfilled(
        drive(
            subhost,
            "PS1='prompt> ' exec bash --norc -i",
            ["see", "prompt> ", 20],
            ["type", f"overlay-go {subhost.name} sh -c 'sleep 1; touch /done' &\n"],
            ["see", "prompt> ", 20],
            [
                "type",
                f"until [ -e {subhost.folder}/root/done ]; do sleep 0.1; done; echo s''een\n",
            ],
            ["see", "seen", 20],
            ["type", f"overlay-go {subhost.name} cat &\n"],
            ["see", "prompt> ", 20],
            ["type", "sleep 1; jobs; fg\n"],
            ["see", "Running", 20],
            ["type", "hello\n"],
            ["see", "hello\r\nhello", 20],
            ["type", "\x04"],
            ["see", "prompt> ", 20],
            ["type", "exit\n"],
            ["end", 20],
        )
    )


@clause("go-descriptors")
def test_only_three_descriptors_get_in(subhost: Subhost) -> None:
    """Whatever else the caller has open, and whatever is closed."""
    subhost.boot()
    look = "cd /proc/self/fd; for fd in *; do [ $fd -gt 9 ] || readlink $fd; done"
    for terminal in (False, True):
        command = f"exec 5< /etc/passwd 7> {subhost.folder}/x 9< /; overlay-go {subhost.name} sh -c {shlex.quote(look)}"
        if terminal:
            said = fulfilled(drive(subhost, command, ["end", 20]))["screen"]
        else:
            said = subhost.run(command).out
        assert "passwd" not in said and f"{subhost.folder}/x" not in said, said


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
    subhost.prepare(f"mkdir {shared}")
    subhost.boot(f"LOWER= /\nSTART= /service\nSHARE= {watcher}:/watch.py")
    subhost.run(
        f"overlay-go {subhost.name} python3 /watch.py > /dev/null 2>&1 < /dev/null &", timeout=5
    )
    upper = f"{subhost.folder}/root"
    assert subhost.wait(f"[ -e {upper}/watching ]", 20)
    subhost.run(
        f"export SECRET=x; for i in 1 2 3 4 5 6 7 8; do overlay-go {subhost.name} true; "
        f"overlay-share {shared} {subhost.name}; overlay-share --remove {shared} {subhost.name}; "
        "done"
    )
    drive(subhost, f"SECRET=x overlay-go {subhost.name} sh -c 'sleep 0.2'", ["end", 20])
    subhost.run(f"overlay-go {subhost.name} touch /enough")
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


@clause("go-hang-up")
@pytest.mark.parametrize("told", ["told", "not told"])
def test_the_callers_terminal_is_closed(subhost: Subhost, told: str) -> None:
    """The command ends of SIGHUP, also where overlay-go itself is told to ignore that one."""
    subhost.boot()
    ignore = "trap '' HUP; " if told == "not told" else ""
    command = f"{ignore}exec overlay-go {subhost.name} sh -c 'echo ready; sleep 4324; :'"
    fulfilled(drive(subhost, command, ["see", "ready", 20], ["hang up"], ["end", 10]))
    assert subhost.wait("! pgrep -f 'sleep 432[4]'", 10)
    assert subhost.wait(f"! pgrep -f '[o]verlay-go {subhost.name} '", 10)


@clause("go-unread")
def test_a_terminal_that_nobody_reads(subhost: Subhost) -> None:
    """While no output is taken SIGTERM ends a command that prints for ever, and one that is done."""
    subhost.boot()
    for command in ("yes", "seq 60000"):
        result = fulfilled(
            drive(
                subhost,
                f"exec overlay-go {subhost.name} {command}",
                ["wait", 2],
                ["kill", "SIGTERM", f"^[^ ]*python3? [^ ]*overlay-go {subhost.name} "],
                ["wait", 2],
                ["end", 10],
            )
        )
        assert result["status"] in (0, 143), result["status"]
        assert not subhost.target.run(f"pgrep -f '[o]verlay-go {subhost.name} '").out


@clause("go-stop")
def test_a_command_that_stops_itself_stops_nobody_else(subhost: Subhost) -> None:
    """Without a terminal, the script that has overlay-go started goes on, as with a local command."""
    subhost.boot()
    done = subhost.run(
        f"""overlay-go {subhost.name} sh -c 'kill -STOP $$; exit 9' < /dev/null > out 2>&1 &
        pid=$!; until grep -q '^State:.T' /proc/$pid/status; do sleep 0.1; done
        echo goes on; kill -CONT $pid; wait $pid; echo $?""",
        timeout=20,
    )
    assert done.out == "goes on\n9\n", done


@clause("go-killed")
def test_killed_while_the_command_keeps_stopping(subhost: Subhost) -> None:
    """A command that ignores signals and stops itself again and again ends all the same."""
    subhost.put("root/stops", "#!/bin/sh\ntrap '' HUP TERM INT; while :; do kill -STOP $$; done\n")
    subhost.boot()
    drive(
        subhost,
        f"exec overlay-go {subhost.name} /stops",
        ["wait", 1],
        ["kill", "SIGKILL", f"^[^ ]*python3? [^ ]*overlay-go {subhost.name} "],
        ["end", 5],
    )
    assert subhost.wait("! pgrep -f '[/]stops'", 15)


@clause("go-redirect")
def test_two_terminals_stay_two(subhost: Subhost) -> None:
    """What goes to another terminal than the first arrives there."""
    subhost.boot()
    inside = "echo is-out; echo is-err >&2; [ -t 2 ] && echo both"
    outer = f"tty > {subhost.folder}/tty; until [ -e {subhost.folder}/over ]; do sleep 0.1; done"
    subhost.prepare(f"rm -f {subhost.folder}/over")
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
