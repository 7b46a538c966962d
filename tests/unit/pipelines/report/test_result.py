"""The result on a page: figures, pictures, classes and mistakes of ``evaluate``, and commands for what is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.report.confusion import MOST_CLASSES, matrix_of
from pipelines.weights.results import ClassScore, Predicted, Result
from pretrain.engine.checkpoint_folder import FORMAT_VERSION, seal
from pretrain.models.interop import save_weights
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.unit.pipelines.photos import write_photos
from tests.unit.pipelines.report.test_report import DONE, written
from tests.unit.pipelines.run_folders import write_run

CLASSES = {"cat": 9, "dog <b>": 14, "emu": 6}
NAMES = tuple(CLASSES)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed set, a run that was evaluated on it, and the results."""
    folder = tmp_path_factory.mktemp("result")
    photos = write_photos(folder / "photos", CLASSES)
    assert main(["pack", "folder", str(photos), "--out", str(folder / "packed"), "--shard-samples", "20"]) == 0
    packed = folder / "packed/train"
    run = write_run(
        folder / "run", f"evaluation.sets.val.shards={packed}", "evaluation.sets.val.num_samples=29", verdict=DONE
    )
    model, checkpoint = model_of(num_classes=3, img_size=32), run / "checkpoints/step-00000100"
    checkpoint.mkdir(parents=True)
    weights = checkpoint / "weights.safetensors"
    save_weights(weights, model.state_dict(), metadata_of(model, SQUASH, class_names=NAMES, class_ids=NAMES))
    complete = {"format": FORMAT_VERSION, "step": 100, "files": {weights.name: seal(weights)}}
    (checkpoint / "COMPLETE.json").write_text(json.dumps(complete))
    assert main(["evaluate", str(packed), "--from", str(weights), "--out", str(folder / "results")]) == 0
    return folder


