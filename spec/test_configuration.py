"""CONFIGURATION FILE and the variables that say where things are."""

from __future__ import annotations

import shlex

import pytest

from spec.clauses import clause
from spec.errors import one_line
from spec.subhost import TINY, Subhost


@clause("boot-conf", "conf-assignment", "conf-trim")
def test_one_file_says_it_all(subhost: Subhost) -> None:
    """A text file of assignments, whose values are trimmed, is all that it takes to start a
    subhost."""
    subhost.start(f"BASE=  . \nLOWER=    {TINY}  \nSTART=none   \nLOG={subhost.log}")
    assert subhost.up()
    assert subhost.host.file(subhost.log).exists
    assert subhost.runs("dummy_service")


@clause("boot-conf-canonical", "stop-conf")
def test_the_canonical_path_works_for_boot_and_stop(subhost: Subhost) -> None:
    """overlay-boot and overlay-stop take the absolute, canonical path of the file."""
    subhost.boot()
    pid = subhost.pid1()
    subhost.on_host(f"overlay-stop {subhost.conf}")
    assert subhost.ended(pid)


@clause("boot-conf-any-path", "conf-relative-base")
@pytest.mark.parametrize(
    ("folder", "path"),
    [("{0}", "{1}.conf"), ("{0}/root", "../{1}.conf"), ("/", ".{0}/./{1}.conf")],
)
def test_any_path_works_from_any_folder(subhost: Subhost, folder: str, path: str) -> None:
    """overlay-boot and overlay-stop take any path to the file, from any folder, and a relative
    BASE starts from the file's own folder."""
    subhost.write()
    here, file = (text.format(subhost.folder, subhost.name) for text in (folder, path))
    done = subhost.on_host(f"cd {here} && overlay-boot {file} < /dev/null")
    assert done.status == 0, done
    assert subhost.up()
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"
    pid = subhost.pid1()
    done = subhost.on_host(f"cd {here} && overlay-stop {file}")
    assert done.status == 0 and subhost.ended(pid), done


@clause("base")
def test_the_other_folders_are_in_base(subhost: Subhost) -> None:
    """The folders root, work and live are those in the folder that BASE names."""
    subhost.on_host(f"cd {subhost.folder} && mkdir other && mv root work live other")
    subhost.boot(f"BASE= {subhost.folder}/other")
    subhost.inside("echo mine > /mine")
    assert subhost.target.read(f"{subhost.folder}/other/root/mine") == "mine\n"


@clause("conf-relative", "conf-relative-base")
def test_relative_paths_start_from_base(subhost: Subhost) -> None:
    """A relative BASE starts from the file's folder, every other path from BASE."""
    subhost.on_host(
        f"cd {subhost.folder} && mkdir other && mv root other/up; mv work other/wk; mv live other/lv"
    )
    subhost.put("other/init", "#!/bin/sh\necho 'sleep 99 & exec /.reaper'\n")
    subhost.fill("other/low")
    subhost.boot(
        "BASE= other\nUPPER= ./up\nWORK= wk\nLIVE= lv/\nLOWER= ../other/low\nLOG= ./said\n"
        "INIT= ./init"
    )
    subhost.inside("echo mine > /mine")
    for path in ("up/mine", "wk/work", "said"):
        assert subhost.host.file(f"{subhost.folder}/other/{path}").exists, path


@clause("conf-comments")
def test_comments_and_blank_lines_are_silent(subhost: Subhost) -> None:
    """Lines that begin with # and blank lines are ignored in silence."""
    done = subhost.start("# a comment\n\n   \n#BASE=/nowhere")
    assert done.status == 0 and done.err == "", done


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        pytest.param("LOWR= /x", "LOWER", marks=clause("conf-unknown")),
        pytest.param("something else", "", marks=clause("conf-unknown")),
        pytest.param("UPPER =/x", "UPPER", marks=clause("conf-unknown")),
        pytest.param(" UPPER= /x", "UPPER", marks=clause("conf-indented")),
    ],
)
def test_other_lines_draw_one_warning(subhost: Subhost, line: str, hint: str) -> None:
    """A line that is no assignment is ignored with one warning that names file and line."""
    done = subhost.start(line)
    one_line(done, 0, f"{subhost.conf}:5:", hint)


