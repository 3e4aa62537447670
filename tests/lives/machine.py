"""Random lives: what may happen to four subhosts, in an order that hypothesis chooses and shrinks."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from .model import Settings, told
from .stage import BRIDGE, OCCUPANT, SETTINGS, Stage

ONE = st.sampled_from(range(4))


class Lives(Stage):
    """All that may happen."""

    # --- starting

    @rule(who=ONE, option=st.sampled_from(["", "--wait "]), count=st.sampled_from([1, 1, 1, 2, 3]))
    def boot(self, who: int, option: str, count: int) -> None:
        """One boot, or several at once; also of one that runs."""
        self.boot_it(self.lives[who], option, count)

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


def live(
    steps: int, seed: int, length: int = 30, lives: int = 20, seconds: float = 1e9
) -> dict[str, Any]:
    """Random lives of that length, so many for each seed, until there were enough steps, or enough of
    time, or one went wrong: the steps, what was done, and the shortest surprise. The same seed leads to the same lives."""
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
    until = time.monotonic() + seconds
    while count < steps and not problems and time.monotonic() < until:

        @hypothesis_seed(seed)
        class Seeded(Lives):  # hypothesis keeps the seed at the class
            pass

        try:
            run_state_machine_as_test(Seeded, settings=bound)
        except Exception as error:  # noqa: BLE001  a surprise that does not come again is one, too
            problems = Lives.surprises[-1:] or [f"the test broke: {error!r}"]
        seed += 1
        count = Lives.steps.total()
    Stage.ground.close()
    return {"done": count, "seen": dict(Lives.steps), "problems": problems}
