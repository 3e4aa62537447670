"""Races: the same commands many times at once, and signals at random moments.

Each race returns what it has seen that must not be; nothing is the answer that is wanted.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from spec.targets import NoAnswer, Result, Target

from .model import Life, Settings, told
from .stage import BRIDGE
from .world import World, run, unique

OURS = re.compile(r'File ".*(/overlay_boot/|bin/overlay-).*, line [1-9]')  # of a traceback
EARLY = "SIGINT before Python had come to a line of the command"
ENDED = (129, 130, 137, 143)  # of a command that was in a subhost when that was stopped


@dataclass
class Race:
    """One of them, on its target."""

    target: Target
    count: int  # subhosts
    file: Settings
    done: int = 0  # rounds, or commands in all
    seen: Counter[str] = field(default_factory=Counter)  # what came of them
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lives = [Life(unique(f"r{n}x"), "overlay") for n in range(self.count)]
        lines = ["mkdir -p /srv/shared && touch /srv/shared/mark", BRIDGE]
        for life in self.lives:
            lines += [life.make(), life.write(self.file)]
        done, self.before = run(self.target, "\n".join(lines))
        assert done[0].status == 0, done[0]

    def close(self) -> None:
        """Stop what runs: then all is as before the first boot."""
        run(self.target, *[f"overlay-stop {life.named}" for life in self.lives])
        for life in self.lives:
            life.stopped()
        self.settled(run(self.target)[1])
        folders = " ".join(life.folder for life in self.lives)
        run(self.target, f"rm -r {folders} /srv/shared; ip link delete br0")

    def say(self, *problems: str) -> None:
        """Note what was wrong in this round."""
        self.problems += [f"round {self.done}: {problem}" for problem in problems]

    def settled(self, world: World, eager: bool = True) -> None:
        """See whether all is as it must be, at once or, not eager, in a moment."""
        limit = time.monotonic() + (0 if eager else 15 * self.target.patience)
        while (problems := self.wrong(world)) and time.monotonic() < limit:
            time.sleep(0.03)
            world = run(self.target)[1]
        self.say(*problems)

    def wrong(self, world: World) -> list[str]:
        """What is not as it must be."""
        found = list(world.problems)
        for life in self.lives:
            if life.running and not life.pid and life.named in world.first:
                life.pid = world.first[life.named].pid
            found += [f"{life.named}: {text}" for text in life.problems(world)]
        cables = {cable.name for life in self.lives for cable in life.cables}
        if left := set(world.links) - set(self.before.links) - cables:
            found.append(f"interfaces that are nobody's: {left}")
        if world.links.get("br0") != self.before.links["br0"]:
            found.append(f"the bridge: {world.links.get('br0')}, not {self.before.links['br0']}")
        if not any(life.running for life in self.lives):
            found += [f"{process} is left inside" for process in world.strays()]
            if world.host_processes() != self.before.host_processes():
                found.append(f"processes: {' '.join(world.host_processes())}")
        return found

    def stop(self, life: Life, *statuses: int) -> None:
        """Stop one, and see that nothing is left at once."""
        (done,), world = run(self.target, f"overlay-stop {life.named}")
        life.stopped()
        self.say(*told(done, *statuses))
        self.settled(world)


def boots(target: Target, rounds: int, at_once: int = 20) -> Race:
    """Boots of one configuration at the same time: exactly one wins, and the others say so."""
    race = Race(target, 1, Settings("br0=stable ="))
    (life,) = race.lives
    for _ in range(rounds):
        race.done += 1
        results, world = run(target, *[f"overlay-boot {life.conf}"] * at_once, timeout=120)
        winners = [result for result in results if result.status == 0]
        if len(winners) != 1:
            race.say(f"{len(winners)} of {at_once} won")
        for result in results:
            race.seen[f"status {result.status}"] += 1
            race.say(*told(result, 0, 1))
            if result.status and ("already" not in result.err or result.err.count("\n") != 1):
                race.say(f"it does not say why: {result}")
        if winners:
            life.starts()
            life.pid = 0
        race.settled(world)
        race.stop(life, 0 if winners else 3)
    race.close()
    return race


def cycles(target: Target, rounds: int) -> Race:
    """Start and stop, again and again, with a cable in a bridge and one to the main host itself."""
    race = Race(target, 1, Settings("br0=stable =", "/srv/one", True))
    (life,) = race.lives
    for _ in range(rounds):
        race.done += 1
        (done,), world = run(target, f"overlay-boot {life.conf}")
        race.say(*told(done, 0))
        life.starts()
        life.pid = 0
        race.settled(world)
        race.stop(life, 0)
    race.close()
    return race


def signals(target: Target, rounds: int, seed: int = 1) -> Race:
    """A signal at a random moment of a boot, a stop or a command inside."""
    race = Race(target, 1, Settings("br0= ="))
    (life,) = race.lives
    chance = random.Random(seed)
    longest = {"go": 0.2}
    for what in ("boot", "stop"):
        before = time.monotonic()
        _without_signal(race, life)
        longest[what] = time.monotonic() - before
    for _ in range(rounds):
        race.done += 1
        what = chance.choice(["boot", "stop", "go"])
        number = chance.choice([1, 2, 15, 9])
        if (what == "boot") == life.running:
            _without_signal(race, life)
        _with_signal(race, life, what, number, chance.uniform(0, longest[what]))
    race.close()
    return race


def _without_signal(race: Race, life: Life) -> None:
    """Make of it what the next signal needs."""
    if life.running:
        return race.stop(life, 0)
    (done,), world = run(race.target, f"overlay-boot --wait {life.conf}")
    race.say(*told(done, 0))
    life.starts()
    life.pid = 0
    race.settled(world)


def _with_signal(race: Race, life: Life, what: str, number: int, seconds: float) -> None:
    word = {"boot": life.conf, "stop": life.named, "go": f"{life.named} sleep 1005"}[what]
    # A shell's background commands ignore SIGINT from the start.
    command = f"env --default-signal=INT overlay-{what} {word} & sleep {seconds:.4f}\n"
    (done,), world = run(race.target, f"{command}kill -{number} $! 2> /dev/null; wait $!")
    race.seen[f"{what}: signal {number}, status {done.status}"] += 1
    if number == 2 and "KeyboardInterrupt" in done.err and not OURS.search(done.err):
        race.seen[EARLY] += 1
    elif done.status != 128 + number:
        race.say(*told(done, 0))
    elif len(done.err.splitlines()) > 1:
        race.say(f"more than a line: {done}")
    if what == "boot" and done.status == 0:
        life.starts()
        life.pid = 0
    elif what == "stop" and done.status == 0:
        life.stopped()
    elif what == "go":
        limit = time.monotonic() + 15 * race.target.patience
        while "sleep" in [p.name for p in world.processes.values() if p.depth]:
            if time.monotonic() > limit:
                return race.say(f"the command runs on: {done}")
            world = run(race.target)[1]
    if done.status == 0 or what == "go" or what == "boot" and number != 9:
        return race.settled(world)
    # An interrupted stop, or a boot without anyone to undo it: the next stop does what is missing.
    race.stop(life, 0, 3)


def hammer(
    target: Target, seconds: float, count: int = 10, workers: int = 8, seed: int = 1
) -> Race:
    """All commands on several subhosts by several callers; what each says may be true or not."""
    race = Race(target, count, Settings("br0=stable"))
    until = time.monotonic() + seconds
    lock = threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while time.monotonic() < until:
            life = chance.choice(race.lives)
            what = chance.choice(list(COMMANDS))
            command, judge = COMMANDS[what]
            try:
                done = target.run(command.format(life.conf, life.named), timeout=100)
                problems = judge(done, life)
            except NoAnswer as error:
                problems = [str(error)]
            with lock:
                race.done += 1
                race.seen[f"{what}: status {done.status}"] += 1
                race.say(*problems)

    threads = [threading.Thread(target=work, args=[number]) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(target, *[f"overlay-stop {life.named}" for life in race.lives])
    race.settled(run(target)[1])
    race.close()
    return race


def _judge_boot(done: Result, _: Life) -> list[str]:
    lines = len(done.err.splitlines())
    return told(done, 0, 1) + ([f"{lines} lines: {done}"] if done.status and lines != 1 else [])


def _judge_go(done: Result, life: Life) -> list[str]:
    if done.status == 0 and done.out != f"{life.named}\n":
        return [f"it was elsewhere: {done}"]
    return [] if done.status in ENDED and not done.err else told(done, 0, 1, 3, 125)


COMMANDS: dict[str, tuple[str, Callable[[Result, Life], list[str]]]] = {
    "boot": ("overlay-boot {0}", _judge_boot),
    "stop": ("overlay-stop {1}", lambda done, _: told(done, 0, 3)),
    "go": ("overlay-go {1} cat /who", _judge_go),
    "share": ("overlay-share /srv/shared {1}", lambda done, _: told(done, 0, 1, 3)),
    "list": ("overlay-list --json", lambda done, _: told(done, 0)),
}
