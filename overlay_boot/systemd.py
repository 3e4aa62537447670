"""overlay-init-systemd: the commands that make the subhost's own systemd pid 1, with START's units
and no others (overlay-boot(8), systemd as pid 1).

All of it is in /run, and goes with the subhost. What a folder of system.control has counts before what
/etc has of the same name, and masks it where it is empty (systemd.unit(5)).
"""

from __future__ import annotations

import os

USAGE = """\
Usage: overlay-init-systemd
An INIT for overlay-boot(8), by which the subhost's systemd is pid 1."""
SUFFIXES = (
    *(".automount", ".mount", ".path", ".scope", ".service", ".slice", ".socket"),
    *(".swap", ".target", ".timer"),
)
# What these ask for is enabled on the main host, or belongs to the start of a machine of its own: only
# what START names is for a subhost.
TARGETS = """
    sysinit local-fs local-fs-pre remote-fs remote-fs-pre swap basic sockets timers paths slices
    network network-pre network-online nss-lookup nss-user-lookup time-set time-sync rpcbind
    cryptsetup remote-cryptsetup integritysetup veritysetup getty machines multi-user graphical
"""
KEPT = """
    dev-mqueue.mount systemd-journal-flush.service systemd-journald.service
    systemd-tmpfiles-setup.service systemd-update-utmp.service
"""
# Whatever asks for them: kernel, devices and consoles are the main host's to look after.
MASKED = """
    apparmor.service getty@.service ifupdown-pre.service kmod-static-nodes.service
    serial-getty@.service systemd-binfmt.service systemd-modules-load.service
    systemd-networkd.service systemd-networkd.socket systemd-remount-fs.service
    systemd-resolved.service systemd-sysctl.service systemd-timesyncd.service
    systemd-udev-settle.service systemd-udev-trigger.service systemd-udevd-control.socket
    systemd-udevd-kernel.socket systemd-udevd-varlink.socket systemd-udevd.service
"""

SCRIPT = r"""# Of overlay-init-systemd
set -eu
systemd=/lib/systemd/systemd
if [ ! -x $systemd ]; then
    echo "overlay-init-systemd: the subhost has no $systemd: install systemd" >&2
    exit 1
fi
mountpoint -q /run || mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mkdir -p /run/overlay-init
{identity}
# LOG is open to these two only, which end when all has been told.
mkfifo /run/overlay-init/log
{{ cat /run/overlay-init/log; rm -r /run/overlay-init; }} &
cat > /run/overlay-init/report << 'END'
{report}END

control=/run/systemd/system.control
mkdir -p /run/systemd/system-generators $control
for generator in /lib/systemd/system-generators/systemd-*; do
    case $generator in *-sysv-generator) continue ;; esac
    ln -sf /dev/null "/run/systemd/system-generators/${{generator##*/}}"
done
for unit in {masked}; do
    : > $control/$unit
done
folders=
for target in {targets}; do
    folders="$folders $target.target.wants $target.target.requires"
done
cd $control
mkdir -p $folders
for folder in $folders; do
    for asked in /etc/systemd/system/$folder/* /usr/local/lib/systemd/system/$folder/* \
        /lib/systemd/system/$folder/*; do
        [ -L "$asked" ] || [ -e "$asked" ] || continue
        case " {kept} " in
        *" ${{asked##*/}} "*) ;;
        *) : > "$folder/${{asked##*/}}" ;;
        esac
    done
done
cd /
{units}
for name in {names}; do
    [ -x /etc/init.d/$name ] || continue
    for folder in /etc /usr/local/lib /lib; do
        [ ! -e $folder/systemd/system/$name.service ] || continue 2
    done
    cat > /run/systemd/system/$name.service << END
{initd}END
done
ln -sf /run/systemd/system/overlay-subhost.target $control/default.target
# The messages to it would be on the main host's.
[ ! -e /dev/console ] || mount --bind /dev/null /dev/console
export container=overlay-boot
exec unshare --cgroup /bin/sh -c '
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup && exec "$@"
' sh $systemd --unit=overlay-subhost.target systemd.hostname={name}
"""
IDENTITY = "tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id"

