"""Which layers to learn from, by genetic search: a function of scores and seed, that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Value
from safetensors.torch import load_file

import exitkit
from exitkit.data.sources import read
from exitkit.distillation import distill as module
from exitkit.distillation.map_search import FILE, Found, Map, Remembered, Tried, search
from exitkit.errors import UsageError
from exitkit.report import search as picture

BEST = (0, 5, 2)


def distance(layer_map: Map, seed: int) -> float:
    """The closer to the best map, the better; seeds shift every score by a hundredth."""
    return 1 - sum(abs(a - b) for a, b in zip(layer_map, BEST, strict=True)) / 20 + 0.01 * (seed - 7)


def searched(judge, generations: int = 6, population: int = 10) -> Found:
    return search(judge, 3, 6, 7, generations, population)


def test_it_finds_what_uniform_and_last_are_not() -> None:
    found = searched(distance)
    assert {one.layer_map for one in found.tried[:2]} == {(2, 4, 6), (4, 5, 6)}, "the search begins with these"
    assert [one.generation for one in found.tried[:60]] == [number // 10 for number in range(60)]
    assert distance(found.layer_map, 7) > distance((2, 4, 6), 7)
    assert all(0 <= layer <= 6 for one in found.tried for layer in one.layer_map)
    best = [max(one.score for one in found.tried[: 10 * (n + 1)]) for n in range(6)]
    assert best[-1] > best[0], "later generations are better"


@pytest.mark.parametrize(("then", "chosen"), [(0.7, (2, 4, 6)), (0.9, (4, 5, 6))])
def test_the_best_and_uniform_are_judged_again_and_luck_does_not_win(then: float, chosen: Map) -> None:
    """`last` scores 0.9 once, and then 0.7 or as much again; uniform 0.75 both times, and the others less."""

    def fickle(layer_map: Map, seed: int) -> float:
        if layer_map == (4, 5, 6):
            return 0.9 if seed == 7 else then
        return 0.75 if layer_map == (2, 4, 6) else distance(layer_map, 7) / 2

    found = searched(fickle, 1, 6)
    assert found.layer_map == chosen
    again = [one for one in found.tried if one.seed == 8]
    assert {one.layer_map for one in again} >= {(4, 5, 6), (2, 4, 6)}
    assert all(one.generation == 1 for one in again)


def test_what_all_maps_gain_from_a_seed_is_no_difference_between_them() -> None:
    by_hand = Found(
        (1,), (Tried(0, (1,), 7, 0.5), Tried(0, (0,), 7, 0.6), Tried(1, (1,), 8, 0.8), Tried(1, (0,), 8, 0.5))
    )
    assert by_hand.seeds_differ() == pytest.approx(np.std([0.3, -0.1], ddof=1))


def test_a_student_that_always_says_the_same_is_worth_little_without_labels() -> None:
    constant = [{"score": 1.0, "teacher_agreement": 0.5}, {"score": 1.0, "teacher_agreement": 0.5}]
    copy = [{"score": 0.9, "teacher_agreement": 0.9}, {"score": 1.0, "teacher_agreement": 1.0}]
    assert module.worth(copy, labelled=False) > module.worth(constant, labelled=False)
    assert module.worth(copy, labelled=True) == pytest.approx(0.95)


def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, asked = searched(distance), []

    def until(most: int):
        def judge(layer_map: Map, seed: int) -> float:
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append((layer_map, seed))
            return distance(layer_map, seed)

        return judge

    file = tmp_path / FILE
    for most in (3, 17):
        with pytest.raises(KeyboardInterrupt):
            searched(Remembered(until(most), file))
    file.write_text(file.read_text()[:-9])  # killed while it wrote
    assert searched(Remembered(until(-1), file)) == whole
    assert len(asked) == len(set(asked)) + 1, "only the line that was cut is asked again"


def test_a_student_of_the_best_map(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation"):  # and no test, so that calibration rows are set aside from train
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = read("demo:reviews", f"{split}[:120]")
        rows.data.cast_column("label", Value("string")).to_json(tmp_path / "data" / f"{split}.jsonl")
    settings = {
        "teacher": str(trained), "data": str(tmp_path / "data"), "label_names": ["0", "1"], "method": "layers",
        "student_layers": 2, "student_width": 16,
        "max_train_samples": 96, "epochs": 1, "layer_map": "search", "search_rows": 48, "search_generations": 1,
        "search_population": 2,
    }  # fmt: skip
    scored: list[str] = []
    right = module.score_exits

    def watched(model, sample, *more):
        scored.append(sample.rows.origin.split)
        if stops and len(scored) > 2:
            raise KeyboardInterrupt
        return right(model, sample, *more)

    monkeypatch.setattr(module, "score_exits", watched)
    stops = False
    report = exitkit.distill(**settings, output=tmp_path / "whole")
    told = report["layer_map_search"]
    assert report["options"]["layer_map"] == ",".join(map(str, told["layer_map"]))
    assert [one["generation"] for one in told["tried"]] == [0, 0, 1, 1]
    assert scored[-1] == "validation"
    assert set(scored[:-1]) == {"train"}, "maps are chosen on rows that were set aside"
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    assert names == {file.name for file in trained.iterdir()}
    picture.write(tmp_path / "whole", report)
    assert (tmp_path / "whole" / picture.FILE).stat().st_size > 5000

    stops = True
    scored.clear()
    with pytest.raises(KeyboardInterrupt):
        exitkit.distill(**settings, output=tmp_path / "cut")
    lines = (tmp_path / "cut.partial" / "training" / "search" / FILE).read_text().splitlines()
    assert len(lines) == 3, "what it is about, and two maps"
    stops = False
    again = exitkit.distill(**settings, output=tmp_path / "cut", resume=True)
    assert again["layer_map_search"] == told
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "cut" / "metrics.json").read_text())["layer_map_search"] == told


def test_only_methods_that_compare_layers_search(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layer-map search: method 'logits' compares no layers"):
        exitkit.distill(teacher=str(trained), data="demo:reviews", output=tmp_path / "s", layer_map="search")
    assert not list(tmp_path.iterdir())
