"""Changes to the labels of a source: a selection of classes, a map to new ones, ancestors from WordNet.

Source: WordNet 3.0, wndb(5WN): ``offset lex_filenum n w_cnt word lex_id … p_cnt pointer offset pos source/target …``;
the pointers ``@`` (hypernym) and ``@i`` (instance hypernym) lead to more general synsets.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.table import Relabelling
from pretrain.data.storage.classes import Classes, ClassLookup
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.text_files import decode_text, read_text

REST = "*"
_SPAN = re.compile(r"([0-9]+)-([0-9]+)")
DEBIAN_FILE = Path("/usr/share/wordnet/data.noun")
_HYPERNYMS = ("@", "@i")


def choose_classes(text: str, classes: Classes) -> Relabelling:
    """``--classes`` as a relabelling; see ``parse_classes``."""
    chosen = parse_classes(text, classes)
    new = {old: index for index, old in enumerate(chosen)}
    targets = tuple((new[index],) if index in new else () for index in range(len(classes)))
    return Relabelling(tuple(classes[index] for index in chosen), targets)


def parse_classes(text: str, classes: Classes) -> list[int]:
    """Class indices that ``--classes`` means, ascending: ids, names, numbers and ranges such as 0-4; empty: all.

    A number is an id if any id of the set is a number, else an index; the same holds in a range. A name with a comma
    may be quoted.

    Raises:
        ConfigError: a part is not a class, or is ambiguous, or one class is named twice.
    """
    if not text:
        return list(range(len(classes)))
    lookup = ClassLookup(classes, "--classes")
    try:
        chosen = [index for part in _parts(text, lookup) for index in _class_part(part, lookup)]
    except DataError as error:
        raise ConfigError(str(error)) from error
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--classes {text}: a class is named twice")
    return sorted(chosen)


def _parts(text: str, lookup: ClassLookup) -> list[str]:
    """The text split at its commas, except inside quotes and inside the names of classes."""
    try:
        words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True, strict=True))]
    except csv.Error as error:
        raise ConfigError(f"--classes {text}: {error}") from error
    parts: list[str] = []
    while words:
        names = [mark.join(words[:count]) for count in range(len(words), 1, -1) for mark in (", ", ",")]
        name = next((name for name in names if name in lookup), words[0])
        if name is not words[0] and all(word.strip() in lookup for word in name.split(",")):
            raise ConfigError(f"--classes {text}: {name!r} is one class or several; put what is one in quotes")
        parts.append(name)
        words = words[1 + (name != words[0]) * name.count(",") :]
    return parts


def _class_part(part: str, lookup: ClassLookup) -> list[int]:
    span = _SPAN.fullmatch(part)
    if part in lookup or span is None:
        return [lookup.find(part)]
    first, last, width = int(span[1]), int(span[2]), len(span[1]) if span[1].startswith("0") else 0
    if first > last or last - first >= len(lookup.classes):
        raise ConfigError(f"--classes: {part!r} is not a range of classes; {lookup.known()}")
    return [lookup.find(f"{number:0{width}d}") for number in range(first, last + 1)]


@dataclass(frozen=True)
class LabelMap:
    """A file with the columns ``from,to[,name]``: class id of the source → id of the class that it becomes.

    A class on several lines gets several labels. An empty ``to`` drops the class's images. ``from`` may be ``*``, for
    every class that no other line names: ``*,*`` keeps them, ``*,`` drops them. New classes are numbered in the order
    in which the file names them.
    """

    path: Path
    rows: tuple[tuple[str, str, str], ...]

    @classmethod
    def load(cls, path: Path) -> LabelMap:
        """Reads the file.

        Raises:
            ConfigError: it cannot be read, or a line is none of the above.
        """
        try:
            reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
            lines = [(reader.line_num, row) for row in reader if row]
        except (DataError, csv.Error) as error:
            raise ConfigError(f"--label-map {path}: cannot be read ({error})") from error
        if not lines or [cell.strip() for cell in lines[0][1]] not in (["from", "to"], ["from", "to", "name"]):
            raise ConfigError(f"--label-map {path}:1: the first line must be from,to or from,to,name")
        rows = []
        for number, row in lines[1:]:
            cells = [cell.strip() for cell in row]
            if len(cells) < 2 or not cells[0] or len(cells) > 3:
                raise ConfigError(f"--label-map {path}:{number}: {','.join(row)!r} is not from,to[,name]")
            if cells[0] == REST and cells[1] not in ("", REST):
                raise ConfigError(f"--label-map {path}:{number}: {REST} can become {REST} (kept) or nothing (dropped)")
            rows.append((cells[0], cells[1], cells[2] if len(cells) > 2 else ""))
        cls._check_names(path, rows)
        return cls(path, tuple(rows))

    @staticmethod
    def _check_names(path: Path, rows: list[tuple[str, str, str]]) -> None:
        named: dict[str, str] = {}
        for _, to, name in rows:
            if name and named.setdefault(to, name) != name:
                raise ConfigError(
                    f"--label-map {path}: the class {to!r} is called {named[to]!r} and {name!r}; choose one"
                )

    def relabelling(self, classes: Classes) -> Relabelling:
        """The new classes of each class of a source.

        Raises:
            DataError: a class of the source is on no line, or a line names a class that the source does not have.
        """
        known, lookup = dict(classes), ClassLookup(classes, f"--label-map {self.path}")
        rest = next((to for origin, to, _ in self.rows if origin == REST), None)
        becomes: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        for origin, to, name in self.rows:
            if origin == REST:
                continue
            if origin not in known:
                meant = ""
                if origin in lookup:
                    meant = f"; the class of this name has the id {classes[lookup.find(origin)][0]!r}"
                raise DataError(f"--label-map {self.path}: the source has no class {origin!r}{meant}")
            targets = becomes.setdefault(origin, [])
            if to:
                targets.append(to)
                names[to] = name or names.get(to) or known.get(to, to)
        left = [identifier for identifier in known if identifier not in becomes]
        if left and rest is None:
            raise DataError(
                f"--label-map {self.path}: {len(left)} classes of the source are on no line, such as {left[0]!r}; "
                f"add a line for each, or the line '{REST},{REST}' (keep the others) or '{REST},' (drop their images)"
            )
        if rest == REST:
            becomes |= {identifier: [identifier] for identifier in left}
            names |= {identifier: names.get(identifier, known[identifier]) for identifier in left}
        index = {identifier: number for number, identifier in enumerate(names)}
        targets = (tuple(index[to] for to in becomes.get(identifier, ())) for identifier, _ in classes)
        return Relabelling(tuple(names.items()), tuple(targets))


class WordNet:
    """The nouns of WordNet's ``data.noun``: the names of a synset, and its ancestors.

    An ImageNet class id is ``n`` and the eight digits at which the synset's line starts in that file.

    Args:
        path: the file; None: where Debian's package wordnet-base puts it.

    Raises:
        SetupError: it is not there.
        DataError: it is not a ``data.noun``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or DEBIAN_FILE
        self.names: dict[str, str] = {}
        self._parents: dict[str, list[str]] = {}
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SetupError(
                f"{self.path} cannot be read ({error.strerror}). It comes with: sudo apt-get install wordnet-base, "
                "or give the path of a data.noun of WordNet 3.0 with --wordnet FILE"
            ) from error
        for number, line in enumerate(decode_text(data, str(self.path)).split("\n"), 1):
            if line and not line.startswith("  "):  # the licence comes first
                self._add(line, number)
        if not self.names:
            raise DataError(f"{self.path} holds no synsets; it should be data.noun of WordNet 3.0")
        lost = next(
            (parent for parents in self._parents.values() for parent in parents if parent not in self.names), ""
        )
        if lost:
            raise DataError(
                f"{self.path} has no synset {lost}, which others name; is the file cut short? Copy it again"
            )

    def _add(self, line: str, number: int) -> None:
        try:
            words = line.partition(" | ")[0].split()
            synset, num_words = f"n{words[0]}", int(words[3], 16)
            names = words[4 : 4 + 2 * num_words : 2]
            pointers = words[5 + 2 * num_words :]
            count = int(words[4 + 2 * num_words])
            parents = [f"n{pointers[4 * index + 1]}" for index in range(count) if pointers[4 * index] in _HYPERNYMS]
        except (IndexError, ValueError) as error:
            raise DataError(f"{self.path}:{number}: not a line of WordNet's data.noun") from error
        self.names[synset] = ", ".join(name.replace("_", " ") for name in names)
        self._parents[synset] = parents

    def ancestors(self, synset: str) -> tuple[str, ...]:
        """The synset and its ancestors, from the most general to itself; each comes after its own ancestors."""
        found: dict[str, None] = {}

        def visit(one: str) -> None:
            if one not in found:
                for parent in sorted(self._parents[one]):
                    visit(parent)
                found[one] = None

        visit(synset)
        return tuple(found)

    def relabelling(self, classes: Classes) -> Relabelling:
        """Each class → itself and its ancestors; the classes are numbered by their id.

        Raises:
            DataError: the id of a class is not a noun of WordNet.
        """
        unknown = [identifier for identifier, _ in classes if identifier not in self.names]
        if unknown:
            raise DataError(
                f"--hierarchy wordnet: {len(unknown)} of {len(classes)} class ids are not nouns of WordNet 3.0, such "
                f"as {unknown[0]!r}; ids look like n02084071. Give them with --label-map, or leave the hierarchy out"
            )
        lines = [self.ancestors(identifier) for identifier, _ in classes]
        given = dict(classes)
        used = sorted({synset for line in lines for synset in line})
        index = {synset: number for number, synset in enumerate(used)}
        named = tuple((synset, given.get(synset) or self.names[synset]) for synset in used)
        return Relabelling(named, tuple(tuple(index[synset] for synset in line) for line in lines))
