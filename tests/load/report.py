"""The part of docs/reliability.md on load and a bad day, from the results of `make load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tests.reliability import put

from .trials import TRIALS

HEADING = "Load and a bad day"
CURVE = "reliability-crowd.svg"
PART = (
    f"## {HEADING}\n"
    + """
`make load` writes this part of the page from its results.

Each trial is a fresh place with subhosts in it, and something that a machine has too much or too little
of. After each all subhosts have ended, and no process, mount, interface, name, record or cgroup may be left;
each status and message has to be true.

| trial | how much | wrong | measured | |
|---|---:|---:|---|---|
{rows}

What has to hold:

{what}

*Alone* and *among all* are what a quarter of 25 took at most, the first and the last boots, the last and the
first stops: whatever else the machine did could only make them slower. Processor time is that of all processes of a
boot or a stop, by their cgroup.
{curve}
### Shown elsewhere

- No ifupdown on the main host: test_without_a_stanza_the_host_end_is_set_up (`spec/test_network.py`).
- A file system of FUSE inside that never answers: test_a_file_system_that_never_answers_does_not_hold_up_the_end
  and the one after it (`spec/test_inside.py`).
- UPPER, LOG or /run without room, few descriptors, and a full limit of processes at a boot: `tests/test_limits.py`,
  `tests/test_boot.py` and `spec/test_undo.py`.

### Found and mended

{found}

### Known, and not mended

{known}
{wrong}"""
)
FOUND = [
    "Of 100 boots at the same time on a busy machine some gave up: they had waited for the lock of the records' folder "
    + "for ten seconds, though others did go on. A boot now waits as long as the lock changes hands.",
    "A boot into a bridge decoded all ports of that, and each boot all records, so that it took longer with every "
    + "subhost that ran.",
    "With a limit of 12 to 20 open files overlay-stop could tell no service to end, waited for the grace and did not "
    + "say why; overlay-go said `Invalid argument`.",
    "A boot that had run out of descriptors looked for ever for what was in the cgroup that it was to remove.",
    "A file of some GiB in the place of LOWER's /etc/hosts was read to its end.",
    "A folder in the place of /dev/null, with a POSTMOUNT of one's own, kept pid 1 from starting; anything else there "
    + "was opened.",
]
"""What the trials have found in this implementation; each has a test of its own."""


KNOWN = [
    "On a machine with ten times as much to do as it had processors, a stop among 500 subhosts once took 1.7 times the "
    + "processor time of one alone: the keeper looks through all processes whether one of the main host is in the "
    + "subhost's network namespace still.",
    "A clock that jumps is tried in a machine only.",
]
"""What they have found, too."""


def part(results: Mapping[str, Any]) -> str:
    """The part, of what there are results of."""
    rows, wrong, what = [], [], []
    for name, trial in TRIALS.items():
        if found := results.get(name):
            problems = found["problems"]
            figures = "; ".join(found["figures"])
            rows.append(
                f"| {name.replace('_', ' ')} | {found['done']} | {len(problems)} | {figures} "
                f"| {max(1, round(found['seconds'] / 60))} min |"
            )
            promise = " ".join((trial.__doc__ or "").split())
            where = " Run in a machine." if found["where"] == "a machine" else ""
            what.append(f"- **{name.replace('_', ' ')}**: {promise}{where}")
            wrong += [f"- {name}: {text.splitlines()[0][:200]}" for text in problems]
    return PART.format(
        rows="\n".join(rows),
        what="\n".join(what),
        curve=f"\n![Time of a boot and a stop by how many subhosts run]({CURVE})\n"
        if curves(results)
        else "",
        found="\n".join(f"- {text}" for text in FOUND) or "Nothing.",
        known="\n".join(f"- {text}" for text in KNOWN),
        wrong="\n### Wrong\n\n" + "\n".join(wrong) + "\n" if wrong else "",
    )


def curves(results: Mapping[str, Any]) -> dict[str, list[float]]:
    """Milliseconds of each boot and stop of the crowd, in order; none where it was not tried."""
    found: dict[str, list[float]] = results.get("crowd", {}).get("curves", {})
    return found


def draw(curves: Mapping[str, list[float]], file: Path) -> None:
    """The curves as SVG, by how many subhosts ran: boots fill the place, stops empty it again. A
    point is the median of ten."""
    count = max(len(times) for times in curves.values())
    top = 1.1 * max(max(times) for times in curves.values())

    def across(number: float) -> float:
        return 60 + 700 * number / count

    def down(time: float) -> float:
        return 300 - 280 * time / top

    shapes = []
    for part in range(6):
        x, y = across(count * part / 5), down(top * part / 5)
        shapes += [
            f'<path d="M60 {y:.1f}H760" stroke="#ccc"/>',
            f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{top * part / 5:.0f}</text>',
            f'<text x="{x:.1f}" y="320" text-anchor="middle">{count * part / 5:.0f}</text>',
        ]
    for (what, times), colour in zip(curves.items(), ("#05a", "#c40"), strict=True):
        ordered = times if what == "boot" else times[::-1]
        points = [
            f"{across(ten):.1f},{down(median(ordered[ten : ten + 10])):.1f}"
            for ten in range(0, len(ordered), 10)
        ]
        shapes += [
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="770" y="{points[-1].split(",")[1]}" fill="{colour}">{what}</text>',
        ]
    file.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 350" font-family="sans-serif" '
        'font-size="12"><rect width="820" height="350" fill="white"/>\n'
        + "\n".join(shapes)
        + '\n<text x="410" y="342" text-anchor="middle">ms of processor time, by how many '
        "subhosts run</text></svg>\n"
    )


def write_part(page: Path, results: Mapping[str, Any]) -> None:
    """Put the part into the page, in the place of an earlier one, and the curves beside it."""
    if curves(results):
        draw(curves(results), page.with_name(CURVE))
    put(page, HEADING, part(results))
