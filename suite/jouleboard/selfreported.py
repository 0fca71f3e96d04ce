"""What a checker cannot know: fields whose change alone nothing else in an entry contradicts, each with what it means for a reader.

Example: `environment.cpu_model` is what the machine said of itself; a checker on another machine can only believe it. Levels of trust
from L2 on exist for these: somebody else measures again, or a maintainer does. A property test changes every field of a genuine entry, seals
it again, and finds it refused or listed here; the page `docs/report-format.md` lists them too.
"""

from __future__ import annotations

import re
from functools import cache

from jouleboard.declared import Noun


class SelfReported(Noun, frozen=True, kw_only=True):
    """Some fields of a report or an item, and why they are believed."""

    pattern: str
    """Regular expression of the field's place, without the numbers in brackets: `trials[].output_sha256`."""
    why: str


_FREE = "says where and with what it was measured"
_TIMES = "a duration, without which no cost changes"
_WORK = "a count of work that is published beside the records and not derived from them"
FIELDS: tuple[SelfReported, ...] = (
    SelfReported(pattern=r"(submitter|plan|configuration_sha256|created_utc|session|replay_sha256|provisional)",
                 why="names what was run, when and by whom; the pull request shows who proposed it"),
    SelfReported(pattern=r"environment\..*", why=_FREE),
    SelfReported(pattern=r"engine\.(name|version|device|threads|batch_size|dtype|softmax_dtype|attention|planned_batch_size)", why=_FREE),
    SelfReported(pattern=r"build\.(duration_s|cpu_s|calibration|steps.*|energy\..*)",
                 why="the bill of making the variant; of steps what they found out, beyond what the recipe declares"),
    SelfReported(pattern=r"realised\.(parameters|nonzero_share|tensor_classes.*|module_classes.*|dtypes.*|quantised_tensors|layers|weights_sha256|"
                 r"claims.*|weight_bytes)", why="what was read back from the model that was built"),
    SelfReported(pattern=r"energy_plan\..*", why="what was fixed before the first window; gates and windows show whether it was kept"),
    SelfReported(pattern=r"peak_memory_bytes|probes\[\]\.peak_memory_bytes", why="what the machine said; only its bounds are checked"),
    SelfReported(pattern=r"tasks\[\]\.(inputs_sha256|template|template_sha256|first_ids.*|sandbox.*|fallback|self_check.*)",
                 why="tells whether two entries were asked the same; entries with other inputs are not compared"),
    SelfReported(pattern=r"tasks\[\]\.(fed_tokens|computed_tokens|least_tokens|prefill_tokens|decode_tokens)", why=_WORK),
    SelfReported(pattern=r"tasks\[\]\.(duration_s|cpu_s)", why=_TIMES),
    SelfReported(pattern=r"tasks\[\]\.chance\..*", why="declared for most tasks, and held against that; the words beside it are not"),
    SelfReported(pattern=r"(trials\[\]|live)\.(output_sha256|loops_changed|first_token_s.*|cached_tokens|piece|order|loop_ends_s.*)",
                 why="what the engine gave and when, inside a window whose length and joules are checked"),
    SelfReported(pattern=r"(trials|probes)\[\]\.void", why="a reason that no gate gives: the trial does not count, and `repeats` asks for enough that do"),
    SelfReported(pattern=r"(trials|probes)\[\]\.(requests|prompt_tokens|output_tokens|fed_tokens|computed_tokens|loops|batch)", why=_WORK),
    SelfReported(pattern=r"probes\[\]\.(kind|first_token_s|step_s.*)", why="latencies and work of a probe: published, never ranked"),
    SelfReported(pattern=r"skipped_probes\[\].*", why="what was not run, and why"),
    SelfReported(pattern=r"canary\[\]\.(when|model|tokens|output_sha256)|idle\[\]\.(when|context)", why="which window it was"),
    SelfReported(pattern=r"(trials|probes|idle|canary)\[\]\.window\.(started_utc|wall_s|cpu_s|duration_s|host_j.*)",
                 why="times inside the bounds that neighbours, clocks and the trace leave"),
    SelfReported(pattern=r"(probes|idle|canary)\[\]\.window\.name", why="what a window is called, the same in its trace if that has rows of it"),
    SelfReported(pattern=r"(trials|probes|idle|canary)\[\]\.window\.void", why="a window that says that its sensor failed does not count"),
    SelfReported(pattern=r"(trials|probes|idle|canary)\[\]\.window\.energy\.integral_j", why="within the edges of a window: 20 ms at its highest power"),
    SelfReported(pattern=r"(trials|probes|idle|canary)\[\]\.window\.(start|end)\.[a-z_]+",
                 why="what the device said at one end; gates hold both ends and the trace against each other"),
    SelfReported(pattern=r"items\[\]\.prompt_sha256", why="tells whether two entries were asked the same"),
    SelfReported(pattern=r"items\[\]\.doc_sha256", why="its first 16 digits are those of the manifest, where one is frozen"),
    SelfReported(pattern=r"items\[\]\.loglikelihoods\[\]",
                 why="what the model gave: a score follows from it, and only measuring again shows another one"),
    SelfReported(pattern=r"items\[\]\.(response|response_sha256|extracted|targets\[\]|stopped|cluster)",
                 why="what the model wrote and what it was compared with: free answers are scored again only where the data are at hand"),
)
UNDECLARED: tuple[SelfReported, ...] = (
    SelfReported(pattern=r"model_(weights_sha256|title|licence)", why="of a model that is not declared here but named by its source and revision"),
    SelfReported(pattern=r"tasks\[\]\.(items_unparsed|lm_eval_version|data_sha256|items_available)", why="of a task that does not pin it"),
)
"""What is believed only where this repository declares nothing to hold it against."""


@cache
def _compiled() -> tuple[tuple[re.Pattern[str], SelfReported], ...]:
    return tuple((re.compile(one.pattern), one) for one in FIELDS)


def of(place: str) -> SelfReported | None:
    """Return why a field is believed; None where a change of it is refused.

    Args:
        place: of the field, numbers in brackets left out or not: `trials[2].cached_tokens`.
    """
    plain = re.sub(r"\[[0-9]+\]", "[]", place)
    return next((one for pattern, one in _compiled() if pattern.fullmatch(plain)), None)
