"""A folder of checkpoints after a kill at the worst moments."""

from __future__ import annotations

from pathlib import Path

from pretrain.engine.checkpoint_folder import MARKER, clean, complete_checkpoints, final_path, publish, temporary_path


def write(folder: Path, step: int, content: str, *, complete: bool = True) -> Path:
    path = temporary_path(folder, step)
    (path / "slices").mkdir(parents=True)
    (path / "content").write_text(content)
    if complete:
        (path / MARKER).write_text("{}")
    return path


def test_a_save_that_lacks_its_name_only_gets_it(tmp_path: Path) -> None:
    write(tmp_path, 4, "new")
    write(tmp_path, 8, "half", complete=False)
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert complete_checkpoints(tmp_path) == [final_path(tmp_path, 4)]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    publish(write(tmp_path, 4, "new"), final_path(tmp_path, 4))
    assert (final_path(tmp_path, 4) / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_killed_while_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    write(tmp_path, 4, "new")
    final_path(tmp_path, 4).rename(tmp_path / "step-00000004.removing")  # as publish does first; then the kill
    clean(tmp_path)
    assert (final_path(tmp_path, 4) / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1
