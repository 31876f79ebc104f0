#!/usr/bin/env python3
"""Does a wrong scheduler fail its tests? Plants bugs in a copy of the source, one at a time.

  tests/mutation/mutate.py                      15 planted bugs, 60 drawn mutants; an hour on 2 cores
  tests/mutation/mutate.py --planted-only
  tests/mutation/mutate.py --budget-s 3600      stops by then; the next call goes on where this one stopped
  tests/mutation/mutate.py --mutants 10 --seed 2
  tests/mutation/mutate.py --result bench/results/DATE-mutation.json

Drawn mutants change one operator, constant or statement of src/sched at a place drawn by seed. One that
does not compile is drawn again. A mutant is killed when sched_property_test (of --seeds seeds) or sched_test
fails; the others must be explained in survivors.json, by id. Exit status 1 when a planted bug survives, when
fewer than 90 % of the mutants are killed, or when a survivor is not explained; 3 when the budget ended first.
What has been found is kept in WORK/state.json as long as neither the source nor the tests change.
"""
import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

from planted import PLANTED, TARGETS

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TESTS = ["sched_property_test", "sched_test"]
TEST_SECONDS = 240

# Not behaviour: checks of invariants, and what only describes.
SKIPPED = re.compile(r"HADAL_CHECK|HADAL_DEBUG|#|^\s*//|std::to_string|num_evicted_|static_assert|^\s*(namespace|using|class|struct|enum)\b")

OPERATORS = [
    ("<= to <", re.compile(r" <= "), " < "),
    ("< to <=", re.compile(r" < (?!<)"), " <= "),
    (">= to >", re.compile(r" >= "), " > "),
    ("> to >=", re.compile(r" > "), " >= "),
    ("== to !=", re.compile(r" == "), " != "),
    ("!= to ==", re.compile(r" != "), " == "),
    ("&& to ||", re.compile(r" && "), " || "),
    ("|| to &&", re.compile(r" \|\| "), " && "),
    ("+ to -", re.compile(r" \+ "), " - "),
    ("- to +", re.compile(r" - "), " + "),
    ("++ to --", re.compile(r"\+\+(?=\w)"), "--"),
    ("-- to ++", re.compile(r"--(?=\w)"), "++"),
    ("min to max", re.compile(r"std::min\b"), "std::max"),
    ("max to min", re.compile(r"std::max\b"), "std::min"),
    ("true to false", re.compile(r"\btrue\b"), "false"),
    ("false to true", re.compile(r"\bfalse\b"), "true"),
    ("0 to 1", re.compile(r"(?<![\w.'])0(?![\w.'])"), "1"),
    ("1 to 2", re.compile(r"(?<![\w.'])1(?![\w.'])"), "2"),
    ("not", re.compile(r"(?<=if \()(?=[^;]*\)( \{)?$)"), "!"),
    ("delete statement", re.compile(r"^\s+(?!return|const |auto |static |case |break|else|for |while |if |\}|using )"
                                    r"[\w+:\->.\[\]\(]*[\w\]\)][^{}=]*\([^{}]*\);$"), ""),
    ("delete assignment", re.compile(r"^\s+[a-z_][\w.\->\[\]\(\)]*(\.|->)[\w.]+ [+-]?= [^{}]*;$"), ""),
    ("break for continue", re.compile(r"\bcontinue;"), "break;"),
]


def say(*words):
    print(*words, flush=True)


def die(text):
    say("mutate: " + text)
    sys.exit(2)


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


