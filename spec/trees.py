"""Roots with every kind of file at every path that a command could make, mount on, read or execute.

What a command does with them is looked at from outside: whether it comes to an end and says why, and
whether anything outside of the root is other than before.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import product

from spec.subhost import TINY, Subhost

FOLDERS = (
    "dev dev/pts dev/shm proc sys run run/lock etc etc/network etc/init.d root srv srv/shared"
)
FOLDERS += " tmp usr usr/sbin bin opt opt/subhost"
FILES = ".reaper dev/null dev/pts/ptmx run/overlay-start run/dummy_service etc/network/interfaces"
FILES += (
    " etc/.interfaces.new etc/hostname etc/hosts etc/.hosts.new etc/resolv.conf etc/init.d/one"
)
FILES += " srv/file usr/sbin/invoke-rc.d usr/sbin/policy-rc.d usr/sbin/service bin/sh bin/bash"
PLACES = [*FOLDERS.split(), *FILES.split()]
KINDS = {
    "pipe": "mkfifo {0}",
    "device": "mknod {0} c 1 5",
    "disk": "mknod {0} b 240 7",
    "socket": "cp -a socket {0}",
    "folder": "mkdir -p {0}/deep",
    "file": "echo text > {0}",
    "huge": "truncate -s 6G {0}",
    "locked": "mkdir {0} && chmod 0 {0}",
    "fixed": "echo text > {0} && chattr +i {0}",
    "nowhere": "ln -s /nowhere/at/all {0}",
    "loop": "ln -s {1} {0}",
    "out": "ln -s $PWD/victim/dir {0}",
    "out to a program": "ln -s $PWD/victim/program {0}",
    "up": "ln -s ../../../../../../../..$PWD/victim/new {0}",
}
"""How each kind of file is made at the path {0}, whose last part is {1}."""
LAYERS = {
    "upper": ("root", f"LOWER= {TINY}"),
    "lower": ("base", "LOWER= base"),
    "plain": ("base", "LOWER= base\nUPPER= base\nLIVE= base"),
    "own hooks": (
        "root",
        f"LOWER= {TINY}\nPOSTMOUNT= /bin/true\nPREMOUNT= /bin/true\nINIT= ./init",
    ),
}
"""Where the file is, and the configuration."""
ALL = list(product(KINDS, PLACES, LAYERS))

MAKE = r"""
cd {folder}
mkdir -p given victim/dir/network && echo theirs > victim/file && echo given > given/file && touch given/late
printf '#!/bin/sh\necho "sleep 999"\n' > init
printf '#!/bin/sh\ntouch {folder}/victim/ran\nexec /bin/sh "$@"\n' > victim/program
chmod 755 init victim/program
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
"""
# Status 2 where the kind cannot be made here; else a line for all that is wrong.
TRY = r"""
cd {folder}
(ulimit -v 3000000; ulimit -f 1000000; chattr -i -R root base; rm -rf root work live base) 2> /dev/null
mkdir root work live && cat > {name}.conf && case {layer} in base) cp -a {tiny} base ;; esac || exit 3
at={layer}/{place}
mkdir -p "$(dirname $at)" && rm -rf $at && {make} 2> /dev/null || exit 2
seen() {{
    find victim -printf '%p %y %m %U %G %n %s %T@ %C@ %l\n'; cat victim/file
    sed 's/^[0-9]* [0-9]* //' /proc/self/mountinfo | sort
}}
files() {{ find root work base -mindepth 1 -printf '%p %y %m %s %l\n' 2> /dev/null | sort; }}
limited() {{
    (ulimit -v 3000000; ulimit -f 1000000; exec timeout -k 5 {seconds} "$@") < /dev/null 2> err > out
    status=$?
    ! grep -q Traceback err || echo "$1: a traceback: $(tail -n 1 err)"
    ! grep -qiE 'memory|file too large' err || echo "$1: it reads too much: $(tail -n 1 err)"
    case $status in 124|137) echo "$1: no end within {seconds} s" ;; esac
}}
before=$(seen) had=$(files)
{swap}
limited overlay-boot {name}.conf
booted=$status
{boots}
if [ $booted = 0 ]; then
    [ "$(seen)" = "$before" ] || echo "the boot changed something outside"
    limited overlay-go {name} true
    limited overlay-share $PWD/given/late {name}
    limited overlay-stop --timeout 2 {name}
    case $status in [013]) ;; *) echo "stop: status $status: $(cat err)" ;; esac
