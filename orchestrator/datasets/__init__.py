"""A data set: its plan, its commit log, its Parquet files, a pinned version of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.datasets.commit_log import CommitLog as CommitLog
    from fewstep.orchestrator.datasets.commit_log import create_commit_log as create_commit_log
    from fewstep.orchestrator.datasets.commit_log import open_commit_log as open_commit_log
    from fewstep.orchestrator.datasets.dataset import Dataset as Dataset
    from fewstep.orchestrator.datasets.plan import DatasetPlan as DatasetPlan
    from fewstep.orchestrator.datasets.plan import make_plan as make_plan
    from fewstep.orchestrator.datasets.sources import DatasetKind as DatasetKind
    from fewstep.orchestrator.datasets.sources import dataset_kinds as dataset_kinds

__getattr__ = lazy(__file__)
