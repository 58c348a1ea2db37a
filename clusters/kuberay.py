"""Kubernetes with the KubeRay operator: a RayJob, which brings its own Ray cluster and takes it away again."""

from __future__ import annotations

import base64
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import fsspec
import ray
import yaml
from pydantic import Field, field_validator

from fewstep.clusters.schema import ENDED, Cluster, ClusterError, ClusterSection, Job, JobState, Status
from fewstep.clusters.state import call, program

CONFIG_MAP_HOLDS = 700 * 1024  # bytes, of the 1 MiB that Kubernetes allows with all that is around them
LOOKS_S = 5.0
CODE = "/fewstep"  # where the submitter finds the bundle
ENDS: dict[str, Status] = {"Suspending": "STOPPED", "Suspended": "STOPPED", "Failed": "FAILED"}


class Pod(ClusterSection):
    """What a node of the Ray cluster is given."""

    cpus: int = Field(gt=0)
    memory: str = Field(pattern=r"^\d+(Mi|Gi)$")
    node_selector: Mapping[str, str] = {}
    tolerations: tuple[Mapping[str, str], ...] = ()  # of the taints of spot nodes, for one


class Workers(Pod):
    """A group of equal workers, as many as are needed."""

    name: str
    gpus: int = Field(default=0, ge=0)
    min: int = Field(default=0, ge=0)
    max: int = Field(gt=0)


class SecretKey(ClusterSection):
    """Where Kubernetes keeps a secret."""

    secret: str
    key: str


