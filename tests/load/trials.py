"""The trials. Each takes a target and how much of it there is to be, 1 for the long form."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spec import trees
from spec.subhost import Subhost
from spec.targets import Target
from tests.lives.world import unique

from .ground import BRIDGE, Trial, lower_quartile

RATIO = 1.5  # what the last of a crowd may take, as many times the first
SCRATCH = "/tmp/load"


def crowd(target: Target, part: float) -> Trial:
    """Idle subhosts with a cable each: the last boot and the first stop take about as long as those
    with nobody else there."""
    trial = Trial(target, max(8, round(500 * part)), "subhosts")
    trial.succeed(BRIDGE)
    lives = [trial.subhost("CABLES= br0=") for _ in range(trial.done)]
    each = max(2, min(25, trial.done // 4))
    boots = trial.timed([f"overlay-boot {life.conf}" for life in lives])
    listed = trial.run("overlay-list").out.count("\n") - 1
    if listed != trial.done:
        trial.say(f"overlay-list has {listed} of {trial.done}")
    stops = trial.timed([f"overlay-stop {life.named}" for life in lives])
    for what, alone, among in (
        ("boot", boots[:each], boots[-each:]),
        ("stop", stops[-each:], stops[:each]),
    ):
        one, other = lower_quartile(alone), lower_quartile(among)
        kind = " of processor time" if trial.processors else ""
        trial.figures.append(f"{what} {one:.0f} ms{kind} alone, {other:.0f} ms among all")
        if part == 1 and other > RATIO * one:
            trial.say(f"{what}: {other:.0f} ms among {trial.done}, {one:.0f} ms alone")
    trial.curves = {"boot": boots, "stop": stops}
    trial.close()
    return trial


def parallel(target: Target, part: float) -> Trial:
    """Boots and stops of many subhosts at the same time all succeed."""
    trial = Trial(target, max(5, round(100 * part)), "at once")
    trial.succeed(BRIDGE)
    lives = [trial.subhost("CABLES= br0=") for _ in range(trial.done)]
    for what, words in (
        ("boot", [life.conf for life in lives]),
        ("stop", [life.named for life in lives]),
    ):
        begun = time.monotonic()
        lines = [f"{{ overlay-{what} {word} || echo {word} failed >&2; }} &" for word in words]
        trial.run("\n".join([*lines, "wait"]), timeout=600)
        trial.figures.append(f"all {what}s {time.monotonic() - begun:.1f} s")
    trial.close()
    return trial


def processes(target: Target, part: float) -> Trial:
    """A subhost of thousands of processes is stopped: with status 0 where they end by SIGTERM, and
    with status 1, a few of them named, where they do not."""
    trial = Trial(target, max(50, round(5000 * part)), "processes")
    for what, trap in (("that end by SIGTERM", ""), ("that ignore it", "trap '' TERM; ")):
        life = trial.subhost()
        start = f"[ $1 = start ] || exit 0; {trap}i=0\n"
        start += f"while [ $((i += 1)) -le {trial.done} ]; do sleep 9999 < /dev/null & done"
        path = trial.service(life, "many", start + " > /dev/null 2>&1")
        trial.write(life, f"START= {path}")
        trial.boot(life)
        said = trial.succeed(f"overlay-go {life.named} sh -c 'echo /proc/[0-9]*' | wc -w")
        if int(said) < trial.done:
            trial.say(f"only {said} processes are there")
        took = trial.stop(life, 1 if trap else 0, options="--timeout 2" if trap else "")
        trial.figures.append(f"stop of those {what} {took:.1f} s")
    trial.close()
    return trial


def orphans(target: Target, part: float) -> Trial:
    """Pid 1 reaps all that is left to it, and grows by none."""
    trial = Trial(target, max(500, round(100_000 * part)), "orphans")
    life = trial.subhost()
    pid = trial.boot(life)
    size = f"awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"
    before = trial.succeed(size)
    hundred = " ".join(["true &"] * 100)
    begun = time.monotonic()
    loop = f"i=0; while [ $((i += 100)) -le {trial.done} ]; do ({hundred}) ; done"
    trial.run(f"overlay-go {life.named} sh -c '{loop}'", timeout=600)
    trial.figures.append(f"{trial.done / (time.monotonic() - begun):.0f} in a second")
    rest = f"cat /proc/{pid}/task/{pid}/children | wc -w"
    limit = time.monotonic() + 20 * target.patience
    while (left := int(trial.succeed(rest))) > 1 and time.monotonic() < limit:
        time.sleep(0.1)
    if left > 1:
        trial.say(f"{left - 1} orphans are not reaped")
    if trial.succeed(size) != before:
        trial.say(f"pid 1 has grown from {before} to {trial.succeed(size)} KiB")
    trial.stop(life)
    trial.close()
    return trial


@contextmanager
def limited(trial: Trial, controller: str) -> Iterator[str]:
    """A cgroup with a controller, of v2 or else of v1, to which no limit is set yet. Raises
    TargetError where the target has neither."""
    path, name = f"{SCRATCH}/{controller}", f"load-{unique('')}"
    trial.succeed(
        f"""mkdir -p {path}
        for own in /sys/fs/cgroup /sys/fs/cgroup/unified; do
            grep -qsw {controller} $own/cgroup.controllers || continue
            echo +{controller} > $own/cgroup.subtree_control
            mount --bind $own {path} && mkdir -p {path}/{name} && exit
        done
        mount -t cgroup -o {controller} {controller} {path} && mkdir -p {path}/{name}"""
    )
    try:
        yield f"{path}/{name}"
    finally:
        trial.target.run(
            f"""for try in $(seq 100); do
                rmdir {path}/{name} && break
                xargs -r kill -9 < {path}/{name}/cgroup.procs
                sleep 0.05
            done
            umount {path}; rmdir {path} {SCRATCH}"""
        )


def bomb(target: Target, part: float) -> Trial:
    """A fork bomb that a limit of its cgroup holds, of v2 or else of v1, is ended by overlay-stop."""
    trial = Trial(target, 1, "fork bomb")
    with limited(trial, "pids") as group:
        life = trial.subhost()
        trial.boot(life, f"echo $$ > {group}/cgroup.procs; ")
        trial.succeed(f"echo 40 > {group}/pids.max")
        trial.service(life, "bomb", '"$0" & "$0" & wait')
        go = f"overlay-go {life.named} sh -c '/srv/bomb > /dev/null 2>&1 & sleep 1'"
        trial.target.run(f"echo $$ > {group}/cgroup.procs; {go}")
        count = int(trial.succeed(f"cat {group}/pids.current"))
        if count < 20:
            trial.say(f"there are {count} processes only")
        took = trial.stop(life, 0, 1, options="--timeout 3", seconds=60)
        trial.figures.append(f"stop {took:.1f} s")
        trial.close()
    return trial


VICTIMS = ("service", "pid 1", "keeper", "overlay-stop")


def memory(target: Target, part: float) -> Trial:
    """The kernel's OOM killer takes a service, pid 1, the keeper or overlay-stop."""
    trial = Trial(target, len(VICTIMS), "victims")
    with limited(trial, "memory") as group:
        for victim in VICTIMS:
            life = trial.subhost()
            words = []
            for name, seconds in ("one", 997), ("two", 998):
                start = f"[ $1 != start ] || sleep {seconds} < /dev/null > /dev/null 2>&1 &"
                stop = "while [ $1 = stop ] && [ -e /held ]; do sleep 0.05; done"
                words.append(trial.service(life, name, f"{start}\n{stop}"))
            trial.write(life, f"START= {' '.join(words)}")
            trial.succeed(
                f"xargs -r kill -9 < {group}/cgroup.procs; echo max > {group}/memory.max || echo -1 > {group}/memory.limit_in_bytes"
            )
            pid = trial.boot(life, f"echo $$ > {group}/cgroup.procs; ")
            if victim == "overlay-stop":
                trial.succeed(f"overlay-go {life.named} touch /held")
            _starve(trial, life.named, pid, victim, group)
            if victim == "overlay-stop":
                trial.succeed(f"overlay-go {life.named} rm /held")
            trial.stop(life, 0, 3)
        trial.close()
    return trial


