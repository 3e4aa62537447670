"""A subhost for one test, on any implementation: only commands, files and kernel state are used."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

from spec import waiting
from spec.targets import NoAnswer, Result, Target
from spec.waiting import PID1

ROOT = "/opt/subhost"
TINY = f"{ROOT}/.tiny"  # a root file system of a static shell and its tools
MAKE_TINY = rf"""
set -e
busybox=$(command -v busybox) || {{ echo "busybox is not installed" >&2; exit 1; }}
mkdir -p {TINY}/bin {TINY}/usr/sbin {TINY}/etc/init.d {TINY}/root {TINY}/srv {TINY}/tmp {TINY}/run {TINY}/dev {TINY}/proc {TINY}/sys
cp "$busybox" {TINY}/bin/busybox
chroot {TINY} /bin/busybox --install -s /bin
# Every implementation's overlay-go finds a bash; START's services find a service(8).
printf '#!/bin/sh\nexec /bin/sh "$@"\n' > {TINY}/bin/bash
printf '#!/bin/sh\nexec /etc/init.d/"$1" "$2"\n' > {TINY}/usr/sbin/service
chmod 755 {TINY}/bin/bash {TINY}/usr/sbin/service
"""

KINDS = {
    "overlay": "",
    "bind": "UPPER= {0}/root\nLOWER= {0}/root",
    "plain": "UPPER= {0}/root\nLOWER= {0}/root\nLIVE= {0}/root",
}
"""How each kind of root is configured, in the folder {0}."""


def here(text: str) -> str:
    """A here-document of a shell, for the commands that reproduce a test."""
    end = "EOF"
    while f"\n{end}\n" in f"\n{text}\n":
        end += "F"
    return f"<< '{end}'\n{text}{'' if text.endswith(chr(10)) else chr(10)}{end}"


class Subhost:
    """A folder with a configuration file, and the commands on it."""

    def __init__(self, target: Target, name: str, note: Callable[[str], None]) -> None:
        self.target = target
        self.name = name
        self.folder = f"{ROOT}/{name}"
        self.conf = f"{self.folder}/{name}.conf"
        self.log = f"{self.folder}/log"
        self.note = note
        self.named = [name]  # whatever names it runs under
        self.pids: set[int] = set()  # each pid 1 that was seen
        make = f"mkdir {self.folder} && cd {self.folder} && mkdir root work live"
        note(f"# sh {here(MAKE_TINY.lstrip())}")
        note(f"# {make}")
        self.started = waiting.clock(target, then=make)

    def on_host(self, command: str, *, timeout: float = 30, input: str = "") -> Result:
        """Run a command on the main host, noted for whoever wants to reproduce the test.

        Status 124 where it has come to rest without an end; NoAnswer where it only takes long.
        """
        self._note_command(command, input)
        return self.watched(command, timeout=timeout, input=input)

    def _note_command(self, command: str, input: str) -> None:
        self.note(f"# {command.strip()}" + (f" {here(input)}" if input else ""))

    def watched(self, command: str, *, timeout: float = 30, input: str = "") -> Result:
        """`on_host`, without a note of it."""
        return self.target.run(command, timeout=timeout, input=input, idle=self.rest)

    def timed(self, command: str, *, timeout: float = 30) -> tuple[Result, float, float]:
        """`on_host`; the seconds that it took, and for how many of these the machine stood still."""
        self._note_command(command, "")
        beats = f"{self.folder}/beats"
        beat = (
            "import time\nfor _ in range(1200): print(time.time_ns(), flush=True); time.sleep(0.5)"
        )
        done = self.watched(
            f"date +%s%N > {beats}; python3 -c {shlex.quote(beat)} >> {beats} 2> /dev/null & beat=$!\n"
            f"{command}\nstatus=$?; date +%s%N >> {beats}; kill $beat; exit $status",
            timeout=timeout,
        )
        times = [int(time) / 1e9 for time in self.target.read(beats).split()]
        gaps = [after - before for before, after in pairwise(times)]
        stood = sum(gap - 1 for gap in gaps if gap > 1.5) if len(gaps) > 1 else 0.0  # no python3
        return done, times[-1] - times[0], stood

    def rest(self) -> None:
        """Wait until nothing is at work any longer that was started since the test began."""
        self.wait("false", 4)

    def prepare_host(self, command: str, *, timeout: float = 30, input: str = "") -> str:
        """Run on the main host what the test itself needs; its output. TargetError if it fails."""
        self._note_command(command, input)
        return self.target.succeed(command, timeout=timeout, input=input)

    @property
    def host(self) -> Any:
        """testinfra's view of the main host."""
        return self.target.host

    def put(self, name: str, text: str, mode: int = 0o755) -> str:
        """Write a file beside the configuration; its path."""
        path = f"{self.folder}/{name}"
        where = shlex.quote(path)
        whole = text.endswith("\n")
        fill = (
            f"cat > {where} {here(text)}" if whole else f"printf %s {shlex.quote(text)} > {where}"
        )
        self.note(f'# mkdir -p "$(dirname {where})"\n# {fill}\n# chmod {mode:o} {where}')
        self.target.put(path, text, mode)
        return path

    def write(self, text: str = "", *, omit: tuple[str, ...] = ()) -> str:
        """Write the configuration: text, after the tests' own defaults for what it does not say,
        but for the variables to omit."""
        given = {*omit, *(line.partition("=")[0] for line in text.splitlines())}
        defaults = {"BASE": ".", "LOWER": TINY, "START": "none", "LOG": self.log}
        lines = [f"{key}= {value}" for key, value in defaults.items() if key not in given]
        whole = "\n".join([*lines, text]) + "\n"
        self.note(f"# cat > {self.conf} {here(whole)}")
        self.target.put(self.conf, whole)
        return self.conf

    def fill(self, folder: str) -> str:
        """Copy the tiny root into a folder beside the configuration, made if missing; its path."""
        path = f"{self.folder}/{folder}"
        where = shlex.quote(path)
        self.prepare_host(f"mkdir -p {where} && cp -a {TINY}/. {where}/", timeout=60)
        return path

    def of_kind(self, kind: str) -> str:
        """The configuration for a kind of root, with a root file system where it has to be."""
        if kind != "overlay":
            self.fill("root")
        return KINDS[kind].format(self.folder)

    def start(self, text: str | None = None, *, omit: tuple[str, ...] = ()) -> Result:
        """Run overlay-boot, whatever comes of it."""
        if text is not None:
            self.write(text, omit=omit)
        return self.on_host(f"overlay-boot {self.conf} < /dev/null", timeout=60)

    def boot(self, text: str = "", *, omit: tuple[str, ...] = ()) -> Result:
        """Boot it and wait until its init commands have come to /.reaper."""
        __tracebackhide__ = True
        done = self.start(text, omit=omit)
        assert done.status == 0, done
        assert self.up(), f"it is not up: {done}\n{self.target.read(self.log)}"
        return done

    def refused(self, text: str | None = None, *, omit: tuple[str, ...] = ()) -> Result:
        """Run overlay-boot and see that nothing comes of it, also of what it left to run."""
        __tracebackhide__ = True
        done = self.start(text, omit=omit)
        assert self.settled(), f"it is still about to start: {done}"
        assert not self.pid1(), f"it runs: {done}"
        return done

    def settled(self, seconds: float = 20) -> bool:
        """Whether the start has come to an end: the reaper runs, or no process of it is left."""
        return self.wait(f"{self._reaps} || ! pgrep -f '[/]{self.conf[1:]}'", seconds)

    def up(self, seconds: float = 20) -> bool:
        """Whether pid 1 runs /.reaper, now or within so many seconds."""
        return self.wait(self._reaps, seconds)

    @property
    def _reaps(self) -> str:
        return f'read -r comm < /proc/$(pid1 {self.quoted})/comm && [ "$comm" = .reaper ]'

    def namespace(self, kind: str, *, main_host: bool = False) -> str:
        """Which namespace of a kind (mnt, net...) its pid 1 has, or what runs on the main host."""
        pid = "self" if main_host else self.pid1()
        return self.target.run(f"readlink /proc/{pid}/ns/{kind}").out

    @property
    def quoted(self) -> str:
        """The name, for a shell."""
        return shlex.quote(self.name)

    def wait(self, condition: str, seconds: float = 10) -> bool:
        """Whether a shell condition comes true on the main host; False where all has come to rest
        without it. The seconds are for a plain machine: see spec/waiting.py, also for NoAnswer."""
        return waiting.wait(self.target, condition, seconds, self.started)

    def in_time(self, seconds: float, limit: float) -> bool:
        """Whether something took no longer than it may on a plain machine. Raises NoAnswer where
        it did, on a machine that is slower now than when it was measured."""
        if seconds <= limit:
            return True
        if waiting.measure(self.target) > 1.5 * self.target.pace or self.target.patience > 1:
            raise waiting.slow(self.target, f"what should have taken {limit:g} s", seconds)
        return False

    def pid1(self) -> int:
        """Its pid 1, as the target numbers it; 0 if it does not run."""
        found = int(self.target.run(f"{PID1}\npid1 {self.quoted}").out or 0)
        self.pids |= {found} - {0}
        return found

    def runs(self, name: str, seconds: float = 10) -> bool:
        """Whether it has a process of that name, now or when all has come to rest."""
        limit = time.monotonic() + seconds
        while name not in self.processes():
            if time.monotonic() > limit:
                self.wait("false", seconds)
                return name in self.processes()
            time.sleep(0.1)
        return True

    def processes(self) -> set[str]:
        """The names that its processes go by: their own, and those of their programs."""
        said = self.inside(
            "for p in /proc/[0-9]*; do cat $p/comm; tr '\\0' '\\n' < $p/cmdline | head -n 1; done"
        )
        return {line.rpartition("/")[2] for line in said.splitlines()}

    def inside(self, commands: str, *, timeout: float = 30) -> str:
        """What shell commands print in the subhost, given to overlay-go on a pipe.

        Markers keep apart what an implementation's overlay-go says itself.
        """
        __tracebackhide__ = True
        marked = f"echo; echo @@BEGIN; {{ {commands}\n}}; echo; echo @@END $?\nexit\n"
        self.note(f"# overlay-go {self.quoted} {here(commands)}")
        done = self.target.run(f"overlay-go {self.quoted}", timeout=timeout, input=marked)
        _, begin, rest = done.out.partition("@@BEGIN\n")
        said, end, _ = rest.partition("\n@@END ")
        assert begin and end, f"overlay-go did not run the commands: {done}".replace(begin, "")
        return said

    def stanza(self, interface: str, more: str = "") -> str:
        """Give an interface of the main host an entry in interfaces(5) that leaves a trace when it
        is brought up; the trace's path. For tests that use the fixture `interfaces`."""
        trace = f"{self.folder}/{interface}.up"
        self.prepare_host(
            "cat >> /etc/network/interfaces",
            input=f"\n# spec {self.name}\niface {interface} inet manual\n"
            f"    up echo up > {trace}; ip link set {interface} up\n    {more}\n",
        )
        return trace

    @property
    def go_pid(self) -> str:
        """The file on the main host in which `go` leaves the pid of overlay-go."""
        return f"{self.folder}/go.pid"

    def go(self, command: str) -> str:
        """Words for a shell of the main host: overlay-go with a command, its pid in `go_pid`."""
        line = f"echo $$ > {self.go_pid}; exec overlay-go {self.quoted} {command}"
        return f"sh -c {shlex.quote(line)}"

    def parent_of_shell(self) -> str:
        """The parent of overlay-go's shell, as a pid inside; 0 for a process outside."""
        said = self.inside("while read n v; do [ $n != PPid: ] || echo $v; done < /proc/$$/status")
        return said.strip()

    def interfaces(self) -> dict[str, tuple[str, str]]:
        """The interfaces in its network namespace: address and flags by name.

        Those that the kernel puts into every new one (tunl0 and the like) are left out, but for lo.
        """
        if self.target.standing is None:
            made = "ip netns add fresh && ip -n fresh -br link; ip netns delete fresh"
            lines = self.target.succeed(made).splitlines()
            self.target.standing = {line.split()[0].partition("@")[0] for line in lines} - {"lo"}
        said = self.on_host(f"ip -n {self.quoted} -br link").out.splitlines()
        rows = [line.split() for line in said]
        found = {row[0].partition("@")[0]: (row[2], row[3]) for row in rows}
        return {name: row for name, row in found.items() if name not in self.target.standing}

    def stop(self, *options: str, timeout: float = 60) -> Result:
        """Run overlay-stop on the configuration file, and wait until its pid 1 is gone."""
        __tracebackhide__ = True
        pid = self.pid1()
        done = self.on_host(f"overlay-stop {shlex.join([*options, self.conf])}", timeout=timeout)
        assert self.ended(pid), f"pid 1 still runs: {done}"
        return done

    def ended(self, pid: int) -> bool:
        """Whether its pid 1 goes away, whatever becomes of its network namespace's name."""
        return self.wait(f"! pid1 {self.quoted} && [ ! -e /proc/{pid or 'none'} ]", 15)

    def gone(self, pid: int) -> bool:
        """Whether all there was of it goes away: processes, name, cables, record."""
        return self.ended(pid) and self.wait(
            f"! ls /run/netns /run/overlay-boot /sys/class/net | grep -qE '^{self.name}[0-9]*$'"
        )

    def can_have_cgroup(self) -> bool:
        """Whether there is a cgroup v2 on the target that a boot can make another one in."""
        return not self.target.run(
            "own=$(sed -n 's/^0:://p' /proc/self/cgroup); [ \"$own\" ] && { "
            "[ -w /sys/fs/cgroup$own/cgroup.procs ] || [ -w /sys/fs/cgroup/unified$own/cgroup.procs ]; }"
        ).status

    def end_by_itself(self, how: str = "echo > /run/dummy_service") -> None:
        """Run shell commands in the subhost that end its last process. It may take them along, and
        overlay-go, before any of these could say that all went well."""
        self.on_host(f"overlay-go {self.quoted}", input=f"{how}\n")

    def crash(self) -> None:
        """Kill its pid 1 and the process on the main host that waits for it, at once."""
        pid = self.pid1()
        self.on_host(
            f"parent=$(sed 's/.*) . \\([0-9]*\\) .*/\\1/' /proc/{pid}/stat)\n"
            f"kill -STOP $parent; kill -9 $parent {pid}"
        )
        assert self.ended(pid)

    def evidence(self) -> str:
        """What would explain a failure: configuration, log, mounts, links, processes."""
        pid = self.pid1()
        return self.target.run(
            f"""cd {self.folder}; echo "--- $PWD"; ls -la . root; cat *.conf
            echo '--- log'; tail -n 60 {self.log} /tmp/overlay-{self.name}.log /tmp/oly-{self.name}.log
            echo '--- mounts of pid 1 ({pid})'; cat /proc/{pid}/mounts; echo '--- links'; ip -br link
            ip -n {self.quoted} -br link; ls -l /run/netns; echo '--- processes'; ps -ef | tail -n 30"""
        ).out

    def clear(self) -> None:
        """End it whatever state it is in, and remove its folder."""
        names = shlex.join(self.named)
        stop = " || ".join(f"overlay-stop {shlex.quote(n)}" for n in (self.conf, *self.named))
        with suppress(NoAnswer):  # then it is killed all the same
            self.target.run(stop, timeout=60)
        # What an implementation has lost sight of is ended too: each pid 1, what names the folder
        # (not this shell, then), and all that these have started.
        killed = self.target.run(
            f"""{PID1}
            for pid in {" ".join(map(str, self.pids))} $(for n in {names}; do pid1 "$n"; done); do
                ! grep -qsE '^NSpid:.*[[:space:]]1$' /proc/$pid/status || lost="$lost $pid"
            done
            doomed=$(echo $lost $(pgrep -f '[/]{self.folder[1:]}/') | tr ' ' ,)
            while [ "$doomed" ]; do
                echo $doomed
                children=$(pgrep -d, -P $doomed)
                echo $doomed | tr , ' ' | xargs kill -9
                doomed=$children
            done"""
        )
        if killed.out:
            with suppress(NoAnswer):
                self.target.run(stop, timeout=60)
        self.target.run(
            f"""for name in {names}; do
                [ ! -e "/run/netns/$name" ] || ip netns delete "$name"
                for link in $(ls /sys/class/net | grep -E "^$name[0-9]+$"); do
                    ip link delete $link
                done
                rm -f "/tmp/overlay-$name.log" "/tmp/oly-$name.log"
            done
            # By the table of mounts: a name in the folder may be a link to somewhere else.
            awk -v below={self.folder}/ 'index($2, below) == 1 {{print $2}}' /proc/self/mounts |
                while read -r point; do umount -l "$(printf %b "$point")"; done
            rm -rf --one-file-system {self.folder}"""
        )
