"""Turns of a session of trials: which variants are in memory meanwhile, and that they are what was measured before.

Where memory holds all variants there is one turn with all of them. Else each variant has one, beside the base::

    bf16, int8      trials of group 0, live evals, probes
    bf16, nf4       trials of group 1, live eval and probes of nf4
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from jouleboard import building, plan, quality, sessionfile, store, trials
from jouleboard.recipes import Recipe
from jouleboard.session import Session
from jouleboard.sessionfile import Construction


class OtherWeightsError(Exception):
    """A variant that was built anew is not the one that the session measured before; the session cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A part of a session in which the same variants are in memory."""

    recipes: tuple[Recipe, ...]
    """The base first."""
    places: tuple[int, ...]
    """Of its trials in the session's order."""
    last: bool


def of(session: Session) -> Iterator[Turn]:
    """Yield the turns of a session in their order, without variants that have failed by then."""
    order, base = session.begun.order, session.family.base
    groups = list(dict.fromkeys(slot.group for slot in order))
    for group in groups:
        places = tuple(place for place, slot in enumerate(order) if slot.group == group)
        named = {order[place].recipe for place in places}
        alive = [one for one in session.alive if one.id not in session.begun.failed
                 and (session.residency == "all" or one.id in named)]
        if base not in alive:
            return
        # A base alone is a group only where it has no variant.
        if len(alive) > 1 or named == {base.id} or session.residency == "all":
            yield Turn(recipes=tuple(alive), places=places, last=group == groups[-1])
    if base in session.alive and not session.held(base.id).trials:
        # No variant came into memory beside it: alone it is still a measurement.
        first = tuple(place for place, slot in enumerate(order) if slot.group == groups[0])
        yield Turn(recipes=(base,), places=first, last=True)


def gather(session: Session, turn: Turn) -> bool:
    """Bring the variants of a turn into memory.

    Returns:
        False where there is nothing left to measure in the turn.
    """
    if session.residency == "all":
        return True
    for recipe in (recipe for recipe in turn.recipes[1:] if recipe.id not in session.workers):
        there = session.begun.built.get(recipe.id)
        state = session.state[recipe.id]
        if there is not None and not turn.last and state.is_scored_as(there.built) and _is_done(session, turn):
            state.built, state.build_window, state.weights_sha256 = there.built, there.window, session.dense.weights_sha256
            return False
        with session.display.phase("build", f"{recipe.id}, to be measured beside the base"):
            building.build_all(session, [recipe])
        quality.again(session, [recipe])
        if recipe.id not in session.workers:
            return False
        _keep_built(session, recipe)
    return True


def _is_done(session: Session, turn: Turn) -> bool:
    """Whether everything of a turn was measured in an earlier piece."""
    energy, order = session.family.plan.energy, session.begun.order
    probes = sum(1 for _ in plan.wanted_probes(session.family.plan))
    for recipe in turn.recipes:
        held = session.held(recipe.id)
        done = {trial.order for trial in held.trials}
        open_ = [place for place in turn.places if order[place].recipe == recipe.id and place not in done
                 and trials.cell_name(order[place]) not in held.skipped_cells]
        if open_ or (energy.live_items and held.live is None) or len(held.probes) + len(held.skipped_probes) < probes:
            return False
    return True


def _keep_built(session: Session, recipe: Recipe) -> None:
    """Keep what a variant came out as at the beginning of its turn.

    Raises:
        OtherWeightsError: it was measured before with other weights.
    """
    record, held, found = session.begun, session.held(recipe.id), identity(session, recipe)
    if held != sessionfile.Held() and record.configurations.get(recipe.id) != found:
        raise OtherWeightsError(f"{recipe.id} came out as other weights when it was built again")
    state = session.state[recipe.id]
    built = record.built
    if state.built is not None and state.build_window is not None:
        built = {**built, recipe.id: Construction(built=state.built, window=state.build_window)}
    session.keep(msgspec.structs.replace(record, configurations={**record.configurations, recipe.id: found}, built=built))


def identity(session: Session, recipe: Recipe) -> str:
    """Return the digest of what a variant is: built anew for each piece, it must come out as the same weights."""
    built = session.state[recipe.id].built
    weights = None if built is None else built.realised.weights_sha256
    return store.digest([plan.configuration_sha256(session.family, recipe), weights])
