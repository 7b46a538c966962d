"""Phrases that a native reader has to decode, found in comments, docstrings and texts for users.

``python -m tests.language [PATH …]`` prints ``file:line: "phrase" → suggestion`` for every hit and a count per folder.
tests/architecture/test_language.py fails when a folder has more hits than it is allowed.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# Regular expression → what to write instead. Case is ignored. Correct uses are excluded by look-arounds: "there is no",
# "whole number", "lies between 0 and 1", "stands for". Code in backticks and in braces is not read.
_NOT_AFTER_IS_NO = "longer|more|less|fewer|later|earlier|larger|smaller|such|better|worse|different|one"
_UNSHARDED = r"\(unsharded\)|tensors?|parameters?|matri\w+|weights|gradients?|states?|shards|copies"
PHRASES: dict[str, str] = {
    rf"(?<!there )\b(?:is|are) no (?!(?:{_NOT_AFTER_IS_NO})\b)": '"is not a", "has no"',
    r"\bis of no\b": '"does not match any", "has no"',
    r"\bstands?\b(?! for\b| in for\b| out\b| up\b|-)": '"is", "is listed", "comes"',
    r"\b(?:lies|lie)\b(?! (?:strictly )?(?:between|within|outside|inside)\b)": '"is in", "is at"',
    r"\b(?:goes|go|going|went|gone) on\b(?! (?:the|a|an|to)\b)": '"continues", "resumes"',
    r"\bmend(?:s|ed|ing)?\b": '"fix"',
    r"\bit says\b": '"it reports"',
    r"\b(?:config|card|index|tar|set|file|column|\w+\.\w+) says\b": '"has", "is", "gives": data.num_classes is 7',
    r"\bsays (?:so|what|which|how|where|why|whether|no more)\b": '"gives", "reports", "tells"',
    r"\b(?:is|are|and|be) said\b": '"is logged", "is reported"',
    r"(?<!copy )(?<!half )(?<!part )(?<!version )\b(?:by|of) (?:itself|themselves)\b": '"on its own", "automatically"',
    r"\bone more of\b": '"another"',
    r"\b(?:is|are|be|was|were|not|stays?|kept|keeps?|state|while|until|none is) whole\b(?! numbers?\b)": (
        '"complete", "unsharded", "valid"'
    ),
    rf"(?<!the )(?<!a )\bwhole (?:{_UNSHARDED})\b": '"unsharded", "complete"',
    r"\bnot a whole\b": '"not a complete", "truncated"',
    r"(?<!as a )(?<!the )(?<!a )\bwhole(?=[.,;:)]| on every\b| on each\b| at least\b)": '"complete", "unsharded"',
    r"\b(?:a|no) person\b": '"you", "a user", "the reader"',
    r"\bat hand\b": '"available"',
    r"\bin turns\b": '"interleaved", "alternately"',
    r"\bon paper\b": '"estimated", "without running it"',
    r"\bin the place of\b": '"instead of"',
    r"\banew\b": '"again"',
    r"\bdecides? alone\b": '"the only check"',
    r"\bof the machines\b": '"cluster"',
    r"\bit appears when\b": '"written atomically"',
    r"\bneeds nothing\b": '"needs no change", "works already"',
    r"(?:^|[.!] )(?:the same|once more is the same) (?:command|call)(?: again)?[.;]": '"Rerun the same command to …"',
    r"^What (?!\w+ \w+\?)[^?]*$": 'name the thing instead of opening with "What"',
}
COMPILED = [
    (re.compile(pattern, re.IGNORECASE if "^What" not in pattern else 0), hint) for pattern, hint in PHRASES.items()
]

# Folders and files whose text is read; of tests, comments and docstrings only: their strings are data.
READ = ("pretrain", "pipelines", "benchmarks", "tests", "configs", "slurm", "docs/adding.md", "CONTRIBUTING.md")
READ += ("Makefile", "setup.sh", ".ci/run", "pyproject.toml", "mkdocs.yml")
SUFFIXES = {".py", ".sh", ".yaml", ".yml", ".toml", ".md", ""}


class Prose(NamedTuple):
    """One comment block or string, and the line of the file that each of its lines came from."""

    lines: tuple[tuple[int, str], ...]


class Hit(NamedTuple):
    """A phrase in a file. ``line`` counts from 1."""

    path: str
    line: int
    phrase: str
    hint: str


def main(arguments: list[str]) -> int:
    """Prints every hit below the given paths (default: all), then a count per folder at the top."""
    hits = [hit for path in files(arguments) for hit in hits_in(path, (ROOT / path).read_text())]
    for hit in hits:
        print(f'{hit.path}:{hit.line}: "{hit.phrase}" → {hit.hint}')
    for folder, count in sorted(Counter(area(hit.path) for hit in hits).items()):
        print(f"{folder}: {count}", file=sys.stderr)
    return 1 if hits else 0


def files(below: list[str]) -> list[str]:
    """Paths, relative to the root, of the files whose text is read, in or below the given ones."""
    found: list[str] = []
    for start in below or READ:
        at = ROOT / start
        found += [str(path.relative_to(ROOT)) for path in (sorted(at.rglob("*")) if at.is_dir() else [at])]
    return [path for path in found if Path(path).suffix in SUFFIXES and (ROOT / path).is_file()]


def area(path: str) -> str:
    """The folder at the top that a hit is counted for."""
    return path.split("/")[0]


def hits_in(path: str, text: str) -> Iterator[Hit]:
    """Every phrase in the prose of one file."""
    prose = (
        _python_prose(text, strings=not path.startswith("tests/")) if path.endswith(".py") else _plain_prose(path, text)
    )
    for block in prose:
        yield from _hits_in_block(path, block)


def _hits_in_block(path: str, block: Prose) -> Iterator[Hit]:
    joined, starts = "", []
    for number, line in block.lines:
        starts.append((len(joined), number))
        joined += _without_code(line).strip() + " "
    # A blank line separates paragraphs: a phrase does not reach across it.
    for pattern, hint in COMPILED:
        for match in pattern.finditer(joined.rstrip()):
            number = max(entry for entry in starts if entry[0] <= match.start())[1]
            phrase = match.group()
            yield Hit(path, number, phrase if len(phrase) < 40 else f"{phrase[:36]} …", hint)


def _without_code(line: str) -> str:
    """The line with code in backticks replaced by one word, so that ``lies`` as a name is not a phrase."""
    return re.sub(r"`+[^`]*`+", "CODE", line)


def _python_prose(text: str, *, strings: bool) -> Iterator[Prose]:
    """Docstrings, runs of comments, and with ``strings`` every other string literal."""
    yield from _comments(text)
    docstrings = set()
    parsed = ast.parse(text)
    for node in ast.walk(parsed):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.add(id(first.value))
                yield _numbered(first.value)
    if strings:
        inside = {id(part) for node in ast.walk(parsed) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        for node in ast.walk(parsed):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "CODE.x" for p in node.values]
                yield Prose(((node.lineno, "".join(map(str, parts))),))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
                yield _numbered(node)


def _numbered(node: ast.Constant) -> Prose:
    lines = str(node.value).split("\n")
    # Implicitly joined literals span source lines that have no newline in the value.
    return Prose(tuple((min(node.lineno + i, node.end_lineno or node.lineno), line) for i, line in enumerate(lines)))


def _comments(text: str) -> Iterator[Prose]:
    run: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        number = token.start[0]
        if run and (number != run[-1][0] + 1 or token.line[: token.start[1]].strip()):
            yield Prose(tuple(run))
            run = []
        run.append((number, token.string.lstrip("#")))
    if run:
        yield Prose(tuple(run))


def _plain_prose(path: str, text: str) -> Iterator[Prose]:
    """Of a page its paragraphs; of a script or a YAML file its comments, messages and values, a line each."""
    run: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        is_comment = line.lstrip().startswith("#")
        joins = path.endswith(".md") or is_comment
        if run and (not line.strip() or not joins):
            yield Prose(tuple(run))
            run = []
        if joins:
            run.append((number, line.lstrip().lstrip("#") if not path.endswith(".md") else line))
        elif line.strip():
            yield Prose(((number, line),))
    if run:
        yield Prose(tuple(run))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
