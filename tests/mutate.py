#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutation tests: changes one operator or constant of a header at a time, and sees whether the tests notice.

    tests/mutate.py include/moe/layer/branches.hpp tests/layer/composition_test.cpp tests/layer/padding_test.cpp
    tests/mutate.py --list include/moe/routing/plan.hpp          # the mutants, without running any
    tests/mutate.py --sample 40 --seed 2 HEADER TEST...          # forty of them

Works in a copy of the tracked files below --scratch, with the named test files alone, so that a mutant costs the
compilation of those. A mutant that does not compile does not count; one is killed if a static assertion or a test
fails, or a test crashes or takes ten times as long as before. The last line is "K of N killed (P%)"; the exit status is
0 if P >= --least. Some mutants change nothing that can be observed (a constant of speed, a check of an invariant): read
the survivors.
Needs what tests/run.sh needs, and git.
"""
import argparse
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# (what is looked for, what takes its place): spaces around the operators keep templates, references and pointers out.
RULES = [
    (r" == ", " != "), (r" != ", " == "),
    (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "),
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "), (r" % ", " / "),
    (r" \+= ", " -= "), (r" -= ", " += "), (r" \*= ", " /= "), (r" /= ", " *= "),
    (r" && ", " || "), (r" \|\| ", " && "),
    (r"(?<![\w.])!(?=[\w(])", ""),
    (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
    (r"(?<=[(\[{ ,=])-(?=[\w(])", ""),
    (r"(?<![\w.<])0(?![\w.])", "1"), (r"(?<![\w.<])1(?![\w.])", "2"), (r"(?<![\w.<])2(?![\w.])", "3"),
    (r"\bstd::min\b", "std::max"), (r"\bstd::max\b", "std::min"),
]
# A statement that only calls something may be left out.
CALL = re.compile(r"^\s+[a-zA-Z_][\w.:<>\[\]]*(\(|\.|->)[^=;]*\);\s*$")
SKIPPED = re.compile(r"^\s*(//|#|static_assert|template|using|namespace|fail\(|fail_environment\(|\")")
# What follows is a message or a comment; conditions before it count.
REST = re.compile(r"//|\"|\bfail(_environment)?\(")


def code_lines(text):
    """The lines that are code, with the numbers they have; comments at their ends are left alone."""
    for number, line in enumerate(text.splitlines()):
        if line.strip() and not SKIPPED.search(line):
            yield number, line


def mutants(text):
    """(line number, line, mutated line), every rule at every place."""
    found = []
    for number, line in code_lines(text):
        code = line[: REST.search(line).start()] if REST.search(line) else line
        for pattern, other in RULES:
            for match in re.finditer(pattern, code):
                found.append((number, line, line[: match.start()] + other + line[match.end() :]))
        if CALL.match(line) and code == line and "return" not in code:
            found.append((number, line, re.match(r"\s*", code).group() + ";"))
    return found


def copy_tracked(scratch, tests):
    """The tracked files, of the test files only the named ones."""
    kept = {test.resolve().relative_to(ROOT) for test in tests}
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True,
                           text=True).stdout.splitlines()
    for name in map(pathlib.Path, names):
        if name.name.endswith("_test.cpp") and name not in kept or not (ROOT / name).is_file():
            continue
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


class Build:
    """The copy, configured once; each mutant is a rebuild."""

    def __init__(self, scratch, optimisation):
        self.build = scratch / "build"
        self.run(["cmake", "-S", scratch, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                  f"-DCMAKE_CXX_FLAGS_RELEASE={optimisation}", "-DMOE_MARCH=native", "-DMOE_EXAMPLES=OFF",
                  "-DMOE_BENCH=OFF", "-DMOE_INSTALL=OFF"])
        targets = subprocess.run(["ninja", "-C", self.build, "-t", "targets", "all"], check=True, capture_output=True,
                                 text=True).stdout
        self.targets = sorted(set(re.findall(r"^(moe_test_(?!headers)\w+): phony", targets, re.M)))

    @staticmethod
    def run(command, timeout=None):
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout)
        if result.returncode != 0:
            raise RuntimeError(result.stdout + result.stderr)

    def compile(self):
        self.run(["ninja", "-C", self.build, *self.targets])

    def test(self, timeout=None):
        for target in self.targets:
            self.run([self.build / "tests" / target, "--abort"], timeout)


def outcome(build, timeout):
    try:
        build.compile()
    except RuntimeError as error:
        return "killed" if "static assertion failed" in str(error) else "does not compile"
    try:
        build.test(timeout)
    except (RuntimeError, subprocess.TimeoutExpired):
        return "killed"
    return "SURVIVED"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("header", type=pathlib.Path)
    parser.add_argument("tests", type=pathlib.Path, nargs="*")
    parser.add_argument("--list", action="store_true", help="print the mutants only")
    parser.add_argument("--sample", type=int, default=0, help="so many of the mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=90, help="percentage that has to be killed")
    parser.add_argument("--optimisation", default="-O0", help="compiler option, -O0 by default")
    parser.add_argument("--scratch", type=pathlib.Path, help="directory of the copy; a temporary one by default")
    options = parser.parse_args()

    header = options.header.resolve().relative_to(ROOT)
    original = (ROOT / header).read_text()
    chosen = mutants(original)
    if options.sample and options.sample < len(chosen):
        chosen = sorted(random.Random(options.seed).sample(chosen, options.sample))
    if options.list:
        for number, line, mutated in chosen:
            print(f"{header}:{number + 1}\n- {line.strip()}\n+ {mutated.strip()}")
        print(f"{len(chosen)} mutants")
        return 0
    missing = [test for test in options.tests if not test.is_file()]
    if missing or not options.tests:
        parser.error(f"no test file {missing[0]}" if missing else "which tests have to notice?")

    scratch = options.scratch or pathlib.Path(tempfile.mkdtemp(prefix="moe_mutate_"))
    try:
        copy_tracked(scratch, options.tests)
        build = Build(scratch, options.optimisation)
        build.compile()
        started = time.monotonic()
        build.test()
        timeout = 10 * (time.monotonic() - started) + 10
        count = {"killed": 0, "SURVIVED": 0, "does not compile": 0}
        for place, (number, line, mutated) in enumerate(chosen):
            lines = original.splitlines()
            lines[number] = mutated
            (scratch / header).write_text("\n".join(lines) + "\n")
            result = outcome(build, timeout)
            count[result] += 1
            print(f"[{place + 1}/{len(chosen)}] {header}:{number + 1} {result}", flush=True)
            if result == "SURVIVED":
                print(f"- {line.strip()}\n+ {mutated.strip()}", flush=True)
    finally:
        if not options.scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    counted = count["killed"] + count["SURVIVED"]
    share = 100 * count["killed"] / counted if counted else 100
    print(f"{header}: {count['does not compile']} did not compile, {count['killed']} of {counted} killed ({share:.0f}%)")
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
