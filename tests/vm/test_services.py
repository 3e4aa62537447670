"""Real services in subhosts, of the working tree as `make vm-services` lays it out, or of DEB.

One machine gets two subhosts, `shop` with all services and `till` beside it on a bridge, and is frozen
before they have been started for good (`ready`) and while they run (`running`); each test has a fresh
machine of either state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.test_machine_start import ROOT, SUITE, package
from vm import cli, software, start
from vm.machine import Machine, Result
from vm.qemu import QemuMachine
from vm.recipe import ARCHIVE_FOLDER, LATER

pytestmark = pytest.mark.vm
LIMIT = 900  # seconds for whatever starts, stops or is installed, beside other work
SHOP, UPPER, LOG = "/opt/subhost/shop/shop.conf", "/opt/subhost/shop/root", "/tmp/overlay-shop.log"
SERVICES = [
    "networking",
    "rsyslog",
    "ssh",
    "cron",
    "postgresql",
    "mariadb",
    "redis-server",
    "nginx",
]
#: A process of each service that runs as long as the service does.
DAEMONS = ["rsyslogd", "sshd", "cron", "postgres", "mariadbd", "redis-server", "nginx"]
FAILED = re.compile(r"(start|stop) of \S+ failed")
CABLE, BRIDGE = "198.51.100.2", "192.0.2.1"  # shop's addresses
#: A bridge, a cable from the main host, and a key that lets root of each into each.
NETWORK = f"""
ip link add br0 type bridge; ip link set br0 up
printf 'iface shop1 inet static\\n  address 198.51.100.1/30\\n' >> /etc/network/interfaces
cd /opt; mkdir -p subhost/shop/root/etc/network subhost/till/root/etc/network
mkdir subhost/shop/work subhost/shop/live subhost/till/work subhost/till/live
cat > subhost/shop/root/etc/network/interfaces <<END
auto lo eth0 eth1
iface lo inet loopback
iface eth0 inet static
  address {BRIDGE}/24
iface eth1 inet static
  address {CABLE}/30
END
cat > subhost/till/root/etc/network/interfaces <<END
auto lo eth0
iface lo inet loopback
iface eth0 inet static
  address 192.0.2.2/24
END
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cat /root/.ssh/id_ed25519.pub >> /root/.ssh/authorized_keys
printf 'BASE= .\\nCABLES= br0= =\\nSTART= networking\\n' > {SHOP}
printf 'BASE= .\\nCABLES= br0=\\nSTART= networking\\n' > subhost/till/till.conf
"""
#: Where rsyslog's start script is to be had, as examples/mta tells.
SCRIPT = f"""
mkdir -p {{0}}/etc/init.d
dpkg-deb --fsys-tarfile {ARCHIVE_FOLDER}/orphan-sysvinit-scripts_*.deb |
    tar -xO ./usr/share/orphan-sysvinit-scripts/rsyslog > {{0}}/etc/init.d/rsyslog
