"""A subhost for one test, on any implementation: only commands, files and kernel state are used."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from spec.targets import Result, Target, TargetError

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

# The pid of a subhost's pid 1: in its network namespace, and number 1 of a pid namespace.
PID1 = r"""
pid1() {
    net=$(stat -Lc %i "/run/netns/$1" 2>/dev/null) || return 1
    for status in $(grep -lsE '^NSpid:.*[[:space:]]1$' /proc/[0-9]*/status); do
        found=${status#/proc/} found=${found%/status}
        [ "$(stat -Lc %i "/proc/$found/ns/net" 2>/dev/null)" != "$net" ] || { echo "$found"; return; }
    done
    return 1
}
"""


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
        note(f"# {TINY} is busybox with its links: MAKE_TINY in spec/subhost.py")
        made = self.run(f"mkdir {self.folder} && cd {self.folder} && mkdir root work live")
        if made.status:
            raise TargetError(str(made))

    def run(self, command: str, *, timeout: float = 30, input: str = "") -> Result:
        """Run a command on the target, noted for whoever wants to reproduce the test."""
        self.note(f"# {command.strip()}" + (f" << 'EOF'\n{input}\nEOF" if input else ""))
        return self.target.run(command, timeout=timeout, input=input)

    def put(self, name: str, text: str, mode: int = 0o755) -> str:
        """Write a file beside the configuration; its path."""
        path = f"{self.folder}/{name}"
        where = shlex.quote(path)
        self.note(
            f"# mkdir -p \"$(dirname {where})\"\n# cat > {where} << 'EOF'\n{text}EOF\n"
            f"# chmod {mode:o} {where}"
        )
        self.target.put(path, text, mode)
        return path

    def write(self, text: str = "", *, bare: bool = False) -> str:
        """Write the configuration: text, and the tests' own defaults for what it does not say."""
        given = {line.partition("=")[0] for line in text.splitlines()}
        defaults = {"BASE": ".", "LOWER": TINY, "START": "none", "LOG": self.log}
        lines = [] if bare else [f"{k}= {v}" for k, v in defaults.items() if k not in given]
        whole = "\n".join([*lines, text]) + "\n"
        self.note(f"# cat > {self.conf} << 'EOF'\n{whole}EOF")
        self.target.put(self.conf, whole)
        return self.conf

    def start(self, text: str | None = None) -> Result:
        """Run overlay-boot, whatever comes of it."""
        if text is not None:
            self.write(text)
        return self.run(f"overlay-boot {self.conf} < /dev/null", timeout=60)

    def boot(self, text: str = "") -> Result:
        """Boot it and wait until its init commands have come to /.reaper."""
        done = self.start(text)
        assert done.status == 0, done
        assert self.up(), f"it is not up: {done}\n{self.target.read(self.log)}"
        return done

    def up(self, seconds: float = 20) -> bool:
        """Whether pid 1 runs /.reaper, now or within so many seconds."""
        return self.wait(f'[ "$(cat /proc/$(pid1 {self.quoted})/comm)" = .reaper ]', seconds)

    @property
    def quoted(self) -> str:
        """The name, for a shell."""
        return shlex.quote(self.name)

    def wait(self, condition: str, seconds: float = 10) -> bool:
        """Whether a shell condition comes true on the target within so many seconds."""
        limit = int(seconds * self.target.patience * 1000)
        loop = f"""{PID1}
end=$(($(date +%s%N) / 1000000 + {limit}))
until {{ {condition}; }} 2>/dev/null; do
    [ $(($(date +%s%N) / 1000000)) -lt $end ] || exit 9
    sleep 0.02
done"""
        return self.target.run(loop, timeout=seconds + 30).status == 0

    def pid1(self) -> int:
        """Its pid 1, as the target numbers it; 0 if it does not run."""
        return int(self.target.run(f"{PID1}\npid1 {self.quoted}").out or 0)

    def inside(self, commands: str, *, timeout: float = 30) -> str:
        """What shell commands print in the subhost, given to overlay-go on a pipe.

        Markers keep apart what an implementation's overlay-go says itself.
        """
        marked = f"echo; echo @@BEGIN; {{ {commands}\n}}; echo; echo @@END $?\nexit\n"
        done = self.run(f"overlay-go {self.quoted}", timeout=timeout, input=marked)
        _, begin, rest = done.out.partition("@@BEGIN\n")
        said, end, _ = rest.partition("\n@@END ")
        assert begin and end, f"overlay-go did not run the commands: {done}"
        return said

    def interfaces(self) -> dict[str, tuple[str, str]]:
        """The interfaces in its network namespace: address and flags by name."""
        said = self.run(f"ip -n {self.quoted} -br link").out.splitlines()
        rows = [line.split() for line in said]
        return {row[0].partition("@")[0]: (row[2], row[3]) for row in rows}

    def stop(self, *options: str, timeout: float = 60) -> Result:
        """Run overlay-stop on the configuration file, and wait until its pid 1 is gone."""
        pid = self.pid1()
        done = self.run(f"overlay-stop {shlex.join([*options, self.conf])}", timeout=timeout)
        assert self.ended(pid), f"pid 1 still runs: {done}"
        return done

    def ended(self, pid: int) -> bool:
        """Whether its pid 1 goes away, whatever becomes of its network namespace's name."""
        return self.wait(f"! pid1 {self.quoted} && [ ! -e /proc/{pid or 'none'} ]", 15)

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
        for name in self.named:
            quoted = shlex.quote(name)
            self.target.run(
                f"""{PID1}
                overlay-stop {shlex.quote(self.conf)} || overlay-stop {quoted}
                pid=$(pid1 {quoted}) && kill -9 $pid
                [ ! -e /run/netns/{quoted} ] || ip netns delete {quoted}
                for link in $(ls /sys/class/net | grep -E '^{name}[0-9]+$'); do
                    ip link delete $link
                done; umount -l {self.folder}/* {self.folder}/*/*
                rm -rf --one-file-system {self.folder} /tmp/overlay-{quoted}.log /tmp/oly-{quoted}.log""",
                timeout=60,
            )
        # Whatever an implementation has lost sight of, its children too; not this shell.
        self.target.run(
            f"""doomed=$(pgrep -d, -f '[/]{self.folder[1:]}/')
            while [ "$doomed" ]; do
                children=$(pgrep -d, -P $doomed)
                echo $doomed | tr , ' ' | xargs kill -9
                doomed=$children
            done"""
        )
