"""What goes into a bundle: the declarations that a plan uses, weights, items, and the script that starts it.

Everything but the wheels is the same bytes each time: nothing here depends on a clock, a host or a folder's place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from jouleboard import catalogue, corpora, paths, plan, portable, recipes, store
from jouleboard.declared import Hardware, Model, Noun, PathSource, Plan, Workload
from jouleboard.declared_corpora import Corpus
from jouleboard.declared_tasks import Task
from jouleboard.models import BUNDLED as WEIGHTS
from jouleboard.models import IDENTITY, Dense
from jouleboard.portable.manifest import CODE, README, START, Named
from jouleboard.sources import file_sha256
from jouleboard.tasks import BUNDLED as ITEMS
from jouleboard.tasks import BundledNote, Prepared

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What a model's folder is loaded from; no code and no other kinds of weights."""

START_TEXT = b'''"""Check this bundle and run it. README.txt says how; `python3 start.py --help` lists the options."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
if sys.version_info < (3, 8):
    sys.exit("start.py: Python 3.8 or newer is needed to read this bundle; README.txt says which one runs it")
from portable.start import main  # noqa: E402

sys.exit(main())
'''

README_TEXT = """\
A bundle of Jouleboard: the plan `{plan}` with everything that it needs on a machine without a network.

To run it, on the other machine:

    python3 start.py                         check every file, make an environment from the wheels, run the plan
    python3 start.py --out TRY --limit 10    a short try first; words that start.py does not know go on to `jouleboard run`
    python3 start.py verify                  only check every file
    python3 start.py --help                  all options

{python}
Results go to the folder results/ in here; the bundle is not written to otherwise. If it lies on a medium that cannot be
written, name another folder: python3 start.py --out DIR. Stopped, it goes on when it is called again.

To be sure that this is the very bundle that was made for you, ask for the SHA-256 of its manifest.json and demand it:

    python3 start.py --manifest-sha256 HEX
{parts}
To bring the results back: `jouleboard collect DIR --archive results.tar` on this machine makes one file of them (call it with
the Python of the environment: results/.environment/bin/python -m jouleboard collect ...), and `jouleboard collect results.tar
--out RUNS` on yours checks and unpacks it. Copying the folder results/ does as well: `jouleboard collect results --out RUNS`.

Models keep their own licences: {licences}.
"""
PARTS_TEXT = """
The files are cut into parts (the folder parts/), to be joined first; start.py does that by itself when it is called. To join
them into another folder, which then is the bundle: python3 start.py join --to DIR. Each part has its digest in manifest.json:
a part that is missing, cut short or swapped is named, and copying that one again is enough.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One file of a bundle, and where its bytes are now."""

    named: Named
    source: Path | bytes
    movable: bool = False
    """Whether the source is ours to move."""

    def blocks(self, start: int = 0, size: int | None = None, *, block_bytes: int = 2**20) -> Iterator[bytes]:
        """Yield a piece of the bytes; fewer where the source has become shorter."""
        left = self.named.size - start if size is None else size
        if isinstance(self.source, bytes):
            yield self.source[start : start + left]
            return
        with self.source.open("rb") as file:
            file.seek(start)
            while left > 0 and (block := file.read(min(left, block_bytes))):
                left -= len(block)
                yield block