chmod +x {{0}}/etc/init.d/rsyslog
"""
#: In shop: the version of redis that is not the later one, and all set up for others to ask.
INSTALL = f"""
export DEBIAN_FRONTEND=noninteractive
echo 'deb [trusted=yes] file:{ARCHIVE_FOLDER} ./' > /etc/apt/sources.list
apt-get -q update
version=$(dpkg-deb -f {ARCHIVE_FOLDER}/redis-server_*.deb Version)
apt-get -qy install redis-server=$version redis-tools=$version
printf 'bind 0.0.0.0\\nprotected-mode no\\n' >> /etc/redis/redis.conf
for folder in /etc/postgresql/*/main; do
    echo "listen_addresses = '*'" > $folder/conf.d/zoo.conf
    sed -i '1i host all all 0.0.0.0/0 trust' $folder/pg_hba.conf
done
printf '[mysqld]\\nbind-address = 0.0.0.0\\n' > /etc/mysql/mariadb.conf.d/99-zoo.cnf
echo 'page of shop' > /var/www/html/zoo.txt
echo '* * * * * root logger cron has run' > /etc/cron.d/zoo
"""
FILL = """
cd /tmp
psql -qU postgres -h 127.0.0.1 -c 'create table rows (n int)'
mariadb -e "create database zoo; create table zoo.rows (n int) engine=InnoDB;
    create user zoo; grant all on zoo.* to zoo"
"""
#: A row more in each table and one more counted.
ADD = """
psql -qU postgres -h 127.0.0.1 -c 'insert into rows values (1)'
mariadb -e 'insert into zoo.rows values (1)'
redis-cli incr counter
"""
#: What somebody with all clients but that of redis gets from $1: rows, rows, counter, page, name.
ASK = """
psql -AtU postgres -h $1 -c 'select count(*) from rows'
mariadb --skip-ssl -u zoo -h $1 -Ne 'select count(*) from zoo.rows'
exec 3<>/dev/tcp/$1/6379; printf 'get counter\\r\\n' >&3; read -r length <&3; read -r number <&3
echo ${number%?}
exec 3<>/dev/tcp/$1/80; printf 'GET /zoo.txt HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3
ssh -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR root@$1 hostname
"""


def inside(machine: Machine, script: str, name: str = "shop", timeout: float = LIMIT) -> Result:
    """Run a script of bash in a subhost, to its end or its first failure."""
    command = f"overlay-go {name} bash -es -- {BRIDGE}"
    return machine.succeed(command, timeout=timeout, input=script.encode())


def boot(machine: Machine, conf: str = SHOP) -> None:
    """Start a subhost; all its services can be started."""
    machine.succeed(f"overlay-boot --wait {conf}", timeout=LIMIT)


def stop(machine: Machine, name: str = "shop") -> None:
    """Stop a subhost: all of it ends by itself."""
    assert machine.succeed(f"overlay-stop {name}", timeout=LIMIT).err == ""


def pid_1(machine: Machine) -> str:
    """shop's pid 1 on the main host: the same as long as the subhost goes on."""
    script = "readlink /run/netns/shop | cut -d / -f 3"
    return machine.succeed(script).out


def daemons(machine: Machine) -> dict[str, str]:
    """The pid in shop of each service's daemon that runs."""
    script = f"for name in {' '.join(DAEMONS)}; do echo $name $(pgrep -ox $name); done"
    lines = inside(machine, script).out.splitlines()
    return dict(line.split() for line in lines if " " in line)


def assert_dpkg_is_whole(machine: Machine) -> None:
    """No package of shop is half done."""
    checks = (
        "dpkg --audit; dpkg --configure --pending; dpkg -l | grep -v '^[ir][ic]' | grep '^[a-z]'"
    )
    assert inside(machine, f"{checks} || :").out == ""


def assert_databases_were_shut_down(machine: Machine, times: int) -> str:
    """So often, each time to the end: none had to recover what a stop had cut off. What mariadb has
    said."""
    postgres = machine.succeed(f"cat {UPPER}/var/log/postgresql/*.log").out
    states = re.findall(r"database system (was .*?)(?: at |$)", postgres, re.MULTILINE)
    assert states == ["was shut down"] * times
    mariadb = machine.succeed(f"grep -aE 'mariadbd?|mysqld' {UPPER}/var/log/syslog").out
    assert "crash recovery" not in mariadb
    assert mariadb.count("Normal shutdown") == times
    return mariadb


@pytest.fixture(scope="module")
def first(own_run: Path) -> Iterator[QemuMachine]:
    """The machine, with redis installed in shop, and its snapshot `ready`."""
    with start.up(SUITE, flavour="services", say=cli.say) as machine:
        assert isinstance(machine, QemuMachine)
        software.install(machine, package())
        machine.copy_in(ROOT / "examples/mta", "/opt/subhost/mta")
        machine.succeed(NETWORK)
        boot(machine)
        inside(machine, INSTALL)
        assert_dpkg_is_whole(machine)
        stop(machine)
        machine.snapshot("ready")
        yield machine


@pytest.fixture(scope="module")
def second(first: QemuMachine) -> QemuMachine:
    """The same, with its snapshot `running`: all services of shop, with a row in each table."""
    first.restore("ready")
    first.succeed(SCRIPT.format(UPPER))
    first.succeed(f"sed -i 's/^START=.*/START= {' '.join(SERVICES)}/' {SHOP}; > {LOG}")
    boot(first)
    boot(first, "/opt/subhost/till/till.conf")
    inside(first, FILL + ADD)
    first.snapshot("running")
    return first


@pytest.fixture
def ready(first: QemuMachine) -> QemuMachine:
    """The machine as it was when no subhost ran. No clone: a second one would only take time."""
    first.restore("ready")
    return first


@pytest.fixture
def running(second: QemuMachine) -> QemuMachine:
    """The machine as it was when shop and till ran."""
    second.restore("running")
    return second


