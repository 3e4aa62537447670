"""python -m bench: boots, stops and memory of overlay-boot side by side with its peers, in one run.

Every figure is taken in turn (A B C A B C ...), so that a machine whose speed drifts drifts for
all; the tables give medians, ratios to Debian's shell version, and the project's targets. Needs
root. Everything is made in one folder and under names with this process's number, and is removed
in the end, on Ctrl-C as well. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import pyroute2

import overlay_boot
from bench.peers import left_out, peers
from bench.subhosts import Subhost, Unavailable, now, run
from vm.archive import fetch
from vm.errors import VmError

ROOT = Path(__file__).parent.parent
LIBRARIES = "/usr/lib/python3/dist-packages"  # where Debian's Python has them
CABLES = {"": "", ", one cable": "="}
TARGETS = {  # ratios to Debian's version, and their units
    "boot": (0.15, "ms"),
    "boot, one cable": (0.5, "ms"),
    "stop": (0.5, "ms"),
    "stop, one cable": (0.5, "ms"),
    "idle memory": (0.3, "KiB"),
}
LAST_TO_FIRST = 1.5

Samples = dict[str, dict[str, list[float]]]  # by what is measured, then by who


def debian(folder: Path) -> tuple[str, Path]:
    """The version of Debian's own package, and the unpacked folder of its commands."""
    package = fetch("overlay-boot", "sid")
    run("dpkg-deb", "--extract", package, folder / "unpacked")
    commands = folder / "debian"  # its overlay-stop greps for overlay-boot.*/NAME.conf, so no
    commands.symlink_to(folder / "unpacked/var/lib/overlay-boot")  # overlay-boot in the path
    return package.name.split("_")[1], commands


def ours(folder: Path) -> Path:
    """The folder of this tree's commands, which start as those of its Debian package do."""
    libraries = folder / "libraries"
    libraries.mkdir()
    for package in (overlay_boot, pyroute2):
        source = Path(str(package.__file__)).parent
        (libraries / source.name).symlink_to(source)
    commands = shutil.copytree(ROOT / "bin", folder / "commands")
    start = (ROOT / "tools/debian.sed").read_text().replace(LIBRARIES, str(libraries))
    run("sed", "-i", "-s", start, *commands.iterdir())
    return commands


def measure(subhosts: dict[str, Subhost], rounds: int, folder: Path) -> Samples:
    """Boot and stop each version, and run each peer, in turn; the first round only warms up."""
    samples: Samples = {}

    def note(turn: int, what: str, who: str, value: float) -> None:
        if turn:
            samples.setdefault(what, {}).setdefault(who, []).append(value)

    others = dict(peers(folder))
    for turn in range(rounds + 1):
        for suffix, cables in CABLES.items():
            for who, subhost in subhosts.items():
                note(turn, f"boot{suffix}", who, subhost.boot(cables))
                note(turn, f"idle memory{suffix}", who, subhost.memory())
                note(turn, f"stop{suffix}", who, subhost.stop())
        for who, command in list(others.items()):
            started = now()
            try:
                run(*command)
                note(turn, "peers", who, now() - started)
            except Unavailable as why:
                left_out(who, why)
                del others[who]
        progress(f"round {turn} of {rounds}")
    return samples


