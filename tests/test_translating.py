"""The languages of the site: texts of templates are found, looked up, and all of them have a Chinese form."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
from babel.messages import pofile
from jinja2.ext import babel_extract
from lxml import html

from jouleboard import sitefolder, translating
from jouleboard.paths import data_folder

TEMPLATES = data_folder("site") / "templates"
LOCALE = data_folder("site") / "locale"


def speaking(known: dict[str, str], **templates: str) -> jinja2.Environment:
    env = jinja2.Environment(loader=jinja2.DictLoader(templates), autoescape=True, extensions=translating.EXTENSIONS)
    translating.install(env, known)
    return env


def said(source: str, known: dict[str, str], **values: object) -> str:
    return speaking(known, page=source).get_template("page").render(**values)


def heard() -> dict[str, set[str]]:
    """Every text of every template, with the templates that say it."""
    found: dict[str, set[str]] = {}
    for path in sorted(TEMPLATES.iterdir()):
        env = sitefolder.environment()
        translating.install(env, {}, heard=lambda text, name=path.name: found.setdefault(text, set()).add(name))
        env.get_template(path.name)
        with path.open("rb") as file:
            for _, _, message, _ in babel_extract(file, ("gettext", "ngettext", "_"), [], {"trimmed": "true", "newstyle_gettext": "true"}):
                for one in message if isinstance(message, tuple) else (message,):
                    if isinstance(one, str):
                        found.setdefault(one, set()).add(path.name)
    return found


def is_prose(text: str) -> bool:
    """Whether a text is a phrase and no code word, unit or name."""
    return bool(re.search(r"[A-Za-z]{3,} [A-Za-z]{2,}|^[A-Z][a-z]{3,}", text)) and not re.fullmatch(r"[a-z0-9_.,: -]*[a-z0-9]+_[a-z0-9_.-]*|.*(self|nofollow|verdict-|badge-|class-).*|jouleboard .*|light dark|Jouleboard|Parquet", text)


def test_texts_between_tags_are_translated_and_the_space_around_them_stays() -> None:
    assert said("<p>\n  Good <b>day</b> </p>", {"Good": "Gut", "day": "Tag"}) == "<p>\n  Gut <b>Tag</b> </p>"


def test_attributes_that_people_hear_are_translated_and_others_are_not() -> None:
    known = {"day": "Tag"}
    assert said('<a class="day" aria-label="day" href="day">x</a>', known) == '<a class="day" aria-label="Tag" href="day">x</a>'
    assert said('<a class="{{ "day" if a }}" title="{{ "day" if a }}">', known, a=1) == '<a class="day" title="Tag">'


def test_what_an_expression_prints_is_translated_and_what_it_compares_is_not() -> None:
    known = {"day": "Tag", "night": "Nacht"}
    assert said('{{ "day" if x == "day" else "night" }}', known, x="day") == "Tag"
    assert said('{{ "yes" if x in ("day", "x") else "night" }}', known, x="day") == "yes"
    assert said('{% set w = "night" %}{{ w }}', known) == "Nacht"
    assert said('{{ rows | selectattr("day") | list | length }}', known, rows=[{"day": 1}]) == "1"


def test_code_is_never_translated() -> None:
    assert said("<code>day</code> <p>day</p>", {"day": "Tag"}) == "<code>day</code> <p>Tag</p>"


def test_sentences_with_values_are_translated_whole_and_values_are_escaped_and_made_visible() -> None:
    source = "{% trans name=name %}Hello {{ name }}, 5 % off{% endtrans %}"
    assert said(source, {}, name="<b>\u202e") == "Hello &lt;b&gt;[U+202E], 5 % off"
    assert said(source, {"Hello %(name)s, 5 %% off": "%(name)s, hallo: 5 %%"}, name="X") == "X, hallo: 5 %"


@pytest.mark.parametrize(("number", "words"), [(1, "one finding"), (3, "3 findings")])
def test_plurals_follow_the_number(number: int, words: str) -> None:
    source = "{% trans count=n %}one finding{% pluralize %}{{ count }} findings{% endtrans %}"
    assert said(source, {}, n=number) == words
    assert said(source, {"one finding": "%(count)s 项", "%(count)s findings": "%(count)s 项"}, n=number) == f"{number} 项"


def test_every_text_of_the_templates_has_a_chinese_form() -> None:
    known = translating.catalogue(LOCALE, "zh")
    missing = {text: sorted(names) for text, names in heard().items() if is_prose(text) and text not in known}
    assert not missing


def test_the_chinese_catalogue_has_nothing_that_no_template_says() -> None:
    assert not sorted(set(translating.catalogue(LOCALE, "zh")) - set(heard()))


def test_every_placeholder_of_a_text_is_in_its_translation() -> None:
    pattern = re.compile(r"%\(\w+\)s|(?<!%)\{\w+\}|_(?:START|END|TOTAL|MAX)_")
    with (LOCALE / "zh.po").open("rb") as file:
        for message in pofile.read_po(file, locale="zh"):
            english = message.id[-1] if isinstance(message.id, tuple) else message.id
            chinese = message.string[0] if isinstance(message.string, tuple) else message.string
            assert sorted(set(pattern.findall(str(english)))) == sorted(set(pattern.findall(str(chinese)))), english


def test_a_chinese_page_is_marked_as_such_and_an_english_one_too(tmp_path: Path) -> None:
    env = {one.code: sitefolder.environment(one) for one in translating.LANGUAGES}
    site = sitefolder.Site(root=tmp_path, envs=env)
    site.page("404.html", "404.html.j2", inputs="")
    for name, tag in (("404.html", "en"), ("zh/404.html", "zh-Hans")):
        page = html.parse(str(tmp_path / name)).getroot()
        assert page.get("lang") == tag
        assert {one.get("hreflang") for one in page.xpath("//link[@rel='alternate']")} == {"en", "zh-Hans"}
