"""The command-line options of sources, and the values of those that several sources share."""

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
        group: its heading in ``--help``; "": none.
        type: converts the text to the value.
        choices: the values that are allowed; (): any.
        metavar: name of the value in ``--help``; "": the option's name in capitals.
        is_flag: it takes no value; it is True if given.
        repeats: it may be given several times; the value is a list.
        decides_list: it affects the list of a source, so pack.json has to record its value.
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
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def is_given(self, args: argparse.Namespace) -> bool:
        """Whether its value differs from the default."""
        return getattr(args, self.name) != self.default

    def declare(self, add: Callable[..., Any]) -> None:
        """Declares it with ``add``, the ``add_argument`` method of a parser or a group."""
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
STATED = (LICENCE, RELEASE)  # facts that the source may not contain


@dataclass(frozen=True)
class SourceOptions:
    """The user's choices for reading a source where its files are ambiguous. Each source uses those that apply to it.

    Attributes:
        name: of the data set; "": the source's own.
        split_from: what determines the split of an image; see splits.py.
        labels: what the labels are.
        label_column: their location: a column, cls, txt, or a key of KEY.json; "": the source finds them.
        class_names: file with a list of the classes; see class_names.py.
        encoding: of text without a byte-order mark.
        has_split_lists: there are split lists, to which the encoding also applies.
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
        """Builds them from the values of the options above.

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
            ConfigError, DataError: see ``read_class_names``.
        """
        return read_class_names(self.class_names, self.encoding) if self.class_names else None

    @property
    def about_labels(self) -> list[str]:
        """The given options about labels, as they are typed."""
        encoding = UTF8 if self.has_split_lists else self.encoding
        values = (self.label_column, self.class_names, encoding, self.labels.form, self.labels.num_classes)
        return [option.flag for option, value in zip(OF_LABELS, values, strict=True) if value != option.default]
