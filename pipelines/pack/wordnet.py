"""WordNet's nouns: the names of a synset, and its ancestors.

An ImageNet class id is ``n`` and the eight digits at which the synset's line starts in WordNet 3.0's ``data.noun``.

Source: WordNet 3.0, wndb(5WN): ``offset lex_filenum n w_cnt word lex_id … p_cnt pointer offset pos source/target …``;
the pointers ``@`` (hypernym) and ``@i`` (instance hypernym) lead to more general synsets.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.sources.relabelling import Relabelling
from pretrain.data.storage.classes import Classes
from pretrain.errors import DataError, SetupError
from pretrain.text_files import decode_text

DEBIAN_FILE = Path("/usr/share/wordnet/data.noun")
_HYPERNYMS = ("@", "@i")


class WordNet:
    """The nouns of ``data.noun``.

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
