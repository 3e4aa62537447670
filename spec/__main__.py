"""python -m spec: list the clauses, run their tests, report what came of it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from spec import results
from spec.clauses import FOLDER, PAGES, PageError, clauses, in_force
from spec.expectations import known
from spec.installed import page_of
from spec.options import OPTIONS, add_options, number, words

VERDICT = ("expectations", "allow-preconditions")


def _list(options: argparse.Namespace) -> int:
    from spec.catalogue import collect

    tests = collect()
    found = in_force(options.page) if options.page else clauses()
    rows = [{**asdict(clause), "tests": tests.of(clause.id)} for clause in found.values()]
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    place = ""
    for row, clause in zip(rows, found.values(), strict=True):
        if clause.place != place:
            place = clause.place
            print(f"\n{place}")
        print(f"  {clause.id} ({clause.level}, {clause.since}): {clause.sentence}")
        why = f"not tested: {clause.untested}" if clause.untested else "no test"
        for line in row["tests"] or [why]:
            print(f"      {line}")
    return 0


def _where(options: argparse.Namespace) -> int:
    from spec.catalogue import collect
    from spec.where import where

    print("\n".join(where(options.clause, collect())))
    return 0


def _check(options: argparse.Namespace) -> int:
    from spec.catalogue import check

    lines = check(options.reference)
    for line in lines:
        print(line, file=sys.stderr)
    if not lines:
        print(f"{len(clauses())} clauses, each with its tests; the reference page is covered")
    return 1 if lines else 0


def _coverage(options: argparse.Namespace) -> int:
    from spec.reference import table

    if not options.reference:
        raise PageError("coverage: the reference page is needed: --reference FILE")
    print(table(options.reference.read_text(encoding="utf-8")), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    from spec import files

    what = options.deb or options.implementation
    options.page = options.page or page_of(what)
    reporter = []
    if options.reports:
        part = bool(options.keyword or options.rest or options.shard)
        stem = files.stem(options.target, what, part=part)
        options.results = files.folder(options.reports).absolute() / f"{stem}.json"
        files.take_turn(options.results)
        reporter = ["-p", "spec.reporter"]
    # -P: not another suite that is in the current folder.
    command = [sys.executable, "-P", "-m", "pytest", str(FOLDER), *words(options), *reporter]
    command += ["-c", str(FOLDER / "spec.ini"), f"--rootdir={FOLDER.parent}"]
    command += ["-p", "no:cacheprovider"]  # its folder may be root's
    command += ["-k", options.keyword] if options.keyword else []
    at_once = files.workers(options.number, options.target)
    command += ["-n", str(at_once)] if at_once > 1 else []
    sys.stdout.flush()
    path = f"{FOLDER.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    environment = {"PYTHONPATH": path, "PYTHONUTF8": "1"}  # whatever the locale has no signs for
    os.execve(sys.executable, command + options.rest, os.environ | environment)


def _report(options: argparse.Namespace) -> int:
    from spec import report

    runs = [results.load(path) for path in options.results]
    if len(runs) > 1 and (options.junit or options.tap):
        raise results.ResultsError("--junit and --tap take one results file")
    if options.html:
        from spec.report_html import html

        options.html.write_text(html(runs), encoding="utf-8")
    if options.junit:
        options.junit.write_text(report.junit(runs[0]), encoding="utf-8")
    if options.tap:
        options.tap.write_text(report.tap(runs[0]), encoding="utf-8")
    if not (options.html or options.junit or options.tap):
        for run in runs:
            print("\n".join(report.summary(run)))
    return 0


def _judge(options: argparse.Namespace) -> int:
    from spec.report import summary

    status = 0
    for path in options.results:
        run = results.load(path)
        run = results.judge_anew(run, known(run["implementation"], options.expectations))
        results.save(run, path)
        bad = results.trouble(run, allow_preconditions=options.allow_preconditions)
        passes = [f"unexpected pass: {name}" for name in results.surprises(run)]
        print("\n".join([*summary(run), *bad, *passes]))
        status |= bool(bad)
    return status


def _compare(options: argparse.Namespace) -> int:
    from spec.report import compare

    before, after = (results.load(path) for path in (options.before, options.after))
    rows = compare(before, after)
    for word, line in rows:
        print(f"{word:8}{line}")
    neither = [
        new["id"]
        for old, new in zip(
            results.align(before).values(), results.align(after).values(), strict=True
        )
        if old["verdict"] == new["verdict"] == "untested" and not new["untested"]
    ]
    if neither:
        print(f"{len(neither)} clauses were tested in neither: run the spec with --all for them")
    if not rows:
        print("nothing differs")
    return 1 if {word for word, _ in rows} - {"better"} else 0


def _merge(options: argparse.Namespace) -> int:
    from spec.report import summary
    from spec.shards import durations, merge

    run = merge([results.load(path) for path in options.results], options.expectations)
    results.save(run, options.into)
    if options.durations:
        options.durations.write_text(durations(run), encoding="utf-8")
    bad = results.trouble(run, allow_preconditions=options.allow_preconditions)
    print("\n".join([*summary(run), *bad]))
    return 1 if bad else 0


def _conformance(options: argparse.Namespace) -> int:
    from spec.report_markdown import conformance

    runs = [results.load(path) for path in options.results]
    for path, run in zip(options.results, runs, strict=True):
        if run["selection"]:
            raise results.ResultsError(f"{path}: not a whole run: {run['selection']}")
    print(conformance(runs), end="")
    return 0


def _add_run_options(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group()
    where = command.add_mutually_exclusive_group()
    add_options(what.add_argument, "implementation", "deb")
    add_options(where.add_argument, "results")
    where.add_argument(
        "--reports",
        metavar="DIR",
        type=Path,
        help="write results and all reports there, named after what is tested and where",
    )
    others = (name for name in OPTIONS if name not in ("implementation", "deb", "results"))
    add_options(command.add_argument, *others)
    command.add_argument("-k", dest="keyword", metavar="WORDS", help="only tests that match")
    command.add_argument(
        "-n", dest="number", metavar="N", type=number, help="as many tests at once, or auto"
    )
    command.add_argument(
        "rest", nargs="*", metavar="-- ARGUMENT", help="more arguments for pytest"
    )
    command.set_defaults(call=_run)


def _parser() -> argparse.ArgumentParser:
    name = os.environ.get("OVERLAY_BOOT_SPEC_NAME") or Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        name if name.startswith("overlay-") else "python -m spec", description=__doc__
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    reference = os.environ.get("OVERLAY_BOOT_REFERENCE")

    add = commands.add_parser("list", help="list the clauses and their tests")
    add.add_argument("--json", action="store_true", help="as an array of objects")
    add.add_argument("--page", choices=PAGES, help="only those in force in this version")
    add.set_defaults(call=_list)

    add = commands.add_parser("where", help="a clause's sentence, its tests, and the code of it")
    add.add_argument("clause", nargs="+", metavar="CLAUSE")
    add.set_defaults(call=_where)

    add = commands.add_parser("check", help="check that every clause has a test; boots nothing")
    add.set_defaults(call=_check)
    also = commands.add_parser("coverage", help="print spec/coverage, made anew")
    also.set_defaults(call=_coverage)
    for sub in (add, also):
        sub.add_argument(
            "--reference",
            metavar="FILE",
            type=Path,
            default=reference and Path(reference),
            help="the reference page 1.2 (default: $OVERLAY_BOOT_REFERENCE)",
        )

    add = commands.add_parser("run", help="run the tests; 0 only if all in force passed")
    _add_run_options(add)

    add = commands.add_parser("report", help="show results: summary, HTML, JUnit XML, TAP")
    add.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    for name in ("html", "junit", "tap"):
        add.add_argument(f"--{name}", type=Path, metavar="FILE")
    add.set_defaults(call=_report)

    add = commands.add_parser("judge", help="judge results anew, by the known failures of now")
    add.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    add_options(add.add_argument, *VERDICT)
    add.set_defaults(call=_judge)

    add = commands.add_parser(
        "compare", help="what is better or worse in B, on any page; 1 if any is not better"
    )
    add.add_argument("before", type=Path, metavar="A")
    add.add_argument("after", type=Path, metavar="B")
    add.set_defaults(call=_compare)

    add = commands.add_parser("merge", help="the results of all shards as one; judges as run does")
    add.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    add.add_argument("--into", type=Path, metavar="FILE", required=True, help="where to write it")
    add.add_argument("--durations", type=Path, metavar="FILE", help="write what each test took")
    add_options(add.add_argument, *VERDICT)
    add.set_defaults(call=_merge)

    add = commands.add_parser("conformance", help="print docs/conformance.md")
    add.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    add.set_defaults(call=_conformance)
    return parser


def main() -> int:
    """Run one command; its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack the signs of a sentence
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args()
    try:
        status: int = options.call(options)
    except BrokenPipeError:
        return 1
    except (PageError, results.ResultsError, OSError) as error:
        print(f"spec: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
