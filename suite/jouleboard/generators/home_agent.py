"""The task home_agent: a command to a home hub, and four device calls of which exactly one does it.

state    The user is in the hallway.
command  It's too dark in the kitchen, use the lamp.
choices  kitchen.lamp.turn_on()  study.lamp.turn_on()  kitchen.lamp.turn_off()  study.lamp.turn_off()

The four calls are all combinations of two options in each of two fields (room, device, action, value), and the
right one is drawn among them last. So the choices alone say nothing: no call is the odd one out or the middle.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml

__all__ = ["Call", "Field", "Grammar", "Level", "generate", "read_grammar"]

T = TypeVar("T")
Field = Literal["room", "device", "action", "value"]
FIELDS: tuple[Field, ...] = get_args(Field)
FIELD_PAIRS = tuple(itertools.combinations(FIELDS, 2))

# Two for the choices, and one elsewhere for the user.
MIN_ROOMS = 3

# So many draws in a row that repeat earlier items mean that few or none are left.
MAX_REPEATS = 1000

# So many draws in vain mean that a grammar has no calls that differ in a pair of fields.
MAX_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One device call; `value` is None for an action that takes none."""

    room: str
    device: str
    action: str
    value: int | None

    def __str__(self) -> str:
        """Show the call as a hub would take it: `kitchen.heater.set(21)`."""
        return f"{self.room}.{self.device}.{self.action}({'' if self.value is None else self.value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How the items of a level are worded; rates are per cent of the items."""

    language: str
    here: int
    need: int
    aside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What homes hold, and how people speak of it in one language; keys are the ids of `grammar.yaml`."""

    level: Level
    rooms: Mapping[str, str]
    devices: Mapping[str, Sequence[str]]
    actions: Mapping[str, Mapping[str, str | None]]
    opposites: Mapping[str, str]
    values: Mapping[str, Sequence[int]]
    units: Mapping[str, str]
    phrasings: Mapping[str, Any]

    def is_valid(self, call: Call) -> bool:
        """Tell whether the device has the action and the action takes the value."""
        if call.action not in self.actions[call.device]:
            return False
        values = self.values_of(call)
        return call.value in values if values else call.value is None

    def values_of(self, call: Call) -> Sequence[int]:
        """Return all values that the call's action takes on its device; none if it takes no value."""
        kind = self.actions[call.device][call.action]
        return [] if kind is None else self.values[kind]

    def amount(self, call: Call, *, value: int | None) -> str:
        """Say a value with the unit that it has in this call; nothing for no value."""
        kind = self.actions[call.device][call.action]
        return "" if kind is None else _fill(self.units[kind], n=str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One item before it is put into words.

    `opposite` is the call that is wrong in both `varied` fields. The user is in the room `user`, and says "here"
    instead of naming it if `here`.
    """

    gold: Call
    opposite: Call
    varied: Sequence[Field]
    user: str
    here: bool


class Dice:
    """Seeded draws built on `random()` alone, the one method that Python promises to keep across versions."""

    def __init__(self, seed: str) -> None:
        """Start from a text, which unlike an integer tells -1 from 1."""
        self._random = random.Random(seed).random  # noqa: S311 - repeatability is wanted, not secrecy

    def pick(self, options: Sequence[T]) -> T:
        """Draw one option."""
        return options[int(self._random() * len(options))]

    def happens(self, percent: int) -> bool:
        """Draw whether something of this probability happens."""
        return self._random() * 100 < percent

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return all options in a drawn order."""
        rest = list(options)
        return [rest.pop(int(self._random() * len(rest))) for _ in options]


def generate(*, grammar_path: Path, level: str, seed: int, count: int) -> list[dict[str, object]]:
    """Return `count` documents, no two alike; a smaller count gives the first of them.

    A document has `id`, `state`, `command`, `choices` (four calls), `gold` (index of the right call) and `distractors`
    (for each choice the list of its wrong fields, empty for the right one). Every four documents in a row, from
    the first, have the right call at each position once. Raises ValueError for an unknown level or impossible count.
    """
    if count < 1:
        msg = f"count must be at least 1, not {count}"
        raise ValueError(msg)
    grammar = read_grammar(grammar_path, level=level)
    dice = Dice(f"home_agent/{level}/{seed}")
    documents: list[dict[str, object]] = []
    positions: list[int] = []
    for state, command, scene in itertools.islice(_draw_items(grammar, dice), count):
        positions = positions or dice.shuffled(range(4))
        calls = dice.shuffled([call for call in _square(scene.gold, scene.opposite) if call != scene.gold])
        calls.insert(positions.pop(), scene.gold)
        documents.append(
            {
                "id": f"home_agent-{level}-{len(documents)}",
                "state": state,
                "command": command,
                "choices": [str(call) for call in calls],
                "gold": calls.index(scene.gold),
                "distractors": [_wrong_fields(call, scene.gold) for call in calls],
            }
        )
    if len(documents) < count:
        msg = f"{grammar_path}: level {level!r} has only about {len(documents)} different items; lower count {count}"
        raise ValueError(msg)
    return documents


def read_grammar(path: Path, *, level: str) -> Grammar:
    """Read what a level needs of a grammar file; raises ValueError that names the file and the field."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("format_version") != 1:
        msg = f"{path}: format_version must be 1; is this a grammar of home_agent?"
        raise ValueError(msg)
    try:
        if level not in data["levels"]:
            msg = f"{path}: no level {level!r}; choose from {', '.join(data['levels'])}"
            raise ValueError(msg)
        if len(data["rooms"]) < MIN_ROOMS:
            msg = f"{path}: rooms must be at least {MIN_ROOMS}, not {len(data['rooms'])}"
            raise ValueError(msg)
        chosen = Level(**data["levels"][level])
        language = chosen.language
        return Grammar(
            level=chosen,
            rooms={name: room[language] for name, room in data["rooms"].items()},
            devices={name: device[language] for name, device in data["devices"].items()},
            actions={name: device["actions"] for name, device in data["devices"].items()},
            opposites={one: other for pair in data["opposites"] for one, other in itertools.permutations(pair)},
            values={name: value["choices"] for name, value in data["values"].items()},
            units={name: value[language] for name, value in data["values"].items()},
            phrasings=data["phrasings"][language],
        )
    except KeyError as error:
        msg = f"{path}: key {error} is missing; level {level!r} needs it"
        raise ValueError(msg) from error


def _wrong_fields(call: Call, gold: Call) -> list[Field]:
    return [field for field in FIELDS if getattr(call, field) != getattr(gold, field)]


def _square(one: Call, other: Call) -> list[Call]:
    """Return all combinations of two calls that differ in two fields; the last is the opposite of the first."""
    changes: list[dict[str, Any]] = [{field: getattr(other, field)} for field in _wrong_fields(one, other)]
    return [replace(one, **first, **second) for first in ({}, changes[0]) for second in ({}, changes[1])]


def _draw_items(grammar: Grammar, dice: Dice) -> Iterator[tuple[str, str, Scene]]:
    """Draw states, commands and scenes, each unlike all before, until none seem to be left."""
    seen: set[tuple[str, frozenset[Call]]] = set()
    repeats = 0
    while repeats < MAX_REPEATS:
        scene = _draw_scene(grammar, dice)
        state = _fill(grammar.phrasings["state"], room=grammar.rooms[scene.user])
        command = _word_command(scene, grammar, dice=dice)
        # Without the state: items that differ only in where the user is count as alike.
        key = (command.casefold(), frozenset(_square(scene.gold, scene.opposite)))
        repeats = repeats + 1 if key in seen else 0
        if not repeats:
            seen.add(key)
            yield state, command, scene


def _draw_scene(grammar: Grammar, dice: Dice) -> Scene:
    """Draw the calls, then which of them is right, then where the user is."""
    varied, square = _draw_square(grammar, dice)
    right = dice.pick(range(4))
    gold, opposite = square[right], square[3 - right]
    here = dice.happens(grammar.level.here)
    # Elsewhere is a room of no choice, so that the state favours none of them.
    elsewhere = [room for room in grammar.rooms if room not in (gold.room, opposite.room)]
    return Scene(gold=gold, opposite=opposite, varied=varied, user=gold.room if here else dice.pick(elsewhere), here=here)


def _draw_square(grammar: Grammar, dice: Dice) -> tuple[Sequence[Field], list[Call]]:
    """Draw two fields and four valid calls that differ in them."""
    for varied in dice.shuffled(FIELD_PAIRS):
        for _ in range(MAX_TRIES):
            one, other = _draw_call(grammar, dice), _draw_call(grammar, dice)
            other = replace(other, action=grammar.opposites.get(one.action, one.action))
            same: dict[str, Any] = {field: getattr(one, field) for field in FIELDS if field not in varied}
            other = replace(other, **same)
            if len(_wrong_fields(other, one)) == len(varied) and all(map(grammar.is_valid, _square(one, other))):
                return varied, _square(one, other)
    msg = "the grammar has no four calls that differ in two fields; give it more devices or opposites"
    raise ValueError(msg)


def _draw_call(grammar: Grammar, dice: Dice) -> Call:
    """Draw a valid call."""
    device = dice.pick(list(grammar.devices))
    action = dice.pick(list(grammar.actions[device]))
    call = Call(room=dice.pick(list(grammar.rooms)), device=device, action=action, value=None)
    return replace(call, value=dice.pick(grammar.values_of(call) or [None]))


def _word_command(scene: Scene, grammar: Grammar, *, dice: Dice) -> str:
    """Say the right call, for some items through the need for it, and for some beside a wrong field."""
    gold, phrasings = scene.gold, grammar.phrasings
    slots = {
        "room": grammar.rooms[gold.room],
        "device": dice.pick(grammar.devices[gold.device]),
        "value": grammar.amount(gold, value=gold.value),
    }
    mode = "here" if scene.here else "named"
    slots |= {slot: _fill(dice.pick(phrasings[slot][mode]), **slots) for slot in ("place", "target")}
    needs = phrasings["needs"].get(gold.device, {}).get(gold.action)
    by_need = needs and dice.happens(grammar.level.need)
    command = _fill(dice.pick(needs if by_need else phrasings["commands"][gold.action]), **slots)
    if dice.happens(grammar.level.aside):
        field = dice.pick(scene.varied)
        others: dict[Field, str] = {
            "room": grammar.rooms[scene.opposite.room],
            "device": dice.pick(grammar.devices[scene.opposite.device]),
            "action": "",
            "value": grammar.amount(gold, value=scene.opposite.value),
        }
        asides = phrasings["asides"][gold.action if field == "action" else field]
        command = _fill(dice.pick(asides), command=command, other=others[field])
    return _capital(command)


def _fill(template: str, **slots: str) -> str:
    """Put texts for `{names}`; unlike `str.format`, a grammar file cannot reach attributes through it."""
    for name, text in slots.items():
        template = template.replace(f"{{{name}}}", text)
    return template


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
