"""What the ledger costs: a commit per shard, and the scan that resumes a data set of many shards.

    python -m tests.benchmarks.commits [--shards 10000]

The scan is timed at a tenth of the shards and at all of them: linear is a ratio of 10. Prints JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log
from fewstep.orchestrator.datasets.plan import Shard
from fewstep.orchestrator.datasets.sealed_records import seal
from tests.benchmarks.ratio import Row, median_of, rate, show
from tests.support.work import PLAN, TEACHER, commit, opened


def synthetic(folder: Path, shards: int) -> CommitLog:
    """A data set of so many commits that name one shard's bytes; unsynced, as only readers are timed."""
    plan = PLAN.model_copy(update={"samples": shards * PLAN.shard_size})
    commit_log = create_commit_log(str(folder), plan, [str(i) for i in range(plan.num_prompts)], TEACHER)
    first = commit(commit_log, plan.shards()[0].name)
    for shard in plan.shards()[1:]:
        other = replace(first, name=shard.name)
        (Path(commit_log.url) / other.key).write_bytes(seal(asdict(other)))
    return commit_log


def scan_s(shards: int) -> float:
    """Seconds to plan a data set of so many committed shards and to find that nothing is missing."""
    with tempfile.TemporaryDirectory() as folder:
        commit_log = synthetic(Path(folder), shards)
        plan, prompts = commit_log.plan, commit_log.prompts()
        started = time.perf_counter()
        commits, broken = create_commit_log(folder, plan, prompts, TEACHER).commits()
        missing = [shard for shard in plan.shards() if shard.name not in commits]
        assert not broken and not missing
        return time.perf_counter() - started


def main(shards: int) -> Iterator[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        commit_log = opened(folder)
        names = [Shard(range(start, start + PLAN.shard_size)).name for start in range(0, 100 * PLAN.shard_size, 8)]
        commit_log = create_commit_log(folder, PLAN.model_copy(update={"samples": 800}), commit_log.prompts(), TEACHER)
        per_s = rate(lambda: [commit(commit_log, name) for name in names] and None, len(names))
    scans = [(scan_s(shards // 10), scan_s(shards)) for _ in range(3)]
    facts = {"commit_ms": round(1000 / per_s, 2), "shards": shards, "scan_s": round(scans[-1][1], 2)}
    yield {
        "benchmark": "ledger, scan of ten times the shards",
        **median_of([many / few for few, many in scans]),
        **facts,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    show(main(parser.parse_args().shards))
