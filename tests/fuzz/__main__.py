"""python -m tests.fuzz: each parser under a coverage-guided fuzzer, the long form (make fuzz)."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["overlay_boot"]):
    from tests.fuzz.parsers import PARSERS, WORDS

from tests.reliability import put

HEADING = "Hostile files"
PART = """\
## Hostile files

`make fuzz` writes this part of the page from its results.

Each parser of what somebody else may have written gets inputs that a coverage-guided fuzzer (atheris, on
libFuzzer) makes up from the words that it looks for and from what has led to new branches before. Wrong is
any exception but the documented error, an input that takes more than {seconds} seconds, and more than
{memory} MiB of memory.

| parser | inputs | wrong | |
|---|---:|---:|---:|
{rows}

What is read that way: {what}.

### Found and mended

{found}
"""
FOUND = [
    "A carriage return in the path of any mount of the main host, which a user without rights can make "
    + "with FUSE, ended every boot, `--check` and overlay-share with a traceback.",
    "A package's name of more than 250 bytes in a subhost's dpkg database ended overlay-diff; one with a slash "
    + "had it look at files outside.",
]
"""What this trial has found; each has a test of its own."""
SECONDS, MEMORY = 2, 512  # for an input, at most; MiB
LENGTH = 4096  # bytes of an input, at most


def fuzz(name: str, runs: int, seed: int) -> dict[str, Any]:
    """Give one parser so many inputs, in a process of its own: how many it has had, what was wrong."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        words = Path(folder, "words")
        shown = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[name])
        words.write_text("".join(f'"{word}"\n' for word in shown))
        limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}", f"-max_len={LENGTH}"]
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, f"-runs={runs}", *limits]
        command += [
            f"-seed={seed}",
            f"-dict={words}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        bad = [path.read_bytes() for path in Path(folder).glob("*-*")]
    count = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
    problems = [f"{name}: {data[:200]!r}" for data in bad]
    if done.returncode and not problems:
        problems = [f"{name}: exit status {done.returncode}: {done.stderr[-2000:]}"]
    elif problems:
        problems.append(done.stderr[-2000:])
    return {
        "done": int(count[1]) if count else 0,
        "problems": problems,
        "seconds": round(time.monotonic() - begun),
    }


def part(results: dict[str, Any]) -> str:
    """The part of the page."""
    rows = [
        f"| {name} | {found['done']} | {len(found['problems'])} | {found['seconds'] / 60:.0f} min |"
        for name, found in results.items()
    ]
    what = [f"{name}: {(PARSERS[name].__doc__ or '').rstrip('.')}" for name in results]
    found = "\n".join(f"- {text}" for text in FOUND)
    return PART.format(
        rows="\n".join(rows), what="; ".join(what), found=found, seconds=SECONDS, memory=MEMORY
    )


def main() -> int:
    """The exit status: 0 where nothing was wrong."""
    if sys.argv[1:2] == ["--one"]:
        parser = PARSERS[sys.argv[2]]
        atheris.Setup([sys.argv[0], *sys.argv[3:]], parser)
        atheris.Fuzz()
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--runs", type=int, default=200_000, help="inputs for each parser")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", action="append", choices=PARSERS, default=[])
    options.add_argument("--results", type=Path, default=Path("build/fuzz.json"))
    options.add_argument("--page", type=Path, help="write the results into this page")
    arguments = options.parse_args()
    results = {}
    for name in arguments.only or PARSERS:
        results[name] = found = fuzz(name, arguments.runs, arguments.seed)
        print(
            f"{name}: {found['done']} inputs in {found['seconds']} s, {len(found['problems'])} wrong"
        )
        print(*found["problems"], sep="\n", flush=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.page:
        put(arguments.page, HEADING, part(results))
    return 1 if any(found["problems"] for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
