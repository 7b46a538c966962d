"""The options of the command line that belong to sources, and what a user says with those that several sources have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sources.class_names import ClassList, read_class_names
from pipelines.sources.label_classes import FORMS, LabelOptions
from pipelines.sources.splits import SPLIT_FROM, SplitFrom
from pretrain.errors import ConfigError
from pretrain.text_files import UTF8


@dataclass(frozen=True)
class Option:
    """One option of a command line.

    Attributes:
        name: of the attribute that holds its value; with hyphens, of the option.
        help: for ``--help``.
        default: its value where it is not given.
        group: the heading that it is under; "": none.
        type: makes the value from text.
        choices: the values that are allowed; (): any.
        metavar: what ``--help`` calls the value; "": the name in capitals.
        is_flag: it takes no value; given, it is True.
        repeats: it may be given several times; the value is a list.
        decides_list: it decides what a source lists, so pack.json has to record its value.
    """

    name: str
    help: str
    default: Any = ""
    group: str = "sources"
    type: Callable[[str], Any] | None = None
    choices: Sequence[str] = ()
    metavar: str = ""
    is_flag: bool = False
    repeats: bool = False
    decides_list: bool = False

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def is_given(self, args: argparse.Namespace) -> bool:
        """Whether it has another value than its default."""
        return getattr(args, self.name) != self.default

    def declare(self, add: Callable[..., Any]) -> None:
        """Declares it with ``add``, the method ``add_argument`` of a parser or of a group."""
        if self.is_flag:
            add(self.flag, action="store_true", help=self.help)
            return
        kind = {"type": self.type, "choices": self.choices, "metavar": self.metavar}
        kind |= {"action": "append" if self.repeats else ""}
        add(self.flag, default=self.default, help=self.help, **{name: value for name, value in kind.items() if value})


LABEL_COLUMN = Option(
    "label_column", "column of the labels; webdataset: cls, txt, or a key of KEY.json", decides_list=True
)
CLASS_NAMES = Option(
    "class_names",
    "list of the classes: a name per line, id,name, NUMBER NAME, index,id,name, or JSON",
    default=None,
    type=Path,
    metavar="FILE",
    decides_list=True,
)
ENCODING = Option(
    "encoding",
    "of text in tars, tables and lists without a byte-order mark (utf-8)",
    default=UTF8,
    decides_list=True,
)
SPLIT_FROM_OPTION = Option(
    "split_from",
    "what decides the split: folders before file names (auto), only one of them, or nothing: all is train",
    default="auto",
    group="which images",
    choices=SPLIT_FROM,
    decides_list=True,
)
LABELS_ARE = Option(
    "labels_are",
    "what labels are where they could be several things: class numbers, names, or lists of 0 and 1",
    group="labels",
    choices=FORMS,
    decides_list=True,
)
NUM_CLASSES = Option(
    "num_classes",
    "of labels that are numbers (the largest + 1)",
    default=0,
    group="labels",
    type=int,
    decides_list=True,
)
LICENCE = Option("licence", "licence and terms of the images", group="on the card")
RELEASE = Option("release", "edition of the source, such as fall11", group="on the card")
OF_LABELS = (LABEL_COLUMN, CLASS_NAMES, ENCODING, LABELS_ARE, NUM_CLASSES)
STATED = (LICENCE, RELEASE)  # facts that the user knows and the source may not


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read where its files leave that open, as the user says. Each source reads what concerns it.

    Attributes:
        name: of the data set; "": the source's own.
        split_from: what decides the split of an image; see splits.py.
        labels: what the labels are.
        label_column: where they are: a column, cls, txt, or a key of KEY.json; "": the source looks for them.
        class_names: file with a list of the classes; see class_names.py.
        encoding: of text without a byte-order mark.
        has_split_lists: there are split lists, which the encoding is of too.
    """

    name: str = ""
    split_from: SplitFrom = "auto"
    labels: LabelOptions = field(default_factory=LabelOptions)
    label_column: str = ""
    class_names: Path | None = None
    encoding: str = UTF8
    has_split_lists: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> SourceOptions:
        """From the values of the options above.

        Raises:
            ConfigError: two of them contradict each other.
        """
        if args.labels_are == "names" and args.num_classes:
            raise ConfigError(
                "--num-classes counts labels that are numbers; with --labels-are names it would be ignored"
            )
        labels = LabelOptions(args.labels_are, args.num_classes)
        return cls(
            args.name, args.split_from, labels, args.label_column, args.class_names, args.encoding, bool(args.split)
        )

    def class_list(self) -> ClassList | None:
        """The list of the classes, read from its file.

        Raises:
            ConfigError: see ``read_class_names``. DataError: see there.
        """
        return read_class_names(self.class_names, self.encoding) if self.class_names else None

    @property
    def about_labels(self) -> list[str]:
        """The options about labels that were given, as they are typed."""
        encoding = UTF8 if self.has_split_lists else self.encoding
        values = (self.label_column, self.class_names, encoding, self.labels.form, self.labels.num_classes)
        return [option.flag for option, value in zip(OF_LABELS, values, strict=True) if value != option.default]