@clause("conf-empty")
def test_an_empty_value_stands_for_the_default(subhost: Subhost) -> None:
    """RAM_SIZE, NAME, CABLES and UPPER without a value have their defaults."""
    subhost.boot("RAM_SIZE= \nNAME=\nCABLES=  \nUPPER=")
    assert "size=51200k" in subhost.inside("grep ' /run ' /proc/mounts")


@clause("conf-first-wins")
def test_the_first_assignment_counts(subhost: Subhost) -> None:
    """Of two assignments of a variable the first counts, with a warning."""
    done = subhost.start("RAM_SIZE= 3M\nRAM_SIZE= 5M")
    assert done.status == 0 and f"{subhost.conf}:6:" in done.err, done
    assert "size=3072k" in subhost.inside("grep ' /run ' /proc/mounts")


ODD = "up,per:1 \\ $HOME 'x' \"y\" ; é"


@clause("conf-plain-values", "conf-odd-paths")
def test_paths_with_odd_characters_work(subhost: Subhost) -> None:
    """Values know no shell syntax, and paths with any characters are used as a whole, by the
    overlay too."""
    names = {key: f"{key.lower()} {ODD}" for key in ("BASE", "UPPER", "WORK", "LIVE", "LOWER")}
    base = f"{subhost.folder}/{names['BASE']}"
    for key in ("UPPER", "WORK", "LIVE"):
        subhost.put(f"{names['BASE']}/{names[key]}/.made", "")
    upper = f"{base}/{names['UPPER']}"
    shared = f"/srv/{ODD}"
    subhost.fill(f"{names['BASE']}/{names['LOWER']}")
    subhost.put(f"{names['BASE']}/{names['LOWER']}{shared}/from", "host\n")
    values = [f"{key}= {name}" for key, name in names.items()]
    subhost.boot("\n".join([*values, f"LOG= log {ODD}", f"SHARE= {shared}"]))
    subhost.inside(f"cat {shlex.quote(shared)}/from > /seen")
    seen = subhost.on_host(f"cat {shlex.quote(upper)}/seen")
    assert seen.out == "host\n", seen
    assert subhost.host.file(f"{base}/log {ODD}").exists


@clause("conf-words")
def test_commands_split_at_white_space(subhost: Subhost) -> None:
    """The words of a hook's command line are its arguments, whatever the white space."""
    subhost.put("hook", f'#!/bin/sh\necho "$#:$1:$2" > {subhost.folder}/said\n')
    subhost.boot(f"PREMOUNT= {subhost.folder}/hook  a;b\t$c ")
    assert subhost.target.read(f"{subhost.folder}/said") == "3:a;b:$c\n"


@clause("bang")
def test_a_value_can_be_the_output_of_a_command(subhost: Subhost) -> None:
    """What a command after ! prints is the value of the variable."""
    subhost.boot("RAM_SIZE=!echo 3M")
    assert "size=3072k" in subhost.inside("grep ' /run ' /proc/mounts")


@clause("bang-start")
def test_the_command_of_start_runs_on_the_main_host(subhost: Subhost) -> None:
    """The command of a START can read what only the main host has."""
    subhost.put("services", "/one\n", 0o644)
    subhost.put("root/one", "#!/bin/sh\necho $1 > /told\n")
    subhost.boot(f"START=!cat {subhost.folder}/services")
    assert subhost.target.read(f"{subhost.folder}/root/told") == "start\n"


@clause("bang-main-host")
def test_the_command_runs_on_the_main_host(subhost: Subhost) -> None:
    """A ! command runs on the main host and can read its files."""
    subhost.put("size", "3M\n", 0o644)
    subhost.boot(f"RAM_SIZE=!cat {subhost.folder}/size")
    assert "size=3072k" in subhost.inside("grep ' /run ' /proc/mounts")


@clause("bang-shell", "bang-environment", "bang-folder", "bang-first-line")
def test_how_the_command_runs(subhost: Subhost) -> None:
    """A ! command is run by the shell, in BASE, with CONFIG and ACTION set, and the first line
    of its output, trimmed, is the value."""
    subhost.boot('RAM_SIZE=! echo "$PWD $CONFIG $ACTION" > said; echo "  3M "; echo 5M')
    assert "size=3072k" in subhost.inside("grep ' /run ' /proc/mounts")
    said = subhost.target.read(f"{subhost.folder}/said").split()
    assert said == [subhost.folder, subhost.conf, "overlay-boot"]


