"""The architecture as data: who may import whom, the home of each library, and the limits of a function."""

from __future__ import annotations

# Leaf modules, that every room may import.
LEAVES = frozenset(
    {
        "pretrain.command_line",
        "pretrain.disk",
        "pretrain.errors",
        "pretrain.files",
        "pretrain.names",
        "pretrain.records",
        "pretrain.redaction",
        "pretrain.seeds",
        "pretrain.shipped_files",
        "pretrain.text_files",
        "pretrain.threads",
    }
)
EVERYTHING = "pretrain"

# Module or room → the modules and rooms that it may import. The longest prefix that fits a module decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "pretrain.errors": (),
    "pretrain.command_line": (),
    "pretrain.disk": (),
    "pretrain.files": (),
    "pretrain.records": (),
    "pretrain.names": (),
    "pretrain.redaction": (),
    "pretrain.seeds": (),
    "pretrain.shipped_files": (),
    "pretrain.text_files": (),
    "pretrain.threads": (),
    "pretrain.config": (),
    "pretrain.distributed": (),
    "pretrain.models": ("pretrain.config",),
    "pretrain.sharding": (
        "pretrain.config",
        "pretrain.models",
        "pretrain.optim.groups",
        "pretrain.optim.factored",
        "pretrain.optim.matrices",
        "pretrain.optim.owners",
    ),
    "pretrain.objectives": ("pretrain.models", "pretrain.config"),
    "pretrain.data": ("pretrain.config", "pretrain.distributed"),
    "pretrain.data.order": (),
    "pretrain.data.images": ("pretrain.config",),
    "pretrain.data.on_device": ("pretrain.config",),
    "pretrain.data.storage": ("pretrain.config", "pretrain.distributed", "pretrain.data.order", "pretrain.data.ledger"),
    "pretrain.data.workers": (
        "pretrain.config",
        "pretrain.distributed",
        "pretrain.data.batch",
        "pretrain.data.images",
        "pretrain.data.order",
        "pretrain.data.storage",
    ),
    "pretrain.optim": ("pretrain.config", "pretrain.distributed"),
    "pretrain.telemetry": ("pretrain.config", "pretrain.distributed"),
    "pretrain.evaluation": (
        "pretrain.config",
        "pretrain.models",
        "pretrain.data",
        "pretrain.distributed",
        "pretrain.engine.session",
    ),
    "pretrain.engine": (
        "pretrain.config",
        "pretrain.distributed",
        "pretrain.telemetry",
        "pretrain.optim",
        "pretrain.sharding",
        "pretrain.objectives.protocol",
        "pretrain.data.sources",
        "pretrain.data.storage.objects",
        "pretrain.data.storage.transport",
    ),
    "pretrain.check": (EVERYTHING,),
    "pretrain.assembly": (EVERYTHING,),
    "pretrain.run": (
        "pretrain.assembly",
        "pretrain.check",
        "pretrain.config",
        "pretrain.distributed",
        "pretrain.engine",
        "pretrain.telemetry",
    ),
    "pipelines": (EVERYTHING,),
}

# These compute and neither read nor write: a position in, samples out.
PURE = ("pretrain.data.order",)

# Folder of pipelines that its stages share → the shared folders that it may import. Every other folder is a stage: it
# imports its own modules, the shared folders and pretrain, and nothing imports the cli of a stage.
SHARED: dict[str, tuple[str, ...]] = {
    "terminal": (),
    "nodes": (),
    "pages": (),
    "slurm": ("nodes",),
    "runs": ("slurm", "terminal"),
    "sources": ("runs", "terminal"),
    "weights": ("runs", "sources", "terminal"),
    "python_api": ("runs", "sources", "terminal", "weights"),
}

# HTTP libraries, and the only module that may import them: it bounds and checks answers.
WEB = frozenset(
    {"urllib", "urllib.request", "urllib.robotparser", "http", "http.client", "requests", "httpx", "aiohttp"}
)
WEB_HOME = "pretrain.data.storage.http_client"
# Outside library → the only places that may import it.
HOMES: dict[str, tuple[str, ...]] = {
    "deepspeed": ("pretrain.engine.deepspeed_backend", "pretrain.engine.backends"),
    "accelerate": ("pretrain.engine.accelerate_backend", "pretrain.engine.backends"),
    "webdataset": ("pretrain.data", "pipelines.pack", "pipelines.verify"),
    "yaml": ("pretrain.config.tree", "pretrain.config.loader", "pipelines.k8s.manifest"),
    "subprocess": ("pipelines", "pretrain.data.storage.transports"),
    "urllib3": (WEB_HOME, "pretrain.data.storage.transports"),
    "obstore": ("pretrain.data.storage.objects",),
    "boto3": ("pretrain.data.storage.transports", "pretrain.data.storage.objects"),
    "botocore": ("pretrain.data.storage.transports",),
    "rich": ("pretrain.telemetry", "pipelines"),
    "wandb": ("pretrain.telemetry",),
    "matplotlib": ("pipelines.figures",),
    "sklearn": ("pipelines.sources", "pretrain.evaluation.linear"),
    "cv2": ("pretrain.data", "pipelines.sources", "pipelines.pack", "pipelines.dedup"),
    "PIL": ("pretrain.data", "pipelines.sources", "pipelines.pack", "pipelines.dedup", "pipelines.pages"),
    "jinja2": ("pipelines.pages",),
    "pyarrow": ("pipelines.sources.parquet_columns",),
    "transformers": ("pretrain.models.families", "pretrain.models.exchange", "pipelines.export"),
    "safetensors": ("pretrain.models", "pretrain.engine", "pretrain.data"),
}
ENVIRONMENT_HOMES = ("pretrain.distributed", "pipelines")

