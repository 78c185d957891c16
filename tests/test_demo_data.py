"""demo:reviews and the small model made for it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from exitkit.data import demo, sources
from exitkit.errors import UsageError


def test_the_splits_have_the_sizes_that_are_documented():
    assert sources.splits("demo:reviews") == {"train": 6000, "validation": 600, "test": 1200}


def test_no_text_occurs_twice_within_or_across_splits():
    texts = [text for split in demo.reviews().values() for text in split["text"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_are_balanced_and_grades_have_their_shares(split):
    rows = demo.reviews()[split]
    size = len(rows["text"])
    assert Counter(rows["label"])["positive"] / size == pytest.approx(0.5, abs=0.06)
    shares = {grade: count / size for grade, count in Counter(rows["grade"]).items()}
    assert shares == pytest.approx({"easy": 1 / 2, "negated": 1 / 3, "contrast": 1 / 6}, abs=0.06)


def test_generation_is_the_same_everywhere_and_always():
    """Whoever changes the generator changes every number that was published about the demo."""
    assert sources.read("demo:reviews", "train").hash() == "6c05858e75cfe536"


def test_words_alone_decide_the_easy_reviews_and_no_others():
    train, test = demo.reviews()["train"], demo.reviews()["test"]
    counts = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=200).fit(counts.fit_transform(train["text"]), train["label"])
    right = model.predict(counts.transform(test["text"])) == np.array(test["label"])
    grades = np.array(test["grade"])
    assert right[grades == "easy"].mean() > 0.95
    assert 0.4 < right[grades == "negated"].mean() < 0.6
    assert 0.4 < right[grades == "contrast"].mean() < 0.6


def test_the_vocabulary_is_every_word_that_occurs_and_no_other():
    seen = {word for split in demo.reviews().values() for text in split["text"] for word in text.split()}
    assert seen == set(demo.vocabulary())


def test_an_unknown_demo_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="Did you mean 'reviews'"):
        sources.read("demo:review", "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    demo.build_model(folder, layers=2, width=32, heads=2)
    return folder


def test_the_model_loads_in_plain_transformers_as_a_classifier(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokens = AutoTokenizer.from_pretrained(folder)(["the film was good ."], return_tensors="pt")
    assert model(**tokens).logits.shape == (1, 2)


def test_the_tokenizer_knows_every_word_in_any_case_and_marks_pairs_as_bert_does(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.unk_token_id not in tokenizer(" ".join(demo.vocabulary()).upper())["input_ids"]
    pair = tokenizer("The film", "was good .")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "the", "film", "[SEP]", "was", "good", ".", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_word_that_the_demo_does_not_use_is_unknown(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("zeppelin")["input_ids"][1] == tokenizer.unk_token_id


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(folder, tmp_path):
    before = torch.get_rng_state()
    for name, seed in (("same", 0), ("other", 1)):
        demo.build_model(tmp_path / name, layers=2, width=32, heads=2, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    embeddings = [
        AutoModel.from_pretrained(path).embeddings.word_embeddings.weight
        for path in (folder, tmp_path / "same", tmp_path / "other")
    ]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