class Workplace:
    """A copy of the tracked files with its own build folder."""

    def __init__(self, folder, jobs):
        self.jobs = ["-j", str(jobs)] if jobs else []
        self.source = folder / "source"
        self.build = folder / "build"
        shutil.rmtree(self.source, ignore_errors=True)
        files = run(["git", "-C", str(ROOT), "ls-files"], check=True).stdout.split("\n")
        for name in files:
            if name and not name.startswith(("models/", "bench/results/")) and (ROOT / name).is_file():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.source / name)
        self.env = dict(os.environ, CCACHE_BASEDIR=str(self.source), CCACHE_NOHASHDIR="true")
        configured = run(["cmake", "-G", "Ninja", "-S", str(self.source), "-B", str(self.build),
                          "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-O1 -g0", "-DCMAKE_CXX_COMPILER=g++-12",
                          "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache", "-DHADAL_WERROR=OFF"], env=self.env)
        if configured.returncode != 0:
            die("cmake failed:\n" + configured.stdout[-3000:])

    def compiles(self, targets):
        built = run(["nice", "ninja", "-C", str(self.build), *self.jobs, *targets], env=self.env)
        self.output = built.stdout
        return built.returncode == 0

    def binary(self, name):
        return next(p for p in (self.build / "tests").rglob(name) if p.is_file())

    def failure(self, tests, seeds):
        """The first line that tells why a test fails, or None."""
        for name in tests:
            extra = ["--seeds", str(seeds), "--no-shrink"] if name == "sched_property_test" else []
            try:
                ran = run(["nice", str(self.binary(name)), *extra], timeout=TEST_SECONDS)
            except subprocess.TimeoutExpired:
                return f"{name}: hangs"
            if ran.returncode != 0:
                lines = [l for l in ran.stdout.split("\n")
                         if re.search(r"broken rule|internal error|FAILED|hangs|signal|no longer reach", l)]
                return f"{name}: {lines[0].strip()[:160] if lines else 'exit ' + str(ran.returncode)}"
        return None


def replace(folder, edits):
    """Applies edits; returns the old texts."""
    old = {}
    for file, anchor, text in edits:
        path = folder / file
        content = path.read_text()
        if content.count(anchor) != 1:
            restore(folder, old)
            die(f"an anchor occurs {content.count(anchor)} times in {file}, expected once; write it anew:\n{anchor}")
        old.setdefault(file, content)
        path.write_text(content.replace(anchor, text))
    return old


def restore(folder, old):
    for file, content in old.items():
        (folder / file).write_text(content)


def candidates(source):
    out = []
    for path in sorted((source / "src/sched").glob("*")):
        if path.suffix not in (".cpp", ".h"):
            continue
        is_check = False
        for number, line in enumerate(path.read_text().split("\n")):
            if "check_invariants" in line or "::check_" in line or "check_siblings(" in line:
                is_check = line.rstrip().endswith("{") or is_check  # the body of a function that only checks
            if is_check and line.startswith("}"):
                is_check = False
            code = line.split("//")[0].rstrip()
            if is_check or SKIPPED.search(line) or not code.strip() or '"' in code:
                continue
            for name, pattern, text in OPERATORS:
                if path.suffix == ".h" and name.startswith("delete"):
                    continue  # declarations
                for match in pattern.finditer(code):
                    changed = code[:match.start()] + text + code[match.end():]
                    if name == "not":
                        inner = re.match(r"(.*?if \()(.*)(\)( \{)?)$", code)
                        changed = f"{inner.group(1)}!({inner.group(2)}){inner.group(3)}" if inner else code
                    if changed != code:
                        out.append((f"src/sched/{path.name}", number, name, code, changed))
    return out


def mutant_id(mutant):
    file, _, name, code, changed = mutant
    return f"{pathlib.Path(file).name}: {name}: {code.strip()} => {changed.strip() or '(nothing)'}"


class State:
    """Results so far, in a file; those of another source are forgotten."""

    def __init__(self, path, budget_s, *key):
        self.path, self.deadline = path, time.monotonic() + budget_s if budget_s else None
        digest = hashlib.sha256(repr(key).encode())
        for folder in ("src/sched", "include/hadal/sched", "tests/unit/sched", "tests/mutation"):
            for file in sorted((ROOT / folder).glob("*")):
                if file.is_file() and file.name != "survivors.json":
                    digest.update(file.name.encode() + file.read_bytes())
        self.content = {"source": digest.hexdigest(), "planted": {}, "drawn": {}}
        if path.is_file() and json.loads(path.read_text())["source"] == self.content["source"]:
            self.content = json.loads(path.read_text())

    def found(self, kind, name, result):
        self.content[kind][name] = result
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")

    def is_over(self):
        return self.deadline is not None and time.monotonic() > self.deadline