def many(boot: Callable[[str], Subhost], count: int) -> dict[str, Any]:
    """Boot so many subhosts to run at once, stop them all, and see what is left."""
    subhosts = [boot(f"n{number}") for number in range(count)]
    boots = []
    for subhost in subhosts:
        boots.append(subhost.boot(""))
        progress(f"subhost {len(boots)} of {count}")
    tenth = max(1, count // 10)
    memory = [subhost.memory() for subhost in subhosts[::tenth]]
    stops = [subhost.stop() for subhost in subhosts]
    left = [what for each in subhosts for what in (*each.processes(), *each.traces())]
    return {
        "subhosts": count,
        "first boots": median(boots[:tenth]),
        "last boots": median(boots[-tenth:]),
        "memory of each": median(memory),
        "stop of each": median(stops),
        "left": left,
    }


def progress(text: str) -> None:
    """Show how far it is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def summary(samples: Samples, title: str) -> list[dict[str, Any]]:
    """One row for each figure that has a target: medians, ratio, whether the target is reached."""
    rows = []
    for what, (target, unit) in TARGETS.items():
        row: dict[str, Any] = {"what": what, "unit": unit, "target": target}
        row |= {who: median(values) for who, values in samples[what].items()}
        row["ratio"] = row["ours"] / row[title] if title in row else None
        row["reached"] = row["ratio"] <= target if row["ratio"] else None
        rows.append(row)
    return rows


def show(result: dict[str, Any]) -> None:
    """The tables."""
    reference = result["reference"]

    def line(*cells: str) -> None:
        print(f"{cells[0]:30}" + "".join(f"{cell:>18}" for cell in cells[1:]))

    def verdict(ratio: float | None, target: float) -> list[str]:
        if ratio is None:
            return ["", f"{target:.2f}", "not measured"]
        return [f"{ratio:.2f}", f"{target:.2f}", "reached" if ratio <= target else "MISSED"]

    line("", reference, "this project", "ratio", "at most", "target")
    for row in result["rows"]:
        by = [f"{row[who]:.1f} {row['unit']}" if who in row else "" for who in (reference, "ours")]
        line(row["what"], *by, *verdict(row["ratio"], row["target"]))

    crowd = result["many"]
    first, last = crowd["first boots"], crowd["last boots"]
    print(f"\n{crowd['subhosts']} at once")
    line("", "", "this project", "ratio", "at most", "target")
    line("boot, first tenth", "", f"{first:.1f} ms")
    line("boot, last tenth", "", f"{last:.1f} ms", *verdict(last / first, LAST_TO_FIRST))
    line("stop", "", f"{crowd['stop of each']:.1f} ms")
    line("idle memory of each", "", f"{crowd['memory of each']:.1f} KiB")
    left = crowd["left"]
    line("left in the end", "", str(len(left)), "", "0", "MISSED" if left else "reached")

    print("\nNearest jobs of others: set up a container on a small root, run true, take it down")
    line("", "", "", "of Debian's boot", "of ours")
    boots = result["rows"][0]
    for who, value in result["peers"].items():
        ratios = [f"{value / boots[v]:.2f}" if v in boots else "" for v in (reference, "ours")]
        line(who, "", f"{value:.1f} ms", *ratios)


def benchmark(rounds: int, count: int, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """All figures, as --json writes them."""

    def subhost(commands: Path, name: str) -> Subhost:
        made = Subhost(commands, folder, f"b{os.getpid()}{name}")
        stack.callback(made.clear)
        return made

    reference = "Debian's"
    our_commands = ours(folder)
    subhosts = {"ours": subhost(our_commands, "o")}
    try:
        version, commands = debian(folder)
        reference = f"Debian's {version}"
        subhosts = {reference: subhost(commands, "d")} | subhosts
    except (VmError, Unavailable) as why:
        left_out("Debian's version", why)
    samples = measure(subhosts, rounds, folder)
    crowd = many(lambda name: subhost(our_commands, name), count)
    progress("")
    return {
        "reference": reference,
        "rows": summary(samples, reference),
        "many": crowd,
        "peers": {who: median(values) for who, values in samples["peers"].items()},
        "samples": samples,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--many", type=int, default=200, metavar="COUNT")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures there as well"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it boots real subhosts: run it as root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    litter = Path("/dev/nukk")  # Debian's overlay-stop makes it
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder)
        if not litter.exists():
            stack.callback(litter.unlink, missing_ok=True)
        try:
            result = benchmark(options.rounds, options.many, folder, stack)
        except Unavailable as why:
            print(f"bench: {why}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nbench: interrupted, clearing up", file=sys.stderr)
            return 130
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # clear up undisturbed
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
