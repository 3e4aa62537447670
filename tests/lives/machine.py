"""Random lives: what may happen to four subhosts, in an order that hypothesis chooses and shrinks."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from spec.subhost import MAKE_TINY, ROOT
from spec.targets import NoAnswer, Result, Target

from .model import CABLES, STARTS, Life, Settings, told
from .world import SHELL, World, place, run, unique

SECONDS = 15.0  # for what nobody waits for, on a plain machine
ONE = st.sampled_from(range(4))
SETTINGS = st.builds(
    Settings, st.sampled_from(CABLES), st.sampled_from(STARTS), st.booleans(), st.just(False)
)
BRIDGE = "ip link add br0 type bridge && ip link set br0 up"
LOGS = f"find {ROOT} -maxdepth 2 -name log -type f -exec tail -v -n 5 {{}} +"
OCCUPANT = "sleep 1003"  # of a process of the main host in a subhost's network namespace


class Surprise(Exception):
    """Something was seen that must not be. Its text has the shell commands that lead to it."""


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


class Lives(RuleBasedStateMachine):
    """Four subhosts on one target, three of them with a bridge in common if they are so configured."""

    url: ClassVar[str] = "here"
    implementation: ClassVar[Path | None] = None
    ground: ClassVar[Ground] = Ground()
    surprises: ClassVar[
        list[str]
    ] = []  # each time that anything was seen, also while it is shrunk
    steps: ClassVar[Counter[str]] = Counter()  # of all lives so far, by what was done

    def __init__(self) -> None:
        super().__init__()
        self.target = Lives.ground.take(self.url, self.implementation)
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
            return Lives.ground.close()
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
            Lives.ground.close()
            raise

    # --- how each step goes

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
        Lives.steps[what] += 1
        together = [f"{command} &" for command in commands] if len(commands) > 1 else commands
        self.script += [f"# {what}", *together, *(["wait"] if len(commands) > 1 else [])]
        try:
            return run(self.target, *commands, timeout=100)
        except NoAnswer as error:
            raise self.surprise([str(error)]) from error

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
        Lives.surprises.append(text)
        return Surprise(text)

    # --- starting

    def expected(self, life: Life) -> int:
        """The status of a boot."""
        if life.file.mistake:
            return 2
        links = life.file.links(life.named)
        if (
            life.running
            or life.log != "file"
            or life.name == "foreign"
            or ("br0" in links.values() and not self.bridge)
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
            problems += [f"more than a line: {result}"] if len(lines) > 1 else []
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

    @rule(who=ONE, option=st.sampled_from(["", "--wait "]), count=st.sampled_from([1, 1, 1, 2, 3]))
    def boot(self, who: int, option: str, count: int) -> None:
        """One boot, or several at once; also of one that runs."""
        self.boot_it(self.lives[who], option, count)

    def boot_it(self, life: Life, option: str, count: int) -> None:
        """Boot it, and see what comes of it."""
        status = self.expected(life)
        command = f"overlay-boot {option}{life.conf}"
        results, world = self.act(f"boot {count}", *[command] * count)
        self.see(self.booted(life, results, status), world)

    @rule(who=ONE, timeout=st.sampled_from(["0", "0.3"]))
    def boot_and_stop(self, who: int, timeout: str) -> None:
        """A boot and a stop at the same time: whichever comes first, both tell the truth."""
        life = self.lives[who]
        status = self.expected(life)
        before = life.running
        stop = f"overlay-stop --timeout {timeout} {life.named}"
        (boot, stop_), world = self.act("boot and stop at once", f"overlay-boot {life.conf}", stop)
        problems = [] if boot.status in (0, 1, status) else [f"{boot}"]
        problems += told(boot, boot.status) + told(stop_, *((0, 1) if before else (0, 1, 3)))
        life.pid = 0
        if stop_.status in (0, 1) or before:
            life.stopped()
        if boot.status == 0 and life.named in world.first:
            life.starts()
        elif boot.status == 0 and not (stop_.status in (0, 1)):
            problems.append(f"booted and not stopped, but not there: {boot} {stop_}")
        self.see(problems, world)

    # --- using

    @rule(who=ONE, status=st.sampled_from([0, 7]))
    def go(self, who: int, status: int) -> None:
        """A command in it."""
        life = self.lives[who]
        command = f"overlay-go {life.named} sh -c 'cat /who; exit {status}'"
        (done,), world = self.act("go", command)
        if life.running:
            right = (done.status, done.out, done.err) == (status, f"{life.named}\n", "")
            self.see([] if right else [f"{done}"], world)
        else:
            self.see(told(done, 3), world)

    @rule(who=ONE)
    def leave(self, who: int) -> None:
        """A process that overlay-go leaves running."""
        life = self.up(who)
        if not life.running or life.stubborn:
            return
        command = f"overlay-go {life.named} sh -c 'setsid /srv/oned > /dev/null 2>&1 &'"
        (done,), world = self.act("leave a process by go", command)
        life.inside.add("oned")
        self.see(told(done, 0), world)

    @rule(who=ONE, remove=st.booleans())
    def share(self, who: int, remove: bool) -> None:
        """A folder of the main host, shared or no longer."""
        life = self.lives[who]
        option = "--remove " if remove else ""
        (done,), world = self.act("share", f"overlay-share {option}/srv/shared {life.named}")
        if not life.running:
            return self.see(told(done, 3), world)
        wanted = 1 if remove and not life.shared else 0
        life.shared = not remove
        self.see(told(done, wanted), world)

    # --- stopping

    def stop_by(self, life: Life, word: str, option: str, count: int = 1) -> None:
        """Stop it, by NAME or configuration file, once or several times at once."""
        commands = [f"overlay-stop {option}{word}"] * count
        results, world = self.act(f"stop {count}", *commands)
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

    @rule(
        who=ONE,
        by_conf=st.booleans(),
        timeout=st.sampled_from(["", "", "--timeout 0 ", "--timeout 1 "]),
        count=st.sampled_from([1, 1, 1, 2, 3]),
    )
    def stop(self, who: int, by_conf: bool, timeout: str, count: int) -> None:
        """Stop it, also one that does not run."""
        life = self.lives[who]
        option = "--timeout 0.3 " if life.stubborn else timeout
        self.stop_by(life, life.conf if by_conf else life.named, option, count)

    @rule(who=ONE)
    def end_from_inside(self, who: int) -> None:
        """dummy_service is told to end, and with it all."""
        life = self.up(who)
        if not life.running or "dummy_service" not in life.inside:
            return
        command = f"overlay-go {life.named} sh -c 'echo > /run/dummy_service'"
        self.lose(life, {"dummy_service"}, "end dummy_service", command)

    def lose(self, life: Life, names: set[str], what: str, command: str) -> None:
        """Processes inside go, and with the last one the subhost."""
        (done,), world = self.act(what, command)
        problems = [] if done.status == 0 else [f"{done}"]
        life.inside -= names
        if not life.inside:
            life.ends()
        self.see(problems, world, eager=False)

    # --- killing

    @rule(who=ONE, what=st.sampled_from(["pid 1", "keeper", "service", "both", "everything"]))
    def kill(self, who: int, what: str) -> None:
        """SIGKILL, from the main host."""
        life = self.up(who)
        name = life.named
        if not life.running or (what in ("keeper", "both", "everything") and not self.known(life)):
            return
        if what == "service":
            victim = min(life.inside)
            command = f"kill -9 $(named {name} {victim})"
            return self.lose(life, {victim}, "kill a service", command)
        command = {
            "pid 1": f"kill -9 $(pid1 {name})",
            "keeper": f"kill -9 $(keeper {name})",
            "both": f"kill -9 $(keeper {name}) $(pid1 {name})",
            "everything": f"kill -9 $(keeper {name}) $(inside {name}) 2> /dev/null || :",
        }[what]
        if what == "pid 1":
            life.ends()
        elif what == "keeper":
            life.keeper = False
        else:
            life.keeper = False
            life.ends()
        self.do(command, what=f"kill {what}")

    @rule(who=ONE)
    def freeze(self, who: int) -> None:
        """The keeper is stopped, and overlay-stop called: it must not wait for ever."""
        life = self.up(who)
        if not life.running or not self.known(life):
            return
        life.left = True
        self.do(f"kill -STOP $(keeper {life.named})", what="freeze the keeper")
        self.stop_by(life, life.named, "--timeout 0.3 ")

    def known(self, life: Life) -> bool:
        """Whether its keeper is there, and with it something that knows of it besides."""
        return life.keeper and life.recorded

    # --- losing

    @rule(who=ONE)
    def lose_record(self, who: int) -> None:
        """Somebody removes the record."""
        life = self.up(who)
        if not life.running or not self.known(life) or life.name != "own":
            return
        life.recorded = False
        self.do(f"rm /run/overlay-boot/{life.named}", what="remove the record")

    @rule(who=ONE, foreign=st.booleans())
    def lose_name(self, who: int, foreign: bool) -> None:
        """Somebody removes the namespace's name, and perhaps gives it to another one."""
        life = self.up(who)
        if not life.running or life.name != "own" or not life.recorded:
            return
        command = f"rm /run/netns/{life.named}"
        life.name = ""
        if foreign:
            life.name = "foreign"
            command += f" && ip netns add {life.named}"
        self.do(command, what="remove the name")

    @rule(who=ONE)
    def free_name(self, who: int) -> None:
        """The other namespace of that name goes."""
        life = self.lives[who]
        if life.name == "foreign":
            life.name = ""
            self.do(f"ip netns delete {life.named}", what="delete the other namespace")

    @rule(who=ONE, what=st.sampled_from(["delete", "rename", "replace"]))
    def lose_cable(self, who: int, what: str) -> None:
        """A cable is deleted, is called otherwise, or another interface comes to have its name."""
        life = self.up(who)
        if not life.cables:
            return
        cable = life.cables[0]
        old, new = cable.name, f"{life.named}x"
        if what == "rename" and old != new:
            cable.name = new
            command = f"ip link set {old} down && ip link set {old} name {new}"
            return self.do(f"{command} && ip link set {new} up", what="rename a cable")
        life.cables.remove(cable)
        command = f"ip link delete {old}"
        if what == "replace":
            self.foreign |= {old, f"{old}p"}
            command += f" && ip link add {old} type veth peer name {old}p"
        self.do(command, what=f"{what} a cable")

    @precondition(lambda self: self.foreign)
    @rule(all_of_them=st.just(True))
    def free_cables(self, all_of_them: bool) -> None:
        """The other interfaces go."""
        names = [name for name in sorted(self.foreign) if not name.endswith("p")]
        self.foreign = set()
        commands = "\n".join(f"ip link delete {name}" for name in names)
        self.do(commands, what="delete the other interfaces")

    @rule(first=ONE, second=ONE)
    def lose_bridge(self, first: int, second: int) -> None:
        """The bridge goes, or comes back."""
        if self.bridge:
            self.up(first), self.up(second)
            for life in self.lives:
                for cable in life.cables:
                    cable.bridge = ""
        self.bridge = not self.bridge
        if hasattr(self, "_address"):
            del self._address
        command = BRIDGE if self.bridge else "ip link delete br0"
        self.do(command, what="make the bridge" if self.bridge else "delete the bridge")

    @rule(who=ONE)
    def occupy(self, who: int) -> None:
        """A process of the main host is in its network namespace."""
        life = self.up(who)
        if not life.running or life.name != "own" or self.occupants > 2:
            return
        self.occupants += 1
        command = f"ip netns exec {life.named} {OCCUPANT} < /dev/null > /dev/null 2>&1 &"
        self.do(f"setsid {command}\nsleep 0.05", what="enter its network namespace")

    @precondition(lambda self: self.occupants)
    @rule(all_of_them=st.just(True))
    def vacate(self, all_of_them: bool) -> None:
        """Those processes end."""
        self.occupants = 0
        self.do(f"pkill -f '[s]{OCCUPANT[1:]}'", what="end what is in the namespaces")

    # --- changing files

    def put_log(self, life: Life, what: str) -> None:
        """Put something in the place of LOG."""
        log = f"{life.folder}/log"
        make = {"file": "true", "link": f"ln -s /dev/null {log}", "folder": f"mkdir {log}"}
        life.log = what
        self.do(f"rm -rf {log}; {make.get(what, f'mkfifo {log}')}", what=f"make LOG a {what}")

    @rule(who=ONE, what=st.sampled_from(["file", "file", "link", "folder", "fifo"]))
    def replace_log(self, who: int, what: str) -> None:
        """LOG is removed, or becomes something else."""
        self.put_log(self.lives[who], what)

    @rule(who=ONE, settings=SETTINGS, mistake=st.sampled_from([False, False, False, True]))
    def edit(self, who: int, settings: Settings, mistake: bool) -> None:
        """The configuration is edited, whether it runs or not."""
        life = self.lives[who]
        values: dict[str, Any] = settings.__dict__ | {"mistake": mistake}
        self.do(life.write(Settings(**values)), what="edit the configuration")


def live(steps: int, seed: int, length: int = 30, lives: int = 20) -> dict[str, Any]:
    """Random lives of that many steps each, until there were enough steps or one went wrong: steps,
    what was done, and each surprise, the shortest last. The same seed leads to the same lives."""
    Lives.steps.clear()
    Lives.surprises.clear()
    bound = settings(
        max_examples=lives,
        derandomize=False,  # also where CI is set: the seed says it all
        stateful_step_count=length,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
    )
    count = 0
    problems: list[str] = []
    while count < steps and not problems:

        @hypothesis_seed(seed)
        class Seeded(Lives):  # hypothesis keeps the seed at the class
            pass

        try:
            run_state_machine_as_test(Seeded, settings=bound)
        except Exception as error:  # noqa: BLE001  a surprise that does not come again is one, too
            problems = Lives.surprises[-1:] or [f"the test broke: {error!r}"]
        seed += 1
        count = Lives.steps.total()
    Lives.ground.close()
    return {"done": count, "seen": dict(Lives.steps), "problems": problems}