@clause("bang-folder")
def test_the_command_for_base_runs_in_the_files_folder(subhost: Subhost) -> None:
    """The ! command of BASE runs in the folder of the configuration file."""
    subhost.boot("BASE=!pwd")
    assert subhost.inside("echo mine > /mine") == ""
    assert subhost.target.read(f"{subhost.folder}/root/mine") == "mine\n"


@clause("bang-once")
def test_the_command_runs_once_in_a_boot_and_never_again(subhost: Subhost) -> None:
    """A ! command runs once in a boot; overlay-go and overlay-stop use what the boot recorded."""
    subhost.boot("RAM_SIZE=!echo ran >> ran; echo 3M")
    subhost.inside("true")
    subhost.stop()
    assert subhost.target.read(f"{subhost.folder}/ran") == "ran\n"


@clause("bang-fails")
@pytest.mark.parametrize(("command", "status"), [("echo 3M; exit 7", "7"), ("true", "0")])
def test_a_command_without_a_value_is_an_error(
    subhost: Subhost, command: str, status: str
) -> None:
    """A command that fails or prints nothing is an error, which names the variable, the
    command and its status."""
    done = subhost.start(f"RAM_SIZE=!{command}")
    assert done.status == 2, done
    assert all(word in done.err for word in ("RAM_SIZE", command, f"status {status}"))
    assert not subhost.pid1()


@clause("error-base")
def test_base_is_required(subhost: Subhost) -> None:
    """A configuration without BASE starts nothing, though all the other paths are there."""
    folder = subhost.folder
    paths = f"UPPER= {folder}/root\nWORK= {folder}/work\nLIVE= {folder}/live"
    subhost.write(paths, omit=("BASE",))
    subhost.on_host(f"cd {folder} && overlay-boot {subhost.conf} < /dev/null", timeout=60)
    assert subhost.settled() and not subhost.pid1()
    subhost.boot(paths)


@clause("error-directories")
@pytest.mark.parametrize("variable", ["BASE", "LIVE", "UPPER", "LOWER", "WORK"])
def test_missing_directories_start_nothing(subhost: Subhost, variable: str) -> None:
    """Nothing is started where a directory of the configuration is missing."""
    subhost.refused(f"{variable}= {subhost.folder}/nowhere")


@clause("error-work-nested")
def test_work_inside_upper_starts_nothing(subhost: Subhost) -> None:
    """Nothing is started where WORK lies inside UPPER."""
    subhost.on_host(f"mkdir {subhost.folder}/root/work")
    subhost.refused(f"WORK= {subhost.folder}/root/work")


@clause("error-work-mount")
def test_work_on_another_mount_starts_nothing(subhost: Subhost) -> None:
    """Nothing is started where WORK is on another mount than UPPER."""
    subhost.prepare_host(f"mount -t tmpfs spec {subhost.folder}/work")
    subhost.refused("")


@clause("error-live")
@pytest.mark.parametrize("same", ["UPPER", "LOWER"])
def test_the_live_of_an_overlay_is_a_folder_of_its_own(subhost: Subhost, same: str) -> None:
    """Nothing is started where LIVE is UPPER or LOWER of an overlay."""
    lower = subhost.fill("lower")
    live = {"UPPER": f"{subhost.folder}/root", "LOWER": lower}[same]
    subhost.refused(f"LOWER= {lower}\nLIVE= {live}")


