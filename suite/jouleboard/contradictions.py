"""What is wrong in a declaration whose fields are each well formed: they do not fit together, or name what does not exist.

Example: a task of kind `choice` with the metric `bleu`; a source from a package without a parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jouleboard.declared import GeneratedSource, Hardware, HubSource, Model, PackageSource, PathSource
from jouleboard.declared_corpora import Corpus
from jouleboard.declared_tasks import Kind, Metric, Task
from jouleboard.parsers import PARSERS, PROSE
from jouleboard.procedural import GENERATORS

METRICS: dict[Kind, frozenset[Metric]] = {
    "choice": frozenset({"acc", "acc_norm", "mc2", "likelihood_diff", "pct_stereotype"}),
    "generation": frozenset({
        "exact_match", "f1", "pass@1", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "contains", "refused", "toxic",
        "prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc",
    }),
    "dialogue": frozenset({"end_state"}),
    "perplexity": frozenset({"bits_per_byte"}),
}
"""What each kind of task can be scored by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """One contradiction."""

    field: str
    problem: str
    remedy: str


def of(noun: object) -> Iterator[Wrong]:
    """Yield what is wrong in a noun that was read from a file."""
    if isinstance(noun, Task):
        yield from _task(noun)
        yield from _data(noun)
    if isinstance(noun, Corpus):
        for index, part in enumerate(noun.parts):
            if part.parser not in PROSE:
                yield Wrong(field=f"parts[{index}].parser", problem=f"there is no parser {part.parser!r} of running text",
                            remedy=f"one of: {', '.join(PROSE)}")
    if isinstance(noun, Model) and (prior := noun.prior_quantisation) is not None:
        digits = re.search(r"[0-9]+", prior.scheme)
        if digits is None or int(digits[0]) != prior.bits:
            yield Wrong(field="prior_quantisation.scheme", problem=f"{prior.scheme!r} does not say {prior.bits} bits",
                        remedy="name the bits in the scheme, as in Q4_1: a report keeps its name only")
    if isinstance(noun, Hardware):
        if (noun.method == "model") != (noun.power_model is not None):
            yield Wrong(field="power_model", problem=f"does not fit method {noun.method!r}",
                        remedy="a power model belongs to method `model`, and to no other")
        try:
            re.compile(noun.device_pattern)
        except re.error as error:
            yield Wrong(field="device_pattern", problem=f"no regular expression: {error}", remedy="mend the pattern")


def _task(task: Task) -> Iterator[Wrong]:
    """Yield what is wrong in how a task is asked and scored."""
    if task.primary_metric not in task.metrics:
        yield Wrong(field="primary_metric", problem=f"{task.primary_metric!r} is not among the metrics",
                    remedy=f"one of: {', '.join(task.metrics)}")
    if not METRICS[task.kind].issuperset(task.metrics):
        yield Wrong(field="metrics", problem=f"{', '.join(task.metrics)} in a task of kind {task.kind!r}",
                    remedy=f"a {task.kind} task has of these: {', '.join(sorted(METRICS[task.kind]))}")
    if task.code != ("pass@1" in task.metrics):
        yield Wrong(field="code", problem="answers are executed where, and only where, the metric is pass@1",
                    remedy="`code: true` together with the metric pass@1")
    if task.kind == "perplexity" and (task.chance is not None or task.template != "plain"):
        yield Wrong(field="chance" if task.chance is not None else "template", problem="a perplexity task has none",
                    remedy="leave it out")
    if task.max_output_tokens is not None and task.kind not in {"generation", "dialogue"}:
        yield Wrong(field="max_output_tokens", problem=f"a {task.kind} task writes nothing", remedy="leave it out")
    if (task.lm_eval.folder is None) == (task.lm_eval.definition is None):
        yield Wrong(field="lm_eval", problem="needs one of `folder` and `definition`",
                    remedy="`folder` for a definition of lm-eval's, `definition` for one of our own")


def _data(task: Task) -> Iterator[Wrong]:
    """Yield what is wrong in where a task's items come from, and under which licence."""
    if not task.licence.strip():
        yield Wrong(field="licence", problem="is empty", remedy="name the data set's own licence, or say that it states none")
    one_file = isinstance(task.source, HubSource) and task.source.file is not None
    raw = one_file or isinstance(task.source, PackageSource | PathSource)
    if (task.parser is not None and task.parser not in PARSERS) or (raw and task.parser is None):
        yield Wrong(field="parser", problem=f"there is no parser {task.parser!r}", remedy=f"one of: {', '.join(PARSERS)}")
    if not raw and task.parser is not None:
        yield Wrong(field="parser", problem=f"{task.parser!r} for a source that has documents already",
                    remedy="leave it out")
    if isinstance(task.source, GeneratedSource) and task.source.generator not in GENERATORS:
        yield Wrong(field="source.generator", problem=f"there is no generator {task.source.generator!r}",
                    remedy=f"one of: {', '.join(GENERATORS)}")
    if bool(task.shots) != (task.lm_eval.shots_split is not None):
        yield Wrong(field="lm_eval.shots_split", problem=f"does not fit {task.shots} shots",
                    remedy="name the split that examples are taken from, where there are any: never the one that is scored")
    if task.lm_eval.shots_split is not None and (one_file or not isinstance(task.source, HubSource)):
        yield Wrong(field="lm_eval.shots_split", problem="only a data set of the hub, with no `source.file`, has other splits",
                    remedy="leave it out, and `shots` too")
    if task.lm_eval.shots_split == task.lm_eval.split:
        yield Wrong(field="lm_eval.shots_split", problem="is the split that is scored",
                    remedy="examples must come from another one")
