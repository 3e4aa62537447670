"""python -m tests.mutants: does the spec notice faults? Small deliberate ones, each in a copy of
the implementation, and the clauses that must notice it (faults.toml).

A fault is caught when each of its clauses has a test that fails. Faults that this machine cannot
show (VLANs) are tried in a disposable machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spec.catalogue import Catalogue, collect
from spec.clauses import clauses, in_force
from spec.where import SOURCE, edits_of, misfit, place, places_of
from spec.where import faults as rows

TESTED = ("must", "default")  # the levels of which every clause needs a fault
KEYS = {"name", "clauses", "target", "keeps", "edits", "file", "find", "replace"}
LIMIT = 600  # seconds for the tests of one fault


class MutantError(Exception):
    """A fault that cannot be tried: it is wrong itself, or the machine is."""


@dataclass(frozen=True)
class Fault:
    """One deliberate fault."""

    name: str
    clauses: list[str]  # that must notice it
    edits: list[dict[str, str]]  # file, find, replace; or file alone, to be taken away
    target: str = "here"

    def problems(self) -> Iterable[str]:
        """What keeps it from being tried."""
        for clause in self.clauses:
            if clause not in clauses():
                yield f"{self.name}: no man page has the clause {clause}"

    def apply(self, root: Path) -> None:
        """Make it in the copy of the implementation at root."""
        for edit in self.edits:
            path = place(root, edit["file"])
            if "find" not in edit:
                path.unlink()
                continue
            text = path.read_text().replace(edit["find"], edit["replace"])
            path.write_text(text)
            if path.suffix == ".py":
                compile(text, str(path), "exec")


def load() -> list[Fault]:
    """The faults. Raises MutantError where one does not fit, or a promise has none."""
    faults = [
        Fault(row["name"], row["clauses"], edits_of(row), row.get("target", "here"))
        for row in rows()
    ]
    problems = [line for fault in faults for line in fault.problems()]
    for row in rows():
        edits = [*edits_of(row), *places_of(row)]
        problems += [f"{row['name']}: {why}" for why in dict.fromkeys(map(misfit, edits)) if why]
        problems += [f"{row['name']}: what is {key}?" for key in row.keys() - KEYS]
    noticed = {clause for fault in faults for clause in fault.clauses}
    for clause in in_force("ours").values():
        if clause.level in TESTED and clause.id not in noticed:
            problems.append(f"no fault for the clause {clause.id}: {clause.sentence}")
    if problems:
        raise MutantError("\n".join(problems))
    return faults


def build(root: Path, fault: Fault) -> Path:
    """A copy of the implementation with the fault, made below root; its folder of commands, or
    for a machine of its own the tree to lay over that."""
    for name in ("overlay_boot", "bin"):
        shutil.copytree(SOURCE / name, root / name)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(SOURCE / name, root)
    fault.apply(root)
    if any(edit["file"].endswith(("setup.py", ".c", ".h")) for edit in fault.edits):
        command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "built"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MutantError(f"{fault.name}: it does not build:\n{done.stderr}")
        for program in ("reaper", "helper"):
            (root / "built/overlay_boot" / program).replace(root / "overlay_boot" / program)
    here = fault.target == "here"
    tree = root / "tree"
    commands = tree / "usr/bin"
    package = commands if here else tree / "usr/lib/python3/dist-packages"
    python = sys.executable if here else "/usr/bin/python3"
    commands.parent.mkdir(parents=True)
    (root / "bin").rename(commands)
    package.mkdir(parents=True, exist_ok=True)
    (root / "overlay_boot").rename(package / "overlay_boot")
    for file in commands.glob("overlay-*"):
        file.write_text(file.read_text().replace("#!python", f"#!{python}", 1))
    return commands if here else tree


def run(tests: list[str], implementation: Path, target: str) -> dict[str, str]:
    """The verdict of each test, with its reason where it has one. Raises MutantError where the
    run itself fails."""
    results = implementation.parent / "results.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--implementation={implementation}", f"--target={target}"]
    command += [f"--results={results}", *(f"spec/{test}" for test in tests)]
    try:
        done = subprocess.run(
            command, cwd=SOURCE, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise MutantError(f"after {LIMIT} s there is no verdict of {' '.join(tests)}") from None
    if not results.exists():
        raise MutantError(f"{done.stdout}{done.stderr}"[-2000:])
    rows = json.loads(results.read_text())["tests"]
    return {row["id"]: ": ".join(filter(None, (row["verdict"], row["reason"]))) for row in rows}


def missed(fault: Fault, tests: Catalogue, folder: Path) -> list[str]:
    """The clauses that did not notice the fault, with the verdicts of their tests; without a
    fault, the tests that do not pass."""
    names = sorted({test for clause in fault.clauses for test in tests.of(clause)})
    with tempfile.TemporaryDirectory(dir=folder) as place:
        verdicts = run(names, build(Path(place), fault), fault.target)
    if not fault.edits:
        return [f"{test}: {how}" for test, how in verdicts.items() if how != "pass"]
    return [
        f"{clause}: " + ", ".join(f"{test} {verdicts.get(test)}" for test in tests.of(clause))
        for clause in fault.clauses
        if not any(verdicts.get(test, "").startswith("fail") for test in tests.of(clause))
    ]


def main() -> int:
    """Try the faults; 0 if all of them are caught."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("-k", metavar="WORD", default="", help="only faults whose name has it")
    parser.add_argument("-n", metavar="N", type=int, default=os.cpu_count(), help="at once")
    options = parser.parse_args()
    try:
        faults = [fault for fault in load() if options.k.lower() in fault.name.lower()]
        if not faults:
            raise MutantError(f"no fault's name has {options.k!r}: see tests/mutants/faults.toml")
        return _try(faults, options.n)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2


def _try(faults: list[Fault], number: int) -> int:
    started = time.monotonic()
    tests = collect()
    survived = 0
    controls = [
        Fault(
            "without a fault",
            sorted({c for f in faults if f.target == t for c in f.clauses}),
            [],
            t,
        )
        for t in sorted({fault.target for fault in faults})
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(number) as pool:
        try:
            tried = controls + faults
            found = pool.map(lambda fault: missed(fault, tests, Path(folder)), tried)
            for fault, lines in zip(tried, found, strict=True):
                word = ("missed" if lines else "caught") if fault.edits else "control"
                print(f"{word:8}{fault.name}", *lines, sep="\n        ", flush=True)
                if lines and not fault.edits:
                    raise MutantError(f"{fault.target}: tests fail without any fault")
                survived += bool(lines)
        finally:
            pool.shutdown(cancel_futures=True)
    print(
        f"{len(faults) - survived} of {len(faults)} faults caught, each by all the clauses it is"
        f" tied to, {len({c for f in faults for c in f.clauses})} in all, in"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
