"""docs/reliability.md, from the results of a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .calls import KILL
from .crew import Case

PAGE = """\
# How far a subhost can be trusted to end

Made by `make torture` from its results; do not edit it by hand.

A boot, a stop, and an end without anyone's asking consist of some hundred system calls each that change
something, in up to a dozen processes: overlay-boot, the keeper, the builder, pid 1, hooks,
overlay-stop and its helpers. `make torture` numbers them all. For each configuration below, a run is
repeated with one of the calls disturbed: the process is killed as it makes the call, or the call fails
with an error that it can fail with (no room, no memory, no descriptors, busy, not permitted,
interrupted). Then comes what an administrator would do: overlay-stop, overlay-boot, overlay-stop.

A point is **wrong** unless all of this holds:

- the disturbed command told the truth: its exit status is 0 if and only if the subhost runs, and a failure
  is told on one line, never as a traceback;
- a boot that failed has removed all that it had made, at once and by itself, UPPER and WORK included;
- in the end processes, mounts, interfaces (a bridge's ports, address and MTU too), names in
  /run/netns, records, cgroups, and every file in /run, /tmp and the subhost's folder are as before.

A process that is killed as it makes a call leaves the same behind as one killed right after the call
before it, so the end of every call is covered, too.

## Result

{result}

| configuration | points | kills | errors | wrong |
|---|---:|---:|---:|---:|
{rows}

{share} of all {every} points were tried, chosen at random (seed {seed}); {missed} of them were not
met again, because such a run went another way at that point, and are not counted. The commands of
services and hooks are disturbed as well, not only those of overlay-boot.

| process | points | wrong |
|---|---:|---:|
{processes}

## What it leaves until the next overlay-stop

Where overlay-boot or the keeper itself is killed, nobody is left who could clear up. Then a
record may stay, in rare cases a name, a cgroup or a cable, until overlay-stop or the next
boot of that name clears it: so at {remarks} of the points. This is not counted as wrong.
{wrong}"""

ROLES = {
    "boot": "overlay-boot",
    "boot.1": "keeper",
    "boot.1.1": "builder",
    "stop": "overlay-stop",
}


def _role(case: Case) -> str:
    """Which of the processes of docs/design.md a point is in."""
    if case.process in ROLES:
        return ROLES[case.process]
    if case.process.startswith("boot.1.1"):
        return "pid 1, hooks and services"
    return "helpers of overlay-stop" if case.process.startswith("stop") else "helpers"


def page(results: Path, every: int, seed: int, seconds: float) -> str:
    """The whole page."""
    answers: list[tuple[Case, dict[str, Any]]] = []
    for line in results.read_text().splitlines():
        answer = json.loads(line)
        answers.append((Case.parse(answer["case"]), answer))
    met = [(case, answer) for case, answer in answers if answer["hit"]]
    wrong = [(case, answer) for case, answer in met if answer["faults"]]
    points, kills, bad = Counter[str](), Counter[str](), Counter[str]()
    by_process, bad_process = Counter[str](), Counter[str]()
    for case, answer in met:
        key = f"{case.scene}, {case.end}"
        points[key] += 1
        kills[key] += case.action == KILL
        bad[key] += bool(answer["faults"])
        by_process[_role(case)] += 1
        bad_process[_role(case)] += bool(answer["faults"])
    rows = [f"| {k} | {n} | {kills[k]} | {n - kills[k]} | {bad[k]} |" for k, n in points.items()]
    listed = [f"- `{case}`: {'; '.join(answer['faults'])[:200]}" for case, answer in wrong]
    return PAGE.format(
        result=f"**{len(wrong)} of {len(met)} points were wrong** ({seconds / 60:.0f} minutes).",
        rows="\n".join(sorted(rows)),
        every=every,
        share=f"{len(answers)}",
        seed=seed,
        missed=len(answers) - len(met),
        processes="\n".join(
            f"| {k} | {n} | {bad_process[k]} |" for k, n in by_process.most_common()
        ),
        remarks=sum(any("left until" in text for text in a["remarks"]) for _, a in met),
        wrong="\n## Wrong\n\n" + "\n".join(listed) + "\n" if listed else "",
    )
