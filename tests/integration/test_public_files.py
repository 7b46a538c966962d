"""The files of a public project say what is true: workflow, issue forms, citation, security page, Dockerfile."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import STAGES
from pretrain import __version__
from pretrain.data.images.opening import MAX_PIXELS
from tests.command import ROOT, Commands

DOCKERFILE = (ROOT / "Dockerfile").read_text()
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def test_the_workflow_calls_make_targets_over_all_pythons() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    called = {words[1] for step in steps if (words := step.get("run", "").split()) and words[0] == "make"}
    assert called == {"test", "lint", "types", "docs", "test-versions", "wheel"} and called <= targets
    pythons = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"], "text: YAML reads 3.10 as 3.1"
    assert f'requires-python = ">={pythons[0]}"' in (ROOT / "pyproject.toml").read_text()
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all(job["timeout-minutes"] for job in WORKFLOW["jobs"].values())
    assert WORKFLOW["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_accepts(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in fields)
    for command in re.findall(r"`vit-pretrain ([^`]+)`", path.read_text()):
        assert command.split()[0] in STAGES or command == "--version", command


def test_a_bug_report_asks_for_the_machine(command: Commands) -> None:
    form = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    (asked,) = re.findall(r"`vit-pretrain (doctor [^`]+)`", form)
    done = command.run("python", "-m", "pipelines", *asked.split(), "--help", check=True)
    assert all(option in done.stdout for option in asked.split()[1:])


def test_the_citation_has_the_version_and_the_required_keys() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_security_page_names_tests_and_limits_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(named) >= 5 and [name for name in named if not (ROOT / name).is_file()] == []
    assert f"{MAX_PIXELS:,}" in page


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def problems(text: str) -> list[str]:
    """The findings that a linter of Dockerfiles would report."""
    found, stages, copied = [], [], set()
    known = {"ARG", "FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ENV", "CMD", "USER", "ENTRYPOINT"}
    for word, rest in instructions(text):
        if word not in known:
            found.append(f"{word}: not one of {sorted(known)}")
        if word == "FROM":
            image, _, stage = rest.partition(" AS ")
            if image not in stages and not re.search(r":[\w.${}-]*\d|:\$\{", image):
                found.append(f"FROM {image}: no version")
            stages.append(stage)
        if word == "RUN" and "apt-get install" in rest:
            wanted = ("apt-get update", "install -y --no-install-recommends", "rm -rf /var/lib/apt/lists/*")
            found += [f"RUN apt-get install without {part}" for part in wanted if part not in rest]
        if word == "RUN":
            found += [
                f"RUN {part} without --no-cache-dir" for part in re.findall(r"pip install(?! --no-cache-dir)", rest)
            ]
            found += ["RUN with sudo"] if "sudo " in rest else []
        if word in ("SHELL", "CMD", "ENTRYPOINT") and not isinstance(json.loads(rest), list):
            found.append(f"{word} {rest}: not a list")
        if word == "WORKDIR" and not rest.startswith("/"):
            found.append(f"WORKDIR {rest}: not absolute")
        if word == "COPY" and rest.startswith("--from="):
            found += [] if rest.split()[0].removeprefix("--from=") in stages else [f"COPY {rest}: no such stage"]
        elif word == "COPY":
            copied |= set(rest.split()[:-1])
    found += [f"COPY {name}: not in the repository" for name in sorted(copied) if not (ROOT / name).exists()]
    kept = set(re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text()))
    return found + [f"COPY {name}: left out by .dockerignore" for name in sorted(copied - kept)]


def test_the_dockerfile_is_clean_and_has_the_targets_of_the_docs() -> None:
    assert problems(DOCKERFILE) == []
    stages = re.findall(r"(?m)^FROM .* AS (\w+)$", DOCKERFILE)
    shown = re.findall(r"--target (\w+)", DOCKERFILE + (ROOT / "docs/install.md").read_text())
    assert set(shown) == {"runtime", "slurm"} and set(shown) <= set(stages) and stages[-1] == "runtime"
    words = dict(instructions(DOCKERFILE.partition("FROM base AS slurm")[2].partition("FROM ")[0]))
    assert "ENTRYPOINT" not in words and "USER" not in words, "pyxis runs it as the job's user, without a program"
    extras = re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)[0].split(",")
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"(?m)^{extra} = \[", pyproject) for extra in extras)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM ubuntu", "no version"),
        ("FROM ubuntu:24.04\nRUN apt-get install -y make", "without --no-install-recommends"),
        ("FROM ubuntu:24.04\nRUN pip install torch", "without --no-cache-dir"),
        ("FROM ubuntu:24.04\nCOPY nowhere .", "not in the repository"),
        ("FROM ubuntu:24.04\nCOPY --from=other /a /b", "no such stage"),
        ("FROM ubuntu:24.04\nCOPY docs docs", "left out by .dockerignore"),
        ("FROM ubuntu:24.04\nWORKDIR work", "not absolute"),
        ("FROM ubuntu:24.04\nMAINTAINER me", "MAINTAINER"),
    ],
)
def test_a_careless_dockerfile_is_found(text: str, problem: str) -> None:
    assert any(problem in found or problem.partition("without ")[2] in found for found in problems(text))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_docker_builds_it(command: Commands) -> None:
    if shutil.which("docker") is None or command.run("docker", "info").returncode:
        pytest.skip("docker is not available; the Dockerfile is only read")
    for target in ("slurm", "runtime"):
        command.run(
            "docker",
            "build",
            "--target",
            target,
            "--tag",
            f"vit-pretrain-test:{target}",
            ".",
            timeout_s=3000,
            check=True,
        )
    done = command.run("docker", "run", "--rm", "vit-pretrain-test:runtime", "--version", check=True)
    assert done.stdout.startswith(f"vit-pretrain {__version__} ")
