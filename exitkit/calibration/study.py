"""One model, one set of calibration rows: what settings give there, by replay and by live runs."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitkit
from exitkit.artifacts.artifact import EXITS, WEIGHTS, Artifact
from exitkit.artifacts.plans import full_model
from exitkit.calibration import layer_time, pareto, per_exit, search
from exitkit.calibration.runs import Runs
from exitkit.calibration.search import Candidate
from exitkit.data.sources import Rows
from exitkit.engine.cost import ReplayCost, prices, speedups
from exitkit.engine.limits import NONE, Limits
from exitkit.engine.replay import Outcome, record, replay
from exitkit.engine.schedule import Schedule, rewrites, schedule
from exitkit.engine.stream import own
from exitkit.engine.trace import Trace
from exitkit.measuring import clock
from exitkit.measuring.clock import Times
from exitkit.measuring.runs import Sample, Scored, gated_answers, reference_of, run_all, score
from exitkit.plugins import Registry
from exitkit.policy import ExitPolicy
from exitkit.progress import bar
from exitkit.tasks import Answers

TIMED_BATCHES = {1: 256, 8: 48}  # from this batch size on, at most so many batches are timed
ROUNDS = 3
GUESSES = 60  # values of a real-valued knob that are replayed to guess what is worth a run
MOST_LIVE = 24  # settings that are run
WIDE = 32  # rows of a batch at least, where only answers and exits are wanted


@dataclass(frozen=True)
class Live:
    """A confirmed setting: what a real run over the calibration rows did."""

    candidate: Candidate
    trace: Trace
    speedup: Mapping[str, float]  # by currency, measured
    time_ci: tuple[float, float]
    scored: Scored


class Study:
    """Records the rows once; everything else is looked up, replayed or, where it must be, run."""

    def __init__(
        self,
        model: Artifact,
        registry: Registry,
        rows: Rows,
        metric: str,
        batch_size: int,
        limits: Limits = NONE,
        keeps_runs: bool = False,
    ) -> None:
        """`keeps_runs`: live runs of a search are written to the artifact's folder, see `runs_file`."""
        self.model, self.registry, self.rows, self.metric = model, registry, rows, metric
        self.task = model.task
        self.sample = Sample.of(rows, model)
        self.batches = self.sample.batches(batch_size)
        self._wide = self.sample.batches(max(batch_size, WIDE))  # where nothing is timed: answers are the same
        with bar("recording exits", len(self._wide)) as advance:

            def counted() -> Any:
                for batch in self._wide:
                    yield batch
                    advance()

            readers = [name for name in model.model.probes if "probe" in registry.policy(name).reads]
            self.recording = record(model.model, counted(), readers)
        self.batch_size = batch_size
        self.truth = self.sample.truth
        self.full = self.sample.answers(self.recording.logits[-1])
        self.price = prices(model.model)
        self._score = self.task.metric(metric)
        self._reference = reference_of(metric, self.truth, self.full)
        self._unit_reference = self.sample.by_unit(self.full if self.truth is None else self.truth)
        self.full_score = self._score(self._reference, self.full)
        self._plan_full = full_model(model, registry)
        self.limits = limits
        """Rules around every policy; change them before candidates are asked for."""
        self.keeps_runs = keeps_runs
        self._runs: dict[tuple[str, Limits, bool], Runs] = {}
        self._gated: dict[str, Answers | None] = {}

    @cached_property
    def times(self) -> tuple[layer_time.LayerTimes, ...]:
        """How long layers of each complete model take here; measured when first asked for."""
        return tuple(
            layer_time.measure(model, [own(batch, number) for batch in self.batches], self.batch_size)
            for number, model in enumerate(self.model.model.models)
        )

    def rewrites(self, name: str) -> bool:
        """Whether a policy must be run, because a replay of it is only a guess."""
        return rewrites(self.registry.policy(name), self.task.kind)

    def candidates(self, name: str, held: Mapping[str, Any], currency: str) -> list[Candidate]:
        """All settings of a policy worth considering, slow to fast."""
        policy, shape = self.registry.policy(name), self.model.model.shape
        if policy.rewrites:
            return pareto.candidates(pareto.space(name, policy, held, shape), self.evaluator(name), currency)
        if not self.rewrites(name):
            return search.candidates(name, policy, held, shape, self.evaluator(name), currency)
        guess = self._replayed(name, self._share_right, timed=currency == "time")
        promising = search.spread(
            search.candidates(name, policy, held, shape, guess, currency, GUESSES), currency, MOST_LIVE
        )
        evaluate = self.evaluator(name, timed=currency == "time")
        plans = [schedule(name, policy, guess.settings, shape, self.limits) for guess in promising]
        return sorted((evaluate(plan) for plan in plans), key=lambda candidate: candidate.speedup[currency])

    def nearer(
        self, name: str, held: Mapping[str, Any], found: Sequence[Candidate], currency: str, target: float
    ) -> list[Candidate]:
        """The candidates, and for policies that must be run some more between those next to a target."""
        policy, shape = self.registry.policy(name), self.model.model.shape
        if not self.rewrites(name):
            return list(found)
        where, evaluate = pareto.space(name, policy, held, shape), self.evaluator(name, timed=currency == "time")
        return pareto.nearer(where, found, evaluate, currency, target)

    def per_exit(self, name: str, found: Sequence[Candidate], currency: str, target: float) -> list[Candidate]:
        """Settings of a policy that can be replayed with a threshold for every exit; see `per_exit.candidates`."""
        policy, shape = self.registry.policy(name), self.model.model.shape
        full = self.limits.temper(shape.exits, self.recording.logits[-1])
        faithful = self._replayed(name, self.task.faith(full), timed=currency == "time")
        evaluate = self.evaluator(name)
        with bar("thresholds per exit", per_exit.trials(shape)) as advance:
            return per_exit.candidates(name, policy, found, shape, evaluate, faithful, currency, target, advance)

    def evaluator(self, name: str, timed: bool = False) -> search.Evaluate:
        """What gives a setting's candidate: a replay, or a run for policies that rewrite later states.

        Runs predict their time where `timed` says so and words leave one by one; elsewhere flops stand for it.
        """
        if not self.rewrites(name):
            return self._replayed(name)
        timed = timed and self._words_leave(name)
        key = (name, self.limits, timed)
        if key not in self._runs:
            file = runs_file(self.model.folder, name) if self.keeps_runs else None
            self._runs[key] = Runs(partial(self._run, timed=timed), {**self._about(name), "timed": timed}, file)
        return self._runs[key]

    def _words_leave(self, name: str) -> bool:
        """Whether a policy rewrites later states in that words halt, and in no other way."""
        return self.rewrites(name) and not self.registry.policy(name).rewrites

    def _replayed(
        self, name: str, worth: Callable[[Tensor], float] | None = None, timed: bool = True
    ) -> search.Evaluate:
        """Candidates by replay. `worth` of final logits stands for the score.

        Without `timed` flops stand for time.
        """
        worth = worth or self._worth
        of_words = self._words_leave(name)

        def evaluate(plan: Schedule) -> Candidate:
            plan = replace(plan, limits=self.limits)
            outcome, cost = replay(self.recording, plan), ReplayCost(self.recording, self.price, plan)
            counted = cost.speedups(outcome)
            time = counted["flops"]
            if timed:
                predicted = self._predicted
                time = predicted.speedup_of_words(outcome, cost) if of_words else predicted.speedup(outcome, plan)
            return Candidate(
                settings=plan.settings,
                speedup={**counted, "time": time},
                score=worth(outcome.logits),
                taken=outcome.exit,
            )

        return evaluate

    @cached_property
    def _predicted(self) -> layer_time.PredictedTime:
        return layer_time.PredictedTime(self.recording, self.times, self.batch_size)

    def _worth(self, logits: Tensor) -> float:
        """The score of units' final logits."""
        return self._score(self._reference, self.sample.answers(logits))

    def _share_right(self, logits: Tensor) -> float:
        """Share of units answered as labelled, or without labels as the full model does."""
        return float((self.task.answers(logits) == self._unit_reference).mean())

    def settled(self, chosen: Candidate, name: str) -> Candidate:
        """The same exits with thresholds in the middle between observed values; see `search.settle`."""
        if self.rewrites(name):
            return chosen
        policy = self.registry.policy(name)
        moved = search.settle(chosen, name, policy, self.model.model.shape, self.evaluator(name))
        return replace(chosen, settings=moved.settings)

    def live(self, name: str, candidate: Candidate, rounds: int = ROUNDS) -> Live:
        """Run a setting for real over all rows, and time it beside the full model over some of them."""
        plan = self.plan(name, candidate.settings)
        trace = run_all(self.model, self.batches, plan, f"confirming {name}")
        times = self.timed(name, candidate.settings, rounds)
        answers = self.sample.answers(trace.logits)
        scored = score(self.task, self.metric, self.truth, answers, self.full, self.gated(name))
        return Live(
            candidate=candidate,
            trace=trace,
            speedup={**speedups(trace, self.price), "time": times.speedup(name, "full")},
            time_ci=times.speedup_interval(name, "full"),
            scored=scored,
        )

    def gated(self, name: str) -> Answers | None:
        """What the last exit answers behind a policy's gates; None for a policy without gates."""
        if name not in self._gated:
            self._gated[name] = gated_answers(name, self.model, self.registry, self.sample, self._wide)
        return self._gated[name]

    def score_to_lose(self, name: str) -> float:
        """What losses of a policy count from: the full model's score, or that behind its gates if it is larger."""
        gated = self.gated(name)
        return self.full_score if gated is None else max(self.full_score, self._score(self._reference, gated))

    def plan(self, name: str, settings: Mapping[str, Any]) -> Schedule:
        """Settings as a schedule for this model."""
        return schedule(name, self.registry.policy(name), settings, self.model.model.shape, self.limits)

    def timed(self, name: str, settings: Mapping[str, Any], rounds: int = ROUNDS, before: Times | None = None) -> Times:
        """Time a setting, under its policy's name, beside the full model ("full"); `before` are rounds to add to."""
        plan = self.plan(name, settings)
        most = max(size for size in TIMED_BATCHES if size <= self.batch_size)
        chosen = np.unique(
            np.linspace(0, len(self.batches) - 1, min(len(self.batches), TIMED_BATCHES[most])).astype(int)
        )
        batches = [self.batches[i] for i in chosen]
        runners = {
            plan.name: lambda batch: self.model.model.run(batch, plan),
            "full": lambda batch: self.model.model.run(batch, self._plan_full),
        }
        with bar(f"timing {plan.name}", rounds * len(batches)) as advance:
            turn = clock.turn_of(self.batch_size, len(batches))
            seed = 0 if before is None else len(before.seconds["full"])  # another order of turns in every round
            found = clock.interleaved(runners, batches, rounds, self.model.model.device, advance, turn, seed)
        return found if before is None else before.joined(found)

    def _run(self, plan: Schedule, timed: bool = False) -> Candidate:
        plan = replace(plan, limits=self.limits)
        trace = run_all(self.model, self._wide, plan, f"running {plan.name}")
        counted = speedups(trace, self.price)
        time = counted["flops"]  # a first guess, corrected by live runs
        if timed:
            cost = ReplayCost(self.recording, self.price, plan)
            time = self._predicted.speedup_of_words(Outcome(trace.logits, trace.exit), cost)
        return Candidate(
            settings=plan.settings,
            speedup={**counted, "time": time},
            score=self._worth(trace.logits),
            taken=torch.stack([trace.exit, trace.layers]),
        )

    def _about(self, name: str) -> dict[str, Any]:
        """All that a live run depends on besides its settings."""
        return {
            "policy": name,
            "code": _source(self.registry.policy(name)),
            "exitkit": exitkit.__version__,
            "weights": [_digest(self.model.folder / file) for file in (WEIGHTS, EXITS)],
            "precision": str(next(self.model.model.parameters()).dtype),
            "rows": self.rows.hash(),
            "metric": self.metric,
            "limits": self.limits.as_dict(self.model.card.labels),
        }


def _source(policy: type[ExitPolicy]) -> str:
    """A digest of the file that a policy is written in; of nothing where it has none."""
    try:
        file = inspect.getfile(policy)
    except (OSError, TypeError):
        return ""
    return _digest(Path(file))


def runs_file(folder: Path, name: str) -> Path:
    """Where the live runs of a search stand while it is under way."""
    return folder / f"search-{re.sub('[^A-Za-z0-9_-]', '-', name)}.jsonl"


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