def test_services_are_reached(running: QemuMachine) -> None:
    """Across a cable from the main host, and from another subhost over a bridge; what goes on
    inside is in shop's own log, by its own cron, too."""
    answers = ["1", "1", "1", "page of shop", "shop"]
    from_main = running.succeed(f"bash -es -- {CABLE}", timeout=LIMIT, input=ASK.encode())
    assert from_main.out.splitlines() == answers
    assert inside(running, ASK, "till").out.splitlines() == answers
    running.wait_until(f"grep 'cron has run' {UPPER}/var/log/syslog", timeout=LIMIT)
    assert running.run("grep -r 'cron has run' /var/log").out == ""


def test_five_rounds(running: QemuMachine) -> None:
    """Rows and counter are whole, no database has to recover, each service starts and stops."""
    rounds = 5
    for number in range(2, rounds + 2):
        stop(running)
        boot(running)
        inside(running, ADD)
        assert inside(running, ASK, "till").out.split()[:3] == [str(number)] * 3
    stop(running)
    mariadb = assert_databases_were_shut_down(running, rounds + 1)
    assert len(re.findall(r"Shutdown complete$", mariadb, re.MULTILINE)) == rounds + 1
    log = running.succeed(f"cat {LOG}").out
    told = re.findall(r"(start|stop) of (\S+): \d+\.\d\d s$", log, re.MULTILINE)
    starts = [("start", name) for name in SERVICES]
    assert told == (starts + [("stop", name) for name in reversed(SERVICES)]) * (rounds + 1)
    assert not FAILED.search(log)


def test_upgrade_restarts_the_daemons(running: QemuMachine) -> None:
    """Of a package that was installed inside, and of one that is disabled on the main host."""
    before, old = pid_1(running), daemons(running)
    done = inside(running, "DEBIAN_FRONTEND=noninteractive apt-get -qy upgrade")
    assert done.out.count(LATER) >= 4, done
    new = daemons(running)
    assert {name for name in DAEMONS if old[name] != new[name]} == {"nginx", "redis-server"}
    assert inside(running, ASK, "till").out.split("\n")[2:4] == ["1", "page of shop"]
    assert_dpkg_is_whole(running)
    assert pid_1(running) == before


def test_restarts(running: QemuMachine) -> None:
    """By service(8), and as the maintainer scripts of a package do it that stop before an upgrade."""
    before, old = pid_1(running), daemons(running)
    for name in SERVICES[1:]:
        inside(running, f"service {name} restart")
    new = daemons(running)
    assert [name for name in DAEMONS if old[name] == new[name]] == []
    for name in SERVICES[1:]:
        inside(running, f"invoke-rc.d {name} stop; invoke-rc.d {name} start")
    newest = daemons(running)
    assert [name for name in DAEMONS if newest[name] == new[name]] == []
    assert inside(running, ASK, "till").out.split("\n")[:3] == ["1"] * 3
    assert pid_1(running) == before


def test_crashes(running: QemuMachine) -> None:
    """All daemons are killed at once: the subhost goes on with the administrator's shell alone, from
    which they are started again."""
    before, old = pid_1(running), daemons(running)
    killed = "|".join([*DAEMONS, "mariadbd-safe", "mysqld_safe", "logger", "postgres"])
    inside(
        running,
        f"""
        while pkill -9 -x '{killed}'; do :; done
        for name in {" ".join(SERVICES[1:])}; do service $name start; done
        redis-cli incr counter  # which it had not written to the disk
        """,
    )
    new = daemons(running)
    assert [name for name in DAEMONS if old[name] == new[name]] == []
    assert pid_1(running) == before
    assert inside(running, ASK, "till").out.split("\n")[:2] == ["1"] * 2


