"""The fitted cost model: what is known exactly is recovered exactly, and nothing degenerate raises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouleboard import costmodel
from jouleboard.costfit import Fit, LeftOut, Residual, Span, Term
from jouleboard.windows import Probe
from tests import factory
from tests.factory import CostLaw

POSITIVE = st.floats(1e-3, 1e3)
LAW = st.builds(CostLaw, a0=POSITIVE, a1=st.floats(1e-5, 1), a2=st.floats(1e-8, 1e-4), d0=POSITIVE, d1=st.floats(1e-4, 1e2))


def fitted(law: CostLaw, **how: object) -> Fit:
    found = costmodel.fit(factory.law_probes(law, **how), "cpu_s")  # type: ignore[arg-type]
    assert found is not None
    return found


def noisy(probes: Sequence[Probe], factors: Sequence[float]) -> list[Probe]:
    """Give the probes with their CPU time multiplied in turn."""
    return [msgspec.structs.replace(probe, window=msgspec.structs.replace(
        probe.window, cpu_s=(probe.window.cpu_s or 0) * factors[index % len(factors)]))
        for index, probe in enumerate(probes)]


# --- the fit ----------------------------------------------------------------------------------------------------------


@given(LAW)
def test_known_coefficients_come_back_from_noiseless_probes(law: CostLaw) -> None:
    found = fitted(law)
    # What each coefficient adds to the dearest probe sets how well it can be known in floats.
    for name, share in (("a0", law.a0), ("a1", law.a1 * 64 * 2048), ("a2", law.a2 * 64 * 2048**2)):
        largest = law.prefill(2048, 64)
        assert found.value(name) == pytest.approx(getattr(law, name), rel=1e-9 * max(1, largest / share))
    for name in ("d0", "d1"):
        assert found.value(name) == pytest.approx(getattr(law, name), rel=1e-9)
    assert found.rms < 1e-9
    assert abs(found.worst) < 1e-9
    assert [one.name for one in found.left_out] == ["d2"]


def test_the_coefficients_of_a_plain_law_are_exact_to_nine_digits() -> None:
    law = CostLaw()
    found = fitted(law)
    for name in ("a0", "a1", "a2", "d0", "d1"):
        assert found.value(name) == pytest.approx(getattr(law, name), rel=1e-9)


def test_probes_at_several_contexts_tell_what_the_context_costs() -> None:
    law = CostLaw(d2=3e-6)
    found = fitted(law, contexts=(64, 1024))
    assert found.left_out == ()
    for name in ("d0", "d1", "d2"):
        assert found.value(name) == pytest.approx(getattr(law, name), rel=1e-9)
    guess = costmodel.predict(found, prompt=700, output=50, batch=8)
    assert guess.value == pytest.approx(law.request(700, 50, 8), rel=1e-9)
    assert guess.extrapolated == ()


def test_loops_of_a_probe_are_no_cost() -> None:
    seven, once = fitted(CostLaw(), loops=7), fitted(CostLaw(), loops=1)
    assert [term.value for term in seven.terms] == pytest.approx([term.value for term in once.terms], rel=1e-9)


@given(LAW, st.lists(st.floats(0.5, 2), min_size=5, max_size=16))
def test_no_coefficient_is_ever_negative_and_residuals_are_what_they_say(law: CostLaw, factors: list[float]) -> None:
    found = costmodel.fit(noisy(factory.law_probes(law), factors), "cpu_s")
    assert found is not None
    assert all(term.value >= 0 and math.isfinite(term.value) for term in found.terms)
    for one in found.residuals:
        assert one.relative == pytest.approx(one.predicted / one.measured - 1, abs=1e-12)
    assert found.rms == pytest.approx(math.sqrt(sum(one.relative**2 for one in found.residuals) / len(found.residuals)))
    assert abs(found.worst) == pytest.approx(max(abs(one.relative) for one in found.residuals))


def test_a_cheap_probe_counts_as_much_as_a_dear_one() -> None:
    """Absolute residuals would let the largest probe decide alone."""
    probes = list(factory.law_probes(CostLaw(a0=0.0, a2=0.0), prompts=(128, 2048), batches=(1, 64)))
    wrong = [index for index, probe in enumerate(probes) if (probe.kind, probe.prompt_tokens, probe.batch) == ("prefill", 128, 1)]
    dear = noisy([probes[wrong[0]]], [2.0])[0]
    found = costmodel.fit([dear if index in wrong else probe for index, probe in enumerate(probes)], "cpu_s")
    assert found is not None
    cheap = next(one for one in found.residuals if one.kind == "prefill" and (one.prompt_tokens, one.batch) == (128, 1))
    assert abs(cheap.relative) < 0.35


@pytest.mark.parametrize(("how", "gone"), [
    ({"prompts": (128, 512)}, {"a2", "d2"}),
    ({"batches": (4,)}, {"d1", "d2"}),
    ({"prompts": (128,), "batches": (4,)}, {"a0", "a2", "d1", "d2"}),
    ({"prompts": (128,)}, {"a2", "d2"}),
])
def test_what_the_probes_cannot_tell_apart_is_left_out_and_said(how: dict[str, object], gone: set[str]) -> None:
    found = fitted(CostLaw(), **how)
    assert {one.name for one in found.left_out} == gone
    assert all(one.reason for one in found.left_out)
    assert {term.name for term in found.terms} == {"a0", "a1", "a2", "d0", "d1", "d2"} - gone


def test_void_probes_and_void_windows_and_other_units_are_left_out() -> None:
    probes = factory.law_probes(CostLaw(), joules=True)
    spoilt = [msgspec.structs.replace(probe, void="throttled: too hot",
                                      window=factory.spent_window("x", 1e6, joules=True)) for probe in probes[:3]]
    broken = msgspec.structs.replace(probes[5], window=msgspec.structs.replace(
        factory.spent_window("y", 1e6, joules=True), void="reading-failed: gone"))
    clean, mixed = costmodel.fit(probes, "joules"), costmodel.fit([*probes, *spoilt, broken], "joules")
    assert clean == mixed
    assert costmodel.fit(factory.law_probes(CostLaw()), "joules") is None


@given(st.lists(st.sampled_from(range(8)), max_size=6), st.sampled_from([None, 0.0, 1e-300, 5e-324, 1e9, 4.2]))
def test_degenerate_probes_never_raise(picked: list[int], cpu_s: float | None) -> None:
    pool = factory.law_probes(CostLaw(), prompts=(128, 512), batches=(1, 4))
    probes = [msgspec.structs.replace(probe, window=msgspec.structs.replace(probe.window, cpu_s=cpu_s))
              if number % 2 else probe for number, probe in enumerate(pool[index % len(pool)] for index in picked)]
    found = costmodel.fit(probes, "cpu_s")
    crossing = costmodel.crossover(found, found, prompt=1, output=1)
    assert crossing.batch is None
    if found is not None:
        assert all(math.isfinite(term.value) and term.value >= 0 for term in found.terms)
        assert math.isfinite(costmodel.predict(found, prompt=10**6, output=10**6, batch=10**6).value)


def test_no_probe_one_probe_and_equal_probes() -> None:
    prefill, decode = factory.law_probes(CostLaw(), prompts=(512,), batches=(4,))
    assert costmodel.fit([], "cpu_s") is None
    assert costmodel.fit([prefill], "cpu_s") is None
    assert costmodel.fit([decode] * 5, "cpu_s") is None
    found = costmodel.fit([prefill, prefill, decode, decode], "cpu_s")
    assert found is not None
    assert not found.knows_batches
    assert found.rms < 1e-12


def test_as_many_terms_as_probes_is_said_to_prove_nothing() -> None:
    assert fitted(CostLaw(), prompts=(128,), batches=(1, 4)).is_saturated
    assert not fitted(CostLaw()).is_saturated


# --- predictions ------------------------------------------------------------------------------------------------------


@given(LAW, st.integers(1, 4000), st.integers(1, 500), st.integers(1, 256))
def test_a_prediction_is_the_sum_of_its_prefill_and_its_steps(law: CostLaw, prompt: int, output: int, batch: int) -> None:
    guess = costmodel.predict(fitted(law), prompt=prompt, output=output, batch=batch)
    assert guess.value == pytest.approx(law.request(prompt, output, batch), rel=1e-5)


@pytest.mark.parametrize(("request_", "words"), [
    ({"prompt": 70, "output": 20, "batch": 8}, ["a prompt of 70 tokens"]),
    ({"prompt": 1500, "output": 40, "batch": 8}, ["decoding behind 1500 to 1539 tokens"]),
    ({"prompt": 4096, "output": 1, "batch": 128}, ["a prompt of 4096", "batch 128, where 1 to 64"]),
    ({"prompt": 512, "output": 1, "batch": 64}, []),
])
def test_a_prediction_says_where_it_is_outside_of_what_was_probed(request_: dict[str, int], words: list[str]) -> None:
    found = costmodel.predict(fitted(CostLaw()), **request_).extrapolated
    assert len(found) == len(words)
    assert all(one.startswith(word) for one, word in zip(found, words, strict=True))


def test_the_model_is_held_against_every_serving_cell_with_valid_trials() -> None:
    law = CostLaw()
    trials = [factory.serving_trial(0, law, batch=1), factory.serving_trial(1, law, batch=1, factor=1.2),
              factory.serving_trial(2, law, batch=8, void="throttled: hot", factor=9), factory.trial(3)]
    (found,) = costmodel.validate(fitted(law), trials)
    assert (found.workload, found.batch, found.prompt_tokens, found.output_tokens) == ("agent", 1, 1500, 40)
    assert found.measured == pytest.approx(1.1 * law.request(1500, 40, 1))
    assert found.error == pytest.approx(1 / 1.1 - 1)


# --- the crossover ----------------------------------------------------------------------------------------------------


@given(LAW, LAW, st.integers(1, 3000), st.integers(1, 300))
def test_the_closed_form_equals_brute_force_over_batches(base: CostLaw, variant: CostLaw, prompt: int, output: int) -> None:
    models = [made(law) for law in (base, variant)]
    found = costmodel.crossover(*models, prompt=prompt, output=output)
    lines = [costmodel.line(one, prompt=prompt, output=output) for one in models]
    if found.cheaper == "equal":
        assert lines[0].request(1) == pytest.approx(lines[1].request(1), rel=1e-9)
        assert lines[0].request(300) == pytest.approx(lines[1].request(300), rel=1e-9)
        return
    # On the crossing itself floats decide.
    tried = [batch for batch in range(1, 300) if found.batch is None or abs(batch / found.batch - 1) > 1e-9]
    tried = [batch for batch in tried if abs(lines[1].request(batch) / lines[0].request(batch) - 1) > 1e-12]
    cheaper = [lines[1].request(batch) < lines[0].request(batch) for batch in tried]
    if found.cheaper in {"always", "never"}:
        assert set(cheaper) <= {found.cheaper == "always"}
        assert found.batch is None
        assert found.reason
    else:
        assert found.batch is not None
        assert cheaper == [(batch < found.batch) == (found.cheaper == "below") for batch in tried]
        assert lines[0].request(found.batch) == pytest.approx(lines[1].request(found.batch), rel=1e-9)


def made(law: CostLaw) -> Fit:
    """Give a model with exactly the law's coefficients, without probing."""
    names = ("a0", "a1", "a2", "d0", "d1", "d2")
    return Fit(cost="cpu_s", terms=tuple(Term(name=name, value=getattr(law, name)) for name in names), left_out=(),
               residuals=(), rms=0, worst=0, prompts=Span(low=128, high=2048), prefill_batches=Span(low=1, high=64),
               decode_batches=Span(low=1, high=64), contexts=Span(low=65, high=4000))


