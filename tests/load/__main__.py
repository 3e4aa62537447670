"""python -m tests.load: load and a bad day, the long form (make load)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from spec.targets import TargetError
from tests.lives.world import place

from .report import write_part
from .trials import TRIALS


def main() -> int:
    """The exit status: 0 where nothing was seen that must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--part", type=float, default=1, help="of the numbers of each: 0.1")
    parser.add_argument("--only", action="append", choices=TRIALS, default=[])
    where = "here, host, vm://SUITE or ssh://[user@]machine[:port]"
    parser.add_argument("--target", default="here", help=where)
    parser.add_argument("--implementation", type=Path, help="a folder of commands")
    parser.add_argument("--results", type=Path, default=Path("build/load.json"))
    parser.add_argument("--page", type=Path, help="write the results into this page")
    arguments = parser.parse_args()
    machine = arguments.target.startswith(("vm://", "ssh://"))  # no other clock is ever set
    results: dict[str, Any] = {}
    if arguments.results.exists():  # of an earlier run, with --only
        results = json.loads(arguments.results.read_text())
    wrong = False
    for name in arguments.only or TRIALS:
        if name == "clock" and not machine:
            print("clock: only for a machine to be thrown away: --target vm://trixie")
            continue
        begun = time.monotonic()
        try:
            with place(arguments.target, arguments.implementation) as target:
                trial = TRIALS[name](target, arguments.part)
        except TargetError as error:
            print(f"python -m tests.load: {name}: {error}", file=sys.stderr)
            return 2
        wrong = wrong or bool(trial.problems)
        said = "; ".join(trial.figures)
        print(f"{name}: {trial.done} {trial.unit}, {len(trial.problems)} wrong. {said}")
        print(*trial.problems[:5], sep="\n", flush=True)
        results[name] = {
            "where": "a machine" if machine else "here",
            "done": f"{trial.done} {trial.unit}",
            "figures": trial.figures,
            "curves": trial.curves,
            "problems": trial.problems,
            "seconds": round(time.monotonic() - begun),
        }
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.page:
        write_part(arguments.page, results)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
