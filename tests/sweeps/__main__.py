"""``python -m tests.sweeps`` writes the tables of what is read into docs/import_export.md (some minutes)."""

from __future__ import annotations

import transformers

from tests.sweeps import huggingface_table, timm_table
from tests.sweeps.page import PAGE, with_section

if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    page = PAGE.read_text(encoding="utf-8")
    for one in (huggingface_table, timm_table):
        page = with_section(page, one.NAME, one.section())
    PAGE.write_text(page, encoding="utf-8")
