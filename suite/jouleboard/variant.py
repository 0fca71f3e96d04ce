"""One variant in memory: built from the base's dense weights by its recipe, evaluated, replayed and probed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from jouleboard import harness, protocol, recipes, scores, workloads
from jouleboard.declared import Metric
from jouleboard.engines import inspect
from jouleboard.engines.reference import SOFTMAX_DTYPE, ReferenceLM
from jouleboard.errors import RecipeError
from jouleboard.harness import Outcome
from jouleboard.recipes.interface import Context
from jouleboard.records import Engine, Score, TaskResult

Wait = Callable[[], None]
WARMUP_STEPS = 4


class Variant:
    """A model after a recipe, ready to compute."""

    def __init__(self, request: protocol.Build, *, before_build: Wait = lambda: None) -> None:
        """Load the dense weights, apply the recipe, and read back what was realised.

        Args:
            request: which weights, which recipe, how many threads.
            before_build: called when the imports are done, so that a window around the build holds the build only.
        """
        torch.set_num_threads(request.threads)
        harness.seed_everything(0)
        recipe = msgspec.convert(request.recipe, recipes.Recipe)
        tokenizer = AutoTokenizer.from_pretrained(request.folder)
        before_build()
        model = AutoModelForCausalLM.from_pretrained(
            request.folder, dtype=getattr(torch, recipe.dtype), use_safetensors=True
        )
        if getattr(model.config, "quantization_config", None) is not None:
            raise RecipeError("the model's published weights are quantised already", field="model",
                              remedy="name dense weights: what a recipe loses cannot be told on these")
        model = model.to(request.device).eval()
        context = Context(calibration_ids=_calibration(tokenizer, request.calibration))
        steps = recipes.apply(model, recipe.steps, context)
        layers = int(model.config.num_hidden_layers)
        realised = inspect.realised(model, steps, layers)
        self._model = model
        self._lm = ReferenceLM(
            model, tokenizer, batch_size=request.batch_size, max_length=request.model.context_length,
            on_batch=self._batch_done,
        )
        self._on_rows: Callable[[int], None] = lambda _rows: None
        self.built = protocol.Built(
            realised=realised,
            engine=Engine(
                name="transformers", version=transformers.__version__, device=request.device, threads=request.threads,
                batch_size=request.batch_size, dtype=recipe.dtype, softmax_dtype=SOFTMAX_DTYPE,
                attention=str(getattr(model.config, "_attn_implementation", "unknown")),
            ),
            steps=tuple(steps),
            torch_cpu_capability=torch.backends.cpu.get_cpu_capability(),
        )

    def _batch_done(self, rows: int) -> None:
        self._on_rows(rows)

    def evaluate(
        self, request: protocol.Evaluate, go: Wait, progress: Callable[[int, int], None]
    ) -> tuple[Outcome, TaskResult]:
        """Score a task's items.

        Args:
            request: which task, which documents, how many.
            go: called when everything is prepared and before anything is computed.
            progress: told how many requests are done, of how many.
        """
        loaded = harness.load(request.task, Path(request.documents))
        documents = len(loaded.lm_eval_task.eval_docs)
        indices = harness.sample(documents, loaded.golds, request.limit, request.seed)
        self._on_rows = _counter(loaded, indices, progress)
        go()
        outcome = harness.evaluate(self._lm, loaded, indices)
        self._synchronise()
        self._on_rows = lambda _rows: None
        return outcome, _result(request, loaded, outcome, documents, sampled=indices is not None)

    def warm_up(self, batches: list[torch.Tensor], tokens: int) -> None:
        """Compute batches, in turn and unmeasured, until at least `tokens` tokens are done."""
        done = 0
        while done < tokens:
            for rows in batches:
                if done >= tokens:
                    break
                workloads.replay(self._lm, [rows])
                done += rows.numel()
        self._synchronise()

    def replay(self, batches: list[torch.Tensor]) -> str:
        """Compute recorded batches again; returns the digest of the outputs once the device is idle."""
        output = workloads.replay(self._lm, batches)
        self._synchronise()
        return output

    def probe(self, request: protocol.Probe, go: Wait) -> None:
        """Run a prefill or decode probe after `go`, and before it unmeasured one sequence, or a few steps."""
        ids = workloads.probe_ids(self._model, request.batch, request.prompt_tokens)
        if request.kind == "decode":
            workloads.decode(self._model, workloads.prefill(self._model, ids), request.batch, WARMUP_STEPS)
            cache = workloads.prefill(self._model, ids)
            self._synchronise()
            go()
            workloads.decode(self._model, cache, request.batch, request.output_tokens)
        else:
            # One sequence of full length: a whole batch would cost as much as the probe.
            workloads.prefill(self._model, ids[:1])
            self._synchronise()
            go()
            workloads.prefill(self._model, ids)
        self._synchronise()

    def forget_device_peak(self) -> None:
        """Begin a new peak of what is allocated on the device."""
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def device_peak_bytes(self) -> int | None:
        """Peak bytes allocated on the device, or None on a CPU."""
        return int(torch.cuda.max_memory_allocated()) if self._model.device.type == "cuda" else None

    def _synchronise(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()


def _calibration(tokenizer: transformers.PreTrainedTokenizerBase, file: str) -> torch.Tensor:
    ids = tokenizer(Path(file).read_text(encoding="utf-8"), return_tensors="pt")["input_ids"]
    return torch.as_tensor(ids)


def _counter(
    loaded: harness.Loaded, indices: list[int] | None, progress: Callable[[int, int], None]
) -> Callable[[int], None]:
    docs = loaded.lm_eval_task.eval_docs
    chosen = range(len(docs)) if indices is None else indices
    choice = loaded.golds is not None
    total = sum(len(loaded.lm_eval_task.doc_to_choice(docs[index])) if choice else 1 for index in chosen)
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done = min(done + rows, total)
        progress(done, total)

    return tell


def _result(
    request: protocol.Evaluate, loaded: harness.Loaded, outcome: Outcome, documents: int, *, sampled: bool
) -> TaskResult:
    task = request.task
    found: dict[Metric, Score] = {metric: scores.aggregate(outcome.items, metric) for metric in task.metrics}
    primary = found[task.primary_metric]
    return TaskResult(
        task=task.id, kind=task.kind, lm_eval_task=task.lm_eval.task, lm_eval_version=loaded.version,
        primary_metric=task.primary_metric,
        scores={metric: None if request.withheld else score for metric, score in found.items()},
        withheld=request.withheld, chance=loaded.chance,
        above_chance=None if request.withheld else scores.clears_chance(primary, loaded.chance, task.primary_metric),
        items_used=len(outcome.items), items_available=documents, items_unparsed=request.unparsed,
        sample_seed=request.seed if sampled else None, data_sha256=request.data_sha256,
        inputs_sha256=outcome.inputs_sha256,
        duration_s=0.0, cpu_s=None,
        **{field: getattr(outcome, field) for field in ("prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens")},
    )


