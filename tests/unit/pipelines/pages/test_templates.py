"""Pages: values are escaped and lose their secrets, data for scripts cannot end them, and what assets are."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.pages.templates import as_data, asset, number, render
from tests.command import ROOT

NASTY = '</script><script>alert(1)</script> & "quoted" <b>\''


def test_every_value_is_escaped() -> None:
    text = render("transfer.html", title=NASTY, heads=[NASTY], rows=[[NASTY]])
    assert "<script>" not in text and "<b>" not in text and text.count("&lt;/script&gt;") == 8


def test_secrets_are_redacted_and_settings_are_written_as_in_a_config() -> None:
    row = ["https://ann:hunter2@host/x", None, True, 0.5]
    text = render("transfer.html", title="t", heads=["a", "b", "c", "d"], rows=[row])
    assert "hunter2" not in text and "https://***@host/x" in text
    assert "<td>null</td><td>true</td>" in text and "<code>0.5</code>" in text


def test_data_of_a_script_cannot_end_it() -> None:
    value = {NASTY: [1.5, None, "https://ann:hunter2@host/x"]}
    text = as_data(value)
    assert "<" not in text and "hunter2" not in text
    assert json.loads(text) == {NASTY: [1.5, None, "https://***@host/x"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_has_no_number_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_data(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0"), (1234.5, "1,234"), (1.25e9, "1.25e9"), (2e-5, "2e-5"), (0.12345, "0.1235")]
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize("name", ["page.js", "uPlot.iife.min.js", "page.css", "uPlot.min.css"])
def test_assets_can_be_inside_a_page(name: str) -> None:
    text = asset(name)
    assert not re.search(r"</(script|style)", text, re.I)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text), "a page fetches nothing"


def test_the_library_has_its_licence_and_the_decision_names_its_version() -> None:
    version = re.search(r"\(v([\d.]+)\)", asset("uPlot.iife.min.js")[:100])
    assert version is not None
    assert f"uPlot {version[1]}" in (ROOT / "docs/decisions/0009-charts-and-templates.md").read_text()
    assert "MIT" in asset("uPlot.LICENSE")
