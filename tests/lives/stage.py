"""What random lives happen on: four subhosts, how each step goes, and how it is judged."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from spec.subhost import MAKE_TINY, ROOT
from spec.targets import NoAnswer, Result, Target

from .model import CABLES, STARTS, Life, Settings, told
from .world import SHELL, World, place, run, unique

SECONDS = 15.0  # for what nobody waits for, on a plain machine
SETTINGS = st.builds(
    Settings, st.sampled_from(CABLES), st.sampled_from(STARTS), st.booleans(), st.just(False)
)
BRIDGE = "ip link add br0 type bridge && ip link set br0 up"
LOGS = f"find {ROOT} -maxdepth 2 -name log -type f -exec tail -v -n 5 {{}} +"
OCCUPANT = "sleep 1003"  # of a process of the main host in a subhost's network namespace


class Surprise(Exception):
    """Something was seen that must not be. Its text has the shell commands that lead to it."""


def several(what: str, count: int) -> str:
    """The name of a step that does the same so many times at once."""
    return what if count == 1 else f"{count} times {what} at once"


class Ground:
    """The target of one life after the other, until something goes wrong on it."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.target: Target | None = None

    def take(self, url: str, implementation: Path | None) -> Target:
        """The target, made where there is none."""
        if self.target is None:
            self.target = self.stack.enter_context(place(url, implementation))
        return self.target

    def close(self) -> None:
        """Take it down, with all that is left on it."""
        self.target = None
        self.stack.close()


