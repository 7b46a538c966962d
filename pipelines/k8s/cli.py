"""``python -m pipelines k8s``: the manifest of a JobSet that trains a config on Kubernetes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipelines.k8s.manifest import JobSet, Volume, as_yaml
from pipelines.k8s.places import check_places
from pipelines.slurm.begin import Training, read_training
from pipelines.terminal.arguments import add_overrides, positive, stage_parser
from pretrain.command_line import Parser, check_output_file
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import check_world
from pretrain.data.sources import lanes_of
from pretrain.errors import ConfigError
from pretrain.files import write_atomic
from pretrain.names import tell
from pretrain.redaction import is_redacted

EXAMPLES = """example:
  python -m pipelines k8s --config recipe:vit_l16_i21k_90ep --cluster configs/cluster/64xa100_80.yaml \\
    --ranks-per-node 8 --image registry.example.com/vit-pretrain:1 --namespace research \\
    --volume data:/data --volume runs:/runs --out job.yaml data.shards=/data/imagenet21k/train output_dir=/runs
  kubectl apply -f job.yaml"""
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LONGEST_NAME = 40  # with -node-0-NNNN-xxxxx it must be a DNS label of at most 63 characters
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def main(argv: Sequence[str]) -> int:
    """Prints or writes the manifest; see ``--help``."""
    args = parser().parse_intermixed_args(argv)
    if args.out is not None:
        check_output_file(args.out)
    manifest = as_yaml(job_set(args))
    if args.out is None:
        tell(manifest, end="", flush=True)
    else:
        write_atomic(args.out, manifest)
        tell(f"{args.out}: check it, then kubectl apply -f {args.out}")
    return 0


def job_set(args: argparse.Namespace) -> JobSet:
    """The JobSet that the options describe.

    Raises:
        UserError: the config is not usable, the ranks do not fit the batch or the nodes, or a path is on no volume.
    """
    words = ["--config", args.config, *(["--cluster", args.cluster] if args.cluster else []), *args.overrides]
    if args.source is not None:
        if args.stage != "finetune":
            raise ConfigError("--from belongs to --stage finetune; to pretrain from weights, set init.from=…")
        words += ["--from", args.source]
    training = read_training(args.stage, words)
    experiment = training.experiment
    nodes = _num_nodes(experiment, args.ranks_per_node)
    check_places(experiment, args.volumes, args.workdir)
    return JobSet(
        name=_name(args.name, experiment),
        namespace=args.namespace,
        image=args.image,
        nodes=nodes,
        ranks_per_node=args.ranks_per_node,
        module=training.script.removesuffix(".py").replace("/", "."),
        config=_config(training),
        volumes=tuple(args.volumes),
        limits=_limits(args, experiment),
        shm_gib=args.shm_gib,
        grace_s=stop_s(experiment),
        start_s=math.ceil(experiment.cluster.phase_limits_s.start),
        max_restarts=args.max_restarts,
        node_selector=dict(args.node_selector),
        secret=args.secret,
        workdir=args.workdir,
        python=args.python,
    )


def stop_s(experiment: Experiment) -> int:
    """Seconds within which a rank that was told to stop has saved, or its watchdog has ended it."""
    limits = experiment.cluster.phase_limits_s
    return math.ceil(limits.data + limits.step + limits.save)


def _num_nodes(experiment: Experiment, ranks_per_node: int) -> int:
    ranks = experiment.cluster.num_devices
    if ranks == "auto":
        raise ConfigError(
            "cluster.num_devices is auto, but a manifest states the number of pods: name a cluster file with "
            "--cluster, or set cluster.num_devices=64"
        )
    if ranks % ranks_per_node:
        raise ConfigError(
            f"cluster.num_devices is {ranks}, which is not a multiple of --ranks-per-node {ranks_per_node}: every pod "
            "gets the same number of ranks"
        )
    check_world(experiment.batches.unit, lanes_of(experiment), ranks)
    return ranks // ranks_per_node


def _name(given: str | None, experiment: Experiment) -> str:
    name = given or re.sub("[._]", "-", experiment.name.lower())
    if not _LABEL.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{name!r} cannot name a JobSet: at most {_LONGEST_NAME} lower-case letters, digits and -, the first of "
            "them a letter; choose one with --name"
        )
    return name


def _config(training: Training) -> str:
    config = training.resolved.to_yaml()
    if is_redacted(config):
        raise ConfigError(
            "the config has credentials, which a ConfigMap would show to everybody: put them into a Secret whose keys "
            "are environment variables, and name it with --secret"
        )
    return config


def _limits(args: argparse.Namespace, experiment: Experiment) -> dict[str, str]:
    limits = dict(args.resource)
    if experiment.cluster.wanted_device != "cpu":
        if args.gpu_resource in limits:
            raise ConfigError(f"--resource {args.gpu_resource} is --ranks-per-node already; remove it")
        limits[args.gpu_resource] = str(args.ranks_per_node)
    return limits


def volume(text: str) -> Volume:
    """``CLAIM:/PATH``, for argparse."""
    claim, colon, path = text.partition(":")
    if not colon or not _CLAIM.fullmatch(claim) or not _is_folder(path):
        raise argparse.ArgumentTypeError(f"{text!r}: write CLAIM:/PATH, such as runs:/runs")
    return Volume(path.rstrip("/"), claim=claim)


def host_volume(text: str) -> Volume:
    """``/HOSTPATH:/PATH``, for argparse."""
    host, colon, path = text.partition(":")
    if not colon or not _is_folder(host) or not _is_folder(path):
        raise argparse.ArgumentTypeError(f"{text!r}: write /HOSTPATH:/PATH, such as /mnt/nvme:/nvme")
    return Volume(path.rstrip("/"), host=host)


def _is_folder(path: str) -> bool:
    return path.startswith("/") and path.rstrip("/") != "" and ".." not in PurePosixPath(path).parts


def _pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE``, for argparse."""
    key, sign, value = text.partition("=")
    if not key or not sign or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE")
    return key, value


