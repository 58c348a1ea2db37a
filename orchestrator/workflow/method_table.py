"""Lists the methods that fewstep knows, for people and for machines."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from fewstep.methods import METHODS
from fewstep.methods.base import Averaged, Round, Trained
from fewstep.orchestrator.observability.console import console


def show() -> dict[str, object]:
    """Print the methods as a table; return them as plain data."""
    table = Table("method", "paper", "rounds", "networks", "a search may vary", box=None, pad_edge=False)
    facts = []
    for name, cls in METHODS.items():
        rounds = cls().rounds()
        nets = list(dict.fromkeys(net for round in rounds for net in round.nets))
        table.add_row(name, cls.paper, str(len(rounds)), ", ".join(nets), ", ".join(cls.space))
        facts.append(
            {
                "name": name,
                "paper": cls.paper,
                "networks": nets,
                "rounds": [round.name for round in rounds],
                "columns": sorted({source.kind for round in rounds for source in round.sources.values()}),
                "space": {field: dataclasses.asdict(range) for field, range in cls.space.items()},
                "exports": "lora" if _is_lora(rounds[-1]) else "pipeline",
            }
        )
    console.print(table)
    return {"methods": facts}


def _is_lora(round: Round) -> bool:
    net = round.nets[round.result]
    while isinstance(net, Averaged):
        net = round.nets[net.of]
    return isinstance(net, Trained) and net.lora.rank > 0
