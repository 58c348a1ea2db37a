"""List every field that a recipe or a cluster file may have: in tables for a terminal, and as recipes/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.recipe.json_schema import Schema

WORDS = {"string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
PAPERS = "https://arxiv.org/abs/"
INTRODUCTION = """\
# Recipes

<!-- Made by `fewstep recipe --markdown > recipes/README.md` from the descriptions in the code; change those. -->

A recipe is a YAML file that describes one run, from the teacher to the report, as the demo's
[`emoji-one-step.yaml`](emoji-one-step.yaml) does. `fewstep run RECIPE` takes a file or the name of a recipe that comes
with fewstep, and then any number of fields to change without changing the file:

```sh
fewstep run emoji-one-step output=elsewhere training.steps=100 'evaluation.steps=[1, 4]'
```

- A value is written as in YAML. A key that does not exist is refused, and the nearest one that does is named.
- Paths of inputs are relative to the recipe's folder, `output` and `trajectories.store` to the folder where you are.
- A guidance scale of 1 is no guidance, everywhere.
- Downloads from a hub go through hf-xet, with `HF_XET_HIGH_PERFORMANCE=1` unless you have set it. `hf-transfer`
  does nothing any more: huggingface_hub has stopped using it.
- `fewstep recipe --fields training` shows what is below in a terminal, and `fewstep recipe --schema` prints a JSON
  schema: an editor with a YAML language server checks and completes a recipe that begins with
  `# yaml-language-server: $schema=FILE`. Both take `--cluster` for cluster files.
"""
IMPORTS = """\
### What `fewstep import` reads

`fewstep import RECIPE SOURCE STORE` makes a data set for `data.imported` of pictures, or of pairs of noise and sample,
that were made elsewhere. SOURCE is what WebDataset writes, packed in tars or not: files that share a name for each
sample.

| file | what it holds |
|---|---|
| `NAME.png`, or another format of pictures | a picture |
| `NAME.latent.npy` | in place of a picture, its latent, scaled as diffusers scales latents |
| `NAME.txt` or `NAME.cls` | its prompt, or the number of its class |
| `NAME.noise.npy` | the unit noise that the sample was made from, for pairs |

A `.pth` file of plain tensors does in place of `.npy`.
"""
REAL = """\
The recipes in `real/` are for published models, with the papers' settings where they are known; each says how many GPUs
and how much memory it needs, and what is known of the hours. None has been run on a GPU yet. This checks one anywhere:

```sh
fewstep plan sd15-dmd --offline trajectories.prompts=$PWD/mine.txt evaluation.prompts=$PWD/theirs.txt
```
"""


@dataclass(frozen=True)
class FieldEntry:
    """A field in words; `default` is as YAML has it, "required", or empty where it depends on the machine."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class SectionEntry:
    """A section of a file; `variant` is the method, or the kind of cluster, whose fields these are, or empty."""

    name: str
    variant: str
    description: str
    fields: tuple[FieldEntry, ...]

    @property
    def title(self) -> str:
        """What a heading says."""
        return " ".join(filter(None, (self.name, self.variant)))


def recipe_sections(schema: Schema) -> list[SectionEntry]:
    """The sections of a recipe by its schema, with one for each method; the fields outside of any come last."""
    sections, loose = [], []
    for name, field in schema["properties"].items():
        if "$ref" not in field:
            loose += _entries(schema, name, field, is_required=name in schema["required"])
            continue
        target = _resolve(schema, field)
        variants = target.get("oneOf", [target])
        sections += [_section(schema, name, v["title"] if len(variants) > 1 else "", v) for v in variants]
    return [*sections, SectionEntry("", "", "These belong to no section.", tuple(loose))]


def cluster_sections(schema: Schema) -> list[SectionEntry]:
    """The fields of each kind of cluster, by the schema of cluster files."""
    kinds = [_resolve(schema, reference) for reference in schema["oneOf"]]
    return [_section(schema, "", kind["properties"]["kind"]["const"], kind) for kind in kinds]


def select(sections: Sequence[SectionEntry], word: str) -> list[SectionEntry]:
    """What a word names: a section, a method, a kind of cluster, or a field like training.steps.

    Raises BadInput where it names nothing.
    """
    if not word:
        return list(sections)
    if named := [section for section in sections if word in (section.name, section.variant)]:
        return named
    chosen, names = [], [name for section in sections for name in (section.name, section.variant) if name]
    for section in sections:
        full = {field: _full_names(section, field) for field in section.fields}
        if fields := tuple(field for field in section.fields if word in full[field]):
            chosen.append(SectionEntry(section.name, section.variant, section.description, fields))
        names += [name for field in section.fields for name in full[field]]
    if not chosen:
        raise BadInput(f"{word!r} names no section and no field{nearest(word, dict.fromkeys(names))}")
    return chosen


def table_of(section: SectionEntry) -> Table:
    """A section's fields for a terminal."""
    table = Table("field", "type", "default", "meaning", box=None, pad_edge=False, title_justify="left")
    table.title = Text(f"{section.title or 'recipe'}: {section.description}", style="bold not italic")
    for field in section.fields:
        table.add_row(*map(Text, (field.name, field.type, field.default, field.description)))
    return table


