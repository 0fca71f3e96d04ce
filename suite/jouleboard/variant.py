"""One variant in memory: built from the base's dense weights by its recipe, evaluated, replayed and probed."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import torch
from transformers import AutoTokenizer

from jouleboard import computing, harness, preparing, protocol, recipes, scores, workloads
from jouleboard.declared_tasks import Metric, Task
from jouleboard.engines import fitness, loading, memory, parallel, readback, recorded, running, templates
from jouleboard.engines.billing import Billing, added
from jouleboard.errors import TooLargeError, UnitError
from jouleboard.harness import Outcome
from jouleboard.journal import Journal
from jouleboard.recipes.interface import Context
from jouleboard.records import Score, TaskResult

Wait = Callable[[], None]
Timed = protocol.Replay | protocol.Serve | protocol.Probe


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
        parallel.require_dense(recipe.weight_bits, request.ranks)
        parallel.require_plain(recipes.runtime(recipe), request.ranks)
        tokenizer = AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
        self._group = group = parallel.join(request.ranks, request.device)
        before_build()
        opened_s = time.perf_counter()
        model = loading.dense(request.folder, getattr(torch, recipe.dtype), request.device, group)
        context = Context(calibration_ids=loading.calibration_ids(tokenizer, request.calibration), tokenizer=tokenizer,
                          checkpoint=None if request.checkpoint is None else Path(request.checkpoint))
        steps = preparing.applied(model, recipe.steps, context, opened_s=opened_s)
        self._running = running.install(model, recipes.runtime(recipe, steps))
        how = computing.choose(request, recipe, group, model=model, tokenizer=tokenizer, steps=steps, running=self._running)
        group.require_same("weights or steps", (how.realised, [{**step, "bill": None} for step in steps]))
        model = how.model
        self._model, self._tokenizer, self._works = model, tokenizer, how.works
        self._device: torch.device = model.device
        self._dtype: torch.dtype = getattr(torch, how.engine.dtype)
        self._declared, declared = request.model, request.model.context_length
        self._context_tokens = min(declared, getattr(model.config, "max_position_embeddings", None) or declared)
        self._warmed: set[Timed] = set()
        self.peak = memory.Peak(self._device)
        self._asks_shared = request.engine != "reference"
        self._refused = how.refused
        self._lm = how.scores(model, tokenizer, batch_size=request.batch_size, max_length=declared, on_batch=self._batch_done,
                              running=self._running)
        self._on_rows: Callable[[int], None] = lambda _rows: None
        with Billing(self._device) as billing:
            found = readback.read(model, self._running, context.calibration_ids.to(self._device)[0],
                                  [work for work in request.work if self._too_large(work) is None])
        steps = [readback.told(step, one.about.sets, found) for one, step in zip(recipe.steps, steps, strict=True)]
        if found:
            # Compiling is done there: it is on the bill of the last step.
            steps[-1]["bill"] = added(steps[-1]["bill"], billing.bill(tokens=0))
        claims = [*how.realised.claims, *readback.claims(found), *parallel.claim(model, group)]
        self.built = protocol.Built(
            realised=msgspec.structs.replace(how.realised, claims=(*request.claims, *claims)),
            engine=how.engine,
            steps=(*request.prepared, *steps),
            torch_cpu_capability=torch.backends.cpu.get_cpu_capability(),
            device=_device_digest(group.gather(_uuid(self._device))),
            fallback=self._refused,
        )

    @property
    def writes(self) -> bool:
        """Whether this worker writes what was found: of several ranks that compute together one does."""
        return self._group.first

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
        journal = None
        if request.journal is not None:
            journal = parallel.shared(partial(Journal, Path(request.journal), request.origin_sha256), self._group)
        loaded = harness.load(request.task, Path(request.documents), seed=request.seed)
        documents = len(loaded.lm_eval_task.eval_docs)
        indices = harness.sample(documents, harness.strata(loaded), request.limit, request.seed)
        self._on_rows = _counter(loaded, indices, progress)
        chat = templates.uses_chat(request.task, self._declared, self._tokenizer)
        # A quiet evaluation is a measured one: it holds what scoring takes and nothing else.
        self._lm.check_first = not request.quiet
        go()
        sealed = self._running.sealed() if request.quiet else contextlib.nullcontext()
        with sealed, contextlib.closing(journal) if journal is not None else contextlib.nullcontext():
            outcome = harness.evaluate(self._lm, loaded, indices, journal, chat=chat)
        self._synchronise()
        self._on_rows = lambda _rows: None
        result = _result(request, loaded, outcome, documents, sampled=indices is not None)
        tally = self._lm.tally
        return outcome, msgspec.structs.replace(
            result, least_tokens=tally.least_tokens, self_check=tally.self_check, fallback=self._fallback(request.task))

    def _fallback(self, task: Task) -> str | None:
        """Say why the reference engine scored a task that the plan gave to another one."""
        if not self._asks_shared:
            return None
        return self._refused or (fitness.PERPLEXITY if task.kind == "perplexity" else None)

    def replay(self, request: protocol.Replay, go: Wait) -> protocol.Worked:
        """Compute recorded batches again after `go`, in whole loops, and before it unmeasured batches."""
        batches = recorded.read_batches(Path(request.batches))
        # Ranks that are fed different tokens agree on a result all the same: each adds its part to one sum.
        self._group.require_same("batches", batches)
        ready = recorded.prepare(self._lm, batches, own_batch_size=self.built.engine.planned_batch_size is not None)
        return self._work(request, lambda: recorded.replay(self._lm, ready), go, stepwise=False)

    def serve(self, request: protocol.Serve, go: Wait) -> protocol.Worked:
        """Serve a batch of requests of forced lengths after `go`, in whole loops, and before it unmeasured steps.

        Raises:
            TooLargeError: the requests are longer than the model's context, or do not fit into memory.
            UnitError: there is no text to cut prompts from.
        """
        text = torch.as_tensor(self._tokenizer(Path(request.text).read_text(encoding="utf-8"),
                                               add_special_tokens=False)["input_ids"])
        why = self._too_large(request) or self._running.refusal(
            request.batch, prompt_tokens=request.prompt_tokens, text_tokens=len(text))
        if why is not None:
            raise TooLargeError(f"workload: {why}", field="workload",
                                remedy="declare a shorter workload or a smaller batch, or use a model with a longer context")
        if not len(text):
            raise UnitError("workload: the text that prompts are cut from is empty", field="workload",
                            remedy="name a text of at least one word")
        prompts = workloads.cut_prompts(text, request.batch, request.prompt_tokens).to(self._device)
        self._group.require_same("prompts", prompts.tolist())
        return self._work(
            request, lambda: self._works.serve(self._model, prompts, request.output_tokens), go, stepwise=True
        )

    def _work(
        self, request: protocol.Replay | protocol.Serve, loop: workloads.Loop, go: Wait, *, stepwise: bool
    ) -> protocol.Worked:
        self._warm_up(request, loop)
        done = self._run(loop, go, request.window_s, stepwise=stepwise)
        return protocol.Worked(
            loops=len(done.loop_ends_s), loop_ends_s=done.loop_ends_s, output_sha256=done.output_sha256,
            loops_changed=done.loops_changed, first_token_s=done.first_token_s, cached_tokens=done.cached_tokens,
        )

    def probe(self, request: protocol.Probe, go: Wait) -> protocol.Probed | protocol.TooLarge:
        """Run a prefill or decode probe after `go`, in whole loops; latencies are measured before it.

        Returns:
            What was measured, or why it does not fit; then the memory that it took is given back.
        """
        refused = self._running.refusal(request.batch, prompt_tokens=0, text_tokens=0) if request.kind == "decode" else None
        why = refused or self._too_large(request)
        if why is not None:
            return protocol.TooLarge(reason=why)
        try:
            return self._probe(request, go)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            why = str(error).splitlines()[0]
        if self._group.several:
            # The ranks may now stand at different operations, and would wait for each other in vain.
            raise UnitError(f"ran out of memory: {why}", field="probe", kind="out-of-memory",
                            remedy="use smaller batches, shorter requests, or larger devices")
        # Out here the error is gone, and with it the frames that held the tensors.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return protocol.TooLarge(reason=f"ran out of memory: {why}")

    def _probe(self, request: protocol.Probe, go: Wait) -> protocol.Probed:
        self.peak.begin()
        prompts = workloads.probe_ids(self._model, request.batch, request.prompt_tokens)
        first_s: float | None = None
        steps_s: tuple[float, ...] = ()
        if request.kind == "decode":
            loop = self._works.decode(self._model, prompts, request.output_tokens).loop
            self._warm_up(request, loop)
            steps_s = workloads.step_s(loop, self._device)
        else:

            def loop() -> Iterator[torch.Tensor]:
                return self._works.prefill(self._model, prompts)

            self._warm_up(request, loop)
            first_s = workloads.first_token_s(loop, self._device, decide=self._group.decide)
        done = self._run(loop, go, request.window_s)
        return protocol.Probed(loops=len(done.loop_ends_s), first_token_s=first_s, step_s=steps_s,
                               peak_memory_bytes=self.peak.stretch_bytes())

    def _run(self, loop: workloads.Loop, go: Wait, window_s: float, *, stepwise: bool = False) -> workloads.Looped:
        with self._running.sealed():
            return workloads.run(loop, self._device, go=go, window_s=window_s, stepwise=stepwise, decide=self._group.decide)

    def _warm_up(self, request: Timed, loop: workloads.Loop) -> None:
        """Warm up for the time that is asked for; on a GPU, or compiled, also until this work was done once as a whole."""
        work = msgspec.structs.replace(request, warmup_s=0.0, window_s=0.0)
        whole = (self._device.type == "cuda" or self._running.compiled is not None) and work not in self._warmed
        workloads.warm_up(loop, self._device, seconds=request.warmup_s, whole=whole, decide=self._group.decide)
        self._warmed.add(work)

    def _too_large(self, request: protocol.Serve | protocol.Probe | protocol.Work) -> str | None:
        """Say why work is more than the model's context or the memory holds; None when it fits."""
        tokens = request.prompt_tokens + request.output_tokens
        if tokens > self._context_tokens:
            return (f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens are more than the model's "
                    f"context of {self._context_tokens}")
        ranks = self._group.world
        wanted = memory.need(self._model, self._dtype, batch=request.batch, prompt_tokens=request.prompt_tokens,
                             output_tokens=request.output_tokens, ranks=ranks, runtime=self._running.runtime)
        # Free memory differs from device to device: where one lacks it, none begins.
        refusals = self._group.gather(memory.refusal(wanted, self._device, ranks=ranks))
        return next((why for why in refusals if why is not None), None)

    def _synchronise(self) -> None:
        workloads.synchronise(self._device)


def _uuid(device: torch.device) -> str | None:
    """Return a GPU's UUID as NVML writes it; None on other devices and for other makers."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _device_digest(uuids: Sequence[str | None]) -> str | None:
    """Return the digest of GPUs in the order of their ranks, as the meter makes it; None where one does not say."""
    if None in uuids:
        return None
    return hashlib.sha256(",".join(map(str, uuids)).encode()).hexdigest()[:16]


def _counter(
    loaded: harness.Loaded, indices: list[int] | None, progress: Callable[[int, int], None]
) -> Callable[[int], None]:
    docs, widths = loaded.lm_eval_task.eval_docs, loaded.widths
    chosen = range(len(docs)) if indices is None else indices
    # A dialogue takes so many lines at most; most end sooner.
    lines = (int(docs[index].get("max_turns", 1)) for index in chosen)
    total = sum(lines) if widths is None else sum(widths[index] for index in chosen)
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
        **{field: getattr(outcome, field) for field in (
            "prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens", "template", "template_sha256", "first_ids",
            "prefill_tokens", "decode_tokens", "sandbox",
        )},
    )
