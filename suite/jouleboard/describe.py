"""The report format in words and as JSON Schema, made from the noun classes: whatever a field's docstring says is what the page says.

jouleboard schema report      the JSON Schema of report.json (docs/report.schema.json)
jouleboard schema fields      every field with type, unit and meaning (docs/report-format.md)
jouleboard schema codes       every rule of `jouleboard check` (docs/check-codes.md)
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import msgspec

from jouleboard import declared, records, selfreported, traces, windows
from jouleboard.declared import Noun
from jouleboard.problems import RULES, SINCE
from jouleboard.records import FORMAT_VERSION, Item, Report, Withdrawal

NOUNS: tuple[type[Noun], ...] = (
    Report, records.TaskResult, records.Score, records.Chance, records.SelfCheck, records.Engine, records.Environment, records.Build, records.StepBill,
    records.Realised, records.Failure, records.FileDigest, windows.Trial, windows.Probe, windows.SkippedProbe, windows.Idle, windows.Canary,
    windows.Window, windows.Energy, windows.DeviceState, windows.Gate, declared.Hardware, declared.Figure, declared.Band, declared.PowerModel,
    declared.EnergyPlan, declared.Cell, Item, traces.Sample, Withdrawal,
)
"""Everything that an entry consists of, outermost first."""
UNITS = {"_s": "seconds", "_j": "joules", "_w": "watts", "_bytes": "bytes", "_c": "°C", "_mhz": "MHz", "_utc": "UTC", "_wh": "watt hours",
         "_sha256": "SHA-256, hexadecimal", "_tokens": "tokens", "_chars": "characters"}
"""What the end of a field's name says."""


def schema(noun: type[Noun]) -> str:
    """Return the JSON Schema (2020-12) of a noun."""
    made = msgspec.json.schema(noun)
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Jouleboard {noun.__name__.lower()}, format {FORMAT_VERSION}", **made}
    # ECMAScript, whose expressions JSON Schema uses, ends a text with `$` and knows no `\\Z`.
    return json.dumps(_replaced(found), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: inner.replace("\\Z", "$") if key == "pattern" and isinstance(inner, str) else _replaced(inner) for key, inner in value.items()}
    return [_replaced(inner) for inner in value] if isinstance(value, list) else value


@cache
def _meanings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return the docstring of each field of each class of a module: Python keeps them nowhere but in the source."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for one, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and _is_text(after):
                    fields[one.target.id] = " ".join(ast.literal_eval(after.value).split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


@cache
def _annotations(module: ModuleType) -> dict[str, dict[str, str]]:
    return {node.name: {one.target.id: ast.unparse(one.annotation) for one in node.body
                        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
            for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)}


def _fields(noun: type[Noun]) -> Iterator[str]:
    module = sys.modules[noun.__module__]
    meanings, kinds = _meanings(module).get(noun.__name__, {}), _annotations(module)[noun.__name__]
    for name in noun.__struct_fields__:
        kind = re.sub(r"\s+", " ", kinds.get(name, "")).replace("|", "\\|")
        yield f"| `{name}` | `{kind}` | {_unit(name)} | {meanings.get(name, '').replace('|', chr(92) + '|')} |"


def fields() -> str:
    """Return the page of every field."""
    lines = [
        "# The report format", "",
        f"Format {FORMAT_VERSION}. Made by `jouleboard schema fields` from the classes of `records.py`, `windows.py` and `declared.py`; a test holds it against them.",
        "", "An entry is a folder with `report.json` (a `Report`), `items.jsonl.gz` (an `Item` a line, as canonical JSON, RFC 8785) and `trace.csv.gz` (a `Sample`",
        "a line). `null` means not measured, and zero is a true zero. Units stand in the names. Older formats are upgraded when they are read: `upgrade.py`.", "",
        "JSON Schemas: [report](report.schema.json), [item](item.schema.json), [withdrawal](withdrawal.schema.json). Rules: [check-codes.md](check-codes.md).", "",
    ]
    for noun in NOUNS:
        lines += [f"## {noun.__name__}", "", (noun.__doc__ or "").strip().split("\n\n")[0].replace("\n", " "), "",
                  "| field | type | unit | meaning |", "| --- | --- | --- | --- |", *_fields(noun), ""]
    lines += ["## What a checker cannot know", "",
              "Each of these fields can be changed in a genuine entry, and every digest computed again, without another record contradicting it. They are",
              "self-reported; levels of trust from L2 on exist for them. A property test changes every field and finds it refused or listed here.", "",
              "| field | why it is believed |", "| --- | --- |"]
    lines += [f"| `{one.pattern.replace('|', chr(92) + '|')}` | {one.why} |" for one in (*selfreported.FIELDS, *selfreported.UNDECLARED)]
    return "\n".join(lines) + "\n"


def codes() -> str:
    """Return the page of every rule."""
    lines = ["# The rules of `jouleboard check`", "",
             "Made by `jouleboard schema codes`; a test holds it against the code. A code never changes its meaning. An entry is held against the rules of its",
             "time (`rules_version`); a new one (`--base`) against all of them.", "", "| code | rule | since rules |", "| --- | --- | --- |"]
    lines += [f"| `{code}` | {rule.replace('|', chr(92) + '|')} | {SINCE.get(code, 1)} |" for code, rule in RULES.items()]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: schema(Report), "item": lambda: schema(Item), "withdrawal": lambda: schema(Withdrawal), "fields": fields, "codes": codes,
}
FILES = {"report": "report.schema.json", "item": "item.schema.json", "withdrawal": "withdrawal.schema.json", "fields": "report-format.md",
         "codes": "check-codes.md"}
"""Where each is kept below `docs/`."""
