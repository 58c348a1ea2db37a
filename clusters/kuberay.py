"""Run a job on Kubernetes as a RayJob, for which the KubeRay operator starts a Ray cluster and removes it again."""

from __future__ import annotations

import base64
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import fsspec
import yaml
from pydantic import Field, field_validator

from fewstep.clusters.schema import ENDED, Cluster, ClusterError, ClusterSection, Job, JobState, Status, ray_version
from fewstep.clusters.this_machine import call, program

CONFIG_MAP_HOLDS = 750 * 1024  # bytes; base64 makes them 1000 KiB of the 1 MiB that Kubernetes allows for all of it
LOOKS_S = 5.0
CODE = "/fewstep"  # where the submitter finds the bundle
ENDS: dict[str, Status] = {"Suspending": "STOPPED", "Suspended": "STOPPED", "Failed": "FAILED"}


class Pod(ClusterSection):
    """What a node of the Ray cluster has."""

    cpus: int = Field(gt=0, description="CPUs of a node.")
    memory: str = Field(pattern=r"^\d+(Mi|Gi)$", description="Memory of a node, like 64Gi.")
    node_selector: Mapping[str, str] = Field(
        default={}, description="Labels that a Kubernetes node must have, such as those of spot nodes."
    )
    tolerations: tuple[Mapping[str, str], ...] = Field(
        default=(), description="Taints of Kubernetes nodes that are tolerated, such as those of spot nodes."
    )


class Workers(Pod):
    """A group of equal workers, added and removed as the job needs them."""

    name: str = Field(description="The group's name.")
    gpus: int = Field(default=0, ge=0, description="GPUs of a worker.")
    min: int = Field(default=0, ge=0, description="The fewest workers, there from the start.")
    max: int = Field(gt=0, description="The most workers.")


class SecretKey(ClusterSection):
    """Where Kubernetes keeps a secret."""

    secret: str = Field(description="The name of a Kubernetes Secret in the namespace.")
    key: str = Field(description="The key in that Secret.")


class KubeRay(Cluster):
    """Kubernetes with the KubeRay operator; each job brings its own Ray cluster."""

    kind: Literal["kuberay"] = Field(description="The kind of cluster.")
    namespace: str = Field(description="The Kubernetes namespace.")
    image: str = Field(
        default_factory=lambda: f"rayproject/ray:{ray_version()}-py311-gpu",
        description="The container image of all nodes; by default Ray's own, of the version that is installed here.",
    )
    head: Pod = Field(description="The node that the driver runs on; best not a spot node.")
    workers: tuple[Workers, ...] = Field(description="Groups of worker nodes.")
    idle_timeout_s: int = Field(default=300, gt=0, description="Seconds until an idle worker is removed.")
    volume_claim: str = Field(description="A ReadWriteMany volume claim, mounted at `outputs` on every node.")
    secrets: Mapping[str, SecretKey] = Field(
        default={},
        description="Environment variables that Kubernetes fills from its Secrets, as {secret, key}; fewstep "
        "never sees a value.",
    )
    install: bool = Field(
        default=True,
        description="Install the packages of this machine, at their versions, for each job; false if the "
        "image has them.",
    )
    upload: str = Field(
        default="",
        description="A folder like s3://bucket/folder for code and inputs of more than 700 KiB, which a "
        'ConfigMap cannot hold; "" refuses them.',
    )

    @field_validator("workers")
    @classmethod
    def _bounds(cls, value: tuple[Workers, ...]) -> tuple[Workers, ...]:
        for group in value:
            if group.min > group.max:
                raise ValueError(f"{group.name} has min={group.min} above max={group.max}")
        return value

    def preview(self, job: Job) -> str:
        """The manifest for kubectl, as YAML."""
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
        file.write_text(self.preview(job))
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
        """The state that the operator reports for the RayJob."""
        text = self._kubectl("get", "rayjob", job.id, "--ignore-not-found", "--output=json")
        if not text:
            return None
        rayjob = json.loads(text)
        status = rayjob.get("status", {})
        end = ENDS.get(status.get("jobDeploymentStatus", ""))
        digest = rayjob["metadata"]["annotations"].get("fewstep/digest", "")
        return JobState(end or status.get("jobStatus") or "PENDING", digest)

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """What the submitter's pod prints, which follows the driver."""
        position = 0
        while True:
            state = self.find(job)
            has_started = state and state.status != "PENDING"
            text = self._kubectl("logs", f"--selector=job-name={job.id}", "--tail=-1") if has_started else ""
            yield text[position:]
            position = len(text)
            if not follow or not state or state.status in ENDED:
                return
            time.sleep(LOOKS_S)

    def stop(self, job: Job) -> None:
        """Suspend it: the operator ends the job and deletes its cluster; the RayJob itself stays, for `find`."""
        self._kubectl("patch", "rayjob", job.id, "--type=merge", "--patch", json.dumps({"spec": {"suspend": True}}))

    def _kubectl(self, *arguments: str) -> str:
        kubectl = program("kubectl", "install it, or ask from a machine that has it")
        return call(kubectl, f"--namespace={self.namespace}", *arguments)

    def _manifest(self, job: Job) -> Path:
        return job.folder / f"{job.id}.yaml"

    def _archive(self, job: Job) -> str:
        return f"{self.upload}/{job.id}.zip"

    def _runtime_env(self, job: Job, fits: bool) -> dict[str, object]:
        """Where the code comes from: the submitter uploads what is under CODE, nodes fetch what is on S3 themselves."""
        packages = {"pip": list(job.pins)} if self.install else {}
        archive = f"{CODE}/code.zip" if fits else self._archive(job)
        return {"working_dir": archive, "env_vars": dict(self.env_vars), **packages}

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
            "rayVersion": ray_version(),
            "authOptions": {"mode": "token"},  # the operator makes the token and keeps it in a Secret
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": self.idle_timeout_s},
            "headGroupSpec": {"rayStartParams": {}, "template": self._pod(self.head, "ray-head", 0)},
            "workerGroupSpecs": groups,
        }

    def _pod(self, pod: Pod, name: str, gpus: int) -> dict[str, object]:
        resources = {"cpu": str(pod.cpus), "memory": pod.memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        secrets = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": entry.secret, "key": entry.key}}}
            for name, entry in self.secrets.items()
        ]
        container = {
            "name": name,
            "image": self.image,
            "resources": {"requests": resources, "limits": resources},
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
