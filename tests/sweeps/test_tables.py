"""The sweeps over the networks of transformers and timm, and their tables in docs/import_export.md."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.sweeps import huggingface_table, timm_table
from tests.sweeps.page import PAGE, section_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # half a minute, and six, of a core that does nothing else


@pytest.mark.parametrize("made", [huggingface_table, timm_table], ids=lambda module: module.NAME)
def test_the_table_is_what_the_sweep_gives(made: ModuleType) -> None:
    assert section_of(PAGE.read_text(encoding="utf-8"), made.NAME) == made.section(), "run python -m tests.sweeps"
