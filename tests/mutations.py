"""Break the code in one place at a time and see a test fail: `python tests/mutations.py [YAML ...] [--only PATTERN]`.

What is broken, and which tests are to notice, stands in mutations.yaml (collectives) and faults/guards.yaml (what
docs/faults.md promises). Each mutation is made in a throw-away copy of the tree, never in the tree itself. Prints one
line each; exits with 1 if one survives, if a text to replace does not stand exactly once in its file, or if the tests
fail on the code as it is. pytest does not run this: it takes two hours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slurm.strict_yaml import load  # noqa: E402

SOURCES = (ROOT / "tests" / "mutations.yaml", ROOT / "tests" / "faults" / "guards.yaml")
TIMEOUT_S = 300.0
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)
Tests = Sequence[str]
"""Arguments of pytest, in one string for each call of it."""


@dataclass(frozen=True)
class Mutation:
    """One text of one file, what stands there instead, and the tests that are to notice, in turn."""

    name: str
    file: str
    text: str
    instead: str
    tests: Tests


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation: `by` is the first test that failed, or "hung"; None where all of them passed."""

    name: str
    file: str
    by: str | None

    def __str__(self) -> str:
        return f"{self.file}: {self.name}: " + ("SURVIVED" if self.by is None else f"caught by {self.by}")


def mutations(sources: Iterable[Path] = SOURCES) -> list[Mutation]:
    """Return all that these files hold; exit with a sentence about each that cannot be made."""
    made, wrong = [], []
    for part in [part for source in sources for part in load(source).data]:
        source = (ROOT / part["file"]).read_text()
        for name, (text, instead) in part["mutations"].items():
            made.append(Mutation(name, part["file"], text, instead, part["tests"]))
            if (times := source.count(text)) != 1:
                wrong.append(f"{part['file']}: {name}: {text!r} stands {times} times in it; once is needed")
                continue
            try:
                compile(source.replace(text, instead), part["file"], "exec")
            except SyntaxError as error:
                wrong.append(f"{part['file']}: {name}: no longer Python, {error}")
    if wrong:
        sys.exit("\n".join(wrong))
    return made


def copy_tree(to: Path) -> None:
    """Copy what git tracks or would track."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def first_failure(tree: Path, tests: str) -> str | None:
    """Return which of the tests fails first in a tree, "hung" if they do not end, None if all pass."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    shared = os.environ.get("ISOFLOP_SHARED", str(ROOT.parent / "shared"))
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "ISOFLOP_SHARED": shared}
    process = subprocess.Popen(
        [*argv, *shlex.split(tests)],
        cwd=tree,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        end_processes(tree)
        process.wait()
    if process.returncode == 0:
        return None
    if found := FAILED.search(said):
        return found[1]
    sys.exit(f"pytest {tests} ended with {process.returncode} and without a failed test:\n{said}")


def end_processes(tree: Path) -> None:
    """Kill what still works in a tree; tests start jobs in sessions of their own."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(entry / "cwd")).is_relative_to(tree):
                os.kill(int(entry.name), signal.SIGKILL)


def judged(chosen: Sequence[Mutation], tree: Path) -> Iterator[Verdict]:
    """Yield what becomes of each mutation, after the tests have passed on the code as it is."""
    for tests in dict.fromkeys(tests for each in chosen for tests in each.tests):
        if failed := first_failure(tree, tests):
            sys.exit(f"{failed} fails on the code as it is")
    for each in chosen:
        path = tree / each.file
        source = path.read_text()
        path.write_text(source.replace(each.text, each.instead))
        failures = (first_failure(tree, tests) for tests in each.tests)
        yield Verdict(each.name, each.file, next(filter(None, failures), None))
        path.write_text(source)


def main() -> None:
    """Try the mutations that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, default=SOURCES, metavar="YAML", help="what to break"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression in 'FILE: NAME'")
    parser.add_argument("--json", action="store_true", help="print one JSON list at the end")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [each for each in mutations(asked.sources) if re.search(asked.only, f"{each.file}: {each.name}")]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="isoflop-mutation-") as tree:
        copy_tree(Path(tree))
        for verdict in judged(chosen, Path(tree)):
            verdicts.append(verdict)
            print(verdict, file=sys.stderr if asked.json else sys.stdout, flush=True)
    if asked.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts]))
    sys.exit(any(verdict.by is None for verdict in verdicts))


if __name__ == "__main__":
    main()
