"""Hands any command to a cluster instead of running it here: once, then follows it, asks for it, stops it."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from fewstep.clusters import CLUSTERS, ENDED, Cluster, ClusterError
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.observability.console import console, say
from fewstep.orchestrator.recipe.parsing import read_yaml
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.submission import job_records as jobs
from fewstep.orchestrator.submission.bundle import make_bundle, pins
from fewstep.orchestrator.submission.job_records import Record, cluster_of, record_of
from fewstep.orchestrator.submission.layout import RECIPE

STOPS_S = 60.0  # after which a job that was told to stop is left to its cluster
ID = re.compile(r"[a-z]([-a-z0-9]{0,42}[a-z0-9])?")  # what a RayJob may be called, with room for an attempt's number


def submit(
    verb: str, recipe: Recipe, name: str, cluster_file: str, *, id: str = "", dry_run: bool = False, follow: bool = True
) -> Json:
    """Hand a verb to a cluster; the same again finds the job that is there. `name` is the recipe's.

    Raises BadInput where the id belongs to something else that was asked.
    """
    cluster = _read_cluster(cluster_file)
    bundle, digest = make_bundle(recipe, verb, cluster.outputs)
    id = _check_id(id) if id else _id(verb, Path(name).stem, digest)
    output = str(Path(cluster.outputs) / recipe.output)
    record = Record(id, verb, Path(name).stem, digest, cluster.model_dump(mode="json"), output)
    loaded = {"arguments": (cluster.outputs, verb, RECIPE), "bundle": bundle, "pins": pins()}
    with _as_bad_input():
        if dry_run:
            request = cluster.preview(dataclasses.replace(record.job, **loaded))
            return {"id": id, "shown": request, "files": list(bundle.files)}
        record = _earlier(record)
        if record.status != "SUCCEEDED":
            cluster.prepare(dataclasses.replace(record.job, **loaded))
            record = _newest(cluster, record)
        if record.status:
            say(f"job {record.job.id} is there already: {record.status}")
        else:
            say(f"job {record.job.id}: {len(bundle.files)} files, {bundle.size / 1024**2:.1f} MiB")
            cluster.submit(dataclasses.replace(record.job, **loaded))
            record = dataclasses.replace(record, status="PENDING", submitted=datetime.now(UTC).isoformat())
        record.write()
        return _follow(cluster, record) if follow else _facts(record)


def listed() -> Json:
    """All jobs of this machine, as they were last seen."""
    records = jobs.records()
    table = Table("id", "cluster", "last seen", "submitted", "output", box=None)
    table.columns[0].no_wrap = True
    for record in records:
        table.add_row(record.id, str(record.cluster["kind"]), record.status, record.submitted[:16], record.output)
    console.print(table)
    return {"jobs": [_facts(record) for record in records]}


def status(id: str) -> Json:
    """What has become of a job, and where its outputs are."""
    record, cluster = _known(id)
    with _as_bad_input():
        record = _look(cluster, record)
    facts = _facts(record)
    say(f"{record.job.id}: {record.status}; its output is {record.output} on {record.cluster['kind']}")
    if facts["report"]:
        say(f"report: {facts['report']}")
    return facts


def logs(id: str, follow: bool) -> Json:
    """What a job printed."""
    record, cluster = _known(id)
    with _as_bad_input():
        for piece in cluster.logs(record.job, follow):
            sys.stderr.write(piece)
    return _facts(record)


def stop(id: str) -> Json:
    """End a job."""
    record, cluster = _known(id)
    with _as_bad_input():
        cluster.stop(record.job)
        ends = time.monotonic() + STOPS_S
        while (state := cluster.find(record.job)) and state.status not in ENDED and time.monotonic() < ends:
            time.sleep(1.0)
        record = _look(cluster, record)
        _release(cluster)
    say(f"{record.job.id}: {record.status}")
    return _facts(record)


def _earlier(wanted: Record) -> Record:
    """What this machine knows of a job with this id. Raises BadInput where something else was asked."""
    known = next((record for record in jobs.records() if record.id == wanted.id), wanted)
    _refuse_other(known.digest, wanted)
    if known.cluster == wanted.cluster:
        return known
    if known.status not in ENDED:
        say(f"{known.id} was given to {known.cluster['kind']} before, and was last seen {known.status} there")
    return wanted


def _newest(cluster: Cluster, record: Record) -> Record:
    """The attempt that counts, as the cluster has it; without a status where it is still to be submitted.

    Raises BadInput where its id belongs to something else that was asked.
    """
    while state := cluster.find(record.job):
        _refuse_other(state.digest, record)
        if state.status not in ("FAILED", "STOPPED"):
            return dataclasses.replace(record, status=state.status)
        say(f"job {record.job.id} ended {state.status}; the next attempt continues what it left")
        record = dataclasses.replace(record, attempt=record.attempt + 1)
    return dataclasses.replace(record, status="")


def _refuse_other(digest: str, wanted: Record) -> None:
    if digest != wanted.digest:
        raise BadInput(
            f"--id: a job {wanted.id!r} is there with another recipe, verb or inputs; choose another id, "
            "or leave it out and fewstep makes one from them"
        )


def _follow(cluster: Cluster, record: Record) -> Json:
    """Print a job's log until it ends."""
    if record.status not in ENDED:
        for piece in cluster.logs(record.job, follow=True):
            sys.stderr.write(piece)
        record = _look(cluster, record)
    _release(cluster)
    say(f"{record.job.id}: {record.status}; its output is {record.output}")
    return {**_facts(record), "failed": record.status in ("FAILED", "STOPPED")}


def _look(cluster: Cluster, record: Record) -> Record:
    """The record with the newest status; the last one known where the cluster has forgotten the job."""
    state = cluster.find(record.job)
    if state is None:
        say(f"the cluster knows no job {record.job.id} any more; it was last seen {record.status}")
        return record
    record = dataclasses.replace(record, status=state.status)
    record.write()
    return record


def _release(cluster: Cluster) -> None:
    if left := cluster.release():
        say(left)


def _facts(record: Record) -> dict[str, object]:
    report = Path(record.output) / "report.html"
    facts = {name: getattr(record, name) for name in ("id", "verb", "recipe", "status", "output", "submitted")}
    return {**facts, "cluster": record.cluster["kind"], "report": str(report) if report.exists() else ""}


def _known(id: str) -> tuple[Record, Cluster]:
    record = record_of(id)
    return record, cluster_of(record.cluster, f"job {id}")


def _read_cluster(name: str) -> Cluster:
    """A cluster file at a path, or one that comes with fewstep by its name."""
    shipped = {file.stem: file for file in sorted(CLUSTERS.glob("*.yaml"))}
    file = Path(name) if Path(name).is_file() else shipped.get(name)
    if file is None:
        hint = nearest(name, shipped)
        raise BadInput(f"--cluster: there is no file {name!r}{hint}; give one, or one of {', '.join(shipped)}")
    return cluster_of(read_yaml(file, "cluster", Cluster), str(file))


def _id(verb: str, name: str, digest: str) -> str:
    """Readable, and another for anything else that is asked."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:20].strip("-")
    return "-".join(filter(None, (verb, word, digest[:10])))


def _check_id(id: str) -> str:
    if not ID.fullmatch(id):
        raise BadInput(f"--id: {id!r} must be lower-case letters, digits and dashes, start with a letter and be short")
    return id


@contextmanager
def _as_bad_input() -> Iterator[None]:
    """What a cluster refuses is bad input."""
    try:
        yield
    except ClusterError as error:
        raise BadInput(str(error)) from error
