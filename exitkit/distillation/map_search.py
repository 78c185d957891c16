"""`--layer-map search`: which layers of the teacher to learn from, found by genetic search on a small budget."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler

from exitkit.calibration.memory import Memory
from exitkit.distillation.layer_map import layer_map, text_of

log = logging.getLogger("exitkit")

FILE = "search.jsonl"
ABOUT = {"search": "layer maps"}  # a resumed run is checked as a whole: nothing else can differ
WARM = ("uniform", "last")
WINNERS = 3
"""Maps that are tried again with another seed."""

Map = tuple[int, ...]
Judge = Callable[[Map, int], float]
"""judge(map, seed): the score of a student that learned with this map on the small budget."""


@dataclass(frozen=True)
class Tried:
    """A map and what it was worth."""

    generation: int  # from 0; of repeated winners, the number of generations
    layer_map: Map
    seed: int
    score: float


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    layer_map: Map  # the best over two seeds, or uniform where that is not clearly better
    tried: tuple[Tried, ...]
    known: Mapping[str, str] = field(default_factory=dict)  # names of maps that have one, by their text

    def seeds_differ(self) -> float:
        """How far seeds move maps apart: the deviation of a map's change of score from one seed to the other.

        What all maps gain or lose alike does not count. Differences below this mean nothing.
        """
        first = {one.layer_map: one.score for one in self.tried[::-1] if one.seed == self.tried[0].seed}
        moved = [one.score - first[one.layer_map] for one in self.tried if one.seed != self.tried[0].seed]
        return float(np.std(moved, ddof=1)) if len(moved) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer_map": list(self.layer_map),
            "known": self.known,
            "seeds_differ": self.seeds_differ(),
            "tried": [{**asdict(one), "layer_map": list(one.layer_map)} for one in self.tried],
        }


class Remembered(Memory[tuple[Map, int], float]):
    """A judge that keeps every score in a file of its run and never asks twice."""

    def __init__(self, judge: Judge, file: Path) -> None:
        super().__init__(ABOUT, file, _plain, _parsed)
        self.judge = judge
        if self.known:
            log.info("going on with an interrupted search: %d maps have been tried", len(self.known))

    def __call__(self, layer_map: Map, seed: int) -> float:
        """The score of a map under a seed."""
        return self.recall((layer_map, seed), lambda: self.judge(layer_map, seed))


def _plain(key: tuple[Map, int], score: float) -> Any:
    return {"layer_map": list(key[0]), "seed": key[1], "score": score}


def _parsed(plain: Any) -> tuple[tuple[Map, int], float]:
    return (tuple(plain["layer_map"]), plain["seed"]), plain["score"]


def search(judge: Judge, student: int, teacher: int, seed: int, generations: int, population: int) -> Found:
    """The best layer map that a genetic search finds.

    "Improving task-agnostic BERT distillation with layer mapping search" (2012.06153, section 3): a gene per layer of
    the student, 0 to N, 0 for no layer loss; fitness is the score after a short distillation. Selection, crossover and
    mutation are optuna's (NSGA-II with one objective), where the paper selects in proportion to fitness. The first
    generation holds `uniform` and `last`, which the paper's begins without. Maps need not rise. Each generation is
    seeded by its number, so that the search is a function of the scores and of `seed`: an interrupted one is gone on
    with by starting it again over a judge that remembers. The best three maps and `uniform` are judged once more under
    another seed, because seeds differ as much as maps do; the best mean wins, unless it is ahead of `uniform`'s by no
    more than seeds move maps apart. Then `uniform` does.

    Args:
        judge: gives scores; asked about (map, seed) and (map, seed + 1).
        student: its layers M.
        teacher: its layers N.
        seed: of the search and of the students.
        generations: how many.
        population: maps in each.
    """
    tried: list[Tried] = []
    names = [f"layer {number:02}" for number in range(1, student + 1)]
    genes: dict[str, optuna.distributions.BaseDistribution] = {name: IntDistribution(0, teacher) for name in names}
    warm = list(dict.fromkeys(layer_map(name, student, teacher) for name in WARM))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for one in warm:
            study.enqueue_trial(dict(zip(names, one, strict=True)))
        for generation in range(generations):
            of_generation = (seed * generations + generation) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.sampler = NSGAIISampler(population_size=population, seed=of_generation)
            for _ in range(population):
                trial = study.ask(genes)
                chosen = tuple(trial.params[name] for name in names)
                score = judge(chosen, seed)
                study.tell(trial, score)
                tried.append(Tried(generation, chosen, seed, score))
            best = max(tried, key=lambda one: one.score)
            log.info("generation %d: best map %s, %.4f", generation + 1, text_of(best.layer_map), best.score)
    finally:
        optuna.logging.set_verbosity(verbosity)
    scores = {one.layer_map: one.score for one in tried}
    other = (seed + 1) % 2**32
    winners = sorted(scores, key=lambda one: -scores[one])[:WINNERS]
    again = {one: judge(one, other) for one in dict.fromkeys([*winners, warm[0]])}
    tried += [Tried(generations, one, other, score) for one, score in again.items()]
    names_of = {text_of(layer_map(name, student, teacher)): name for name in WARM[::-1]}
    means = {one: (scores[one] + again[one]) / 2 for one in again}
    best_map = max(means, key=means.__getitem__)
    found = Found(best_map, tuple(tried), names_of)
    ahead, differ = means[best_map] - means[warm[0]], found.seeds_differ()
    if 0 < ahead <= differ:
        log.info(
            "map %s is ahead of uniform by %.4f, and seeds differ by %.4f: uniform it is",
            text_of(best_map),
            ahead,
            differ,
        )
        return replace(found, layer_map=warm[0])
    return found
