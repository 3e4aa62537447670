"""What must be seen of a subhost, after all that has been done to it (overlay-boot(8) and others)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from spec.subhost import KINDS, ROOT, TINY
from spec.targets import Result

from .world import World

SERVICE = r"""#!/bin/sh
case $1 in
start) setsid /srv/{0}d > /dev/null 2>&1 & ;;
stop)
    mkdir /run/{0}.stopped || touch /srv/twice  # stop-once
    kill $(cat /run/{0}.pid) ;;
esac
"""
STUBBORN = r"""#!/bin/sh
[ $1 != start ] || setsid /srv/{0}d > /dev/null 2>&1 &
"""
DAEMON = r"""#!/bin/sh
{1}echo $$ > /run/{0}.pid
mkfifo /run/{0}.wait
while :; do read word < /run/{0}.wait; done
"""
SERVICES = {
    "/srv/one": SERVICE.format("one"),
    "/srv/two": SERVICE.format("two"),
    "/srv/stubborn": STUBBORN.format("stubborn"),  # ends by SIGKILL only
}
STARTS = ["none", "/srv/one", "/srv/one /srv/two", "/srv/one /srv/stubborn"]
CABLES = ["", "br0=", "br0=stable =", "= br0="]


@dataclass(frozen=True)
class Settings:
    """What a configuration says, as far as it is varied."""

    cables: str = ""
    start: str = "none"
    share: bool = False
    mistake: bool = False

    def text(self) -> str:
        """Its lines."""
        lines = [f"CABLES= {self.cables}", f"START= {self.start}"]
        lines += ["SHARE= /srv/shared:/srv/shared"] if self.share else []
        lines += ["RAM_SIZE= much"] if self.mistake else []
        return "\n".join(lines)

    def links(self, name: str) -> dict[str, str]:
        """The bridge, or none, of each host end."""
        words = self.cables.split()
        return {f"{name}{n}": word.partition("=")[0] for n, word in enumerate(words)}

    def daemons(self) -> set[str]:
        """What the services leave running."""
        paths = self.start.split()
        return {f"{path.removeprefix('/srv/')}d" for path in paths if path != "none"}


@dataclass
class Cable:
    """The host end of a running subhost's cable: what it is called by now, and its bridge."""

    name: str
    bridge: str


