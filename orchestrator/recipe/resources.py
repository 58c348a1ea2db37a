"""recipe/resources.py."""

from __future__ import annotations

from pydantic import Field, model_validator

from fewstep.orchestrator.recipe.section import Section


class Resources(Section):
    """What the run asks of the cluster."""

    workers: int = Field(default=1, gt=0)  # training processes
    min_workers: int = Field(default=0, ge=0)  # to go on with while the cluster holds no more; 0 is all
    generators: int = Field(default=1, gt=0)  # sampling actors
    min_generators: int = Field(default=0, ge=0)  # to start with, while the cluster grows; 0 is all
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    threads_per_worker: int = Field(default=1, gt=0)  # of torch, on the CPU
    address: str = ""  # of a running Ray cluster; starts one here by default
    wait_s: float = Field(default=0.0, ge=0)  # for a cluster that scales up to give what is asked
    cache: str = "/tmp/fewstep-cache"  # a folder on each node, for trajectories that were read from S3
    cache_gb: float = Field(default=20.0, ge=0)  # at most, for all processes of a node together

    @model_validator(mode="after")
    def _consistent(self) -> Resources:
        for few, many in (("min_workers", self.workers), ("min_generators", self.generators)):
            if getattr(self, few) > many:
                raise ValueError(f"{few}={getattr(self, few)} must be at most {few.removeprefix('min_')}={many}")
        return self

    @property
    def first_workers(self) -> int:
        """Training processes that must find room before anything starts."""
        return self.min_workers or self.workers

    @property
    def first_generators(self) -> int:
        """Sampling actors that must find room before anything starts."""
        return self.min_generators or self.generators