def _starve(trial: Trial, name: str, pid: int, victim: str, group: str) -> None:
    """Have one process killed for want of memory, and see what becomes of the subhost."""
    find = {
        "service": "pgrep -n -f '[s]leep 998'",
        "pid 1": f"echo {pid}",
        "keeper": f"awk '/^PPid:/ {{ print $2 }}' /proc/{pid}/status",
        # It waits for a stop script, which does not end while there is a /held.
        "overlay-stop": f"""overlay-stop --timeout 60 {name} > /dev/null 2>&1 < /dev/null &
            until grep -qs overlay-stop /proc/$!/cmdline; do sleep 0.01; done; echo $!""",
    }[victim]
    killed = trial.target.run(
        f"""echo $$ > {group}/cgroup.procs
        doomed=$({find}) && echo 1000 > /proc/$doomed/oom_score_adj || exit 2
        limit=$((64 << 20))
        echo $limit > {group}/memory.max || echo $limit > {group}/memory.limit_in_bytes
        for hog in 1 2 3 4; do head -c 30000000 /dev/zero | tail -c 30000000 | sleep 61 & done > /dev/null 2>&1
        for try in $(seq 200); do
            sleep 0.05
            grep -qs '^State:.[^ZX]' /proc/$doomed/status || exit 0
        done
        exit 1""",
        timeout=60,
    )
    if killed.status:
        trial.say(f"{victim}: it was not killed: {killed}")
    trial.succeed("pgrep -f '[s]leep 61' | xargs -r kill")
    if victim != "pid 1":
        trial.runs(trial.lives[-1], f"{victim} killed")
        return
    limit = time.monotonic() + 15 * trial.target.patience
    while trial.pid(trial.lives[-1]) and time.monotonic() < limit:
        time.sleep(0.05)


