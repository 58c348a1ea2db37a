"""Say how many workers and actors a run has, and what each of them holds."""

from __future__ import annotations

from pydantic import Field, model_validator

from fewstep.orchestrator.recipe.section import Section


class Resources(Section):
    """What the run asks of the cluster."""

    workers: int = Field(default=1, gt=0, description="Training processes.")
    min_workers: int = Field(
        default=0,
        ge=0,
        description="The fewest workers that training goes on with while the cluster has no room for more; 0 is all.",
    )
    generators: int = Field(default=1, gt=0, description="Actors that sample, encode images and evaluate.")
    min_generators: int = Field(
        default=0, ge=0, description="The fewest sampling actors to start with while the cluster grows; 0 is all."
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="CPUs that Ray reserves for each worker or actor.")
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="GPUs that Ray reserves for each worker or actor; 0 computes on the CPU."
    )
    threads_per_worker: int = Field(default=1, gt=0, description="torch's threads in each worker or actor, on the CPU.")
    address: str = Field(
        default="",
        description='The address of a running Ray cluster, or `auto` for the one here; "" starts one on this machine.',
    )
    wait_s: float = Field(
        default=0.0, ge=0, description="Seconds to wait for a cluster that scales up to have room for the run."
    )
    cache: str = Field(
        default="/tmp/fewstep-cache", description="A folder on each node that keeps what was read from S3."
    )
    cache_gb: float = Field(
        default=20.0, ge=0, description="GiB that the cache of a node may hold, for all its processes together."
    )

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
