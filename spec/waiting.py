"""Waiting on a target: what its machine takes, and whether what is waited for has come to rest.

That time ran out proves nothing of an implementation: the machine may be slow, or busy with
something else. A promise counts as broken only where the target shows that nobody works on it any
longer: for most of the time that was given, and over several looks, the processes that were
started since the test began are the same, sleep, and take no processor time, also not by children
too short-lived to be seen, and the kernel has taken down a namespace and a cable that were let go
later. Otherwise there is no verdict: NoAnswer.
"""

from __future__ import annotations

from spec.targets import NoAnswer, Target

PLAIN = 0.04
"""Seconds that the measured step may take on a machine whose waits are not lengthened. A plain
machine takes 4 ms; the tests' limits have that much to spare, many times over."""
LOOKS = 10  # at least, without a change, before something is at rest
STEP = "unshare --mount sh -c 'mount -t tmpfs spec /mnt && exec true'"
ROUNDS = 8

# The pid of a subhost's pid 1: in its network namespace, and number 1 of a pid namespace. It starts no
# program, which on an emulated machine would take longer than all else.
PID1 = r"""
pid1() {
    for found in /proc/[0-9]*; do
        [ "$found/ns/net" -ef "/run/netns/$1" ] || continue
        while read -r key pids; do
            case "$key $pids" in "NSpid: "*[[:space:]]1) echo "${found#/proc/}"; return; esac
        done 2>/dev/null < "$found/status"
    done
    return 1
}
"""

# now: hundredths of seconds since the machine was started. at_work TIME: the processes that were
# started since then, without kernel threads and this shell's own; then the hundredths of seconds that
# they have taken, with all children that they have waited for, and how many of them run or wait for a
# disk. kernel_done: whether the kernel has come to the end of what was let go before.
_TOOLS = r"""
now() { read -r now rest < /proc/uptime; now=${now%.*}${now#*.}; }
at_work() {
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v me=$$ -v since="$1" '{
        pid = $1; name = $0; sub(/^[0-9]+ /, "", name); sub(/\) [^)]*$/, ")", name); sub(/^.*\) /, "")
        order[NR] = pid; parent[pid] = $2; begun[pid] = $20
        kernel = int($7 / 2097152) % 2
        seen[pid] = kernel ? "" : $1 " " pid " " $20 " " name
        busy[pid] = $1 ~ /[RD]/; taken[pid] = $12 + $13 + $14 + $15
    } END { for (i = 1; i <= NR; i++) {
        pid = order[i]
        for (up = pid; up in parent && up != me; up = parent[up]);
        if (up != me && seen[pid] && begun[pid] >= since) {
            print seen[pid]; all += taken[pid]; working += busy[pid]
        }
    } print "taken", all + 0, working + 0 }'
}
kernel_done() {
    ip netns add "spec$$" && ip link add "s$$h" type veth peer name "s$$n" netns "spec$$"
    ip netns delete "spec$$"
    while [ -e "/sys/class/net/s$$h" ]; do
        now; [ "$now" -lt "$1" ] || return 1
        sleep 0.1
    done
}
"""

_LOOP = r"""
restart() {{ looks=0 since=$now before=$taken; }}
now; first=$now busy=0 seen=none look= taken=0; restart
until {{ {condition}
}} 2>/dev/null; do
    now
    if [ $((now - first)) -ge {eager} ]; then
        look=$(at_work {started})
        taken=${{look##*taken }} working=${{taken#* }} taken=${{taken% *}} more=$((taken - before))
        if [ $working != 0 ]; then  # once is no more than a look around of something that waits itself
            busy=$((busy + 1))
            [ $busy -lt 2 ] || restart
        else
            busy=0
            [ "${{look%taken *}}" = "$seen" ] || restart
            looks=$((looks + 1)) seen=${{look%taken *}}
        fi
        # A twentieth of the time is work, though none of it was seen.
        if [ $more -gt 2 ] && [ $((more * 20)) -gt $((now - since)) ]; then restart; fi
        if [ $looks -ge {looks} ] && [ $((now - since)) -ge {rest} ]; then
            kernel_done $((first + 2 * {limit})) || {{ echo "the kernel takes down namespaces"; exit 8; }}
            {{ {condition}
            }} 2>/dev/null && exit 0
            exit 9
        fi
        [ $((now - first)) -lt {limit} ] || {{ echo "$look"; exit 8; }}
    fi
    sleep {pause:g}
done"""


def measure(target: Target) -> float:
    """The seconds that a small step takes on the target now: a fork, a mount namespace with a
    mount in it, and an exec, the mean of several. Raises TargetError where it cannot be done."""
    loop = f"i=0; while [ $i -lt {ROUNDS} ]; do {STEP} || exit; i=$((i + 1)); done"
    said = target.succeed(f"date +%s%N; {loop}; date +%s%N", timeout=60).split()
    return (int(said[1]) - int(said[0])) / 1e9 / ROUNDS


def learn(target: Target, factor: float = 1.0) -> None:
    """Measure the target, and set its pace and patience; a factor lengthens all waits."""
    target.pace = measure(target)
    target.patience = factor * max(1.0, target.pace / PLAIN)


def clock(target: Target, then: str = ":") -> int:
    """The target's time as `wait` takes it: hundredths of seconds since its machine was started.

    A command that says nothing can be run right after that.
    """
    said = target.succeed(f'read -r now rest < /proc/uptime; echo "$now"\n{then}')
    return int(float(said) * 100)


def wait(target: Target, condition: str, seconds: float, started: int) -> bool:
    """Whether a shell condition comes true on the target; False where all has come to rest without.

    `started` (of `clock`) tells which processes count. At rest for three quarters of the seconds is
    enough, however slow the machine; what is not at rest has twice the seconds times the target's
    patience. Raises NoAnswer after that.
    """
    limit = 2 * seconds * target.patience
    loop = (
        PID1
        + _TOOLS
        + _LOOP.format(
            condition=condition,
            started=started,
            eager=int(seconds * 25),
            rest=int(seconds * 75),
            limit=int(limit * 100),
            looks=LOOKS,
            pause=min(max(0.02, target.pace), 0.3),
        )
    )
    done = target.run(loop, timeout=(2 * limit + 60) / target.patience)
    if done.status not in (0, 9):
        raise slow(target, condition, limit, done.out + done.err)
    return done.status == 0


def slow(target: Target, what: str, seconds: float, at_work: str = "") -> NoAnswer:
    """The error for what had no answer within so many seconds, with the processes at work."""
    try:
        takes = f"takes {measure(target):.3f} s for a fork now, {target.pace:.3f} s at the start"
    except Exception as error:  # noqa: BLE001  # the machine may be past all answers
        takes = f"took {target.pace:.3f} s for a fork, and now: {error}"
    line = f"no answer in {seconds:.0f} s on a machine that {takes}: {what}"
    return NoAnswer(f"{line}\nstill at work there:\n{at_work}" if at_work else line)
