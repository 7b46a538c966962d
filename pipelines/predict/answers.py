"""From the images given on the command line to lines of output, a micro-batch at a time, for every kind of head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from pipelines.sources.given_images import GivenImage
from pipelines.terminal.output import as_csv, as_json
from pretrain.errors import BadSample
from pretrain.names import shown

FORMATS = ("table", "jsonl", "csv")


class Answer(NamedTuple):
    """The output for one image: its text, or the problem and a word for its kind. A header has no name."""

    name: str
    text: str
    problem: str = ""
    kind: str = ""


class Head(Protocol):
    """The results of a network for images, and how they are written; one class for each task."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the CSV after the image's name."""
        ...

    @property
    def one_by_one(self) -> bool:
        """Whether images are processed one at a time, regardless of ``--micro-batch-size``."""
        ...

    def prepare(self, source: GivenImage) -> Any:
        """Reads and decodes one image.

        Raises:
            BadSample: it cannot be decoded. OSError: it cannot be read.
        """
        ...

    def results(self, prepared: Sequence[Any]) -> Sequence[Any]:
        """Runs the network on prepared images, at least one."""
        ...

    def line(self, name: str, result: Any) -> str:
        """The line of the table."""
        ...

    def content(self, result: Any) -> dict[str, object]:
        """The keys of the JSON line, after ``image``."""
        ...

    def rows(self, result: Any) -> Iterable[Sequence[object]]:
        """The rows of the CSV, without the image's name."""
        ...


def answers(head: Head, images: Iterable[GivenImage], form: str, micro_batch_size: int) -> Iterator[Answer]:
    """One answer for each image in their order; first the header of a CSV.

    Args:
        head: the network.
        images: what to process.
        form: one of ``FORMATS``.
        micro_batch_size: images in one forward pass.
    """
    if form == "csv":
        yield Answer("", _lines([["image", *head.columns]]))
    remaining = iter(images)
    while several := list(islice(remaining, 1 if head.one_by_one else micro_batch_size)):
        prepared, problems = [], []
        for source in several:
            try:
                prepared.append(head.prepare(source))
                problems.append(None)
            except BadSample as error:
                problems.append(Answer(source.name, "", str(error), error.kind))
            except OSError as error:
                problems.append(Answer(source.name, "", str(error), "read"))
        found = iter(head.results(prepared) if prepared else ())
        for source, problem in zip(several, problems, strict=True):
            yield problem or Answer(source.name, _text(head, source.name, next(found), form))


def _text(head: Head, name: str, result: Any, form: str) -> str:
    if form == "table":
        return head.line(shown(name), result)
    if form == "jsonl":
        return as_json({"image": shown(name), **head.content(result)})
    return _lines([shown(name), *row] for row in head.rows(result))


def _lines(rows: Iterable[Sequence[object]]) -> str:
    return as_csv(rows).removesuffix("\n")
