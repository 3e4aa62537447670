"""The part of docs/reliability.md on random lives and races, from the results of `make lives`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from tests.reliability import put

HEADING = "Random lives and races"
PART = (
    f"## {HEADING}\n"
    + """
`make lives` writes this part of the page from its results.

A random life is four subhosts (overlay, bind mount and plain root, with and without cables into one
bridge, with services of which one ignores SIGTERM) and whatever happens to them, in an order that
chance decides: boots, stops and commands inside, one or several at the same time; the loss of
processes, records, names, cables and the bridge; another interface or namespace in the place of one that
was lost; a LOG that becomes a link, a folder or a pipe; an edited configuration. After each step
all of it is compared with what the man pages promise: which subhosts run, with which pid 1, name, cables,
services and shares; what overlay-list says; every exit status and message; the bridge's address
and MTU; and of those that do not run, that nothing is left. An order that surprises is cut down to the
shortest that does, and printed as shell commands.

A race is the same commands many times at once, or with a signal at a random moment. Here too nothing
may be left, exactly one may win, and each status and message has to be true.

| trial | how often | wrong | |
|---|---:|---:|---|
{rows}
{done}
Left out are the setting of the clock, and the loss of a running subhost's record together with
its keeper, since then nothing is left that tells of it.

### Found and mended

{found}

### Known, and not mended

{known}
{wrong}"""
)

WHAT = {
    "lives": ("random lives", "steps"),
    "boots": ("20 boots of one configuration at once", "rounds"),
    "cycles": ("start and stop with a cable into a bridge, a service and a share", "times"),
    "signals": (
        "SIGHUP, SIGINT, SIGTERM or SIGKILL at a random moment of a boot, a stop or a command inside",
        "signals",
    ),
    "hammer": ("boot, stop, go, share and list on 10 subhosts by 8 callers", "commands"),
}

FOUND = [
    "overlay-stop right after overlay-boot came before dummy_service was there: that got no SIGTERM,"
    + " and the stop waited for ten seconds and ended with status 1.",
    "A boot of a subhost whose record had been removed by hand took it for another network namespace, and "
    + "advised to delete that.",
    "Ctrl-C in the moment in which overlay-go, -stop, -list or -share is loaded printed a traceback.",
    "overlay-list ended with `No such device` where a cgroup went just while it was read, and advised to "
    + "remove a record that a boot was about to write.",
    "After its keeper had been killed, overlay-stop took a cable that had been renamed for gone: it stayed where a "
    + "process of the main host was in the network namespace.",
    "overlay-stop came back while the cables could still be seen in /sys.",
    "On a machine with ten times as much to do as it had processors SIGTERM was not sent within two seconds, and not "
    + "again; ten seconds later overlay-stop said that dummy_service had not ended after it.",
]
"""What the trials have found in this implementation; each has a test of its own."""

KNOWN = [
    "One random life went wrong on a machine with five times as much to do as it had processors, and not "
    + "again with the same seed: a cgroup was there. Whether that was left by the subhost, or by the "
    + "sandbox that had been taken down before, is not known; the trial keeps the two apart since.",
    "SIGINT in the first moments of a command, before Python has read a line of it, prints Python's own "
    + "traceback. Nothing has been done by then. Such signals are counted, not judged.",
    "Where not only overlay-go but the helper that it has started is killed by SIGKILL, and within the first "
    + "millisecond of that, a command without a terminal runs on inside.",
]
"""What they have found, too."""


def part(results: Mapping[str, Any]) -> str:
    """The part, of what there are results of."""
    rows, wrong = [], []
    for name, (what, unit) in WHAT.items():
        if found := results.get(name):
            problems = found["problems"]
            time = f"{found['seconds'] / 60:.0f} min"
            rows.append(f"| {what} | {found['done']} {unit} | {len(problems)} | {time} |")
            wrong += [f"- {what}: {text.splitlines()[0][:200]}" for text in problems]
    seen = results.get("lives", {}).get("seen", {})
    counts = ", ".join(f"{what} ({count})" for what, count in sorted(seen.items()))
    return PART.format(
        rows="\n".join(rows),
        done=f"\n{fill(f'The steps of the random lives: {counts}.', 110)}\n" if counts else "",
        found="\n".join(f"- {text}" for text in FOUND),
        known="\n".join(f"- {text}" for text in KNOWN),
        wrong="\n### Wrong\n\n" + "\n".join(wrong) + "\n" if wrong else "",
    )


def write_part(page: Path, results: Mapping[str, Any]) -> None:
    """Put the part into the page, in the place of an earlier one."""
    put(page, HEADING, part(results))
