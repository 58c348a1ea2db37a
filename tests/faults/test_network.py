"""S3 behind a network that fails: answers that say "busy", connections that drop, answers that get lost."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from s3fs import S3FileSystem

from fewstep.orchestrator.datasets.commit_log import CommitLog
from tests.support.proxy import Choose, Proxy, between
from tests.support.work import check, drive, opened


@pytest.fixture
def content(s3_url: str) -> str:
    return drive(opened(f"{s3_url}/undisturbed")).content_hash


@pytest.fixture
def through(s3: str, content: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """This process reaches S3 through a proxy that does what the test's parameter says."""
    with between(s3, request.param) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3FileSystem.clear_instance_cache()
        yield proxy
    S3FileSystem.clear_instance_cache()


def sometimes(fault: str, chance: float) -> Choose:
    """The fault by chance, the same in every run."""
    numbers = random.Random(0)
    return lambda method, path, count: fault if numbers.random() < chance else ""


def commits_lose_their_answers(method: str, path: str, count: int) -> str:
    """Every conditional PUT is done, and its first answer never comes."""
    return "lose" if method == "PUT" and "/commits/" in path and count == 0 else ""


FAULTS = [sometimes("503", 0.3), sometimes("drop", 0.2), sometimes("delay", 0.15), sometimes("lose", 0.2)]


@pytest.mark.parametrize("through", FAULTS, ids=["503", "drop", "delay", "lose"], indirect=True)
def test_a_data_set_survives_a_failing_network(through: Proxy, content: str, s3_url: str) -> None:
    commit_log = opened(f"{s3_url}/disturbed")
    drive(commit_log)
    check(commit_log, content)
    assert sum(count for fault, count in through.seen.items() if fault != "none") > 3


@pytest.mark.parametrize("through", [commits_lose_their_answers], ids=["commits"], indirect=True)
def test_a_commit_whose_answer_was_lost_counts_once(through: Proxy, content: str, s3_url: str) -> None:
    commit_log: CommitLog = opened(f"{s3_url}/disturbed")
    drive(commit_log)
    assert through.seen["lose"] >= 5  # the probe's, the conditions' and every shard's
    check(commit_log, content)
    for commit in commit_log.newest().shards:
        assert commit_log.store.keys(f"shards/{commit.name}") == [commit.file_key]  # and nobody took it for another's