else
    [ $(grep -vc warning err) = 1 ] || echo "boot: status $booted, and not one line: $(cat err)"
    [ "{swapped}" ] || [ "$(files)" = "$had" ] || echo "a boot that failed left something"
fi
{end}
for left in /run/netns/{name} /run/overlay-boot/{name}; do
    [ ! -L $left ] && [ ! -e $left ] || echo "$left is left"
done
[ "$(seen)" = "$before" ] || echo "something outside is other than before"
"""
# Two files change their places all the time: renameat2(2) with RENAME_EXCHANGE.
SWAP = r"""
ln -s $PWD/victim/{victim} swapped
python3 -c '
import ctypes, os, sys
c = ctypes.CDLL(None)
one, other = (os.fsencode(each) for each in sys.argv[1:])
while os.path.lexists("swapped"):
    for _ in range(100):
        if c.renameat2(-100, one, -100, other, 2):
            sys.exit("they cannot change places")
    open("swapping", "w")
' $PWD/$at $PWD/swapped < /dev/null &
swapper=$!
while kill -0 $swapper && [ ! -e swapping ]; do sleep 0.01; done
""".strip()
END = """kill $swapper || echo "they did not change places all the time"
wait $swapper; rm -rf swapped swapping"""


class NotHere(Exception):
    """The target's file system has no such kind of file, or not at that place."""


def prepare(subhost: Subhost) -> None:
    """What all of them are beside: files outside of any root, and what is shared."""
    subhost.prepare_host(MAKE.format(folder=subhost.folder))


def wrong(
    subhost: Subhost,
    kind: str,
    place: str,
    layer: str,
    *,
    swapped: str = "",
    boots: bool = False,
) -> Iterator[str]:
    """What goes wrong with one kind of file at one place of a layer; where a name of what is outside
    is given as swapped, the file changes places with a link to that all the time. With boots, a boot
    that fails is wrong. Raises NotHere."""
    folder, text = LAYERS[layer]
    at = f"{folder}/{place}"
    make = KINDS[kind].format(at, place.rpartition("/")[2])
    given = f"{subhost.folder}/given"
    shares = f"SHARE= {given}:/srv/shared\nSHARE= {given}/file:/srv/file\n"
    script = TRY.format(
        folder=subhost.folder,
        name=subhost.name,
        tiny=TINY,
        layer=folder,
        place=shlex.quote(place),
        make=make,
        seconds=round(30 * subhost.target.patience),
        boots="[ $booted = 0 ] || " + 'echo "it does not boot: $(cat err)"' if boots else "",
        swap=SWAP.format(victim=swapped) if swapped else "",
        swapped=swapped,
        end=END if swapped else "",
    )
    conf = f"{text}\nBASE= .\nLOG= log\nSTART= one\n{shares}"
    done = subhost.target.run(script, timeout=200, input=conf)
    if done.status == 2 and not done.out:
        raise NotHere(f"{kind} at {place} in {layer}")
    if done.status and not done.out:
        yield f"{kind} at {place} in {layer}: {done}"
    for line in done.out.splitlines():
        yield f"{kind} at {place} in {layer}: {line}"


def clear(subhost: Subhost) -> None:
    """Make the folder such that it can be removed."""
    subhost.target.run(f"chattr -i -R {subhost.folder}")
