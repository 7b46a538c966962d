"""``doctor --first-light``: its comparisons, its order, its page, and the complete procedure on two CPU ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.doctor import cli as doctor
from pipelines.doctor.first_light import sections
from pipelines.doctor.first_light.bench import Bench
from pipelines.doctor.first_light.jobs import largest_difference
from pipelines.doctor.first_light.ranks import union_length
from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pipelines.report import cli as report
from pipelines.sources.sample_photos import write_photos
from pretrain.errors import ConfigError, DataError, SetupError


def bench(out: Path, *, ranks: int = 2, gpus: int = 0, tiny: bool = True, seconds: float = 600.0) -> Bench:
    return Bench(out, ranks, gpus, tiny, time.monotonic() + seconds)


def test_differences_of_losses() -> None:
    assert largest_difference({1: 2.0, 2: 1.0}, {1: 2.0, 2: 1.25, 3: 9.0}) == 0.2
    assert largest_difference({1: 2.0}, {2: 2.0}) is None


def test_the_time_that_overlapping_kernels_cover_counts_once() -> None:
    assert union_length([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4.0
    assert union_length([]) == 0.0


@pytest.mark.parametrize(
    ("machine", "skipped"),
    [
        ({"ranks": 1}, {"watchdog", "tf32", "elastic", "all_reduce"}),
        ({"ranks": 2}, {"tf32"}),
        ({"ranks": 8, "gpus": 8, "tiny": False}, set()),
        ({"ranks": 8, "gpus": 8, "tiny": False, "seconds": 0.0}, {part.name for part in sections.PARTS}),
    ],
)
def test_a_section_that_does_not_fit_is_reported_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: dict, skipped: set[str]
) -> None:
    done: list[str] = []
    parts = [
        sections.Part(
            part.name,
            lambda bench, name=part.name: done.append(name) or Finding(name, GREEN, "measured"),
            part.least_s,
            part.least_ranks,
            part.on_cpu,
        )
        for part in sections.PARTS
    ]
    monkeypatch.setattr(sections, "PARTS", parts)
    monkeypatch.setattr(sections, "_pack", lambda bench: None)
    found = list(sections.first_light(bench(tmp_path, **machine)))
    assert {one.probe for one in found if one.level == AMBER} == skipped
    assert [one.probe for one in found] == [part.name for part in parts]
    assert set(done) == {part.name for part in parts} - skipped
    written = json.loads((tmp_path / "first_light.json").read_text())
    assert [one["probe"] for one in written["findings"]] == [one.probe for one in found]


def test_a_machine_without_gpus(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SetupError, match=r"needs a GPU.*--tiny"):
        doctor.main(["--first-light", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_photos_have_the_size_of_imagenet(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    files = sorted((tmp_path / "photos").glob("*/*.jpg"))
    assert len(files) == 6 and {file.parent.name for file in files} == {"china", "flower"}
    for file in files:
        with Image.open(file) as image:
            assert image.size == (500, 375)


def test_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = bench(tmp_path)
    rows = [{"case": "plain", "images_per_s": 123.456}, {"case": "<b>", "problem": "out of memory"}]
    here.add(Finding("speed", GREEN, "123 images/s", values={"rows": rows, "seconds": 3.0}))
    here.add(Finding("watchdog", RED, "the job hangs", "report it"))
    out = tmp_path / "page.html"
    assert report.main([str(tmp_path / "first_light.json"), "--out", str(out)]) == 0
    page = out.read_text()
    for part in ("123.46", "out of memory", "&lt;b&gt;", "the job hangs", "report it", "<td>red</td>"):
        assert part in page, part
    assert "<b>" not in page and "first light" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--price is for pages of run folders"):
        report.main([str(tmp_path / "first_light.json"), "--price", "2", "--out", str(out)])


@pytest.mark.parametrize("content", ["", "[]", '{"format": "another"}'])
def test_a_file_of_another_kind(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(DataError, match="first"):
        report.main([str(tmp_path / "other.json"), "--out", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_complete_procedure_on_two_cpu_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--first-light", "--tiny", "--minutes", "30", "--out", str(tmp_path / "out"), "--json"])
    found = {line["probe"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert code == 1  # amber: tf32 needs a GPU
    assert {name for name, one in found.items() if one["level"] != GREEN} == {"tf32"}, found
    assert found["resume"]["values"]["largest_difference"] == 0.0
    assert found["watchdog"]["values"]["named"]
    assert found["copies"]["values"]["equal"]
    assert {row["case"] for row in found["speed_l16"]["values"]["rows"]} == {"plain", "full"}