# long: one option after the other
def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser("k8s", "Writes the manifest of a JobSet that trains a config on Kubernetes.", EXAMPLES)
    add = parser.add_argument
    add("--stage", choices=("pretrain", "finetune"), default="pretrain", help="what the pods run (pretrain)")
    add("--config", required=True, metavar="FILE", help="YAML of the experiment; recipe:NAME for a shipped one")
    add("--cluster", metavar="FILE", help="cluster YAML, with num_devices")
    add("--from", dest="source", metavar="RUN_OR_WEIGHTS", help="with --stage finetune: run folder or weights")
    add("--ranks-per-node", type=positive, required=True, metavar="N", help="GPUs of a node; each node gets one pod")
    add("--image", required=True, help="container image with the product installed")
    add("--namespace", required=True, help="namespace of the JobSet")
    add("--name", help="name of the JobSet (default: the run's, with - for . and _)")
    volumes = {"action": "append", "dest": "volumes", "default": []}
    add("--volume", type=volume, metavar="CLAIM:/PATH", help="shared claim and its mount point; repeat", **volumes)
    add("--host-volume", type=host_volume, metavar="/HOST:/PATH", help="folder of each node itself; repeat", **volumes)
    add("--workdir", metavar="/PATH", help="folder that relative paths of the config start from")
    add("--shm-gib", type=positive, default=64, metavar="GIB", help="largest size of /dev/shm in a pod (64)")
    add("--gpu-resource", default="nvidia.com/gpu", metavar="NAME", help="name of a GPU (nvidia.com/gpu)")
    pairs = {"type": _pair, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    add("--resource", help="limit of a pod, such as cpu=96, memory=900Gi or rdma/hca=8; repeat", **pairs)
    add("--node-selector", help="label that the nodes must have; repeat", **pairs)
    add("--secret", metavar="NAME", help="Secret whose keys become environment variables of the ranks")
    add("--max-restarts", type=positive, default=10, metavar="N", help="crashes after which the JobSet fails (10)")
    add("--python", default="python", metavar="PATH", help="Python in the image (python)")
    add("--out", type=Path, metavar="FILE", help="file to write (default: print)")
    add_overrides(parser)
    return parser
