"""What there is on a target, looked at from outside: processes, names, interfaces, mounts, records."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from spec import waiting
from spec.installed import install
from spec.subhost import MAKE_TINY, ROOT
from spec.targets import Here, Host, Result, Ssh, Target, TargetError
from spec.virtual import Virtual

SOURCE = Path(__file__).parents[2]
SCRATCH = "/tmp/lives"

# A subhost is known by the file /who in its root, whatever has become of its names.
SHELL = r"""
pid1() {
    for status in $(grep -lsE '^NSpid:.*[[:space:]]1$' /proc/[0-9]*/status); do
        pid=${status#/proc/} pid=${pid%/status}
        [ "$(cat /proc/$pid/root/who 2>/dev/null)" != "$1" ] || echo $pid
    done
}
keeper() { awk '/^PPid:/ { print $2 }' /proc/$(pid1 $1)/status; }
inside() {
    space=$(readlink /proc/$(pid1 $1)/ns/pid)
    for each in /proc/[0-9]*; do
        [ "$(readlink $each/ns/pid)" != "$space" ] || echo ${each#/proc/}
    done 2>/dev/null
}
named() {
    for each in $(inside $1); do [ "$(cat /proc/$each/comm)" != "$2" ] || echo $each; done
}
"""

LOOK = rf"""
echo "me $$"
awk '/^Name:/ {{ name = $2 }} /^State:/ {{ state = $2 }} /^PPid:/ {{ parent = $2 }}
    /^NSpid:/ {{ print "process", $2, parent, state, NF - 2, $NF, name }}' /proc/[0-9]*/status 2>/dev/null
for status in $(grep -lsE '^NSpid:.*[[:space:]]1$' /proc/[0-9]*/status); do
    pid=${{status#/proc/}} pid=${{pid%/status}}
    [ $pid != 1 ] && read -r who < /proc/$pid/root/who || continue
    shared=; [ ! -e /proc/$pid/root/srv/shared/mark ] || shared=shared
    echo "first $pid $who $(stat -Lc %i /proc/$pid/ns/net) $shared"
done 2>/dev/null
overlay-list --json > {SCRATCH}/list 2> {SCRATCH}/list.err &
listing=$!
for name in /run/netns/*; do
    [ ! -L "$name" ] && [ ! -e "$name" ] || echo "name ${{name##*/}} $(stat -Lc %i $name 2>/dev/null)"
done
for record in /run/overlay-boot/*; do
    [ ! -e "$record" ] || echo "record ${{record##*/}}"
