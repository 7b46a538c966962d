"""Compares the samples that stock webdataset reads from a shard with its index."""

from __future__ import annotations

import gc
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.sources.samples import MEMBERS, OF_NO_SAMPLE, SAMPLES, split_name
from pipelines.verify.report import Report
from pretrain.data.ledger import Lost
from pretrain.data.storage.records import Record
from pretrain.names import printable, shown


def compare_with_webdataset(report: Report, path: Path, found: Sequence[Record]) -> None:
    """Stock webdataset must see the same images in the same order.

    It may see fewer: it leaves out links and everything after the first end of concatenated tars, which is a warning;
    the samples that the ledger records as left out are not expected.
    """
    places = {split_name(record.member)[0]: place for place, record in enumerate(found)}
    unseen, strangers, last = dict.fromkeys(places), [], -1
    try:
        for sample in _samples(path):
            key = sample["__key__"]
            place = places.get(key)
            if place is None:
                strangers.append(key)
                continue
            data = sample.get(split_name(found[place].member)[1])
            if data is None:  # its image is a link
                continue
            unseen.pop(key, None)
            if place <= last or not isinstance(data, bytes) or zlib.crc32(data) != found[place].crc32:
                report.add(f"{shown(found[place].member)}: webdataset reads another sample, {shown(key)}")
            last = place
    except Exception as error:  # any exception means that it cannot read this shard
        report.add(f"webdataset cannot read it: {type(error).__name__}: {printable(error)[:200]}")
        return
    _tell(report, unseen, strangers)


def _tell(report: Report, unseen: Iterable[str], strangers: Sequence[str]) -> None:
    accounts, missing = report.ledger.accounts, list(unseen)
    num_left_out = sum(accounts[kind].num_lost for kind in (SAMPLES, "images") if kind in accounts)
    num_left_out += accounts[MEMBERS].lost.get(OF_NO_SAMPLE, Lost()).count
    if len(strangers) > num_left_out:
        report.add(
            f"webdataset reads {len(strangers)} samples that are not among those found, such as {shown(strangers[0])}"
        )
    if missing:
        report.notes.append(
            f"{report.name}: samples that stock webdataset does not read: {len(missing)}, such as {shown(missing[0])}; "
            "it leaves out links in a tar, and everything after the first end of joined tars"
        )


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    from webdataset.compat import WebDataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of a tar to the garbage collector
        try:
            yield from WebDataset(str(path), shardshuffle=False, empty_check=False)  # pyright: ignore[reportGeneralTypeIssues]
        finally:
            gc.collect()
