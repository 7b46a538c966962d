"""The compiled part of the package: one small C extension without dependencies. All else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("pretrain/data/images/native")

setup(
    ext_modules=[
        Extension(
            "pretrain.data.images._restarts",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # one wheel for all versions of Python from 3.10 on
)