done
ls {ROOT}/*/root/srv/twice 2>/dev/null | sed 's/^/twice /'
ip -o link | sed 's/^/link /'
awk '$2 ~ "^{ROOT}/" {{ print "mount " $2 }}' /proc/self/mounts
find /sys/fs/cgroup -type d -name 'overlay-*' -printf 'cgroup %f\n' 2>/dev/null
wait $listing; echo "list $?"
cat {SCRATCH}/list.err | sed 's/^/said /'
echo json; cat {SCRATCH}/list
"""


@dataclass(frozen=True)
class Process:
    """One process of the target."""

    pid: int
    parent: int
    depth: int  # 0 on the target itself, 1 in a subhost
    name: str


@dataclass(frozen=True)
class First:
    """A subhost's pid 1."""

    pid: int
    net: str  # its network namespace
    shared: bool  # whether /srv/shared of the main host can be seen there


@dataclass(frozen=True)
class Link:
    """A network interface of the main host."""

    index: int
    master: str
    up: bool
    mtu: int
    address: str


@dataclass
class World:
    """All that was seen at one moment."""

    processes: dict[int, Process] = field(default_factory=dict)
    first: dict[str, First] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the network namespace that each leads to
    links: dict[str, Link] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)
    mounts: list[str] = field(default_factory=list)
    cgroups: set[str] = field(default_factory=set)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # of overlay-list, by name
    problems: list[str] = field(default_factory=list)

    def host_processes(self) -> list[str]:
        """The processes of the main host itself."""
        return sorted(p.name for p in self.processes.values() if p.depth == 0)

    def inside(self, who: str) -> list[str]:
        """The processes in a subhost, pid 1 among them, as far as pid 1's descendants."""
        if who not in self.first:
            return []
        first = self.first[who].pid
        return [p.name for p in self.processes.values() if self._descends(p, first)]

    def strays(self) -> list[str]:
        """Processes in a pid namespace of which no pid 1 is known."""
        firsts = {first.pid for first in self.first.values()}
        return [
            f"{p.name} ({p.pid})"
            for p in self.processes.values()
            if p.depth and not any(self._descends(p, first) for first in firsts)
        ]

    def _descends(self, process: Process | None, ancestor: int) -> bool:
        while process and process.pid != ancestor:
            process = self.processes.get(process.parent)
        return process is not None


def parse(text: str) -> World:
    """The world of what LOOK has printed."""
    world = World()
    head, _, body = text.partition("\njson\n")
    me = 0
    for line in head.splitlines():
        kind, *words = line.split()
        if kind == "me":
            me = int(words[0])
        elif kind == "process" and words[2] != "Z":
            process = Process(int(words[0]), int(words[1]), int(words[3]), words[5])
            world.processes[process.pid] = process
        elif kind == "first":
            if words[1] in world.first:
                world.problems.append(f"{words[1]} has two pid 1: {head}")
            world.first[words[1]] = First(int(words[0]), words[2], words[-1] == "shared")
        elif kind == "name":
            world.names[words[0]] = words[1] if len(words) > 1 else ""
        elif kind == "twice":
            world.problems.append(f"a stop script ran twice: {words[0]}")
        elif kind == "record":
            world.records.add(words[0])
        elif kind == "link":
            name, link = _link(words)
            world.links[name] = link
        elif kind == "mount":
            world.mounts.append(words[0])
        elif kind == "cgroup":
            world.cgroups.add(words[0].removeprefix("overlay-"))
        elif kind == "list" and words != ["0"]:
            world.problems.append(f"overlay-list ended with status {words[0]}")
        elif kind == "said" and words != ["no", "subhost", "is", "running"]:
            world.problems.append(f"overlay-list said: {line[5:]}")
    mine = [p.pid for p in world.processes.values() if world._descends(p, me)]
    for pid in mine:
        del world.processes[pid]
    if body.strip():
        world.listed = {row["name"]: row for row in json.loads(body)}
    return world


def _link(words: list[str]) -> tuple[str, Link]:
    """A line of `ip -o link`."""
    values = dict(pairwise(words))
    name = words[1].rstrip(":").partition("@")[0]
    up = "UP" in words[2].strip("<>").split(",")
    address = values.get("link/ether", "")
    return name, Link(
        int(words[0][:-1]), values.get("master", ""), up, int(values["mtu"]), address
    )


def run(target: Target, *commands: str, timeout: float = 60) -> tuple[list[Result], World]:
    """Run shell commands, several of them at the same time, and look at once when all have ended.

    Status -1 where one did not end in time. Raises TargetError where nothing can be seen.
    """
    lines = [SHELL, f"mkdir -p {SCRATCH}; cd {SCRATCH}; rm -f *"]
    for number, command in enumerate(commands):
        lines.append(f"(\n{command}\n) < /dev/null > {number}.out 2> {number}.err")
        lines[-1] = f"{{ {lines[-1]}; echo $? > {number}.status; }}"
        lines[-1] += " &" if len(commands) > 1 else ""
    lines.append("wait" if len(commands) > 1 else "")
    for number in range(len(commands)):
        lines += [
            f"head -c 4000 {number}.{part}; printf '\\0'" for part in ("status", "out", "err")
        ]
    done = target.run("\n".join([*lines, LOOK]), timeout=timeout)
    *parts, seen = done.out.split("\0")
    if len(parts) != 3 * len(commands) or "\njson\n" not in seen:
        raise TargetError(f"the look broke off: {done}")
    results = []
    for number, command in enumerate(commands):
        status, out, err = parts[3 * number : 3 * number + 3]
        results.append(Result(command, int(status or -1), out, err))
    return results, parse(seen)


@contextmanager
def place(url: str, implementation: Path | None) -> Iterator[Target]:
    """A target with an implementation on it; "here" is a new sandbox each time.

    Raises TargetError where there is none.
    """
    own = Path(sys.executable).parent
    folder = implementation or (own if url in ("here", "host") else None)
    target: Target
    if url == "here":
        target = Here([SOURCE, *([folder.resolve()] if folder else [])])
    elif url == "host":
        target = Host()
    elif url.startswith("ssh://"):
        target = Ssh(url)
    elif url.startswith("vm://"):
        target = Virtual(url)
    else:
        raise TargetError(f"{url}: here, host, vm://SUITE or ssh://[user@]machine[:port]")
    try:
        waiting.learn(target)
        install(target, folder, None)
        target.succeed(f"mkdir -p {ROOT} {SCRATCH}")
        target.succeed(MAKE_TINY)
        if url == "here":
            target.succeed("mount -t cgroup2 cgroup2 /sys/fs/cgroup || :")
        yield target
    finally:
        target.close()
        if url == "here":
            _remove_cgroups()


def unique(letter: str) -> str:
    """A subhost's name that no other run on this machine has: cgroups are the machine's."""
    return f"{letter}{os.getpid() % 0xFFFF:x}"


def _remove_cgroups() -> None:
    """A sandbox that is taken down while subhosts run leaves their cgroups, empty, to the machine."""
    for folder, names, _ in os.walk("/sys/fs/cgroup"):  # passes over what goes away meanwhile
        for name in names:
            if name.startswith("overlay-") and name.endswith(unique("")):
                for _ in range(100):  # what has just been killed is in it for a moment
                    with suppress(OSError):
                        os.rmdir(f"{folder}/{name}")
                        break
                    time.sleep(0.05)
