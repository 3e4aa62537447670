"""overlay-go beside a local program: signals, job control, and every way in which it can end."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from spec.clauses import clause
from spec.subhost import Subhost
from spec.terminal import drive, fulfilled


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
    """A command that handles a signal of overlay-go's ends as it likes, and its status comes
    back."""
    subhost.boot()
    inside = f"trap 'echo caught; exit 7' {signal}; echo ready; while :; do sleep 0.05; done"
    command = f"exec {subhost.go(f'sh -c {shlex.quote(inside)}')}"
    if terminal:
        result = fulfilled(
            drive(
                subhost,
                command,
                ["see", "ready", 20],
                ["kill", f"SIG{signal}", subhost.go_pid],
                ["see", "caught", 10],
                ["end", 10],
            )
        )
        assert result["status"] == 7
        return
    done = subhost.on_host(
        f"""cd {subhost.folder}; (env --default-signal sh -c {shlex.quote(command)} > out 2>&1; echo $? >> out) &
        until grep -q ready out; do sleep 0.05; done
        kill -{signal} $(cat {subhost.go_pid}); wait; cat out"""
    )
    # Beside that, the shell may tell what became of its sleep.
    assert done.out.startswith("ready\n") and done.out.endswith("caught\n7\n"), done


@clause("go-signal-status")
def test_timeout_sees_what_it_expects(subhost: Subhost) -> None:
    """timeout(1) ends a command inside as it would a local one."""
    subhost.boot()
    assert subhost.on_host(f"timeout 1 overlay-go {subhost.name} sleep 60").status == 124
    done = subhost.on_host(f"timeout -s USR1 1 overlay-go {subhost.name} sleep 60; echo $?")
    assert done.out == "124\n", done
    assert subhost.on_host(f"overlay-go {subhost.name} sh -c 'kill -SEGV $$'").status == 139


@clause("go-killed")
def test_killed_at_a_terminal_it_leaves_nothing(subhost: Subhost) -> None:
    """After SIGKILL neither the command nor what it started in its group runs on."""
    subhost.boot()
    command = subhost.go("sh -c 'echo ready; sleep 4322 | sleep 4322; :'")
    fulfilled(
        drive(
            subhost,
            f"{command}; echo back",
            ["see", "ready", 20],
            ["kill", "SIGKILL", subhost.go_pid],
            ["see", "back", 20],
            ["end", 20],
        )
    )
    assert subhost.wait("! pgrep -f 'sleep 432[2]'", 10)


@clause("go-killed")
def test_killed_on_pipes_it_leaves_nothing(subhost: Subhost) -> None:
    """After SIGKILL without a terminal nothing of the command runs on either, even if it
    ignores SIGHUP."""
    subhost.boot()
    command = subhost.go("sh -c 'trap \"\" HUP; sleep 4323 | sleep 4323; :'")
    subhost.on_host(f"{command} > /dev/null 2>&1 < /dev/null &")
    assert subhost.wait("pgrep -f '^sleep 432[3]'")
    subhost.on_host(f"kill -KILL $(cat {subhost.go_pid})")
    assert subhost.wait("! pgrep -f 'sleep 432[3]'", 10)


@clause("go-restored")
@pytest.mark.parametrize("end", ["exit", "INT", "TERM", "KILL"])
def test_the_terminal_is_put_right(subhost: Subhost, end: str) -> None:
    """However the command ends, the terminal's settings are as they were."""
    subhost.boot()
    raw = "sh -c 'stty raw; echo ready; exec head -n 1'"
    steps: list[list[Any]] = [["see", "ready", 20]]
    if end == "exit":
        steps.append(["type", "x\n"])
    elif end == "INT":
        steps.append(["type", "\x03"])
    else:
        steps.append(["kill", f"SIG{end}", subhost.go_pid])
    result = fulfilled(
        drive(
            subhost,
            f"stty -a > {subhost.folder}/before; "
            f"{subhost.go(raw)}; sleep 1; "
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
    """A command started with & in an interactive shell runs on to its end, and one that still
    runs can be brought to the foreground."""
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


@clause("go-hang-up")
@pytest.mark.parametrize("told", ["told", "not told"])
def test_the_callers_terminal_is_closed(subhost: Subhost, told: str) -> None:
    """When the caller's terminal is closed the command gets SIGHUP and ends, even where
    overlay-go itself is told to ignore that signal."""
    subhost.boot()
    ignore = "trap '' HUP; " if told == "not told" else ""
    inside = 'trap "echo told > /told; exit" HUP; echo ready; sleep 4324 & wait'
    command = f"{ignore}exec {subhost.go(shlex.join(['sh', '-c', inside]))}"
    fulfilled(drive(subhost, command, ["see", "ready", 20], ["hang up"], ["end", 10]))
    assert subhost.wait(f"[ -s {subhost.folder}/root/told ]", 10)
    assert subhost.wait("! pgrep -f 'sleep 432[4]'", 10)
    assert subhost.wait(f"[ ! -e /proc/$(cat {subhost.go_pid}) ]", 10)


@clause("go-stop")
def test_a_command_that_stops_itself_stops_nobody_else(subhost: Subhost) -> None:
    """Where a command without a terminal stops itself, the script that started overlay-go goes
    on, as with a local command."""
    subhost.boot()
    done = subhost.on_host(
        f"""overlay-go {subhost.name} sh -c 'kill -STOP $$; exit 9' < /dev/null > out 2>&1 &
        pid=$!; until grep -q '^State:.T' /proc/$pid/status; do sleep 0.1; done
        echo goes on; kill -CONT $pid; wait $pid; echo $?""",
        timeout=20,
    )
    assert done.out == "goes on\n9\n", done


@clause("go-killed")
def test_killed_while_the_command_keeps_stopping(subhost: Subhost) -> None:
    """When overlay-go is killed, a command that ignores signals and stops itself again and
    again ends all the same."""
    subhost.put(
        "root/stops",
        "#!/bin/sh\ntrap '' HUP TERM INT; echo ready\nwhile :; do kill -STOP $$; done\n",
    )
    subhost.boot()
    fulfilled(
        drive(
            subhost,
            f"exec {subhost.go('/stops')}",
            ["see", "ready", 20],
            ["wait", 1],
            ["kill", "SIGKILL", subhost.go_pid],
            ["end", 20],
        )
    )
    assert subhost.wait("! pgrep -f '[/]stops'", 15)
