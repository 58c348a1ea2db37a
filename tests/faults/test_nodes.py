"""Nodes that are taken away, with a notice and without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.generation.data_sets import generate
from tests.support.data_sets import MakeRecipe, fill, new_commit_log
from tests.support.nodes import drain, lose

pytestmark = pytest.mark.faults


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that samples nothing and two nodes of one CPU."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("go", [lose, drain])
def test_a_node_that_goes_costs_at_most_what_was_in_flight_on_it(
    nodes: Cluster, make_recipe: MakeRecipe, tmp_path: Path, go: Callable[[Cluster], None]
) -> None:
    recipe = make_recipe({"address": nodes.address, "generators": 2}, samples=80)
    undisturbed: CommitLog = new_commit_log(recipe, tmp_path / "undisturbed")
    fill(undisturbed)
    retried: list[float] = []

    def disturb(step: int, values: Mapping[str, float]) -> None:
        retried.append(values["generate/shards_retried"])
        if step == 1:
            go(nodes)

    made = generate(recipe, str(tmp_path / "store"), disturb)
    commit_log = open_commit_log(made.url)
    assert made.quarantined == () and made.content_hash == undisturbed.newest().content_hash
    assert commit_log.verify().broken == ()
    assert max(retried) <= (2 if go is lose else 1)
