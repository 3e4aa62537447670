"""python -m tests.lives: random lives and races of subhosts, the long forms (make lives)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec.targets import TargetError

from . import races
from .machine import Lives, live
from .report import write_part
from .world import place

RACES: dict[str, tuple[Callable[..., races.Race], int]] = {
    "boots": (races.boots, 200),
    "cycles": (races.cycles, 500),
    "signals": (races.signals, 1000),
    "hammer": (races.hammer, 240),  # seconds
}


def main() -> int:
    """The exit status: 0 where nothing was seen that must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.lives", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of random lives, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=float, default=1, help="of each race's rounds: 0.1")
    parser.add_argument("--minutes", type=float, default=600, help="for random lives, at most")
    parser.add_argument("--add", action="store_true", help="to the results of earlier runs")
    parser.add_argument("--only", action="append", choices=["lives", *RACES], default=[])
    parser.add_argument(
        "--target", default="here", help="here, host or ssh://[user@]machine[:port]"
    )
    parser.add_argument("--implementation", type=Path, help="a folder of commands")
    parser.add_argument("--results", type=Path, default=Path("build/lives.json"))
    parser.add_argument("--page", type=Path, help="write the results into this page")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.results.exists():  # of an earlier run, with --only
        results = json.loads(arguments.results.read_text())
    Lives.url, Lives.implementation = arguments.target, arguments.implementation
    wrong = False
    for name in arguments.only or ["lives", *RACES]:
        begun = time.monotonic()
        try:
            if name == "lives":
                found = live(
                    arguments.steps, arguments.seed, lives=8, seconds=arguments.minutes * 60
                )
            else:
                found = race(name, arguments)
        except TargetError as error:
            print(f"python -m tests.lives: {error}", file=sys.stderr)
            return 2
        found["seconds"] = round(time.monotonic() - begun)
        wrong = wrong or bool(found["problems"])
        print(f"{name}: {found['done']} in {found['seconds']} s, {len(found['problems'])} wrong")
        print(*found["problems"][:5], sep="\n", flush=True)
        results[name] = add(results.get(name), found) if arguments.add else found
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.page:
        write_part(arguments.page, results)
    return 1 if wrong else 0


def add(before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """The results of two runs of one trial."""
    if before is None:
        return found
    sums = {key: before[key] + found[key] for key in ("done", "seconds", "problems")}
    return {**sums, "seen": dict(Counter(before["seen"]) + Counter(found["seen"]))}


def race(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One race on a target of its own: rounds or commands, what came of them, what was wrong."""
    function, rounds = RACES[name]
    with place(arguments.target, arguments.implementation) as target:
        count = max(1, round(rounds * arguments.part))
        seeded = {"seed": arguments.seed} if name in ("signals", "hammer") else {}
        done = function(target, count, **seeded)
    return {"done": done.done, "seen": dict(done.seen), "problems": done.problems}


if __name__ == "__main__":
    sys.exit(main())
