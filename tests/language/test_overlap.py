"""Near-duplicates: n-grams against a definition with tuples and sets, recall on planted ones, nothing else found."""

from __future__ import annotations

import random

import pytest

from vpretrain.language.data.overlap import OverlapIndex, bands_and_rows, jaccard, ngrams

WORDS = [f"word{i}" for i in range(500)]


def by_definition(a: str, b: str, n: int) -> float:
    sets = [{tuple(t.split()[i : i + n]) for i in range(max(1, len(t.split()) - n + 1))} for t in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(draw: random.Random, text: str, edits: int) -> str:
    """Words replaced, left out or put in; several in one place, so that high similarities come about."""
    words = text.split()
    for _ in range(edits):
        at = draw.randrange(len(words) + 1)
        words[at : at + draw.randint(0, 2)] = draw.choices(WORDS, k=draw.randint(0, 2))
    return " ".join(words)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_similarity_is_the_jaccard_of_word_ngrams(n):
    draw = random.Random(n)
    for _ in range(200):
        a = " ".join(draw.choices(WORDS[:20], k=draw.randint(1, 40)))
        b = edited(draw, a, draw.randint(0, 6)) or "word0"
        assert jaccard(ngrams(a, n), ngrams(b, n)) == pytest.approx(by_definition(a, b, n))


def test_case_punctuation_and_spacing_do_not_count():
    assert jaccard(ngrams("Tom has 3 apples, 4 pears.", 3), ngrams("tom  has 3\napples; 4 PEARS", 3)) == 1
    assert jaccard(ngrams("Tom has 3 apples", 3), ngrams("Tom has 4 apples", 3)) == 0
    assert len(ngrams("... !", 3)) == 0
    assert jaccard(ngrams("two words", 5), ngrams("two words", 5)) == 1  # shorter than an n-gram


def test_languages_without_spaces_have_a_word_a_character():
    assert len(ngrams("小明有三个苹果", 2)) == 6
    assert 0.4 < jaccard(ngrams("小明有三个苹果", 2), ngrams("小明有四个苹果", 2)) < 0.6


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_planted_near_duplicates_are_found_and_nothing_else(threshold):
    draw = random.Random(0)
    known = [" ".join(draw.choices(WORDS, k=draw.randint(20, 80))) for _ in range(300)]
    index = OverlapIndex(3, threshold)
    for number, text in enumerate(known):
        assert index.add(text) == number
    planted = found = 0
    for _ in range(3000):
        number = draw.randrange(len(known))
        text = edited(draw, known[number], draw.randint(0, 4))
        match, exact = index.nearest(text), by_definition(text, known[number], 3)
        if exact >= threshold:
            planted += 1
            found += match is not None
        if match is not None:  # no estimate decides
            assert match == (pytest.approx(exact), number)
            assert exact >= threshold
    assert planted > 200
    assert found / planted >= 0.99
    fresh = [" ".join(draw.choices(WORDS, k=draw.randint(20, 80))) for _ in range(1000)]
    assert not any(index.nearest(text) for text in fresh)


def test_candidates_are_nearly_certain_at_the_threshold():
    for threshold in (0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0):
        bands, rows = bands_and_rows(threshold)
        assert 1 - (1 - threshold**rows) ** bands >= 0.9995


def test_texts_without_words_and_an_empty_index_match_nothing():
    index = OverlapIndex(5, 0.7)
    assert index.nearest("anything at all") is None
    index.add("...")
    assert index.nearest("...") is None
    index.add("a text that is known here")
    assert index.nearest("...") is None
    assert index.nearest("A text, that is known here!") == (1.0, 1)