# Calls that start a thread, and the modules that may make them; all others ask ``pretrain.threads``.
THREAD_CALLS = frozenset({"Thread", "Timer", "ThreadPoolExecutor"})
THREAD_HOMES = ("pretrain.threads",)

# Importing these must import none of the heavy libraries, also not through others.
HEAVY = frozenset(
    {
        "torch",
        "torchvision",
        "webdataset",
        "cv2",
        "deepspeed",
        "accelerate",
        "timm",
        "transformers",
        "tensorboard",
        "wandb",
    }
)
LIGHT = (
    "pretrain",
    "pretrain.command_line",
    "pretrain.errors",
    "pretrain.disk",
    "pretrain.files",
    "pretrain.records",
    "pretrain.names",
    "pretrain.redaction",
    "pretrain.seeds",
    "pretrain.shipped_files",
    "pretrain.threads",
    "pretrain.config",
    "pretrain.data.storage.index",
    "pretrain.data.order.order",
    "pretrain.data.sources",
    "pretrain.engine.run_folder",
    "pretrain.models.metadata",
    "pretrain.models.cost",
    "pretrain.models.families.registry",
    "pretrain.models.families.vit",
    "pretrain.models.variants",
    "pretrain.run",
    "pipelines",
    "pipelines.__main__",
    "pipelines.plan.cli",
    "pipelines.plan",
    "pipelines.chain.cli",
    "pipelines.runs.run_record",
    "pipelines.status.cli",
    "pipelines.nodes.checks",
)
LIGHT_ROOMS = ("pretrain.check", "pretrain.config", "pretrain.data.order", "pretrain.sharding", "pipelines.slurm")

# The only places that print without ``pretrain.names.tell``: what they print is read by a program.
PRINTERS = (
    "pretrain.names",
    "pretrain.config.json_schema",
    "pretrain.telemetry.metrics",
    "pipelines.slurm",
    "pipelines.nodes.compute",
    "pipelines.doctor.software",
)
# The one module that opens images with Pillow, and calls that read an image file without it.
OPENING = "pretrain.data.images.opening"
IMAGE_READERS = frozenset({"imread", "imdecode", "imreadmulti", "decode_image", "decode_png", "pil_loader"})

# They write and read a run folder, and do so through ``pretrain.disk`` alone, where it can be fenced and made to fail.
THROUGH_DISK = (
    "pretrain.files",
    "pretrain.records",
    "pretrain.distributed.heartbeats",
    "pretrain.engine",
    "pretrain.telemetry",
    "pipelines.runs.run_record",
    "pipelines.slurm.starts",
    "pipelines.slurm.end",
)
FILE_CALLS = frozenset(
    {"open", "save_file", "safe_open", "rename", "replace", "unlink", "rmtree", "mkdir", "makedirs", "rmdir", "touch"}
    | {"read_text", "read_bytes", "write_text", "write_bytes", "glob", "rglob", "iterdir", "listdir", "fsync"}
)

# Attribute → the only modules that read it. Everybody else asks the family, or the sharding, what depends on it.
ASKED_AT_HOME = {
    "zero_stage": ("pretrain.config.schema.cluster",),
}
# Settings of several kinds → the key that names the kind. The kind declares what others need to know, and nobody
# compares its name.
KINDS = {
    "objective": "name",
    "optim": "name",
    "schedule": "name",
    "model": "name",
    "cluster": "backend",
    "train_transform": "crop",
}

# The limits of a function. A comment that begins with ``long:`` or ``many:``, inside the function or on the line above
# it, gives the reason for an exception.
MOST_LINES, MOST_PARAMETERS = 40, 6

VAGUE_NAMES = frozenset({"utils", "util", "misc", "common", "helpers", "helper"})
