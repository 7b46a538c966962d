"""The manifest: a ConfigMap with the resolved config, and a JobSet with one pod for each node.

The exit codes of a training decide what follows, as with the job scripts for Slurm:

| code | Job | JobSet |
|---|---|---|
| 0 | the pod is done | completes |
| 2: config, data, no space | fails at once | fails |
| 75: signal, eviction, STOP | makes the pod again, without counting | |
| any other: a crash, a hang | fails at once | makes all pods again, at most ``max_restarts`` times |

Source: jobset.x-k8s.io/v1alpha2 (JobSet 0.6 and later), batch/v1 (podFailurePolicy: Kubernetes 1.31 and later).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pretrain.distributed.rank import JOB_ID, LAUNCHER, RESTART_COUNT
from pretrain.engine.run_folder import EXIT_CODES, FATAL, REQUEUE

API_VERSION = "jobset.x-k8s.io/v1alpha2"
ROLE = CONTAINER = "node"
CONFIG_FOLDER, CONFIG_FILE = "/etc/vit-pretrain", "config.yaml"
PORT = 29_500
RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"
CODE_FAILURE = "PodFailurePolicy"  # a Job's reason for ending by a rule about an exit code


@dataclass(frozen=True)
class Volume:
    """A folder of the pods: of a claim that all pods share, or of the node that a pod runs on.

    Attributes:
        path: its mount point.
        claim: name of the PersistentVolumeClaim.
        host: the folder on the node.
    """

    path: str
    claim: str | None = None
    host: str | None = None

    @property
    def source(self) -> dict[str, Any]:
        """As Kubernetes writes it."""
        if self.claim is not None:
            return {"persistentVolumeClaim": {"claimName": self.claim}}
        return {"hostPath": {"path": self.host, "type": "Directory"}}


@dataclass(frozen=True)
class JobSet:
    """A training on Kubernetes.

    Attributes:
        name, namespace: of the JobSet.
        image: of the containers.
        nodes, ranks_per_node: pods, and ranks in each.
        module: that each rank runs.
        config: the resolved config as YAML.
        volumes: folders of the pods.
        limits: resource → amount for each pod.
        shm_gib: largest size of /dev/shm.
        grace_s: seconds that a pod gets to save before it is killed.
        start_s: seconds to wait for the first pod's name.
        max_restarts: crashes that the JobSet bears.
        node_selector: labels that the nodes must have.
        secret: Secret with environment variables.
        workdir: working folder; None: the image's.
        python: Python in the image.
    """

    name: str
    namespace: str
    image: str
    nodes: int
    ranks_per_node: int
    module: str
    config: str
    volumes: tuple[Volume, ...]
    limits: Mapping[str, str]
    shm_gib: int
    grace_s: int
    start_s: int
    max_restarts: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    secret: str | None = None
    workdir: str | None = None
    python: str = "python"

    @property
    def config_map(self) -> dict[str, Any]:
        """The ConfigMap."""
        metadata = {"name": f"{self.name}-config", "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {CONFIG_FILE: self.config}}

    @property
    def job_set(self) -> dict[str, Any]:
        """The JobSet."""
        rules = [{"name": "fatal", "action": "FailJobSet", "onJobFailureReasons": [CODE_FAILURE]}]
        return {
            "apiVersion": API_VERSION,
            "kind": "JobSet",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "failurePolicy": {"maxRestarts": self.max_restarts, "rules": rules},
                "replicatedJobs": [{"name": ROLE, "replicas": 1, "template": {"spec": self._job}}],
            },
        }

    @property
    def _job(self) -> dict[str, Any]:
        def on_exit(action: str, outcome: str) -> dict[str, Any]:
            codes = {"containerName": CONTAINER, "operator": "In", "values": [EXIT_CODES[outcome]]}
            return {"action": action, "onExitCodes": codes}

        return {
            "completionMode": "Indexed",
            "completions": self.nodes,
            "parallelism": self.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [on_exit("FailJob", FATAL), on_exit("Ignore", REQUEUE)]},
            "template": {"spec": self._pod},
        }

    @property
    def _pod(self) -> dict[str, Any]:
        shm = {"medium": "Memory", "sizeLimit": f"{self.shm_gib}Gi"}
        volumes = [
            {"name": "config", "configMap": {"name": f"{self.name}-config"}},
            {"name": "shm", "emptyDir": shm},
            *({"name": f"volume-{number}", **volume.source} for number, volume in enumerate(self.volumes)),
        ]
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_s,
            **({"nodeSelector": dict(self.node_selector)} if self.node_selector else {}),
            "containers": [self._container],
            "volumes": volumes,
        }

    @property
    def _container(self) -> dict[str, Any]:
        mounts = [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": f"volume-{number}", "mountPath": volume.path} for number, volume in enumerate(self.volumes)),
        ]
        return {
            "name": CONTAINER,
            "image": self.image,
            "command": self.command,
            **({"workingDir": self.workdir} if self.workdir else {}),
            "env": self._environment,
            **({"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}),
            **({"resources": {"limits": dict(self.limits)}} if self.limits else {}),
            "volumeMounts": mounts,
        }

    @property
    def command(self) -> list[str]:
        """The command of a pod."""
        launcher = ["--nodes", self.nodes, "--ranks", self.ranks_per_node, "--start-s", self.start_s]
        rank = ["-m", self.module, "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"]
        return [self.python, "-m", "pipelines.k8s.node", *map(str, launcher), "--", *rank]

    @property
    def _environment(self) -> list[dict[str, Any]]:
        first = f"{self.name}-{ROLE}-0-0.{self.name}"  # a pod's name in the headless service of the JobSet
        values = {"MASTER_ADDR": first, "MASTER_PORT": PORT, JOB_ID: self.name, LAUNCHER: "jobset"}
        values |= {"OMP_NUM_THREADS": 1, "PYTHONUNBUFFERED": 1}
        fields = {RESTART_COUNT: f"metadata.labels['{RESTART_LABEL}']", "NODE_NAME": "spec.nodeName"}
        return [
            *({"name": name, "value": str(value)} for name, value in values.items()),
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        ]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _dump_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _dump_text)


def as_yaml(what: JobSet) -> str:
    """The manifest, as ``kubectl apply -f`` reads it."""
    documents = [what.config_map, what.job_set]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
