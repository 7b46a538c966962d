from __future__ import annotations

import pytest

from pretrain.config.schema.source import Subset


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("10 %", 100, "10 %"),
        ("10%", 100, "10 %"),
        ("0.25 %", 2, "0.25 %"),
        ("100 %", 1000, "100 %"),
        ("50_000 samples", 50_000, "50000 samples"),
        ("1 sample", 1, "1 samples"),
    ],
)
def test_parts(text, count, shown):
    subset = Subset.parse(text)
    assert (subset.count(1000), str(subset)) == (count, shown)
    assert Subset.parse(str(subset)) == subset


@pytest.mark.parametrize("text", ["10", "10 percent", "0 %", "101 %", "2.5 samples", "0 samples", "% 10", 10, None])
def test_what_is_no_part(text):
    with pytest.raises(ValueError, match=r"not a part of a data set|must be"):
        Subset.parse(text)