def test_a_crossing_inside_and_one_outside_of_the_probed_batches() -> None:
    base = CostLaw(a0=0, a1=0.001, a2=0, d0=1.0, d1=0.1)
    for batch, beyond in ((8, ()), (200, ("batch 200, where 1 to 64 were probed",))):
        # Cheaper weights to read (d0), dearer arithmetic (d1): even at exactly this batch.
        variant = CostLaw(a0=0, a1=0.001, a2=0, d0=0.5, d1=0.1 + 0.5 / batch)
        found = costmodel.crossover(made(base), made(variant), prompt=512, output=64)
        assert found.batch == pytest.approx(batch, rel=1e-9)
        assert found.cheaper == "below"
        assert found.extrapolated == beyond
        back = costmodel.crossover(made(variant), made(base), prompt=512, output=64)
        assert (back.batch, back.cheaper) == (pytest.approx(batch, rel=1e-9), "above")


def test_noiseless_probes_give_a_crossing_without_spread_and_few_probes_give_none() -> None:
    base, variant = fitted(factory.LAWS["base"]), fitted(factory.LAWS["int8-weights"])
    found = costmodel.crossover(base, variant, prompt=512, output=256)
    assert found.decided
    assert found.batch is not None
    assert (found.low, found.high) == (pytest.approx(found.batch, rel=1e-6), pytest.approx(found.batch, rel=1e-6))
    few = [fitted(law, prompts=(128,), batches=(1, 4)) for law in (factory.LAWS["base"], factory.LAWS["int8-weights"])]
    found = costmodel.crossover(*few, prompt=128, output=64)
    assert (found.decided, found.low, found.high) == (None, None, None)
    assert found.cheaper is not None


