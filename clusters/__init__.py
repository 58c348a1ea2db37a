"""Send a run elsewhere: cluster files, and one class per kind of cluster that reads them."""

from __future__ import annotations

from pathlib import Path

from fewstep.clusters.kuberay import KubeRay
from fewstep.clusters.local import Local
from fewstep.clusters.ray import Ray
from fewstep.clusters.schema import ENDED, Cluster, ClusterError, Job, JobState, Status
from fewstep.clusters.slurm import Slurm
from fewstep.clusters.vm import Vm

__all__ = ["CLUSTERS", "ENDED", "KINDS", "Cluster", "ClusterError", "JobState", "Job", "Status"]

KINDS: dict[str, type[Cluster]] = {"kuberay": KubeRay, "local": Local, "ray": Ray, "slurm": Slurm, "vm": Vm}
CLUSTERS = Path(__file__).resolve().parent  # of the files that come with fewstep