def run_planted(place, seeds, state):
    results = []
    for name, edits in PLANTED.items():
        if name in state.content["planted"]:
            results.append(state.content["planted"][name])
            continue
        if state.is_over():
            break
        tests = [TARGETS[name]] if name in TARGETS else TESTS[:1]
        old = replace(place.source, edits)
        if not place.compiles(tests):
            restore(place.source, old)
            die(f"{name} does not compile:\n{place.output[-2000:]}")
        why = place.failure(tests, seeds)
        restore(place.source, old)
        say(f"{'killed  ' if why else 'SURVIVED'} {name:18s} {why or ''}")
        results.append({"bug": name, "killed": why is not None, "by": why or ""})
        state.found("planted", name, results[-1])
    return results


def run_drawn(place, count, seed, seeds, explained, state):
    pool = candidates(place.source)
    random.Random(seed).shuffle(pool)
    results = []
    for mutant in pool:
        if len(results) == count:
            break
        file, number, _, _, changed = mutant
        ident = mutant_id(mutant)
        key = f"{ident} @{number + 1}"
        if key in state.content["drawn"]:
            known = state.content["drawn"][key]
            if known:  # None = it does not compile
                results.append({**known, **({} if known["killed"] else {"explanation": explained.get(ident, "NOT EXPLAINED")})})
            continue
        if state.is_over():
            break
        path = place.source / file
        content = path.read_text()
        lines = content.split("\n")
        lines[number] = changed
        path.write_text("\n".join(lines))
        if place.compiles(TESTS):
            why = place.failure(TESTS, seeds)
            note = "" if why else explained.get(ident, "NOT EXPLAINED")
            say(f"{'killed  ' if why else 'survived'} {len(results) + 1:3d} {ident}  {why or note}")
            results.append({"id": ident, "line": number + 1, "killed": why is not None, "by": why or "",
                            **({} if why else {"explanation": note})})
            state.found("drawn", key, results[-1])
        else:
            state.found("drawn", key, None)
        path.write_text(content)
    return results, len(pool)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the drawn mutants")
    parser.add_argument("--seeds", type=int, default=4000, help="of the property test")
    parser.add_argument("--planted-only", action="store_true")
    parser.add_argument("--budget-s", type=float, default=0.0, help="stop starting mutants after this; 0 = never")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/mutation")
    parser.add_argument("--jobs", type=int, default=0, help="of the compiler; 0 = ninja's own number")
    parser.add_argument("--result", type=pathlib.Path)
    arguments = parser.parse_args()
    place = Workplace(arguments.work, arguments.jobs)
    if not place.compiles(TESTS + sorted(set(TARGETS.values()))):
        die("the source does not build:\n" + place.output[-2000:])
    why = place.failure(TESTS, arguments.seeds)
    if why:
        die("the source itself fails: " + why)
    state = State(arguments.work / "state.json", arguments.budget_s, arguments.seed, arguments.seeds)
    planted = run_planted(place, arguments.seeds, state)
    explained = json.loads((HERE / "survivors.json").read_text())
    drawn, pool = ([], 0) if arguments.planted_only else run_drawn(
        place, arguments.mutants, arguments.seed, arguments.seeds, explained, state)
    is_complete = len(planted) == len(PLANTED) and (arguments.planted_only or len(drawn) == arguments.mutants)
    planted_killed = sum(r["killed"] for r in planted)
    drawn_killed = sum(r["killed"] for r in drawn)
    unexplained = [r["id"] for r in drawn if r.get("explanation") == "NOT EXPLAINED"]
    say(f"planted bugs: {planted_killed} of {len(planted)} killed; "
        f"drawn mutants: {drawn_killed} of {len(drawn)} killed, {len(unexplained)} survivors not explained")
    if arguments.result:
        commit = run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        arguments.result.write_text(json.dumps(
            {"commit": commit, "command": " ".join(["tests/mutation/mutate.py", *sys.argv[1:]]), "complete": is_complete,
             "seed": arguments.seed, "property_seeds": arguments.seeds, "candidates": pool,
             "planted_killed": planted_killed, "planted": planted, "drawn_killed": drawn_killed, "drawn": drawn},
            indent=1) + "\n")
    if not is_complete:
        say("the budget is over; call again to go on")
        return 3
    good = planted_killed == len(planted) and drawn_killed >= 0.9 * len(drawn) and not unexplained
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
