"""The source tree keeps the rules of layers.py and rules.py, and each rule finds a violation that is made up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture import layers, rules

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.quick
@pytest.mark.parametrize("rule", rules.RULES)
def test_the_source_keeps_the_rules(rule: Callable[[rules.Tree], Iterator[str]]) -> None:
    assert list(rule(rules.read_tree(ROOT))) == []


def test_every_source_file_is_under_a_rule() -> None:
    modules = {path: rules.module_name(path) for path in rules.read_tree(ROOT)}
    known = {path for path, module in modules.items() if any(rules.inside(module, name) for name in layers.MAY_IMPORT)}
    assert set(modules) - known == {"pretrain/__init__.py"}


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        # rooms
        (
            "pretrain/config/x.py",
            "from pretrain.models import vit",
            "pretrain.config must not import pretrain.models.vit",
        ),
        (
            "pretrain/models/x.py",
            "import pretrain.data.storage.index",
            "pretrain.models must not import pretrain.data.storage.index",
        ),
        ("pretrain/models/x.py", "def f():\n    from pretrain.optim import groups", "x.py:2: pretrain.models must not"),
        (
            "pretrain/models/layers/x.py",
            "from ...engine import loop",
            "pretrain.models must not import pretrain.engine",
        ),
        (
            "pretrain/engine/x.py",
            "from pretrain.models.vit import VisionTransformer",
            "must not import pretrain.models",
        ),
        (
            "pretrain/engine/x.py",
            "from pretrain.objectives import softmax",
            "must not import pretrain.objectives.softmax",
        ),
        (
            "pretrain/data/x.py",
            "try:\n    import pipelines.pack.cli\nexcept ImportError:\n    pass",
            "must not import pipelines",
        ),
        ("pretrain/run.py", "from pretrain.models.vit import build_vit", "pretrain.run must not import"),
        ("pretrain/errors.py", "from pretrain.config import schema", "pretrain.errors must not import"),
        # stages
        ("pipelines/verify/x.py", "from pipelines.pack import plan", "pipelines.verify must not import pipelines.pack"),
        (
            "pipelines/sources/x.py",
            "def f():\n    import pipelines.pack.plan",
            "x.py:2: pipelines.sources must not import",
        ),
        ("pipelines/terminal/x.py", "from pipelines.runs import processes", "it may import none of the others"),
        ("pipelines/pack/x.py", "from pipelines.pack.cli import main", "nothing imports a stage's cli"),
        ("pipelines/finetune.py", "from pipelines.pack.plan import Plan", "pipelines.finetune must not import"),
        ("pretrain/data/order/x.py", "from pretrain.data.storage import store", "pretrain.data.order must not import"),
        ("pretrain/data/order/x.py", "from pretrain.config import schema", "pretrain.data.order must not import"),
        (
            "pretrain/data/images/x.py",
            "def f():\n    from pretrain.data.workers import worker",
            "images must not import",
        ),
        ("pretrain/data/storage/x.py", "from pretrain.data.images import decode", "storage must not import"),
        ("pretrain/data/workers/x.py", "from pretrain.data.stream import Stream", "workers must not import"),
        ("pretrain/sharding/x.py", "from pretrain.engine import backends", "pretrain.sharding must not import"),
        ("pretrain/engine/x.py", "from pretrain.assembly import trainer", "pretrain.engine must not import"),
        # what only computes
        ("pretrain/data/order/x.py", "import torch", "pretrain.data.order.x → torch"),
        (
            "pretrain/data/order/x.py",
            "def f(path):\n    return open(path)",
            "x.py:2: open(path): read and write elsewhere",
        ),
        ("pretrain/data/order/x.py", "def f(path):\n    path.read_text()", "x.py:2: path.read_text()"),
        # libraries
        ("pretrain/engine/loop.py", "import deepspeed.comm", "deepspeed belongs to"),
        ("pretrain/config/schema/model.py", "from yaml import safe_load", "yaml belongs to pretrain.config.tree"),
        ("pretrain/data/x.py", "def f():\n    import subprocess", "x.py:2: subprocess belongs to pipelines"),
        (
            "pretrain/data/storage/cache.py",
            "import urllib3",
            "urllib3 belongs to pretrain.data.storage.http_client",
        ),
        # the web
        (
            "pipelines/sources/x.py",
            "import urllib.request",
            "x.py:1: URLs are read by pretrain.data.storage.http_client only",
        ),
        ("pipelines/x.py", "from urllib.request import urlopen", "URLs are read by"),
        ("pipelines/x.py", "def f():\n    from urllib import request", "x.py:2: URLs are read by"),
        ("pretrain/data/x.py", "import http.client", "URLs are read by"),
        ("pipelines/x.py", "import requests.adapters", "URLs are read by"),
        # threads
        ("pretrain/data/x.py", "def f():\n    threading.Thread(target=f).start()", "x.py:2: start threads with"),
        ("pipelines/x.py", "def f():\n    return ThreadPoolExecutor(4)", "x.py:2: start threads with pretrain.threads"),
        # the environment
        ("pretrain/data/x.py", "import os\nos.environ['A']", "x.py:2: the environment"),
        ("pretrain/data/x.py", "from os import environ", "x.py:1: the environment"),
        ("pretrain/data/x.py", "import os\nos.getenv('A')", "x.py:2: the environment"),
        # images
        (
            "pipelines/x.py",
            "from PIL import Image\nImage.open('a')",
            "x.py:2: images are opened in pretrain.data.images.opening",
        ),
        ("pipelines/x.py", "import PIL.Image\nPIL.Image.open('a')", "x.py:2: images are opened in"),
        ("pretrain/data/x.py", "from PIL.Image import open", "x.py:1: images are opened in"),
        ("pipelines/x.py", "import cv2\ncv2.imread('a')", "x.py:2: images are opened in"),
        # heavy
        ("pretrain/config/x.py", "import torch", "pretrain.config.x → torch"),
        ("pretrain/data/order/order.py", "import torch.utils.data", "pretrain.data.order.order → torch.utils.data"),
        ("pretrain/models/cost.py", "from pretrain.models import heavy", "cost → pretrain.models.heavy → torch"),
        ("pretrain/models/cost.py", "from pretrain.models.heavy import thing", "cost → pretrain.models.heavy → torch"),
        ("pipelines/__main__.py", "class A:\n    import cv2", "pipelines.__main__ → cv2"),
        # names
        ("pretrain/data/utils.py", "", "utils says nothing"),
        ("pretrain/helpers/x.py", "", "helpers says nothing"),
        ("pretrain/data/image_utils.py", "", "image_utils says nothing"),
        ("pretrain/data/__init__.py", "from pretrain.data import index", "a package file imports nothing"),
        # variants
        ("pipelines/x.py", "def f(e):\n    return e.cluster.zero_stage > 1", "x.py:2: e.cluster.zero_stage is read in"),
        ("pipelines/x.py", "def f(e):\n    return e.objective.name == 'softmax'", "ask what its kind declares"),
        ("pipelines/x.py", "def f(optim):\n    return optim.name in ('lamb',)", "ask what its kind declares"),
        ("pipelines/x.py", "def f(e):\n    return 'vit' != e.model.name", "x.py:2: 'vit' != e.model.name: ask"),
        ("pipelines/x.py", "def f(e):\n    return e.cluster.backend == 'auto'", "ask what its kind declares"),
        # size
        ("pipelines/x.py", "def f():\n" + "    x = 1\n" * 40, "x.py:1: f has 41 lines, the limit is 40"),
        ("pipelines/x.py", "class A:\n    def f(self, a, b, c, d, e, *f, **g): ...", "x.py:2: f has 7 parameters"),
        (
            "pipelines/x.py",
            "# many: no\ndef f():\n" + "    x = 1\n" * 40,
            "or give the reason in a comment `# long: …`",
        ),
        # the run folder
        (
            "pretrain/engine/run_folder.py",
            "def f(path):\n    open(path, 'a')",
            "run_folder.py:2: open(path, 'a')",
        ),
        ("pretrain/telemetry/x.py", "def f(path):\n    path.write_text('')", "x.py:2: path.write_text('')"),
        ("pretrain/engine/x.py", "import shutil\nshutil.rmtree('x')", "x.py:2: shutil.rmtree('x')"),
        ("pretrain/engine/x.py", "import os\nos.replace('a', 'b')", "x.py:2: os.replace('a', 'b')"),
        # the terminal
        ("pipelines/pack/cli.py", "def f(names):\n    print(names)", "cli.py:2: print with pretrain.names.tell"),
    ],
)
def test_a_violation_is_found(path: str, text: str, expected: str) -> None:
    tree = {"pretrain/models/heavy.py": "import torch", path: text}
    found = rules.violations(tree)
    assert any(expected in line for line in found), found
    assert all(line.startswith(path) for line in found)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pretrain/models/x.py", "from pretrain import seeds\nfrom pretrain.errors import ConfigError\nimport torch"),
        ("pretrain/models/x.py", "from pretrain.models.layers import mlp\nfrom .layers import mlp"),
        ("pretrain/engine/x.py", "from pretrain.objectives.protocol import Objective"),
        ("pretrain/config/x.py", "def f():\n    import torch"),
        (
            "pretrain/config/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pretrain.models import vit",
        ),
        ("pretrain/distributed/x.py", "import os\nos.environ['A']"),
        ("pipelines/x.py", "from urllib.parse import urlsplit"),
        ("pretrain/assembly/trainer.py", "from pretrain.models import vit\nfrom pretrain.data import index"),
        ("pipelines/x.py", "import subprocess\nfrom pretrain import run"),
        ("pretrain/data/__init__.py", '"""What this room is for."""'),
        ("pipelines/x.py", "def f(path, e):\n    return path.name == 'x', [e.objective.name]"),
        ("pipelines/x.py", "# long: a table\ndef f():\n" + "    x = 1\n" * 40),
        ("pipelines/x.py", "def f(a, b, c, d, e, g, h):\n    # many: the form of the format's header\n    return a"),
        ("pipelines/x.py", "def f():\n" + "    x = 1\n" * 39),
    ],
)
def test_what_is_allowed_is_left_alone(path: str, text: str) -> None:
    assert rules.violations({path: text}) == []


def test_modules_that_import_each_other_are_found() -> None:
    tree = {
        "pretrain/models/a.py": "from pretrain.models import b",
        "pretrain/models/b.py": "from pretrain.models.c import x",
        "pretrain/models/c.py": "def f():\n    from pretrain.models.a import y",
        "pretrain/models/d.py": "from pretrain.models.a import y",
    }
    ring = "pretrain.models.a, pretrain.models.b, pretrain.models.c"
    assert rules.violations(tree) == [f"pretrain/models/a.py:1: {ring} import each other: move down what several need"]


@pytest.mark.parametrize("module", layers.LIGHT)
def test_light_modules_are_light_when_they_run(module: str) -> None:
    code = f"import sys, {module}; heavy = {set(layers.HEAVY)} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_of_the_stages_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipelines.__main__ import main\n"
        f"assert main(['--help']) == 0\nsys.exit(len({set(layers.HEAVY)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
