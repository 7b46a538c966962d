"""docs/python.md and the notebook beside it, run from top to bottom as they are shown.

Write the notebook again after a change of the page: ``python -m tests.integration.test_python_page``
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import ROOT, Commands

PAGE = (ROOT / "docs" / "python.md").read_text()
NOTEBOOK = ROOT / "docs" / "python.ipynb"


@pytest.fixture
def folder(command: Commands, tmp_path: Path) -> Path:
    """Photos of three classes, and the packed digits that the page packs."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog", "eel"):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpg")
    (pack,) = re.findall(r"```sh\nvit-pretrain (.*)\n```", PAGE)
    command.run("python", "-m", "pipelines", *pack.split(), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)
    return tmp_path


@pytest.mark.slow
def test_the_page_and_the_notebook_run_as_shown(command: Commands, folder: Path) -> None:
    code = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if "outputs" in cell]
    assert code == [block.strip() for block in blocks()] and len(code) == 6
    (folder / "page.py").write_text("\n\n".join(code))
    done = command.run("python", "page.py", cwd=folder, env={"PYTHONPATH": str(ROOT)}, check=True)
    lines = done.stdout.splitlines()
    outcome, top1, loss = next(line for line in lines if line.startswith("complete ")).split()
    assert outcome == "complete" and float(top1) > 0.5 and float(loss) < 1.5
    names = [line for line in lines if re.fullmatch(r"\d 0\.\d+|\d 1\.0", line)]
    assert len(names) == 3 and len(set(names)) == 1, "a path, an image and an array are the same image"
    assert "torch.Size([2, 5]) (3, 8, 8) ('0', '1', '2', '3', '4')" in lines
    assert "1 3 ('cat', 'dog', 'eel')" in lines
    assert any(line.startswith("(187, ") and " float32 " in line for line in lines)


def test_the_notebook_is_the_page() -> None:
    assert NOTEBOOK.read_text() == notebook(), "write it again: python -m tests.integration.test_python_page"


def blocks() -> list[str]:
    """The code of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


def notebook() -> str:
    """The page as a notebook without outputs."""
    cells: list[dict[str, object]] = []
    page = PAGE.rpartition("\nAll of this is also in a notebook")[0]
    for number, part in enumerate(re.split(r"```python\n(.*?)```\n", page, flags=re.S)):
        cell = {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}}
        if number % 2:
            cell = {**cell, "cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, "source": part.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps({"cells": cells, **about}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook())