@dataclass
class Life:
    """One subhost: what has been made of it, and what follows from that."""

    named: str  # its NAME
    kind: str  # of its root
    file: Settings = field(default_factory=Settings)  # the configuration as it is now
    booted: Settings = field(default_factory=Settings)  # and as it was at the boot
    running: bool = False
    pid: int = 0
    keeper: bool = (
        False  # whether the process on the main host that waits for its end is as it was
    )
    recorded: bool = True
    name: str = ""  # whose /run/netns/NAME is: "own", "foreign" or nobody's
    log: str = "file"  # or "link", "folder", "fifo"
    cables: list[Cable] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)  # processes that keep it alive
    shared: bool = False
    left: bool = False  # whether a crash may have left something of it

    @property
    def folder(self) -> str:
        """Where all of it lies."""
        return f"{ROOT}/{self.named}"

    @property
    def conf(self) -> str:
        """Its configuration file."""
        return f"{self.folder}/{self.named}.conf"

    def make(self) -> str:
        """The shell commands that make its folder."""
        lines = [f"mkdir {self.folder} && cd {self.folder} && mkdir -p root/srv/shared work live"]
        lines += [f"cp -a {TINY}/. root/"] if self.kind != "overlay" else []
        for path, text in SERVICES.items():
            service = path.removeprefix("/srv/")
            trap = "trap '' TERM\n" if service == "stubborn" else ""
            for name, what in ((service, text), (f"{service}d", DAEMON.format(service, trap))):
                lines.append(f"cat > root/srv/{name} << 'EOF'\n{what}EOF")
        return "\n".join([*lines, "chmod 755 root/srv/*", f"echo {self.named} > root/who"])

    def write(self, file: Settings) -> str:
        """The shell command that writes its configuration, which says this from now on."""
        self.file = file
        kind = KINDS[self.kind].format(self.folder) or f"LOWER= {TINY}"
        text = f"BASE= .\nLOG= log\n{kind}\n{file.text()}"
        return f"cat > {self.conf} << 'EOF'\n{text}\nEOF"

    @property
    def stubborn(self) -> bool:
        """Whether something in it does not end by SIGTERM."""
        return "stubbornd" in self.inside

    def starts(self) -> None:
        """It has been booted."""
        self.running, self.keeper, self.recorded, self.left = True, True, True, False
        self.booted, self.name, self.shared = self.file, "own", self.file.share
        links = self.booted.links(self.named).items()
        self.cables = [Cable(name, bridge) for name, bridge in links]
        self.inside = self.booted.daemons() or {"dummy_service"}

    def ends(self) -> None:
        """It has been stopped, or has come to an end: what was its own is to be gone."""
        self.left = self.running and not self.keeper
        self.running, self.pid, self.shared = False, 0, False
        self.name = "foreign" if self.name == "foreign" else ""
        self.cables, self.inside = [], set()

    def stopped(self) -> None:
        """overlay-stop has returned."""
        self.ends()
        self.left = False

    def problems(self, world: World) -> list[str]:
        """What is not as it must be at once."""
        first = world.first.get(self.named)
        listed = world.listed.get(self.named)
        found = []
        if not self.running:
            if first:
                found.append(f"it runs, as pid {first.pid}")
            if listed:
                found.append("overlay-list has it")
            return found + self._remains(world)
        if not first:
            return ["it does not run"]
        if first.pid != self.pid:
            found.append(f"its pid 1 is {first.pid}, not {self.pid}")
        if not listed:
            return [*found, "overlay-list does not have it"]
        if listed["pid"] != self.pid or listed["configuration"] != self.conf:
            found.append(f"overlay-list says {listed}")
        if (first.net == world.names.get(self.named, "")) != (self.name == "own"):
            found.append(f"its network namespace has not the name of {self.name or 'nobody'}")
        if first.shared != self.shared:
            found.append("/srv/shared is " + ("shared" if first.shared else "not shared"))
        return found + self._cables(world)

    def _cables(self, world: World) -> list[str]:
        found = []
        for cable in self.cables:
            link = world.links.get(cable.name)
            if not link:
                found.append(f"the cable {cable.name} is not there")
            elif not link.up or link.master != cable.bridge:
                found.append(f"the cable {cable.name} is not up in {cable.bridge!r}: {link}")
        return found

    def _remains(self, world: World) -> list[str]:
        """What there is of one that does not run."""
        found = [f"{point} is mounted" for point in world.mounts if f"{self.folder}/" in point]
        if self.left:
            return found
        if self.named in world.records:
            found.append("its record is there")
        if self.named in world.cgroups:
            found.append("its cgroup is there")
        if self.named in world.names and self.name != "foreign":
            found.append("the name of its network namespace is there")
        return found

    def not_yet(self, world: World) -> list[str]:
        """What is not as it must be in the end: services, which overlay-boot does not wait for."""
        if not self.running:
            return []
        there = world.inside(self.named)
        found = [f"{name} does not run in it" for name in sorted(self.inside - set(there))]
        return found if ".reaper" in there else [*found, "/.reaper does not run in it"]


MISTAKE = re.compile(r"/[^:]+:[0-9]+: ")


def told(result: Result, *statuses: int) -> list[str]:
    """What is wrong with a command's status, and with what it says."""
    found = []
    if result.status not in statuses:
        wanted = " or ".join(map(str, statuses))
        found.append(f"status {result.status}, not {wanted}")
    lines = result.err.splitlines()
    if "Traceback" in result.err:
        found.append("a traceback")
    serious = [line for line in lines if "warning" not in line]
    if result.status == 0 and serious:
        found.append("status 0, and a complaint")
    several = result.status in (
        1,
        2,
    )  # all mistakes of a configuration are told, each with its place
    if result.status and not serious or len(serious) > 1 and not several:
        found.append(f"{len(serious)} lines for what went wrong")
    if result.status == 2 and not all(MISTAKE.match(line) for line in serious):
        found.append("a mistake without its place")
    return [f"{line}: {result}" for line in found]
