"""What a run leaves on a target that is not thrown away, told from what was there."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from spec import waiting
from spec.targets import Target, TargetError

# Mounts, names, folders, links; and processes of a subhost or of the commands, without the kernel's
# threads, each as one line with what tells whose it is. The last line tells that the look came to its
# end.
LOOK = r"""
set -e
awk '$2 ~ "^/(opt|run|srv)(/|$)" || $3 ~ "^(overlay|nsfs)$" {
    if ($2 != "/run/netns") print "mount " $2 " " $3 ($3 == "overlay" ? " " $4 : "")
}' /proc/self/mounts
for place in /run/netns /run/overlay-boot /opt/subhost /sys/class/net; do
    [ ! -d $place ] || ls -A $place | sed "s|^|$place/|"
done
cat /proc/[0-9]*/stat 2>/dev/null | awk '{
    pid = $1; name = $0; sub(/^[0-9]+ \(/, "", name); sub(/\) [^)]*$/, "", name); sub(/^.*\) /, "")
    if (int($7 / 2097152) % 2 == 0 && name ~ /^\.?reaper$|^dummy_|^overlay-/)
        print pid, name " (pid " pid ", started at " $20 ")"
}' | while read -r pid about; do
    whose=$({ tr '\0' ' ' < /proc/$pid/cmdline; grep -m 1 -o '/opt/subhost/.*' /proc/$pid/mounts; } |
        tr '\n' ' ') || :
    printf 'process %s %s\n' "$about" "$whose"
done
echo complete"""
MINE = re.compile(r"/opt/subhost|\bs\d+x\d+")  # folder and names of the spec's subhosts
Seen = frozenset[str]


@dataclass(frozen=True)
class Difference:
    """What is there more, and what is there no longer."""

    left: Seen
    lost: Seen

    def __bool__(self) -> bool:
        return bool(self.left or self.lost)

    @property
    def mine(self) -> bool:
        """Whether any of it bears the marks of a subhost of the spec, so that it cannot all be
        somebody else's."""
        return any(MINE.search(line) for line in self.left | self.lost)

    def __str__(self) -> str:
        lines = [f"left behind: {line}" for line in sorted(self.left)]
        lines += [f"no longer there: {line}" for line in sorted(self.lost)]
        return "\n".join(lines)


def look(target: Target) -> Seen:
    """What is there now. Raises TargetError where the look fails or is cut off."""
    lines = target.succeed(LOOK, timeout=60).splitlines()
    if lines[-1:] != ["complete"]:
        raise TargetError(f"{target.name}: the look at what is left broke off: {lines[-3:]}")
    return frozenset(lines[:-1])


def difference(target: Target, before: Seen, started: int, seconds: float = 10) -> Difference:
    """What a run that was started then (see waiting.clock) has changed, once that has had the time
    to go and nothing is at work any longer. Raises TargetError as `look`, and NoAnswer."""
    limit = time.monotonic() + seconds
    while found := _between(before, look(target)):
        if time.monotonic() > limit:
            waiting.wait(target, "false", seconds, started)
            return _between(before, look(target))
        time.sleep(max(0.2, target.pace))
    return found


def _between(before: Seen, after: Seen) -> Difference:
    return Difference(after - before, before - after)