def no_room(target: Target, part: float) -> Trial:
    """UPPER with LOG in it, or /run, is full while a subhost runs: it can be entered, listed and
    stopped, a boot says what is full, and with room all is well."""
    trial = Trial(target, 2, "file systems")
    for full in ("UPPER and LOG", "/run"):
        life = trial.subhost()
        other = trial.subhost("CABLES= =")
        if full == "/run":
            place = "/run"
        else:
            place = f"{life.folder}/room"
            trial.succeed(f"mkdir {place} && mount -t tmpfs -o size=9M none {place}")
            trial.succeed(f"cd {place} && mkdir root work")
            both = "UPPER= room/root\nWORK= room/work\nLOG= room/log"
            trial.write(life, both)
            trial.write(other, both.replace(" room", f" {place}") + ".other")
        trial.boot(life)
        with filled(trial, place):
            trial.runs(life, f"{full} full")
            trial.run("overlay-list")
            trial.run(f"overlay-share /srv {life.named}", 0, 1)
            trial.run(f"overlay-boot {other.conf}", 1)
            trial.stop(life, 0, 1)
        trial.boot(life)
        trial.stop(life)
        if place != "/run":
            trial.succeed(f"umount {place}")
    trial.close()
    return trial


@contextmanager
def filled(trial: Trial, place: str) -> Iterator[None]:
    """Leave no room and no name on a tmpfs."""
    options = trial.succeed(f"findmnt -no OPTIONS {place}").strip().split(",")
    old = [word for word in options if word.startswith(("size=", "nr_inodes="))]
    trial.succeed(
        f"""of() {{ df -k --output=$1 {place} | tail -n 1 | tr -d ' '; }}
        mount -o remount,size=$(($(of used) + 64))k,nr_inodes=$(($(of iused) + 9)) {place}
        mkdir {place}/full && cat /dev/zero > {place}/full/room 2> /dev/null
        i=0; while touch {place}/full/$((i += 1)) 2> /dev/null; do :; done"""
    )
    try:
        yield
    finally:
        more = [*old, *(["size=50%"] if "size" not in str(old) else []), "nr_inodes=1m"]
        trial.succeed(f"mount -o remount,{','.join(more[:2])} {place} && rm -r {place}/full")


def read_only(target: Target, part: float) -> Trial:
    """/tmp is, or becomes, read-only: a boot whose LOG is there says so, and all else works."""
    trial = Trial(target, 2, "times")
    life, other = trial.subhost(), trial.subhost()
    log = f"/tmp/{life.named}.log"
    trial.write(life, f"LOG= {log}")
    trial.boot(life)
    trial.succeed("mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp")
    try:
        trial.runs(life, "/tmp read-only")
        trial.stop(life)
        done = trial.run(f"overlay-boot {life.conf}", 1)
        if log not in done.err or "Read-only" not in done.err:
            trial.say(f"it does not say what is read-only: {done}")
        trial.boot(other)
        trial.runs(other, "/tmp read-only")
        trial.run(f"overlay-share /srv {other.named}")
        trial.stop(other)
    finally:
        trial.succeed(f"umount /tmp && rm -f {log}")
    trial.close()
    return trial