class Stage(RuleBasedStateMachine):
    """Four subhosts on one target, three of them with a bridge in common if they are so configured."""

    url: ClassVar[str] = "here"
    implementation: ClassVar[Path | None] = None
    ground: ClassVar[Ground] = Ground()
    surprises: ClassVar[list[str]] = []
    """Each that was seen, also while it is shrunk."""
    steps: ClassVar[Counter[str]] = Counter()
    """Of all lives so far, by what was done."""

    def __init__(self) -> None:
        super().__init__()
        self.target = Stage.ground.take(self.url, self.implementation)
        self.script = [f"sh << 'MADE'{MAKE_TINY}MADE", SHELL.strip()]
        self.failed = False
        self.bridge = True
        self.foreign: set[str] = set()  # interfaces that are no subhost's, with a cable's name
        self.occupants = 0
        kinds = ("overlay", "overlay", "bind", "plain")
        self.lives = [Life(unique(x), kind) for x, kind in zip("abcd", kinds, strict=True)]

    def teardown(self) -> None:
        """Stop all and put everything right; then nothing may be left."""
        if not hasattr(self, "before") or self.failed:
            return Stage.ground.close()
        try:
            for life in self.lives:
                if life.log != "file":
                    self.put_log(life, "file")
                if life.running or life.left:
                    self.stop_by(life, life.named, "--timeout 0.3 ")
                if life.name == "foreign":
                    life.name = ""
                    self.do(f"ip netns delete {life.named}")
            commands = [f"ip link delete {name}" for name in sorted(self.foreign)]
            commands += [f"pkill -f '[s]{OCCUPANT[1:]}'"] if self.occupants else []
            commands += [] if self.bridge else [BRIDGE]
            self.foreign, self.occupants, self.bridge = set(), 0, True
            self.do("\n".join([*commands, "true"]))
            folders = " ".join(life.folder for life in self.lives)
            run(self.target, f"rm -r {folders} /srv/shared; ip link delete br0")
        except BaseException:
            Stage.ground.close()
            raise

    @initialize(settings=st.tuples(SETTINGS, SETTINGS, SETTINGS, SETTINGS))
    def make(self, settings: tuple[Settings, ...]) -> None:
        """What an administrator has made before the first boot."""
        lines = ["mkdir -p /srv/shared && touch /srv/shared/mark", BRIDGE]
        for life, each in zip(self.lives, settings, strict=True):
            lines += [life.make(), life.write(each)]
        self.script += lines
        done, self.before = run(self.target, "\n".join(lines))
        assert done[0].status == 0, done[0]

    def act(self, what: str, *commands: str) -> tuple[list[Result], World]:
        """Run shell commands, several at the same time, as one step. Raises Surprise where they
        come to no end."""
        Stage.steps[what] += 1
        together = [f"{command} &" for command in commands] if len(commands) > 1 else commands
        self.script += [f"# {what}", *together, *(["wait"] if len(commands) > 1 else [])]
        try:
            return run(self.target, *commands, timeout=100)
        except NoAnswer as error:
            raise self.surprise([str(error)]) from error
        except BaseException:
            self.failed = True  # nothing is known of what has become of it
            raise

    def do(self, *commands: str, what: str = "put right") -> None:
        """A step of the administrator's own, which always works."""
        done, world = self.act(what, *commands)
        assert done[0].status == 0, done[0]
        self.see([], world, eager=False)

    def see(self, problems: list[str], world: World, *, eager: bool = True) -> None:
        """Compare what is seen with what must be. Some of it comes about by itself in a moment; with
        `eager` no more than services may do so."""
        for life in self.lives:
            if life.running and not life.pid and life.named in world.first:
                life.pid = world.first[life.named].pid
        if eager:
            problems = problems + self.wrong(world)
        if problems:
            raise self.surprise(problems)
        limit = time.monotonic() + SECONDS * self.target.patience
        while problems := self.wrong(world) + self.not_yet(world):
            if time.monotonic() > limit:
                raise self.surprise(problems)
            time.sleep(0.03)
            world = run(self.target)[1]

    def wrong(self, world: World) -> list[str]:
        """What is not as it must be."""
        found = list(world.problems)
        for life in self.lives:
            found += [f"{life.named}: {text}" for text in life.problems(world)]
        others = set(world.links) - set(self.before.links) - self.foreign
        others -= {cable.name for life in self.lives for cable in life.cables}
        left = tuple(f"{life.named}" for life in self.lives if life.left)
        found += [f"the interface {name} is there" for name in others if not name.startswith(left)]
        gone = (set(self.before.links) | self.foreign) - set(world.links)
        found += [f"the interface {name} is gone" for name in gone if name != "br0" or self.bridge]
        bridge = world.links.get("br0")
        if bridge and (bridge.mtu, bridge.address) != (1500, self.address(bridge.address)):
            found.append(f"the bridge is another than before: {bridge}")
        return found

    def address(self, now: str) -> str:
        """The bridge's, as it was when it was made."""
        if not hasattr(self, "_address"):
            self._address = now
        return self._address

    def not_yet(self, world: World) -> list[str]:
        """What has to come about by itself."""
        found = [f"{life.named}: {text}" for life in self.lives for text in life.not_yet(world)]
        found += [f"{process} is left inside" for process in world.strays()]
        if not any(life.running for life in self.lives):
            wanted = sorted([*self.before.host_processes(), *["sleep"] * self.occupants])
            if (seen := world.host_processes()) != wanted:
                found.append(f"processes: {' '.join(seen)}, not {' '.join(wanted)}")
        return found

    def surprise(self, problems: list[str]) -> Surprise:
        """The error, with all that leads to it."""
        self.failed = True
        logs = self.target.run(LOGS).out
        script = "\n".join(self.script)
        text = "\n".join([*problems, "", "reproduce it as root with:", script, "", logs])
        Stage.surprises.append(text)
        return Surprise(text)

    def expected(self, life: Life) -> int:
        """The status of a boot."""
        links = life.file.links(life.named)
        if life.file.mistake or ("br0" in links.values() and not self.bridge):
            return 2
        if (
            life.running
            or life.log != "file"
            or life.name == "foreign"
            or self.foreign & set(links)
        ):
            return 1
        return 0

    def booted(self, life: Life, results: list[Result], status: int) -> list[str]:
        """What is wrong with boots, of which one is to have that status, and all others 1."""
        statuses = sorted(result.status for result in results)
        wanted = sorted([status, *[1 if status == 0 else status] * (len(results) - 1)])
        problems = [] if statuses == wanted else [f"statuses {statuses}, not {wanted}: {results}"]
        for result in results:
            problems += told(result, result.status)
            lines = [line for line in result.err.splitlines() if "warning" not in line]
            if result.status == 1 and len(lines) > 1:
                problems.append(f"more than a line: {result}")
            if life.running and result.status == 1 and "already" not in result.err:
                problems.append(f"it does not say that it runs: {result}")
        if status == 0:
            life.starts()
        return problems

    def up(self, who: int) -> Life:
        """A subhost that runs, booted now where it does not, if it can be."""
        life = self.lives[who]
        if not life.running and self.expected(life) == 0:
            self.boot_it(life, "", 1)
        return life

    def boot_it(self, life: Life, option: str, count: int) -> None:
        """Boot it, and see what comes of it."""
        status = self.expected(life)
        command = f"overlay-boot {option}{life.conf}"
        results, world = self.act(several("boot", count), *[command] * count)
        self.see(self.booted(life, results, status), world)

    def stop_by(self, life: Life, word: str, option: str, count: int = 1) -> None:
        """Stop it, by NAME or configuration file, once or several times at once."""
        commands = [f"overlay-stop {option}{word}"] * count
        results, world = self.act(several("stop", count), *commands)
        wanted = (0, 1) if life.stubborn or option else (0,)  # some are too slow for it
        if not life.running:
            wanted = (3,)
        problems = []
        for result in results:
            problems += told(result, *wanted, *((3,) if count > 1 else ()))
        if life.running and not {result.status for result in results} & {0, 1}:
            problems.append(f"none has stopped it: {results}")
        life.stopped()
        self.see(problems, world)

    def lose(self, life: Life, names: set[str], what: str, command: str) -> None:
        """Processes inside go, and with the last one the subhost."""
        (done,), world = self.act(what, command)
        problems = [] if done.status == 0 else [f"{done}"]
        life.inside -= names
        if not life.inside:
            life.ends()
        self.see(problems, world, eager=False)

    def known(self, life: Life) -> bool:
        """Whether its keeper is there, and with it something that knows of it besides."""
        return life.keeper and life.recorded

    def put_log(self, life: Life, what: str) -> None:
        """Put something in the place of LOG."""
        log = f"{life.folder}/log"
        make = {"file": "true", "link": f"ln -s /dev/null {log}", "folder": f"mkdir {log}"}
        life.log = what
        self.do(f"rm -rf {log}; {make.get(what, f'mkfifo {log}')}", what=f"make LOG a {what}")
