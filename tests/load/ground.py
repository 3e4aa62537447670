"""What a trial has: subhosts on a target, what it measured, and what was not as it must be."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from spec.targets import Here, Result, Target
from tests.lives.model import Life, told
from tests.lives.world import run, unique

BRIDGE = "ip link add br0 type bridge && ip link set br0 up"
OURS = re.compile("reaper|dummy|overlay")  # a process of a subhost, or of the commands
# Runs commands one after the other, in a cgroup of their own if there is cgroup v2, and tells the
# milliseconds, those of all processors that it took, the status and the complaints of each.
TIMED = """
import json, os, subprocess, sys, time
own = next((line[3:].strip() for line in open("/proc/self/cgroup") if line[:3] == "0::"), "")
group = next((top + own for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    if own and os.access(top + own + "/cgroup.procs", os.W_OK)), "")
group = group.rstrip("/") + "/load-timed" if group else ""
if group:
    os.makedirs(group, exist_ok=True)
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
def spent():
    if not group:
        return 0.0
    return int(open(group + "/cpu.stat").readline().split()[1]) / 1000
rows = []
for line in sys.stdin:
    begun, before = time.monotonic(), spent()
    done = subprocess.run(line.split(), stdin=subprocess.DEVNULL, capture_output=True)
    took, used = (time.monotonic() - begun) * 1000, spent() - before
    rows.append((round(took, 2), round(used, 2), done.returncode, done.stderr.decode()))
print(json.dumps(rows))
"""


@dataclass
class Trial:
    """One trial on its target."""

    target: Target
    done: int = 0
    unit: str = "times"
    figures: list[str] = field(default_factory=list)  # what was measured, in words
    curves: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    processors: bool = False  # whether what was timed is processor time

    def __post_init__(self) -> None:
        _, self.before = run(self.target)

    def subhost(self, text: str = "", lower: str = "", letter: str = "x") -> Life:
        """Another subhost, with its configuration."""
        life = Life(unique(f"{letter}{len(self.lives)}"), "overlay")
        self.lives.append(life)
        self.succeed(
            f"mkdir -p {life.folder} && cd {life.folder} && mkdir -p root work live && echo {life.named} > root/who"
        )
        self.write(life, text, lower)
        return life

    def write(self, life: Life, text: str, lower: str = "") -> None:
        """Its configuration; what the text assigns wins over what all have."""
        rest = f"BASE= .\nLOG= log\nSTART= none\nLOWER= {lower or '/opt/subhost/.tiny'}\n"
        self.target.put(life.conf, text + "\n" + rest)

    def service(self, life: Life, name: str, lines: str) -> str:
        """A start/stop script in its UPPER; its path inside."""
        self.target.put(f"{life.folder}/root/srv/{name}", f"#!/bin/sh\n{lines}\n", 0o755)
        return f"/srv/{name}"

    def succeed(self, command: str, timeout: float = 60) -> str:
        """What the trial itself needs."""
        return self.target.succeed(command, timeout=timeout)

    def say(self, *problems: str) -> None:
        """Note what is wrong."""
        self.problems += problems

    def run(self, command: str, *statuses: int, timeout: float = 60) -> Result:
        """One of the commands, which is to end with one of the statuses and to tell the truth. A
        warning of what is short belongs to status 0 as well."""
        done = self.target.run(f"{{ {command}\n}} < /dev/null", timeout=timeout)
        self.say(*told(done, *(statuses or (0,))))
        return done

    def boot(self, life: Life, prefix: str = "") -> int:
        """Boot one; its pid 1 on the target."""
        self.run(f"{prefix}overlay-boot --wait {life.conf}", timeout=120)
        return self.pid(life)

    def pid(self, life: Life) -> int:
        """Its pid 1; 0 where it does not run."""
        link = self.target.run(f"readlink /run/netns/{life.named}").out
        return int(link.split("/")[2]) if link.startswith("/proc/") else 0

    def stop(self, life: Life, *statuses: int, seconds: float = 25, options: str = "") -> float:
        """Stop one, within so many seconds; how many it took."""
        begun = time.monotonic()
        self.run(f"overlay-stop {options} {life.named}", *statuses, timeout=300)
        took = time.monotonic() - begun
        if took > seconds * self.target.patience:
            self.say(f"overlay-stop took {took:.1f} s")
        return took

    def runs(self, life: Life, what: str) -> None:
        """See that it runs and can be entered."""
        done = self.target.run(f"overlay-go {life.named} sh -c 'echo here $$'")
        if not done.out.startswith("here "):
            self.say(f"{what}: it cannot be entered: {done}")

    def timed(self, commands: list[str]) -> list[float]:
        """The milliseconds of each of several commands, one after the other: of processors where the
        target has cgroup v2, since they do not depend on what else the machine does."""
        done = self.target.run(
            f"exec python3 -c '{TIMED}'", input="\n".join(commands) + "\n", timeout=1800
        )
        rows: list[Any] = json.loads(done.out) if done.status == 0 else []
        if not rows:
            self.say(str(done))
        for command, (_, _, status, text) in zip(commands, rows, strict=False):
            if status or text:
                self.say(f"{command}: status {status}: {text}")
        self.processors = any(used for _, used, *_ in rows)
        return [row[1] if self.processors else row[0] for row in rows]

    def close(self, what: str = "in the end") -> None:
        """See that nothing is left, at once but for what the kernel takes its time for."""
        limit = time.monotonic() + 15 * self.target.patience
        while (found := self._left()) and time.monotonic() < limit:
            time.sleep(0.1)
        self.say(*(f"{what}: {text}" for text in found))
        folders = " ".join(life.folder for life in self.lives)
        self.target.run(f"rm -rf --one-file-system {folders}; ip link delete br0", timeout=120)
        self.target.run("find /sys/fs/cgroup -type d -name load-timed -exec rmdir {} +")

    def _left(self) -> list[str]:
        """What there is of any of the subhosts."""
        _, world = run(self.target, timeout=120)
        found = list(world.problems)
        for life in self.lives:
            found += [f"{life.named}: {text}" for text in life.problems(world)]
        found += [f"{name}: a process that is left" for name in world.strays()]
        links = set(world.links) - set(self.before.links) - {"br0"}
        found += [f"{name}: an interface that is left" for name in sorted(links)]
        seen, had = (Counter(each.host_processes()) for each in (world, self.before))
        changed = (seen - had) + (had - seen)
        if not isinstance(self.target, Here):  # what else a machine does is its own affair
            changed = Counter(filter(OURS.search, changed))
        return found + [f"a process more or less than before: {name}" for name in changed]


def lower_quartile(values: list[float]) -> float:
    """What is taken without the disturbance of others: a quarter of them took no longer."""
    return sorted(values)[len(values) // 4] if values else 0.0
