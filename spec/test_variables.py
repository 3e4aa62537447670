"""The variables that say what a subhost is called, where it lies, and where it logs."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import TINY, Subhost


@clause("name", "name-length", "netns-name", "files-netns")
def test_a_name_of_twelve_characters_names_the_subhost(subhost: Subhost) -> None:
    """NAME names the network namespace, for ip netns and as a file, while the subhost runs."""
    subhost.name = f"Twelve_{subhost.name[-5:]:>05}"
    subhost.write(f"NAME= {subhost.name}")
    subhost.named.append(subhost.name)
    subhost.start()
    assert subhost.up()
    inside = subhost.on_host(f"ip netns exec {subhost.name} readlink /proc/self/ns/net").out
    assert inside == subhost.target.run(f"readlink /proc/{subhost.pid1()}/ns/net").out
    assert subhost.name in subhost.on_host("ip netns list").out.split()


@clause("name-default")
def test_the_name_is_the_files_by_default(subhost: Subhost) -> None:
    """Without NAME the subhost's name is the configuration file's without .conf."""
    subhost.boot()
    assert subhost.host.file(f"/run/netns/{subhost.name}").exists


def start_and_list(subhost: Subhost, text: str, live: str, upper: str) -> str:
    """What is in the bin of the folder `live` when it is mounted, seen from POSTMOUNT, which
    writes it there; it lands in the folder `upper`."""
    hook = f"cd {subhost.folder}/{live} && ls bin > part && mv part seen"
    subhost.put("hook", f"#!/bin/sh\n{hook}\n")
    subhost.start(f"{text}\nPOSTMOUNT= {subhost.folder}/hook")
    assert subhost.wait(f"[ -e {subhost.folder}/{upper}/seen ]", 20)
    return subhost.target.read(f"{subhost.folder}/{upper}/seen")


@clause("upper", "live", "work")
def test_folders_of_ones_own(subhost: Subhost) -> None:
    """UPPER is written to, the kernel works in WORK, and the root is mounted on LIVE."""
    subhost.on_host(f"cd {subhost.folder} && mv root up && mv work wk && mv live lv")
    folder = subhost.folder
    text = f"UPPER= {folder}/up\nWORK= {folder}/wk\nLIVE= {folder}/lv"
    assert start_and_list(subhost, text, "lv", "up") == subhost.target.run(f"ls {TINY}/bin").out
    assert subhost.host.file(f"{folder}/wk/work").exists


@clause("base-layout", "live-default", "upper-default", "work-default")
def test_the_typical_layout_needs_no_paths(subhost: Subhost) -> None:
    """The folders root, work and live beside the file are UPPER, WORK and LIVE by default."""
    assert start_and_list(subhost, "", "live", "root") == subhost.target.run(f"ls {TINY}/bin").out
    assert subhost.host.file(f"{subhost.folder}/work/work").exists


@clause("log", "log-output")
def test_log_is_the_log(subhost: Subhost) -> None:
    """What the commands of INIT print is in the file that LOG names, also when they print it later,
    while the subhost runs."""
    later = "{ read line < /late; echo spoken later; } &"
    subhost.prepare_host(f"mkfifo {subhost.folder}/root/late")
    subhost.put("init", f"#!/bin/sh\necho 'echo spoken in the subhost; {later} exec /.reaper'\n")
    subhost.start(f"INIT= {subhost.folder}/init")
    assert subhost.wait(f"grep -q '^spoken in the subhost' {subhost.log}", 20)
    assert subhost.up()
    subhost.inside("echo > /late")
    assert subhost.wait(f"grep -q '^spoken later' {subhost.log}", 20)


@clause("log-default")
def test_the_default_log(subhost: Subhost) -> None:
    """Without LOG the log is /tmp/overlay-NAME.log."""
    subhost.boot(omit=("LOG",))
    assert subhost.host.file(f"/tmp/overlay-{subhost.name}.log").exists


@clause("log-default-1-6")
def test_the_default_log_of_1_6(subhost: Subhost) -> None:
    """In Debian's version 1.6 the log is /tmp/oly-NAME.log without LOG."""
    subhost.boot(omit=("LOG",))
    assert subhost.host.file(f"/tmp/oly-{subhost.name}.log").exists


@clause("log-append", "log-mode")
def test_the_log_is_appended_to_with_its_mode(subhost: Subhost) -> None:
    """An older log's lines stay, and only the file's owner and group can read it."""
    subhost.boot()
    subhost.stop()
    older = subhost.target.read(subhost.log)
    subhost.boot()
    log = subhost.target.read(subhost.log)
    assert older and log.startswith(older) and len(log) > len(older)
    assert subhost.host.file(subhost.log).mode == 0o640


@clause("log-mode-kept")
def test_the_mode_of_an_older_log_stays(subhost: Subhost) -> None:
    """The mode that an administrator has given an existing log holds through a boot and a
    stop."""
    subhost.on_host(f"touch {subhost.log}; chmod 604 {subhost.log}")
    subhost.boot()
    subhost.stop()
    assert subhost.target.read(subhost.log)
    assert subhost.host.file(subhost.log).mode == 0o604


@clause("log-rotate")
def test_a_log_that_is_truncated_begins_anew(subhost: Subhost) -> None:
    """After logrotate's copytruncate the subhost, a service that was there before and overlay-stop
    write on from the start of the file, without holes, and nothing of it is in the copy."""
    start = "mkfifo /say; while :; do read word < /say && echo said $word; done &"
    subhost.put("root/etc/init.d/talk", f"#!/bin/sh\n[ $1 = stop ] || {{ {start}\n}}\n")
    subhost.boot("START= talk")
    log = subhost.log
    subhost.inside("echo one > /say")
    assert subhost.wait(f"grep -q 'said one' {log}")
    subhost.on_host(f"cp {log} {log}.1 && truncate -s 0 {log}")
    subhost.inside("echo two > /say")
    assert subhost.wait(f"grep -q 'said two' {log}")
    subhost.stop()
    old, new = (subhost.target.read(file) for file in (f"{log}.1", log))
    assert "said one" in old and "said two" not in old, old
    assert "said two" in new and "said one" not in new and "\0" not in new, new
    assert "stop of talk" in new and "the subhost has ended" in new, new


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param("ln -s elsewhere {}", "symbolic link", marks=clause("log-symlink")),
        pytest.param("touch {0}.b; ln -s {0}.b {0}", "symbolic", marks=clause("log-symlink")),
        pytest.param("touch {0}; chown 4321 {0}", "4321", marks=clause("log-owner")),
        pytest.param("touch {0}; ln {0} {0}.too", "another name", marks=clause("log-hardlink")),
    ],
)
def test_a_log_that_is_not_ours_is_an_error(subhost: Subhost, make: str, said: str) -> None:
    """A log that is a link or another user's is refused, and not written to."""
    subhost.on_host(make.format(subhost.log))
    done = subhost.start("")
    one_line(done, 1, said)
    assert not subhost.pid1(), done
    assert subhost.target.read(subhost.log) == ""