def descriptors(target: Target, part: float) -> Trial:
    """With few descriptors overlay-go, -list, -share and -stop do their work, or say what is short
    and leave it to the next."""
    limits = (6, 8, 10, 12, 14, 16, 20)
    trial = Trial(target, len(limits), "limits")
    for limit in limits:
        life = trial.subhost("CABLES= =")
        trial.boot(life)
        for command in ("go {0} true", "list", "share /srv {0}", "stop {0}"):
            line = f"ulimit -S -n {limit}; exec overlay-{command.format(life.named)}"
            done = target.run(f"sh -c '{line}' < /dev/null")
            serious = [each for each in done.err.splitlines() if "warning" not in each]
            short = ("Too many open files", "No file descriptors")
            told = len(serious) == 1 and any(text in serious[0] for text in short)
            if "Traceback" in done.err or (done.status != 0 and not told):
                trial.say(f"{limit} descriptors: {done}")
        trial.stop(life, 0, 3)
    trial.close()
    return trial


def lower(target: Target, part: float) -> Trial:
    """LOWER is replaced by another one, or emptied, while a subhost runs: it can still be stopped,
    and the next boot has what is there then."""
    trial = Trial(target, 2, "times")
    for how in ("replaced", "emptied"):
        base = f"/opt/subhost/lower-{how}"
        trial.succeed(f"cp -a /opt/subhost/.tiny {base} && echo old > {base}/etc/which")
        life = trial.subhost(lower=base)
        trial.boot(life)
        change = (
            f"mv {base} {base}.old" if how == "replaced" else f"find {base}/ -mindepth 1 -delete"
        )
        trial.succeed(
            f"{change}; cp -a /opt/subhost/.tiny/. {base}/ && echo new > {base}/etc/which"
        )
        trial.run("overlay-list")
        trial.run(f"overlay-share /srv {life.named}", 0, 1)
        trial.run(f"overlay-go {life.named} cat /etc/which", 0, 1, 126, 127)
        trial.stop(life)
        trial.boot(life)
        said = trial.run(f"overlay-go {life.named} cat /etc/which").out
        if said != "new\n":
            trial.say(f"{how}: the next boot has {said!r}")
        trial.stop(life)
        trial.succeed(f"rm -r {base}*")
    trial.close()
    return trial


def clock(target: Target, part: float) -> Trial:
    """The clock of a machine jumps, as after a suspend: nothing takes longer or ends earlier. Only
    for a machine that is thrown away."""
    trial = Trial(target, 4, "jumps")
    for jump in ("+10 years", "-30 years", "+1 hour", "-1 hour"):
        life = trial.subhost()
        service = trial.service(life, "slow", "[ $1 = start ] && sleep 9999 < /dev/null & sleep 2")
        trial.write(life, f"START= {service}")
        set_it = f"(sleep 1; date -s \"$(date -d '{jump}')\") > /dev/null & "
        begun = time.monotonic()
        trial.boot(life, set_it)
        trial.runs(life, f"a clock that jumped {jump}")
        trial.run("overlay-list")
        trial.run(f"{set_it}overlay-stop {life.named}", timeout=120)
        took = time.monotonic() - begun
        if took < 4 or took > 20 * target.patience:
            trial.say(f"{jump}: boot and stop took {took:.1f} s")
    trial.close()
    return trial


def hostile(target: Target, part: float) -> Trial:
    """Every kind of file at every path of UPPER, LOWER and LIVE that a command makes, mounts on, reads or
    executes (spec/trees.py): no command waits for it, and nothing outside is touched."""
    chosen = random.Random(1).sample(trees.ALL, max(10, round(len(trees.ALL) * part)))
    trial = Trial(target, 0, f"of {len(trees.ALL)} combinations")
    subhost = Subhost(target, unique("h"), lambda _: None)
    trees.prepare(subhost)
    for each in chosen:
        try:
            trial.say(*trees.wrong(subhost, *each))
            trial.done += 1
        except trees.NotHere:
            pass  # it is not counted
    if not trial.done:
        trial.say("no kind of file can be made")
    trees.clear(subhost)
    subhost.clear()
    trial.close()
    return trial


TRIALS: dict[str, Callable[[Target, float], Trial]] = {
    each.__name__: each
    for each in (
        *(crowd, parallel, processes, orphans, bomb, memory),
        *(no_room, read_only, descriptors, lower, hostile, clock),
    )
}