TARGET = """\
[Unit]
Description=The services of the subhost
Documentation=man:overlay-boot(8)
AllowIsolate=yes
Wants={units}
"""
# Behind all that START names, whatever has become of it.
REPORTER = """\
[Unit]
Description=Tell overlay-boot what has been started
Documentation=man:overlay-boot(8)
After={units}
[Service]
Type=oneshot
ExecStart=/bin/sh /run/overlay-init/report
"""
# What systemd-sysv-generator(8) made of a script of /etc/init.d, as long as there was one.
START_STOP = """\
[Unit]
Description={path}
Documentation=man:overlay-boot(8)
After={before}
[Service]
Type=forking
RemainAfterExit=yes
GuessMainPID=no
KillMode=process
IgnoreSIGPIPE=no
TimeoutSec=5min
ExecStart={program} start
ExecStop={program} stop
"""
ANY_PATH = """/bin/sh -c 'exec "$$0" "$$1"' """  # systemd itself refuses some
REPORT = r"""exec 1<> /run/overlay-init/log
unknown() {{
    LoadState='' ActiveState='' Result=success ConditionResult='' ConditionTimestampMonotonic=0
    InactiveExitTimestampMonotonic=0 ActiveEnterTimestampMonotonic=0 InactiveEnterTimestampMonotonic=0
}}
tell() {{
    begun=$InactiveExitTimestampMonotonic ended=$ActiveEnterTimestampMonotonic why=
    [ "$ended" -ge "$begun" ] || ended=$InactiveEnterTimestampMonotonic
    [ "$ended" -ge "$begun" ] || ended=$begun
    if [ "$LoadState" != loaded ]; then
        why="its unit is ${{LoadState:-not known}}"
    elif [ "$Result" != success ]; then
        why=$Result
    elif [ "$ActiveState" = inactive ] && [ "$begun" = 0 ]; then
        why="what it requires has failed"
        if [ "$ConditionTimestampMonotonic" != 0 ] && [ "$ConditionResult" = no ]; then
            why="a condition of its unit is not met"
        fi
    fi
    took=$(((ended - begun) / 10000))
    [ ! "$why" ] || why=" failed: $why, after"
    printf 'overlay-boot: start of %s%s %d.%02d s\n' "$1" "${{why:-:}}" $((took / 100)) $((took % 100))
}}
set -- {words}
unknown
{{ systemctl show -p LoadState,ActiveState,Result,ConditionResult,ConditionTimestampMonotonic \
    -p InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,InactiveEnterTimestampMonotonic \
    -- {units}
    echo
}} | while IFS='=' read -r name value; do
    case $name in
    [A-Z]*) eval "$name=\$value" ;;
    *) tell "$1"; shift; unknown ;;
    esac
done
"""


def run(arguments: list[str]) -> int:
    """Be INIT: print the commands."""
    from overlay_boot import OverlayBootError, cgroup
    from overlay_boot.cli import UsageError, out
    from overlay_boot.subhost import VARIABLES

    if arguments:
        raise UsageError("expected no argument")
    try:
        name, words, upper = (os.environ[name] for name in ("NAME", "START", "UPPER"))
    except KeyError as error:
        raise OverlayBootError(
            f"{error.args[0]} is not set: only overlay-boot runs this"
        ) from None
    if problem := cgroup.problem():
        raise OverlayBootError(problem)
    out(init(name, VARIABLES["START"].parse(words, {}), upper).rstrip("\n"))
    return 0


def unit_of(word: str, number: int = 0) -> str:
    """The unit that a word of START stands for; where it is the path of a start/stop script, one of
    ours, by its number among the words."""
    if word.startswith("/"):
        return f"overlay-start-{number}.service"
    return word if word.endswith(SUFFIXES) else f"{word}.service"


def init(name: str, start: list[str], upper: str) -> str:
    """The commands of pid 1, for any POSIX shell. An UPPER without machine-id(5), and so with
    LOWER's, gets one: the subhost's journal would be the main host's otherwise."""
    units = [unit_of(word, number) for number, word in enumerate(start)]
    reporter = "overlay-report.service"
    files = {
        "overlay-subhost.target": TARGET.format(
            units=_plain(" ".join([*units, reporter, "systemd-user-sessions.service"]))
        ),
        reporter: REPORTER.format(units=_plain(" ".join(units))),
    }
    for number, path in enumerate(start):
        if path.startswith("/"):
            before = _plain(" ".join(units[:number]))
            quoted = _plain(path).replace("\\", r"\\").replace('"', r"\"").replace("$", "$$")
            files[units[number]] = START_STOP.format(
                path=_plain(path), program=f'{ANY_PATH}"{quoted}"', before=before
            )
    folder = "/run/systemd/system"
    written = [f"cat > {folder}/{file} << 'END'\n{text}END" for file, text in files.items()]
    report = REPORT.format(
        words=" ".join(map(_quoted, start)), units=" ".join(map(_quoted, units))
    )
    named = "/etc/init.d/$name"
    return SCRIPT.format(
        names=" ".join(filter(_may_be_a_script, start)),
        initd=START_STOP.format(path=named, program=named, before="network.target"),
        identity="" if os.path.lexists(f"{upper}/etc/machine-id") else IDENTITY,
        report=report if start else "exec 1<> /run/overlay-init/log\n",
        masked=" ".join(unit for unit in MASKED.split() if unit not in units),
        targets=" ".join(target for target in TARGETS.split() if f"{target}.target" not in units),
        kept=" ".join(KEPT.split()),
        units="\n".join([f"mkdir -p {folder}", *written]),
        name=_quoted(name),
    )


def _may_be_a_script(word: str) -> bool:
    """Whether a word of START may be that of a script in /etc/init.d."""
    known = all(character.isalnum() or character in "-_.+" for character in word)
    return known and not word.endswith(SUFFIXES)


def _plain(text: str) -> str:
    """Text in a unit file that has no specifier in it (systemd.unit(5))."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word for the shell."""
    return "'" + word.replace("'", "'\\''") + "'"