@clause("error-format", "error-all", "error-untouched", "status-2")
def test_all_mistakes_are_reported_before_anything_is_touched(subhost: Subhost) -> None:
    """Every mistake has a line of its own with file and line; the status is 2, and nothing was
    made."""
    before = subhost.target.run(f"ls -AR {subhost.folder}/root").out
    done = subhost.start(
        "RAM_SIZE= much\nLIVE= nowhere\nCABLES= what\nUPPER=!touch touched; echo root"
    )
    assert done.status == 2, done
    lines = done.err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{subhost.conf}:{n}" for n in (5, 6, 7)]
    assert subhost.target.run(f"ls -AR {subhost.folder}/root").out == before
    assert not subhost.host.file(f"{subhost.folder}/touched").exists
    assert subhost.gone(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("CABLES= x", "'x'", marks=clause("error-cables")),
        pytest.param("CABLES= =12:34", "MAC", marks=clause("error-cables")),
        pytest.param("CABLES= = =.x", "tag", marks=clause("error-cables")),
        pytest.param("CABLES= = =.0", "tag", marks=clause("error-cables")),
        pytest.param("CABLES= = =.4096", "tag", marks=clause("error-cables")),
        pytest.param("RAM_SIZE= 12Q", "RAM_SIZE", marks=clause("error-ram-size")),
        pytest.param("PREMOUNT= /etc/passwd", "PREMOUNT", marks=clause("error-program")),
        pytest.param("POSTMOUNT= nothing", "POSTMOUNT", marks=clause("error-program")),
        pytest.param("INIT= /nothing", "INIT", marks=clause("error-program")),
        pytest.param("NAME= far_too_long_a_name", "NAME", marks=clause("name-refused")),
        pytest.param("NAME= a b", "NAME", marks=clause("name-refused")),
        pytest.param("NAME= a/b", "NAME", marks=clause("name-refused")),
        pytest.param("NAME= ä", "NAME", marks=clause("name-refused")),
        pytest.param("NAME= -a", "NAME", marks=clause("name-refused")),
        pytest.param("NAME= .a", "NAME", marks=clause("name-refused")),
        pytest.param("CABLES= = =.4095", "reserve", marks=clause("vlan-reserved")),
        pytest.param("CABLES= =.302", "no cable", marks=clause("vlan-first")),
        pytest.param("NAME= twelve_chars\nCABLES= = =.30", "15", marks=clause("cables-long-name")),
        pytest.param("SHARE= some/where", "absolute", marks=clause("share-absolute")),
    ],
)
def test_a_mistake_is_refused_in_one_line(subhost: Subhost, text: str, said: str) -> None:
    """A mistake is reported in one line that says where and what it is, with status 2."""
    done = subhost.start(text)
    one_line(done, 2, f"{subhost.conf}:", said)


@clause("error-upper-overlay")
def test_upper_on_an_overlay_is_refused(subhost: Subhost) -> None:
    """UPPER on an overlay is refused with the reason, and nothing is mounted."""
    subhost.put("o/u/.made", "")
    subhost.put("o/w/.made", "")
    subhost.prepare_host(
        f"cd {subhost.folder} && mount -t overlay -o lowerdir={TINY},upperdir=o/u,workdir=o/w o root"
        " && mkdir root/up root/wk"
    )
    before = subhost.target.read("/proc/self/mountinfo")
    done = subhost.start("UPPER= root/up\nWORK= root/wk")
    assert done.status == 2 and "overlay itself" in done.err, done
    assert subhost.target.read("/proc/self/mountinfo") == before


@clause("error-unreadable")
@pytest.mark.parametrize("content", [r"BASE=.\n# \377\nSTART=none\n", ""], ids=["latin1", "none"])
def test_an_unreadable_file_is_refused(subhost: Subhost, content: str) -> None:
    """A file that is not there or not UTF-8 is refused in one line with status 2."""
    if content:
        subhost.prepare_host(f"printf '{content}' > {subhost.conf}")
    done = subhost.start()
    one_line(done, 2, subhost.conf)


@clause("error-writable")
def test_a_file_that_everyone_may_write_is_refused(subhost: Subhost) -> None:
    """A configuration that everyone may write is refused, since its commands run as root, and
    the message says how to mend it."""
    subhost.write()
    subhost.on_host(f"chmod 666 {subhost.conf}")
    done = subhost.start()
    one_line(done, 2, f"chmod o-w {subhost.conf}")


@clause("warn-owner")
def test_a_file_of_another_user_draws_a_warning(subhost: Subhost) -> None:
    """A configuration of another user is warned of, and used all the same."""
    subhost.write()
    subhost.on_host(f"chown 4321 {subhost.conf}")
    done = subhost.start()
    one_line(done, 0, "4321")
