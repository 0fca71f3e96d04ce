"""Generation against lm-eval's own `hf` model: `tox run -e bench`, or `python tests/bench/generation.py`. Prints figures, judges none.

The task `gsm_symbolic` as it is scored (its prompts through the chat template, its stop strings, its longest answer), with the
default model at batch 8. Both engines answer the same items in one process, with the same weights and dtype on one thread, one after
the other. CPU-seconds are those of the process while an engine answers: tokenising, planning, computing. On a busy machine both cost
more, and not alike: `--repeat` lets them answer again in turn, and the least of each counts.

`computed` are tokens through the model, padding included, counted at its forward pass: those of prompts and those of steps. A step is
one forward pass with one token a row; its CPU time is that of the pass. `useful` are the tokens of the answers, up to where each ends.
With `--only` one engine answers, and the process's peak memory is printed: it is that of this engine alone.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from jouleboard import catalogue, harness, models, tasks
from jouleboard.engines import convert, templates
from jouleboard.engines.reference import ReferenceLM

MODEL, TASK = "smollm2-135m-instruct-q4wheel", "gsm_symbolic"
BATCH, MAX_LENGTH, ITEMS = 8, 2048, 32
WANTED = 1.3


@dataclass(slots=True, kw_only=True)
class Cost:
    """What an engine took."""

    cpu_s: float = 0.0
    prefill: int = 0
    decode: int = 0
    steps: int = 0
    prefill_cpu_s: float = 0.0
    step_cpu_s: float = 0.0
    texts: list[str] = field(default_factory=list)


def weights() -> Path:
    """Return the folder of the default model's dense weights."""
    declared = catalogue.model(MODEL)
    helper = models.Helper(
        convert=lambda source, target: convert.to_dense(source, target, declared),
        fingerprint=lambda folder: convert.check_dense(folder, declared),
    )
    return models.prepare(declared, lambda: helper, say=print).folder


def requests(lm: HFLM, count: int, *, seed: int, chat: bool) -> list[Any]:
    """Return what lm-eval asks of a sample of the task's items."""
    task = catalogue.task(TASK)
    loaded = harness.load(task, tasks.prepare(task, say=print).path)
    built = loaded.lm_eval_task
    built.build_all_requests(
        samples=harness.sample(len(built.eval_docs), None, count, seed=seed), rank=0, world_size=1, apply_chat_template=chat,
        fewshot_as_multiturn=chat, chat_template=lm.apply_chat_template if chat else None, tokenizer_name="",
    )
    found: list[Any] = list(built.instances)
    return found


def answer(lm: HFLM, asked: list[Any]) -> Cost:
    """Let an engine answer, and return what it took."""
    cost, began_s = Cost(), [0.0]

    def begin(*_words: Any, **_named: Any) -> None:
        began_s[0] = time.process_time()

    def count(_module: Any, words: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:
        taken_s = time.process_time() - began_s[0]
        rows, width = (named["input_ids"] if "input_ids" in named else words[0]).shape
        if width > 1:
            cost.prefill += rows * width
            cost.prefill_cpu_s += taken_s
        else:
            cost.decode += rows
            cost.steps += 1
            cost.step_cpu_s += taken_s

    hooks = [lm.model.register_forward_pre_hook(begin), lm.model.register_forward_hook(count, with_kwargs=True)]
    begun_s = time.process_time()
    with torch.inference_mode():
        cost.texts += lm.generate_until(copy.deepcopy(asked), disable_tqdm=True)
    cost.cpu_s += time.process_time() - begun_s
    for hook in hooks:
        hook.remove()
    return cost


def told(name: str, cost: Cost) -> str:
    """Say what an engine took."""
    return (f"  {name:5} {cost.cpu_s:7.1f} CPU-s, computed {cost.prefill + cost.decode} tokens ({cost.prefill} of prompts in "
            f"{cost.prefill_cpu_s:.1f} s, {cost.decode} of {cost.steps} steps of {1000 * cost.step_cpu_s / cost.steps:.1f} ms)")


def compare(costs: dict[str, list[Cost]], ours: ReferenceLM) -> None:
    """Say how the engines differ."""
    useful = [output for _, output in ours.tally.request_tokens]
    print(f"  useful {sum(useful)} tokens of answers, from {min(useful)} to {max(useful)} each")
    least = {name: min(cost.cpu_s for cost in found) for name, found in costs.items()}
    print(f"  CPU-seconds, hf over ours: {least['hf'] / least['ours']:.2f} (wanted: {WANTED})")
    texts = {name: found[0].texts for name, found in costs.items()}
    same = sum(one == other for one, other in zip(texts["hf"], texts["ours"], strict=True))
    print(f"  equal texts: {same} of {len(useful)}")


def main() -> None:
    """Compare the two engines."""
    options = read()
    torch.set_num_threads(1)
    folder = weights()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype), use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = ReferenceLM(model, tokenizer, batch_size=BATCH, max_length=MAX_LENGTH)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, max_length=MAX_LENGTH)
    chat = not options.plain and templates.uses_chat(catalogue.task(TASK), catalogue.model(MODEL), tokenizer)
    asked = requests(theirs, options.items, seed=options.seed, chat=chat)
    engines = {name: lm for name, lm in (("hf", theirs), ("ours", ours)) if options.only in {None, name}}
    for lm in engines.values():
        answer(lm, asked[:1])
    print(f"generation: {TASK}, {'chat template' if chat else 'plain'}, {len(asked)} items, batch {BATCH}, {options.dtype}, one thread")
    costs: dict[str, list[Cost]] = {name: [] for name in engines}
    for _ in range(options.repeat):
        for name, lm in engines.items():
            ours.start_tally()
            costs[name].append(answer(lm, asked))
            print(told(name, costs[name][-1]), flush=True)
    if options.only:
        print(f"  peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    else:
        compare(costs, ours)


def read() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS, help=f"default: {ITEMS}")
    parser.add_argument("--seed", type=int, default=1, help="of the sample of items; default: 1")
    parser.add_argument("--repeat", type=int, default=1, help="how often both answer, in turn; default: once")
    parser.add_argument("--only", choices=["hf", "ours"], help="let one engine answer, for its peak memory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--plain", action="store_true", help="without the chat template: fewer answers end with the end-of-text token")
    return parser.parse_args()


if __name__ == "__main__":
    main()