def test_under_systemd(ready: QemuMachine) -> None:
    """The same services as units of a systemd of shop's own: reached, whole after each stop, started
    again after a crash as their units say, and after an upgrade."""
    rounds = 2
    conf = f"START= {' '.join(SERVICES)}\\nINIT= overlay-init-systemd"
    ready.succeed(f"sed -i 's/^START=.*/{conf}/' {SHOP}; > {LOG}")
    boot(ready)
    boot(ready, "/opt/subhost/till/till.conf")
    inside(ready, FILL + ADD)
    for number in range(2, rounds + 2):
        stop(ready)
        boot(ready)
        inside(ready, ADD)
        answers = inside(ready, ASK, "till").out.splitlines()
        assert answers == [str(number)] * 3 + ["page of shop", "shop"]
    before, old = pid_1(ready), daemons(ready)
    assert sorted(old) == sorted(DAEMONS)
    inside(ready, "pkill -9 -x redis-server; until redis-cli ping; do sleep 1; done")
    done = inside(ready, "DEBIAN_FRONTEND=noninteractive apt-get -qy upgrade")
    assert done.out.count(LATER) >= 4, done
    new = daemons(ready)
    assert {name for name in DAEMONS if old[name] != new[name]} == {"nginx", "redis-server"}
    assert inside(ready, ASK, "till").out.split("\n")[3] == "page of shop"
    assert_dpkg_is_whole(ready)
    assert inside(ready, "systemctl --failed --no-legend").out == ""
    assert pid_1(ready) == before
    stop(ready)
    assert_databases_were_shut_down(ready, rounds + 1)  # rsyslogd may have ended before mariadbd
    log = ready.succeed(f"cat {LOG}").out
    assert not FAILED.search(log)
    assert set(re.findall(r"start of (\S+): ", log)) == set(SERVICES)


def test_removal_of_the_last_service(ready: QemuMachine) -> None:
    """By apt from the main host: it goes to its end and dpkg is whole. The subhost ends when nothing
    is left in it, and starts again without the service."""
    ready.succeed(f"sed -i 's/^START=.*/START= networking redis-server/' {SHOP}")
    boot(ready)
    assert list(daemons(ready)) == ["redis-server"]
    removed = inside(ready, "apt-get -qy remove redis-server; dpkg --audit; cat /proc/1/comm")
    assert removed.out.splitlines()[-1] == ".reaper"
    ready.wait_until("test ! -e /run/netns/shop", timeout=LIMIT)
    assert ready.succeed("overlay-list").err == "no subhost is running"
    begun = ready.fail(f"overlay-boot --wait {SHOP}", timeout=LIMIT)
    told = "shop is running, but these services could not be started: redis-server"
    assert "redis-server in the subhost is not an executable file, as" in begun.err
    assert told in begun.err, begun
    assert daemons(ready) == {}
    assert_dpkg_is_whole(ready)
    stop(ready)


def test_service_with_nothing_but_a_unit(ready: QemuMachine) -> None:
    """As Debian's rsyslog is: --check and the boot name it, and the others are started."""
    ready.succeed(f"sed -i 's/^START=.*/START= rsyslog networking ssh/' {SHOP}")
    told = "rsyslog has only a systemd unit"
    assert told in ready.succeed(f"overlay-boot --check {SHOP} 2>&1").out
    begun = ready.fail(f"overlay-boot --wait {SHOP}", timeout=LIMIT)
    assert told in begun.err and "rsyslog" in begun.err.splitlines()[-1]
    assert list(daemons(ready)) == ["sshd"]
    stop(ready)


SEND = r"""
import smtplib
with smtplib.SMTP("192.0.2.2", timeout=300) as server:
    server.sendmail("root@mainhost", "anna@mta.example.org", "Subject: hello\r\n\r\nfrom the zoo\r\n")
"""
READ = """
import imaplib
with imaplib.IMAP4("192.0.2.2", timeout=300) as server:
    server.starttls()
    server.login("anna", "secret")
    print(server.select()[1][0].decode(), server.fetch("1", "(BODY[TEXT])")[1][0][1].decode())
"""


def test_mail(ready: QemuMachine) -> None:
    """The page's example mta, as its README tells: mail is taken by SMTP and read by IMAP, and is
    still there after the next boot."""
    conf = "/opt/subhost/mta/mta.conf"
    ready.succeed(SCRIPT.format("/opt/subhost/mta/root"))
    ready.succeed("mkdir -p /opt/subhost/mta/work /opt/subhost/mta/live")
    ready.succeed("echo 'source /opt/subhost/mta/interfaces' >> /etc/network/interfaces")
    boot(ready, conf)
    names = "myhostname=mta.example.org mydestination=mta.example.org inet_protocols=ipv4"
    inside(ready, f"postconf -e {names}; service postfix restart", "mta")
    inside(ready, "useradd -m anna; echo anna:secret | chpasswd", "mta")
    ready.succeed("python3 -", timeout=LIMIT, input=SEND.encode())
    ready.wait_until("test -s /opt/subhost/mta/root/var/mail/anna", timeout=LIMIT)
    for _ in range(2):
        got = ready.succeed("python3 -", timeout=LIMIT, input=READ.encode())
        assert got.out.split() == ["1", "from", "the", "zoo"]
        stop(ready, "mta")
        boot(ready, conf)