def test_scatter_widens_the_range_and_then_decides_nothing() -> None:
    law, other = factory.LAWS["base"], factory.LAWS["int8-weights"]

    def crossing(noise: float) -> costmodel.Crossover:
        factors = [1 + noise, 1 - noise, 1 + noise / 2, 1 - noise / 2, 1]
        models = [costmodel.fit(noisy(factory.law_probes(one), factors), "cpu_s") for one in (law, other)]
        return costmodel.crossover(*models, prompt=512, output=256)

    small, more = crossing(0.002), crossing(0.01)
    assert small.decided
    assert small.low is not None
    assert small.high is not None
    assert small.batch is not None
    assert small.low < small.batch < small.high
    assert more.low is not None
    assert more.high is not None
    assert more.high - more.low > small.high - small.low
    assert crossing(0.5).decided is False
    assert crossing(0.01) == crossing(0.01)


def test_the_same_model_costs_the_same_at_every_batch() -> None:
    model = fitted(CostLaw())
    found = costmodel.crossover(model, model, prompt=512, output=64)
    assert (found.cheaper, found.batch) == ("equal", None)


def test_where_nothing_can_be_said_the_reason_is_given() -> None:
    model, single = fitted(CostLaw()), fitted(CostLaw(), batches=(4,))
    joules = costmodel.fit(factory.law_probes(CostLaw(), joules=True), "joules")
    for base, variant, words in ((None, model, "the base"), (model, None, "this variant"), (single, model, "one batch size"),
                                 (model, single, "one batch size"), (joules, model, "same unit")):
        found = costmodel.crossover(base, variant, prompt=512, output=64)
        assert (found.cheaper, found.batch, found.decided) == (None, None, None)
        assert words in (found.reason or "")


