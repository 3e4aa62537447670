"""python -m tests.torture: kill or fail a boot, an end and a stop at each system call (make torture)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.reliability import put

from .crew import Case, Crew, plan, sample, torture
from .report import page


def main() -> int:
    """The exit status: 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--points", type=int, default=1600, help="how many; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scene", action="append", default=[], help="only this configuration")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", action="append", default=[], help="one, as it is printed")
    parser.add_argument("--match", default="", help="only those whose printed form has this")
    parser.add_argument("--list", action="store_true", help="print the points, try none")
    parser.add_argument("--results", type=Path, default=Path("build/torture.jsonl"))
    parser.add_argument("--page", type=Path, help="write the results as this page")
    arguments = parser.parse_args()
    cases = [Case.parse(text) for text in arguments.case]
    every = len(cases)
    if not cases:
        crew = Crew("plan")
        try:
            cases = plan(crew, arguments.scene)
        finally:
            crew.close()
        every = len(cases)
        cases = [case for case in cases if arguments.match in str(case)]
        if arguments.points:
            cases = sample(cases, arguments.points, arguments.seed)
    if arguments.list:
        print(*cases, sep="\n")
        return 0
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    wrong = missed = done = 0
    begun = time.monotonic()
    with open(arguments.results, "w") as results:

        def tell(case: Case, answer: dict[str, Any]) -> None:
            nonlocal wrong, missed, done
            done += 1
            missed += not answer["hit"]
            wrong += bool(answer["faults"])
            results.write(json.dumps({"case": str(case), **answer}) + "\n")
            results.flush()
            if answer["faults"] or arguments.case:
                print(f"{case}: {answer['hit']}")
                for line in [*answer["faults"], *answer["remarks"], *answer.get("commands", [])]:
                    print(f"    {line}")
                print("    log:", answer.get("log", "").replace("\n", "\n    "), flush=True)
            elif done % 100 == 0:
                print(f"{done} of {len(cases)}, {wrong} wrong", file=sys.stderr, flush=True)

        torture(cases, arguments.workers, tell)
    seconds = time.monotonic() - begun
    if arguments.page:
        text = page(arguments.results, every, arguments.seed, seconds)
        put(arguments.page, "", text)
    print(
        f"{done - missed} points of {every} in {seconds:.0f} s: {wrong} wrong; "
        f"{missed} more were not met again"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