class KubeRay(Cluster):
    """A namespace of a Kubernetes cluster where KubeRay's operator is at work."""

    kind: Literal["kuberay"]
    namespace: str
    image: str = f"rayproject/ray:{ray.__version__}-py311-gpu"
    head: Pod
    workers: tuple[Workers, ...]
    idle_timeout_s: int = Field(default=300, gt=0)  # before a worker that does nothing goes
    volume_claim: str  # a ReadWriteMany claim, mounted at `outputs` on every node
    secrets: Mapping[str, SecretKey] = {}  # variables whose values Kubernetes puts in, by reference
    install: bool = True  # the pinned packages; False: the image has them
    upload: str = ""  # s3://bucket/folder for code and inputs that are more than a ConfigMap holds

    @field_validator("workers")
    @classmethod
    def _bounds(cls, value: tuple[Workers, ...]) -> tuple[Workers, ...]:
        for group in value:
            if group.min > group.max:
                raise ValueError(f"{group.name} has min={group.min} above max={group.max}")
        return value

    def shown(self, job: Job) -> str:
        """The manifest for kubectl."""
        archive = job.bundle.archive()
        fits = len(archive) <= CONFIG_MAP_HOLDS
        if not fits and not self.upload:
            raise ClusterError(
                f"the code and the recipe's files are {len(archive) // 1024} KiB and a ConfigMap holds "
                f"{CONFIG_MAP_HOLDS // 1024}; name an s3:// folder in `upload`, or the teacher by `hub` and `revision`"
            )
        labels = {"app.kubernetes.io/managed-by": "fewstep"}
        named = {"name": job.id, "namespace": self.namespace, "labels": labels}
        code = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named,
            "binaryData": {"code.zip": base64.b64encode(archive).decode()},
        }
        rayjob = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {**named, "annotations": {"fewstep/digest": job.digest}},
            "spec": {
                "jobId": job.id,
                "entrypoint": shlex.join(job.command()),
                "runtimeEnvYAML": yaml.safe_dump(self._runtime_env(job, fits), sort_keys=False),
                "backoffLimit": 0,  # a retry would be another cluster; the same command of fewstep continues
                "shutdownAfterJobFinishes": True,
                "submitterPodTemplate": self._submitter(job, fits),
                "rayClusterSpec": self._cluster(),
            },
        }
        return yaml.safe_dump_all([code, rayjob] if fits else [rayjob], sort_keys=False)

    def prepare(self, job: Job) -> None:
        """Write the manifest, and look for kubectl."""
        file = self._manifest(job)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.shown(job))
        program("kubectl", f"nothing was applied; the manifest is {file}: kubectl apply --filename {file}")

    def submit(self, job: Job) -> None:
        """Apply the manifest."""
        archive = job.bundle.archive()
        if len(archive) > CONFIG_MAP_HOLDS:
            with fsspec.open(self._archive(job), "wb") as stream:
                stream.write(archive)  # type: ignore[union-attr]
        self.prepare(job)
        self._kubectl("apply", "--filename", str(self._manifest(job)))

    def find(self, job: Job) -> JobState | None:
        """What the operator says of the RayJob."""
        told = self._kubectl("get", "rayjob", job.id, "--ignore-not-found", "--output=json")
        if not told:
            return None
        known = json.loads(told)
        status = known.get("status", {})
        ended = ENDS.get(status.get("jobDeploymentStatus", ""))
        return JobState(
            ended or status.get("jobStatus") or "PENDING", known["metadata"]["annotations"].get("fewstep/digest", "")
        )

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """What the submitter's pod prints, which follows the driver."""
        told = 0
        while True:
            found = self.find(job)
            started = found and found.status != "PENDING"
            text = self._kubectl("logs", f"--selector=job-name={job.id}", "--tail=-1") if started else ""
            yield text[told:]
            told = len(text)
            if not follow or not found or found.status in ENDED:
                return
            time.sleep(LOOKS_S)

    def stop(self, job: Job) -> None:
        """Suspend it: the operator ends the job and deletes its cluster; the RayJob stays to be asked."""
        self._kubectl("patch", "rayjob", job.id, "--type=merge", "--patch", json.dumps({"spec": {"suspend": True}}))

    def _kubectl(self, *arguments: str) -> str:
        kubectl = program("kubectl", "install it, or ask from a machine that has it")
        return call(kubectl, f"--namespace={self.namespace}", *arguments)

    def _manifest(self, job: Job) -> Path:
        return job.folder / f"{job.id}.yaml"

    def _archive(self, job: Job) -> str:
        return f"{self.upload}/{job.id}.zip"

    def _runtime_env(self, job: Job, fits: bool) -> dict[str, object]:
        """The submitter uploads what it finds under CODE; nodes fetch what lies on S3 themselves."""
        packages = {"pip": list(job.pins)} if self.install else {}
        place = f"{CODE}/code.zip" if fits else self._archive(job)
        return {"working_dir": place, "env_vars": dict(self.env_vars), **packages}

    def _submitter(self, job: Job, fits: bool) -> dict[str, object]:
        """The pod that hands the job to the cluster; KubeRay gives it the command and the token."""
        container = {
            "name": "submitter",
            "image": self.image,
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        }
        pod: dict[str, object] = {"restartPolicy": "Never"}
        if fits:
            container["volumeMounts"] = [{"name": "code", "mountPath": CODE}]
            pod["volumes"] = [{"name": "code", "configMap": {"name": job.id}}]
        return {"spec": {**pod, "containers": [container]}}

    def _cluster(self) -> dict[str, object]:
        groups = [
            {
                "groupName": group.name,
                "replicas": group.min,
                "minReplicas": group.min,
                "maxReplicas": group.max,
                "rayStartParams": {},
                "template": self._pod(group, "ray-worker", group.gpus),
            }
            for group in self.workers
        ]
        return {
            "rayVersion": ray.__version__,
            "authOptions": {"mode": "token"},  # the operator makes the token and keeps it in a Secret
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": self.idle_timeout_s},
            "headGroupSpec": {"rayStartParams": {}, "template": self._pod(self.head, "ray-head", 0)},
            "workerGroupSpecs": groups,
        }

    def _pod(self, pod: Pod, name: str, gpus: int) -> dict[str, object]:
        held = {"cpu": str(pod.cpus), "memory": pod.memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        secrets = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": place.secret, "key": place.key}}}
            for name, place in self.secrets.items()
        ]
        container = {
            "name": name,
            "image": self.image,
            "resources": {"requests": held, "limits": held},
            "env": secrets,
            "volumeMounts": [{"name": "outputs", "mountPath": self.outputs}],
        }
        return {
            "spec": {
                "containers": [container],
                "volumes": [{"name": "outputs", "persistentVolumeClaim": {"claimName": self.volume_claim}}],
                "nodeSelector": dict(pod.node_selector),
                "tolerations": [dict(toleration) for toleration in pod.tolerations],
            }
        }