def test_a_verdict_for_every_batch_speaks_of_the_probed_ones_and_says_where_more_is_asked() -> None:
    cheap = CostLaw(a0=0.01, a1=0.0015, a2=5e-7, d0=0.025, d1=0.002)
    base, variant = (fitted(law, batches=(1, 4)) for law in (CostLaw(), cheap))
    found = costmodel.crossover(base, variant, prompt=512, output=8)
    assert (found.cheaper, found.reason) == ("always", "the variant is cheaper at every probed batch (1 to 4)")
    assert found.probed == Span(low=1, high=4)
    asked = costmodel.crossover(base, variant, prompt=512, output=8, batch=64)
    assert asked.extrapolated == (*found.extrapolated, "batch 64, where 1 to 4 were probed")
    assert costmodel.crossover(base, variant, prompt=512, output=8, batch=4).extrapolated == found.extrapolated
    assert costmodel.crossover(variant, base, prompt=512, output=8).reason == "the base is cheaper at every probed batch (1 to 4)"


def test_a_spread_from_few_probes_is_itself_unsure() -> None:
    """Normal draws would give a range as narrow from three spare probes as from thirty."""
    law, other = factory.LAWS["base"], factory.LAWS["int8-weights"]

    def width(repeats: int) -> float:
        models = [costmodel.fit(noisy(factory.law_probes(one, prompts=(128, 512), batches=(1, 64), contexts=(64, 1024)),
                                      [1.002, 0.998]) * repeats, "cpu_s") for one in (law, other)]
        found = costmodel.crossover(*models, prompt=512, output=256)
        assert found.low is not None
        assert found.high is not None
        return (found.high - found.low) * math.sqrt(repeats)

    assert width(1) > 1.15 * width(20)


@pytest.mark.parametrize("how", [{"prompts": (128, 512), "batches": (1, 4)}, {"prompts": (128,), "batches": (1, 4), "contexts": (64, 900)}])
def test_a_kind_without_a_spare_probe_leaves_the_verdict_undecided(how: dict[str, Any]) -> None:
    models = [costmodel.fit(noisy(factory.law_probes(law, **how), [1.01, 0.99, 1.0]), "cpu_s")
              for law in (factory.LAWS["base"], factory.LAWS["int8-weights"])]
    found = costmodel.crossover(*models, prompt=128, output=64)
    assert (found.decided, found.low, found.high) == (None, None, None)


def test_between_two_probed_contexts_nothing_is_extrapolated() -> None:
    law = CostLaw(d2=3e-6)
    found = fitted(law, contexts=(128, 1500), steps=64)
    assert found.value("d2") == pytest.approx(3e-6, rel=1e-9)
    guess = costmodel.predict(found, prompt=1500, output=40, batch=8)
    assert guess.extrapolated == ()
    assert guess.value == pytest.approx(law.request(1500, 40, 8), rel=1e-9)
    far = costmodel.predict(found, prompt=1500, output=90, batch=8)
    assert far.extrapolated == ("decoding behind 1500 to 1589 tokens, where it was probed behind 129 to 1564",)


def test_the_nouns_go_through_json() -> None:
    found = fitted(CostLaw())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Fit) == found
    assert isinstance(found.residuals[0], Residual)
    assert isinstance(found.left_out[0], LeftOut)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-1, 1)), min_size=1, max_size=40), st.floats(0.1, 100))
def test_many_lines_meet_as_each_of_them_does(lines: list[tuple[float, float]], scale: float) -> None:
    directions, batches = costmodel._meet_all(np.array([*lines, (0.0, 0.0)]), scale)
    for line, direction, batch in zip([*lines, (0.0, 0.0)], directions, batches, strict=True):
        said, where = costmodel._meet(*line, scale)
        assert direction == said
        assert (where is None) == np.isnan(batch)
        assert where is None or batch == where