def content(path: str, source: Path | bytes, *, movable: bool = False) -> Content:
    """Name a file of a bundle, with size and digest of what it holds now."""
    if isinstance(source, bytes):
        return Content(named=Named(path, len(source), hashlib.sha256(source).hexdigest()), source=source)
    return Content(named=Named(path, source.stat().st_size, file_sha256(source)), source=source, movable=movable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a plan names, loaded; and the plan with the ids that its models have in the bundle."""

    plan: Plan
    models: tuple[Model, ...]
    recipes: tuple[recipes.Recipe, ...]
    corpora: tuple[Corpus, ...]
    """What steps of the recipes are trained on."""
    tasks: tuple[Task, ...]
    workloads: tuple[Workload, ...]
    hardware: tuple[Hardware, ...]


def extras(inputs: Inputs) -> tuple[str, ...]:
    """Return the extras of Jouleboard that run the plan: `run`, and what the steps of its recipes need besides."""
    return tuple(sorted({"run", *(step.about.extra for recipe in inputs.recipes for step in recipe.steps)}))


def load(chosen: Plan, hardware: str | None) -> Inputs:
    """Load everything that a plan names. Unlike a run, this does not ask whether this machine could run it.

    Args:
        chosen: the plan.
        hardware: id of the profile that the other machine has; None: all, so that it is detected there.

    Raises:
        PlanError: something named does not exist.
    """
    models = tuple(catalogue.model(name) for name in chosen.models)
    chosen_recipes = tuple(recipes.load(name) for name in dict.fromkeys((chosen.base, *chosen.recipes)))
    texts = dict.fromkeys(step.trains_on for recipe in chosen_recipes for step in recipe.steps if step.trains_on is not None)
    profiles = [catalogue.hardware(hardware)] if hardware is not None else list(
        catalogue.load_all(paths.data_folder("hardware"), Hardware).values())
    return Inputs(
        plan=msgspec.structs.replace(chosen, models=tuple(model.id for model in models)), models=models,
        recipes=chosen_recipes, corpora=tuple(corpora.load(name) for name in texts),
        tasks=tuple(catalogue.task(row.task) for row in chosen.tasks),
        workloads=tuple(catalogue.workload(name) for name in sorted({cell.workload for cell in chosen.energy.cells} - {plan.REPLAY})),
        hardware=tuple(profiles))


def declarations(inputs: Inputs) -> Iterator[Content]:
    """Yield the YAML files of everything that a plan names, and the files that these name."""
    yield _declaration("plans", inputs.plan.id, inputs.plan)
    groups: dict[str, Iterable[Model | Task | recipes.Recipe | Corpus | Workload | Hardware]] = {
        "models": map(_without_path, inputs.models), "recipes": inputs.recipes, "corpora": inputs.corpora, "tasks": map(_without_path, inputs.tasks),
        "workloads": inputs.workloads, "hardware": inputs.hardware}
    for kind, nouns in groups.items():
        for noun in nouns:
            yield _declaration(kind, noun.id, noun)
    named = {plan.CALIBRATION, *(task.lm_eval.definition for task in inputs.tasks if task.lm_eval.definition)}
    for name in sorted(named):
        yield content(f"data/{paths.below_data('tasks')}/{name}", (paths.data_folder("tasks") / name).read_bytes())


def _declaration(kind: str, ident: str, noun: Noun) -> Content:
    """Take the file as it stands where it says the same, so that its comments go along."""
    file = paths.data_folder(kind) / f"{ident}.yaml"
    same = file.is_file() and catalogue.read_yaml(file, type(noun)) == noun
    text = file.read_bytes() if same else _yaml(noun)
    return content(f"data/{paths.below_data(kind)}/{ident}.yaml", text)


def _yaml(noun: Noun) -> bytes:
    # Through JSON, so that no object occurs twice: a data file has no aliases.
    plain = json.loads(store.canonical(noun))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()


def _without_path(noun: Model | Task) -> Model | Task:
    """Leave the folders of this machine out of what is declared; a bundle never looks there."""
    if not isinstance(noun.source, PathSource):
        return noun
    source = msgspec.structs.replace(noun.source, path=Path(noun.source.path).name)
    return msgspec.structs.replace(noun, source=source)


def public_source(noun: Model | Task) -> dict[str, Any]:
    """Return where weights or items came from, without a path of this machine."""
    source: dict[str, Any] = msgspec.to_builtins(noun.source)
    source.pop("path", None)
    return source


def weights(model: Model, dense: Dense) -> Iterator[Content]:
    """Yield a model's dense weights, configuration and tokenizer, and the note that names each by digest."""
    found = sorted({path for pattern in MODEL_FILES for path in dense.folder.glob(pattern)
                    if path.is_file() and path.name != IDENTITY and not path.name.startswith(".")})
    files = [content(f"{WEIGHTS}/{model.id}/{path.name}", path) for path in found]
    yield from files
    note = {"files": {Path(file.named.path).name: file.named.sha256 for file in files},
            "weights_sha256": dense.weights_sha256}
    yield content(f"{WEIGHTS}/{model.id}/{IDENTITY}", store.canonical(note))


def items(task: Task, prepared: Prepared) -> Iterator[Content]:
    """Yield a task's prepared documents, and the note of what they came from."""
    yield content(f"{ITEMS}/{task.id}.jsonl", prepared.path)
    note = BundledNote(source=public_source(task), unparsed=prepared.unparsed, data_sha256=prepared.data_sha256)
    yield content(f"{ITEMS}/{task.id}.json", store.canonical(note))


def texts(corpus: Corpus, file: Path) -> Iterator[Content]:
    """Yield a prepared corpus, and the proof of what was removed from it."""
    yield content(f"{corpora.BUNDLED}/{corpus.id}.jsonl", file)
    yield content(f"{corpora.BUNDLED}/{corpus.id}.json", file.with_suffix(".json"))


def starter(inputs: Inputs, *, python: str | None, in_parts: bool) -> Iterator[Content]:
    """Yield the script that starts a bundle, with what it imports, and the words to read first.

    Args:
        inputs: what is in the bundle.
        python: version of Python that the wheels are for; None: there are none.
        in_parts: whether the files are cut into parts.
    """
    if python is None:
        words = ("There are no wheels in here: call start.py with a Python (3.11 or newer) in whose environment\n"
                 "`pip install 'jouleboard[run]'` was done before.\n")
    else:
        words = f"The wheels in here are for Python {python}: call start.py with that one.\n"
    licences = ", ".join(f"{model.id}: {model.licence}" for model in inputs.models)
    text = README_TEXT.format(plan=inputs.plan.id, python=words, parts=PARTS_TEXT if in_parts else "",
                              licences=re.sub(r"\s+", " ", licences))
    yield content(README, text.encode())
    yield content(START, START_TEXT)
    folder = Path(portable.__file__).parent
    for path in sorted(folder.glob("*.py")):
        yield content(f"{CODE}/{path.name}", path.read_bytes())
