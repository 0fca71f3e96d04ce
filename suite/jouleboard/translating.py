"""The languages of the site: every text of a template is looked up in a catalogue when the template is compiled. No I/O but catalogues.

`<dt>Peak memory</dt>` in a template is `<dt>峰值内存</dt>` on the Chinese pages, because `site/locale/zh.po` says so::

    msgid "Peak memory"
    msgstr "峰值内存"

Looked up are texts between tags, the attributes in `SPOKEN`, and literal strings that an expression prints; sentences with a value
inside are `{% trans %}` blocks. What the catalogue lacks stays English, and a test names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from babel.messages import pofile
from jinja2 import Environment, pass_context
from jinja2.ext import Extension, InternationalizationExtension
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import Context
from markupsafe import Markup

from jouleboard.formats import finalize

SPOKEN = frozenset({"alt", "aria-label", "content", "label", "placeholder", "title"})
"""Attributes that people read or hear."""
UNSPOKEN = frozenset({"code", "style", "script"})
_KEYS = frozenset({"attr", "get", "gettext", "map", "reject", "rejectattr", "replace", "select", "selectattr", "split", "_"})
"""Functions and filters whose literal arguments are no text."""
_LETTER = re.compile(r"[A-Za-z]")
_ATTRIBUTE = re.compile(r"""([\w:-]+)="|>""")
_TAG = re.compile(r"</?([a-zA-Z][\w-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One language of the site."""

    code: str
    tag: str
    """As `lang` says it."""
    title: str
    """In itself."""
    folder: str
    """Where its pages begin, with a slash at the end; empty: the root."""


ENGLISH = Language(code="en", tag="en", title="English", folder="")
CHINESE = Language(code="zh", tag="zh-Hans", title="简体中文", folder="zh/")
LANGUAGES = (ENGLISH, CHINESE)
Say = Callable[[str], str]


@cache
def catalogue(folder: Path, code: str) -> Mapping[str, str]:
    """Read a catalogue: what to say for each English text; of plurals the one form that Chinese has, under both."""
    path = folder / f"{code}.po"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        read = pofile.read_po(file, locale=code)
    found: dict[str, str] = {}
    for message in read:
        ids = message.id if isinstance(message.id, tuple) else (message.id,)
        said = message.string[0] if isinstance(message.string, tuple) else message.string
        found |= {str(one): str(said) for one in ids if one and said and not message.fuzzy}
    return found


def install(env: Environment, known: Mapping[str, str], *, heard: Callable[[str], None] | None = None) -> None:
    """Let an environment speak: its templates' texts and its `trans` blocks.

    Args:
        env: with the extensions `EXTENSIONS`.
        known: the catalogue.
        heard: is told each text that a template has, when it is compiled; for tests.
    """
    def say(text: str) -> str:
        if heard is not None:
            heard(text)
        return known.get(text, text)

    # Values inside a `trans` block do not pass `finalize` by themselves, and one may hold what turns the direction of text.
    def filled(context: Context, text: str, values: Mapping[str, Any]) -> str:
        shown = {name: finalize(value) for name, value in values.items()}
        safe = Markup if context.eval_ctx.autoescape else str
        # A `trans` block doubles its per cent signs, a call of `_` does not.
        return safe(say(text)) % shown if shown else safe(say(text).replace("%%", "%"))

    @pass_context
    def gettext(context: Context, text: str, /, **values: Any) -> str:
        return filled(context, text, values)

    @pass_context
    def ngettext(context: Context, one: str, many: str, number: int, /, **values: Any) -> str:
        return filled(context, one if number == 1 and one not in known else many, {"num": number} | values)

    vars(env)["say"] = say
    vars(env)["newstyle_gettext"] = True
    env.globals |= {"gettext": gettext, "ngettext": ngettext, "_": gettext}
    env.policies["ext.i18n.trimmed"] = True


@dataclass(slots=True)
class _Place:
    """Where in the HTML of a template the stream is."""

    tag: bool = False
    attribute: str | None = None
    silent: list[str] = field(default_factory=list)

    @property
    def is_read(self) -> bool:
        """Whether people read what stands here."""
        if self.attribute is not None:
            return self.attribute in SPOKEN
        return not self.tag and not self.silent


class Texts(Extension):
    """Translate the texts of a template as it is compiled: no page pays for it."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Give the tokens with their texts in the environment's language."""
        say: Say = getattr(self.environment, "say", str)
        place, code = _Place(), _Code()
        for token in stream:
            if token.type == "data":
                yield token if code.in_trans else Token(token.lineno, "data", _data(token.value, place, say))
                continue
            code.read(token, stream.current)
            if token.type == "string" and place.is_read and code.prints and _LETTER.search(token.value):
                yield Token(token.lineno, "string", _kept_space(token.value, say))
            else:
                yield token


EXTENSIONS = (InternationalizationExtension, Texts)


@dataclass(slots=True)
class _Code:
    """Where inside `{{ }}` or `{% %}` the stream is: whether a literal string there is printed."""

    block: str | None = None
    in_trans: bool = False
    before: tuple[str, str] = ("", "")
    calls: list[str] = field(default_factory=list)
    prints: bool = False

    def read(self, token: Token, following: Token) -> None:
        """Take up one token."""
        kind, value = token.type, token.value
        if kind in {"block_begin", "variable_begin"}:
            self.block, self.calls, self.before = ("" if kind == "block_begin" else "print"), [], ("", "")
            return
        if kind == "name" and not self.block:
            self.block = value
            self.in_trans = value == "trans" or (self.in_trans and value != "endtrans")
        if kind in {"lparen", "lbracket"}:
            called = self.before[1] if self.before[0] == "name" else ""
            self.calls.append("[" if kind == "lbracket" else called)
        elif kind in {"rparen", "rbracket"} and self.calls:
            self.calls.pop()
        compared = self.before[0] in {"eq", "ne"} or self.before[1] == "in" or following.type in {"eq", "ne", "colon"}
        keys = any(call in _KEYS or call in {"[", "in"} for call in self.calls)
        self.prints = self.block in {"print", "set"} and not compared and not keys
        self.before = (kind, value)


def _kept_space(text: str, say: Say) -> str:
    """Translate a text; the space around it stays."""
    words = " ".join(text.split())
    if not _LETTER.search(words):
        return text
    said = say(words)
    if said == words:
        return text
    return text[: len(text) - len(text.lstrip())] + said + text[len(text.rstrip()):]


def _data(text: str, place: _Place, say: Say) -> str:
    """Translate a stretch of HTML, which may begin and end inside a tag."""
    parts, at = [], 0
    while at < len(text):
        if place.attribute is not None:
            end = text.find('"', at)
            piece = text[at:] if end < 0 else text[at:end]
            parts.append(_kept_space(piece, say) if place.is_read else piece)
            at += len(piece)
            if end >= 0:
                parts.append('"')
                at, place.attribute = at + 1, None
        elif place.tag:
            at = _in_tag(text, at, place, parts)
        else:
            end = text.find("<", at)
            piece = text[at:] if end < 0 else text[at:end]
            parts.append(_kept_space(piece, say) if place.is_read else piece)
            at += len(piece)
            if end >= 0:
                _opened(text, at, place)
                place.tag = True
                parts.append("<")
                at += 1
    return "".join(parts)


def _in_tag(text: str, at: int, place: _Place, parts: list[str]) -> int:
    found = _ATTRIBUTE.search(text, at)
    if found is None:
        parts.append(text[at:])
        return len(text)
    parts.append(text[at:found.end()])
    if found[1] is None:
        place.tag = False
    else:
        place.attribute = found[1]
    return found.end()


def _opened(text: str, at: int, place: _Place) -> None:
    """Keep what is open that holds no words of ours: code, above all."""
    found = _TAG.match(text, at)
    if found is None or found[1] not in UNSPOKEN:
        return
    if text[at + 1] == "/":
        if place.silent:
            place.silent.pop()
    else:
        place.silent.append(found[1])
