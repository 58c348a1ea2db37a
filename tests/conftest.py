from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import pytest
import ray

from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.recipe.recipe import Recipe
from tests.support import tiny
from tests.support.data_sets import MakeRecipe, fill, new_commit_log

# The bounds of comparisons hold for the kernels that all x86 CPUs have; oneDNN's for AVX-512 add up in other orders.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "canary-key",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 on loopback with the bucket "bucket", as this process's environment names it."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(S3_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    S3FileSystem(skip_instance_cache=True).mkdir("bucket")
    yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def s3_url(s3: str) -> str:
    """An empty place."""
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[None]:
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 1024**2,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def recipe_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def make_recipe(recipe_data: dict[str, object]) -> MakeRecipe:
    """The tiny recipe with other trajectories or resources."""

    def make(resources: dict[str, object] | None = None, **trajectories: object) -> Recipe:
        told = recipe_data["trajectories"]
        assert isinstance(told, dict)
        return Recipe.model_validate(recipe_data | {"trajectories": told | trajectories, "resources": resources or {}})

    return make


@pytest.fixture(scope="session")
def finished(recipe_data: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> CommitLog:
    """The undisturbed data set, made in this process without Ray."""
    commit_log = new_commit_log(Recipe.model_validate(recipe_data), tmp_path_factory.mktemp("store"))
    fill(commit_log)
    return commit_log