def plain(text: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def test_the_page_begins_with_the_result(tmp_path: Path, evaluated: Path) -> None:
    text = written(tmp_path, evaluated / "run", "--results", evaluated / "results")
    result = json.loads((evaluated / "results/result.json").read_text())
    first = plain(text.split("<h2>")[0])
    assert f"{100 * result['top1']:.2f} %" in first and "95 % interval" in first and "29 images" in first
    assert "constant-prediction baseline 48.28 %" in first  # 14 of 29
    assert first.index("top-1 accuracy") < first.index("throughput" if "throughput" in first else "images/s")
    assert text.index("Predictions") < text.index("<h2>Training")
    num_wrong = round(29 * (1 - result["top1"]))
    mistakes = text.split("istakes")[1].split("<h3>")[0]
    assert mistakes.count("<img ") == min(12, num_wrong) and 'class="wrong"' in mistakes
    assert re.search(r'class="file">[^<]*\d+\.jpg', mistakes), "images have their original names"
    assert "dog &lt;b&gt;" in text and "dog <b>" not in text
    assert len(text.encode()) < 3_000_000


def test_the_matrix_counts_every_image(evaluated: Path) -> None:
    result = Result.read(evaluated / "results")
    matrix = matrix_of(result)
    assert matrix is not None and matrix.names == list(NAMES) and matrix.num_left_out == 0
    totals = {name: sum(cell.count for cell in cells) for name, cells in matrix.rows}
    assert totals == CLASSES
    for (name, cells), row in zip(matrix.rows, result.classes, strict=True):
        (hit,) = [cell for cell in cells if cell.is_hit]
        assert hit.count / totals[name] == pytest.approx(row.recall) and hit.share == pytest.approx(
            row.recall, abs=1e-3
        )
    for truth, said, count in result.confusions:
        assert dict(matrix.rows)[truth][matrix.names.index(said)].count == count


def test_of_many_classes_those_with_the_most_mistakes_are_shown() -> None:
    names = [f"c{index}" for index in range(50)]
    rows = [Predicted(index, f"{index}.jpg", name, name, 0.9, True) for index, name in enumerate(names)]
    rows.append(Predicted(50, "x.jpg", "c40", "c49", 0.9, False))
    matrix = matrix_of(Result(Path("r"), {}, [ClassScore(name, 1, 1.0, 1.0) for name in names], [], rows))
    assert matrix is not None and len(matrix.names) == MOST_CLASSES and matrix.num_left_out == 50 - MOST_CLASSES
    assert {"c40", "c49"} <= set(matrix.names) and matrix.names == sorted(matrix.names, key=names.index)


def test_missing_parts_have_their_commands(tmp_path: Path, evaluated: Path) -> None:
    run = evaluated / "run"
    text = plain(written(tmp_path, run))
    packed = evaluated / "packed/train"
    assert f"python -m pipelines evaluate {packed} --from {run} --out results/run" in text
    assert "python -m pipelines dedup" in text and f"python -m pipelines export {run} --format hf" in text
    assert "50.00 %" in text and "187 images" in text, "the last evaluation of the training is the headline"
    full = plain(written(tmp_path, run, "--results", evaluated / "results", "--price", "2"))
    assert "pipelines evaluate" not in full.split("Commands")[0] and "--price" in text and "No cost" not in full


def test_pictures_are_left_out_with_the_reason(tmp_path: Path, evaluated: Path) -> None:
    results = shutil.copytree(evaluated / "results", tmp_path / "results")
    table = (results / "predictions.csv").read_text()
    (results / "predictions.csv").write_text(table.replace(".jpg", ".png"))
    text = written(tmp_path, evaluated / "run", "--results", results)
    assert "Pictures are left out: image" in text and "evaluate again" in text
    figures = json.loads((results / "result.json").read_text())
    (results / "result.json").write_text(json.dumps({**figures, "shards": str(tmp_path / "gone")}))
    text = written(tmp_path, evaluated / "run", "--results", results)
    assert "Pictures are left out" in text and "gone" in text and "<h3>Confusion matrix" in text


@pytest.mark.parametrize("split", ["packed/train", "nowhere"])
def test_the_page_asks_for_an_evaluation(
    tmp_path: Path, evaluated: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    out = tmp_path / "page.html"
    command = ["report", str(evaluated / "run"), "--evaluate", str(evaluated / split), "--out", str(out)]
    if split == "nowhere":
        assert main(command) != 0 and "cannot be evaluated:" in capsys.readouterr().err and not out.exists()
        return
    assert main(command) == 0
    first, again = (Result.read(folder) for folder in (evaluated / "results", tmp_path / "page_results/run"))
    assert again.predictions == first.predictions and "<h3>Confusion matrix" in out.read_text()


def test_a_transfer_beside_a_run_from_scratch(tmp_path: Path, evaluated: Path) -> None:
    write_run(tmp_path / "runs/scratch", verdict=DONE)
    write_run(tmp_path / "runs/transfer", "init.from=runs/upstream", verdict=DONE)
    text = written(tmp_path, tmp_path / "runs")
    rows = re.findall(r'<tr data-run="(\w+)">(.*?)</tr>', text.split("<h2>Results")[1].split("</table>")[0], re.S)
    found = {name: plain(cells) for name, cells in rows}
    assert "from scratch 50.00 %" in found["transfer"] and "from scratch" not in found["scratch"]


def test_a_transfer_alone_shows_how_to_get_its_baseline(tmp_path: Path) -> None:
    run = write_run(tmp_path / "transfer", "init.from=runs/upstream", "seed=3", verdict=DONE)
    text = plain(written(tmp_path, run))
    command = text.split("No baseline from scratch:")[1].split(", then")[0]
    assert "seed=3" in command and "name=transfer_scratch" in command and command.count("name=") == 1
    assert "upstream" not in command and f"report {run} {tmp_path / 'transfer_scratch'}" in text


def test_results_of_another_run_are_refused(
    tmp_path: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "other", verdict=DONE)
    assert main(["report", str(run), "--results", str(evaluated / "results"), "--out", str(tmp_path / "x.html")]) == 2
    assert "which is not a run of this page" in capsys.readouterr().err and not (tmp_path / "x.html").exists()


def test_duplicates_and_the_code_of_an_export(tmp_path: Path, evaluated: Path) -> None:
    packed, run = evaluated / "packed/train", evaluated / "run"
    assert main(["dedup", str(packed), "--against", str(packed), "--out", str(tmp_path / "dup"), "--workers", "1"]) == 0
    weights = run / "checkpoints/step-00000100/weights.safetensors"
    out = tmp_path / "mine"
    options = ["--format", "timm", "--out", str(out), "--results", str(evaluated / "results")]
    assert main(["export", str(weights), *options]) == 0
    text = written(tmp_path, run, "--duplicates", tmp_path / "dup", "--export", out)
    assert "29 of the 29 images" in plain(text) and "exact" in text
    assert 'timm.create_model("local-dir:mine", pretrained=True)' in plain(text)
    card = (out / "README.md").read_text()
    assert "constant-prediction baseline 48.28 %" in card and "| emu | 6 |" in card
    assert card.index("## Results") < card.index("## Training") < card.index("## Preprocessing")


def test_an_export_refuses_results_of_other_weights(
    tmp_path: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(num_classes=3, img_size=32)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata_of(model, SQUASH))
    command = ["export", str(tmp_path / "w.safetensors"), "--results", str(evaluated / "results")]
    assert main([*command, "--format", "timm", "--out", str(tmp_path / "out")]) == 2
    assert "these are the results of" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*command, "--format", "npz", "--out", str(tmp_path / "out.npz")]) == 2
    assert "--results go into the README of a folder" in capsys.readouterr().err