def markdown(recipe: Sequence[SectionEntry], clusters: Sequence[SectionEntry], folder: Path) -> str:
    """recipes/README.md: how recipes are written, all fields, and the recipes in a folder."""
    methods = [section for section in recipe if section.name == "method"]
    pages = [INTRODUCTION]
    for section in recipe:
        if section not in methods:
            title = f"`{section.name}`" if section.name else "At the top level"
            pages.append(f"## {title}\n\n{section.description}\n\n{_markdown_table(section)}")
            pages += [IMPORTS] if section.name == "data" else []
        elif section is methods[0]:
            pages.append(
                "## `method`\n\n`name` is one of these; all other keys are the method's own, whose defaults follow its "
                "paper. `fewstep methods` lists what a search may vary.\n"
            )
            pages += [f"### `name: {m.variant}`\n\n{_linked(m.description)}\n\n{_markdown_table(m)}" for m in methods]
    pages.append(
        "## Cluster files\n\n`fewstep submit VERB RECIPE --cluster FILE` reads one of these; "
        "[clusters/](../clusters/README.md) has a file of each kind to copy.\n"
    )
    pages += [f"### `kind: {kind.variant}`\n\n{kind.description}\n\n{_markdown_table(kind)}" for kind in clusters]
    return "\n".join([*pages, _shipped(folder)])


def _section(schema: Schema, name: str, variant: str, target: Schema) -> SectionEntry:
    fields: list[FieldEntry] = []
    for field, value in target["properties"].items():
        is_required = field in target.get("required", ())
        if not (is_required and "const" in value):  # `name` or `kind`, which the variant says
            fields += _entries(schema, field, value, is_required=is_required)
    return SectionEntry(name, variant, " ".join(target["description"].split()), tuple(fields))


def _entries(schema: Schema, name: str, field: Schema, *, is_required: bool) -> Iterator[FieldEntry]:
    """A field, and the fields of the sections inside it."""
    default = "required" if is_required else json.dumps(field["default"]) if "default" in field else ""
    yield FieldEntry(name, _type(schema, field), default, field.get("description", ""))
    for path, section in _inner(schema, name, field):
        for inner, value in section["properties"].items():
            yield from _entries(schema, f"{path}.{inner}", value, is_required=inner in section.get("required", ()))


def _inner(schema: Schema, path: str, field: Schema) -> Iterator[tuple[str, Schema]]:
    """The sections inside a field, with their paths: head, workers[], secrets.NAME."""
    if "$ref" in field:
        yield path, _resolve(schema, field)
    for choice in field.get("oneOf", ()):
        yield from _inner(schema, path, choice)
    if "items" in field:
        yield from _inner(schema, f"{path}[]", field["items"])
    if isinstance(values := field.get("additionalProperties"), dict):
        yield from _inner(schema, f"{path}.NAME", values)


def _type(schema: Schema, field: Schema) -> str:
    """What may be written, in words."""
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(schema, choice) for choice in choices)
    if "$ref" in field:
        return "section"
    if "const" in field:
        return _plain(field["const"])
    if "enum" in field:
        *others, last = map(_plain, field["enum"])
        return f"{', '.join(others)} or {last}"
    if "prefixItems" in field:
        return f"[{', '.join(_type(schema, item) for item in field['prefixItems'])}]"
    kind = field["type"]
    if kind == "array":
        return f"list of {_type(schema, field['items'])}" if field.get("items") else "list"
    bounds = " and ".join(f"{sign} {field[bound]}" for bound, sign in BOUNDS.items() if bound in field)
    return f"{WORDS.get(kind, kind)} {bounds}".rstrip()


def _plain(value: object) -> str:
    """A value as YAML has it, without quotes where it needs none."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _resolve(schema: Schema, field: Schema) -> Schema:
    return schema["$defs"][field["$ref"].rpartition("/")[2]]


def _full_names(section: SectionEntry, field: FieldEntry) -> set[str]:
    """How a person may name a field: method.skip, lcm.skip."""
    return {f"{name}.{field.name}".removeprefix(".") for name in (section.name, section.variant or section.name)}


def _linked(description: str) -> str:
    """A method's description with a link to its paper."""
    text, _, paper = description.rpartition(" arXiv:")
    return f"{text} [arXiv:{paper}]({PAPERS}{paper})"


def _markdown_table(section: SectionEntry) -> str:
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in section.fields:
        default = field.default if field.default in ("", "required") else f"`{field.default}`"
        rows.append(f"| `{field.name}` | {_cell(field.type)} | {_cell(default)} | {_cell(field.description)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shipped(folder: Path) -> str:
    """The recipes in a folder, each with the first line of the comment that it begins with."""
    rows = ["## Recipes that come with fewstep\n", REAL, "| recipe | what it is |", "|---|---|"]
    for inner in ("", "real", "search", "compare/emoji", "compare/fashion"):
        for file in sorted((folder / inner).glob("*.yaml")):
            path = file.relative_to(folder).as_posix()
            comment = file.read_text().partition("\n")[0].removeprefix("# ")
            rows.append(f"| [`{path.removesuffix('.yaml')}`]({path}) | {_cell(comment)} |")
    return "\n".join(rows) + "\n"
