"""Recipe `smartbert`: losses by hand, hard gates, what exits learn from, and that the second phase changes no first."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exitkit_policies.skip_gate import AttentionGate, LinearGate
from helpers import weights_of
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

import exitkit
from exitkit.artifacts import artifact
from exitkit.data.sources import read
from exitkit.engine.loop import full_pass, run
from exitkit.engine.model import ExitModel
from exitkit.engine.schedule import schedule
from exitkit.engine.stream import Stream, pack
from exitkit.errors import UsageError
from exitkit.measuring.runs import Sample, gates_only, run_all, score
from exitkit.plugins import installed
from exitkit.recipe import EveryExit
from exitkit.tasks import Classification
from exitkit.testing import tiny_batch, tiny_model
from exitkit.training import partial as partial_folder
from exitkit.training.recipes.smartbert import EXITS, GATES, Gated, SmartBert, contrast, hardened
from exitkit.training.train import attach_probes
from exitkit.training.trainer import RecipeTrainer, Watch

REGISTRY = installed()
TASK = Classification(("a", "b", "c"))
QUICK = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 256}
RECIPE = {"name": "smartbert", "learning_rate": 2e-3, "head_learning_rate": 2e-3}


def prepared(recipe: SmartBert) -> ExitModel:
    """A tiny model whose gates would each skip about half of the sequences."""
    model = tiny_model(layers=4).eval()
    torch.manual_seed(0)
    attach_probes(model, "smartbert", REGISTRY, recipe.probes())
    recipe.prepare(model)
    tokens, stream = pack(tiny_batch(12))
    with torch.no_grad():
        stream = stream.carrying(model.encoder.embed(tokens))
        for index, gate in enumerate(model.probes["skip-gate"]):
            gate.out.weight.mul_(20.0)
            said = gate(stream.hidden, stream.bounds).sort().values
            gate.out.bias.sub_((said[5] + said[6]) / 2)
            after = stream.carrying(model.encoder.layer(index, stream))
            stream = recipe.between(EXITS, model, index, stream, after).onward
    return model


def passed(
    recipe: SmartBert, model: ExitModel, phase: str, rows: dict, progress: float = 0.0
) -> tuple[EveryExit, torch.Tensor]:
    """What the losses see of a batch, with labels 0, 1, 2, 0, …"""
    said = full_pass(model, rows, between=lambda *a: recipe.between(phase, model, *a, progress))
    labels = torch.arange(len(rows["input_ids"])) % 3
    seen = EveryExit(said.logits, labels, model.exits, TASK, features=said.features, model=model, notes=said.notes)
    return seen, labels


# --- gates -----------------------------------------------------------------------------------------------------------


def test_hard_gates_are_exactly_0_or_1_and_have_the_gradient_of_soft_ones() -> None:
    odds = torch.linspace(-20, 20, 401).requires_grad_()
    skip = odds.sigmoid()
    hard = hardened(skip)
    assert hard.tolist() == [float(value >= 0.5) for value in skip.tolist()]
    towards = torch.randn(401, generator=torch.Generator().manual_seed(0))
    (through,) = torch.autograd.grad((hard * towards).sum(), odds, retain_graph=True)
    (soft,) = torch.autograd.grad((skip * towards).sum(), odds)
    assert torch.equal(through, soft)


@pytest.mark.parametrize(
    ("phase", "progress", "hard"), [(GATES, 0.0, False), (GATES, 0.59, False), (GATES, 0.6, True), (EXITS, 0.0, True)]
)
def test_layer_and_input_are_mixed_softly_first_and_then_as_inference_does(
    phase: str, progress: float, hard: bool
) -> None:
    recipe = SmartBert(soft=0.6)
    model, rows = prepared(recipe), tiny_batch(6)
    tokens, stream = pack(rows)
    before = stream.carrying(model.encoder.embed(tokens))
    after = before.carrying(model.encoder.layer(0, before))
    found = recipe.between(phase, model, 0, before, after, progress)
    skip = model.probes["skip-gate"](1, before.hidden, before.bounds)
    for number in range(6):
        rows_of = slice(int(before.bounds[number]), int(before.bounds[number + 1]))
        g = float(skip[number] >= 0.5) if hard else skip[number].item()
        mixed = (1 - g) * after.hidden[rows_of] + g * before.hidden[rows_of]
        assert torch.allclose(found.onward.hidden[rows_of], mixed, atol=1e-6)


def test_a_pass_asks_every_gate_once() -> None:
    recipe = SmartBert()
    model = prepared(recipe)
    asked: list[int] = []
    model.probes["skip-gate"].register_forward_hook(lambda module, inputs, output: asked.append(inputs[0]))
    seen, _ = passed(recipe, model, GATES, tiny_batch(5))
    recipe.losses(GATES, seen)
    recipe.watched(GATES, seen)
    assert asked == [1, 2, 3, 4]


def test_behind_hard_gates_a_pass_has_the_states_that_a_run_has() -> None:
    recipe = SmartBert()
    model, rows = prepared(recipe), tiny_batch(16)
    seen, _ = passed(recipe, model, EXITS, rows)
    policy = REGISTRY.policy("skip-gate")
    last = run(model, rows, schedule("skip-gate", policy, {"threshold": "off"}, model.shape))
    assert torch.allclose(last.logits, seen.logits[-1], atol=1e-5)
    assert 0 < int(last.layers.sum()) < 4 * 16
    eager = run(model, rows, schedule("skip-gate", policy, {"threshold": 1.0}, model.shape))
    chosen = seen.logits[eager.exit - 1, torch.arange(16)]
    assert torch.allclose(eager.logits, chosen, atol=1e-5)
    assert len(set(eager.exit.tolist())) > 1, "some skip the first layer"


# --- losses of the first phase ---------------------------------------------------------------------------------------


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_contrast_by_hand() -> None:
    """Two sequences, of 1 and of 2 tokens; similarities are cosines of the angles between."""
    low, high = on_circle(0, 0, 90), on_circle(60, 0, 60)
    with_own = contrast(low, high, [1, 2], 0.5, own_counts=True)
    c30 = math.cos(math.pi / 6)
    by_hand = [
        0.0,  # nothing else in the sum
        -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0.5 / 0.5))),
        -math.log(math.exp(c30 / 0.5) / (math.exp(c30 / 0.5) + math.exp(0.0))),
    ]
    assert with_own.tolist() == pytest.approx(by_hand, abs=1e-5)
    without = contrast(low, high, [1, 2], 0.5, own_counts=False)
    assert without.tolist() == pytest.approx([0.0, (0.5 - 1) / 0.5, (0.0 - c30) / 0.5], abs=1e-5)


def test_contrast_compares_tokens_of_one_sequence_only_and_has_finite_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = [1, 1, 3, 3, 4]
    low, high = torch.randn(2, 12, 5, generator=random)
    for own_counts in (True, False):
        together = contrast(low, high, lengths, 0.7, own_counts=own_counts)
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            alone = contrast(low[part], high[part], [length], 0.7, own_counts=own_counts)
            assert torch.allclose(together[part], alone, atol=1e-6)
            start += length
        wanted = low.clone().requires_grad_()
        contrast(wanted, high, lengths, 0.7, own_counts=own_counts).sum().backward()
        assert torch.isfinite(wanted.grad).all()


def noted(skips: list[list[float]], weights: list[list[float]]) -> list[Gated]:
    _, stream = pack(tiny_batch(len(skips[0])))
    return [Gated(torch.tensor(s), torch.tensor(w), stream, stream) for s, w in zip(skips, weights, strict=True)]


def test_penalties_by_hand() -> None:
    notes = noted([[0.2, 0.4], [0.6, 1.0]], [[0.2, 0.4], [0.6, 1.0]])
    assert SmartBert(skip_rate=0.3).pressure(notes).item() == pytest.approx((0.5 - 0.3) ** 2), "of hard gates"
    assert SmartBert(penalty="published").pressure(notes).item() == pytest.approx(1 / (0.3 + 0.8)), "of soft gates"


def test_the_first_phases_loss_by_hand() -> None:
    recipe = SmartBert(layer_contrast=0.25, gate_weight=3.0, skip_rate=0.1, layer_temperature=0.4)
    model, rows = prepared(recipe), tiny_batch(7)
    seen, labels = passed(recipe, model, GATES, rows, progress=0.2)
    states: list[Stream] = [note.before for note in seen.notes]
    terms = []
    for index in range(3):
        pair = []
        for number in (index, index + 1):
            points = model.scaffold[GATES][number](states[number].hidden)
            pair.append(points / points.norm(dim=-1, keepdim=True))
        for start, stop in zip(states[0].bounds[:-1], states[0].bounds[1:], strict=True):
            scores = pair[0][start:stop] @ pair[1][start:stop].T / 0.4
            terms.append(-scores.log_softmax(dim=-1).diagonal().sum().item())
    tokens = int(rows["attention_mask"].sum())
    by_hand = sum(terms) / tokens
    rate = torch.stack([(note.skip >= 0.5).float() for note in seen.notes]).mean()  # also while gates are soft
    found = recipe.losses(GATES, seen)
    assert found["contrast"].item() == pytest.approx(0.25 * by_hand, rel=1e-4)
    assert found["penalty"].item() == pytest.approx(0.75 * 3.0 * (rate.item() - 0.1) ** 2, rel=1e-4)
    assert found["last"].item() == pytest.approx(0.75 * cross_entropy(seen.logits[-1], labels).item(), rel=1e-5)
    assert set(found) == {"contrast", "penalty", "last"}


def test_a_rate_above_the_target_is_pushed_down_and_the_published_penalty_only_pushes_up() -> None:
    for recipe, sign in (
        (SmartBert(skip_rate=0.05), 1),
        (SmartBert(skip_rate=0.95), -1),
        (SmartBert(penalty="published", gate_weight=1.0), -1),
    ):
        model = prepared(recipe)
        for progress in (0.0, 1.0):  # softly and through hard gates
            seen, _ = passed(recipe, model, GATES, tiny_batch(12), progress)
            notes = [replace(note, skip=note.skip.detach().requires_grad_()) for note in seen.notes]  # each by itself
            gradients = torch.autograd.grad(recipe.pressure(notes), [note.skip for note in notes])
            assert all((gradient * sign > 0).all() for gradient in gradients)


# --- losses of the second phase --------------------------------------------------------------------------------------


def test_exits_learn_from_the_sequences_that_would_ask_them() -> None:
    recipe = SmartBert(exit_contrast=0.0)
    model, rows = prepared(recipe), tiny_batch(12)
    seen, labels = passed(recipe, model, EXITS, rows)
    order = seen.notes[0].before.row.argsort()
    found = recipe.losses(EXITS, seen)
    assert set(found) == {"exit_1", "exit_2", "exit_3"}
    for number in (1, 2, 3):
        ran = seen.notes[number - 1].skip[order] < 0.5
        assert 0 < int(ran.sum()) < 12
        by_hand = cross_entropy(seen.logits[number - 1][ran], labels[ran])
        assert found[f"exit_{number}"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_an_exit_above_several_layers_is_asked_by_whoever_ran_one_of_them() -> None:
    notes = noted([[0.5] * 3] * 4, [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    seen = EveryExit(torch.zeros(2, 3, 3), torch.zeros(3).long(), (2, 4), TASK, notes=notes)
    (asked,) = SmartBert()._asked(seen)
    assert asked.tolist() == [False, True, True]


def test_an_exit_that_nobody_asks_has_no_loss_and_no_nan() -> None:
    seen = EveryExit(torch.randn(1, 3, 3), torch.zeros(3).long(), (1,), TASK)
    assert seen.loss(seen.logits[0], torch.zeros(3).bool()).item() == 0.0


def test_the_published_way_trains_exits_on_states_that_inference_never_shows_them() -> None:
    met, published = SmartBert(exit_contrast=0.0), SmartBert(exit_contrast=0.0, exit_states="published")
    model, rows = prepared(met), tiny_batch(12)
    ours, labels = passed(met, model, EXITS, rows)
    theirs, _ = passed(published, model, EXITS, rows)
    order = ours.notes[0].before.row.argsort()
    skips = ours.notes[0].skip[order] >= 0.5
    assert torch.equal(ours.logits[0][~skips], theirs.logits[0][~skips])
    assert (ours.logits[0][skips] - theirs.logits[0][skips]).abs().max() > 0.01
    assert torch.equal(ours.logits[-1], theirs.logits[-1]), "what goes on to the next layer is the same"
    loss = published.losses(EXITS, theirs)["exit_1"]
    assert loss.item() == pytest.approx(cross_entropy(theirs.logits[0], labels).item(), rel=1e-5), "of everybody"


def test_the_second_phases_contrast_is_between_exits_that_a_sequence_asks_both() -> None:
    recipe = SmartBert(exit_contrast=0.5, exit_temperature=0.6)
    model, rows = prepared(recipe), tiny_batch(12)
    seen, _ = passed(recipe, model, EXITS, rows)
    pairs = []
    for exit in (0, 1):
        terms, tokens = 0.0, 0
        bounds = seen.notes[0].before.bounds.tolist()
        for number in range(12):
            if any(seen.notes[layer].weight[number] == 1 for layer in (exit, exit + 1)):
                continue
            part = slice(bounds[number], bounds[number + 1])
            points = []
            for layer in (exit, exit + 1):
                made = torch.tanh(model.exit_heads[layer].dense(seen.notes[layer].read.hidden[part]))
                point = model.scaffold[EXITS][layer](made)
                points.append(point / point.norm(dim=-1, keepdim=True))
            scores = points[0] @ points[1].T / 0.6
            others = scores.masked_fill(torch.eye(len(scores)).bool(), -torch.inf)
            terms += (others.logsumexp(dim=-1) - scores.diagonal()).sum().item()
            tokens += len(scores)
        assert tokens > 0
        pairs.append(terms / tokens)
    found = recipe.losses(EXITS, seen)
    assert found["contrast"].item() == pytest.approx(0.5 * sum(pairs) / 2, rel=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean", "mix"])
def test_contrast_between_exits_works_with_every_pooling(pooling: str) -> None:
    recipe = SmartBert()
    plain = tiny_model(layers=3)
    model = ExitModel(plain.stock, type(plain.encoder), (1, 2, 3), pooling)  # type: ignore[arg-type]
    attach_probes(model, "smartbert", REGISTRY, recipe.probes())
    recipe.prepare(model)
    seen, _ = passed(recipe, model.eval(), EXITS, tiny_batch(6))
    assert torch.isfinite(recipe.losses(EXITS, seen)["contrast"])


# --- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skips", "words"), [((0.4, 0.45), "skip nothing"), ((0.55, 0.6), "skip every layer"), ((0.4, 0.6), None)]
)
def test_gates_that_skip_everything_or_nothing_are_reported_once(
    skips: tuple[float, float], words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    soft = noted([list(skips)], [list(skips)])  # what inference would do, while gates are soft
    seen = EveryExit(torch.zeros(1, 2, 3), None, (1,), TASK, notes=soft)
    watch = Watch(SmartBert(), GATES)
    with caplog.at_level(logging.WARNING, "exitkit"):
        for _ in range(2):
            watch.see(seen)
            watch.see(seen)
            watch.on_log(None, None, None)
    told = [record.message for record in caplog.records]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]


def test_averages_are_over_the_batches_since_the_last_report() -> None:
    given: list[dict] = []

    class Listening(SmartBert):
        def remarks(self, phase, averages):
            given.append(dict(averages))
            return ()

    watch = Watch(Listening(), GATES)
    for skips in ([0.45, 0.55], [0.6]):  # what inference would do, also while gates are soft
        for skip in skips:
            notes = noted([[skip, skip]], [[skip, skip]])
            watch.see(EveryExit(torch.zeros(1, 2, 3), None, (1,), TASK, notes=notes))
        watch.on_log(None, None, None)
    assert given == [{"skipped": 0.5}, {"skipped": 1.0}]


def test_gates_that_are_pushed_shut_are_reported_while_they_train(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shut = {**RECIPE, "skip_rate": 0.0, "gate_weight": 50.0, "gate_learning_rate": 0.1, "soft": 0.3}
    with caplog.at_level(logging.WARNING, "exitkit"):
        report = exitkit.train(
            model=str(encoder), output=tmp_path / "m", recipe=shut, training={"logging_steps": 1}, **QUICK
        )
    assert caplog.text.count("the gates skip nothing") == 2, "once in each phase"
    assert "the gates of these layers skip no row: 1, 2, 3, 4" in caplog.text
    assert report["gated_score"] == report["ungated_score"] == report["exits"][-1]["score"]
    assert report["skip_rate"] == 0.0


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("penalty", "rates", r"recipe\.penalty 'rates'.*'rate'"),
        ("exit_states", "all", r"recipe\.exit_states 'all'"),
        ("skip_rate", 30.0, r"recipe\.skip_rate: 30\.0 is not a share"),
        ("soft", -0.1, r"recipe\.soft: -0\.1"),
        ("exit_temperature", 0.0, r"recipe\.exit_temperature: 0\.0 is not a number above 0"),
    ],
)
def test_options_are_checked(option: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SmartBert(**{option: value})


def test_a_kind_of_gate_that_is_none_is_refused_before_anything_is_written(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe 'smartbert': there is no gate of kind 'cubic'"):
        exitkit.train(model=str(encoder), output=tmp_path / "m", recipe={**RECIPE, "gate": "cubic"}, **QUICK)
    assert not (tmp_path / "m.partial").exists()


def test_the_contrast_can_be_left_out() -> None:
    recipe = SmartBert(layer_contrast=0.0, exit_contrast=0.0)
    model = prepared(recipe)
    assert not model.scaffold
    for phase in (GATES, EXITS):
        seen, _ = passed(recipe, model, phase, tiny_batch(4))
        assert "contrast" not in recipe.losses(phase, seen)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gated", "drop"), [([0, 1, 1, 1], 0.5), ([0, 0, 1, 0], 0.25), (None, 0.25)])
def test_losses_count_from_the_larger_of_full_and_gated_score(gated: list[int] | None, drop: float) -> None:
    truth, full, answers = np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    scored = score(TASK, "accuracy", truth, answers, full, None if gated is None else np.array(gated))
    assert scored.full_score == 0.75
    assert scored.drop == drop
    assert scored.as_dict()["drop"] == drop
    assert ("gated_score" in scored.as_dict()) == (gated is not None)
    low, high = scored.drop_ci
    assert low <= drop <= high


# --- the whole way ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches this."""


@pytest.fixture(scope="module")
def smart(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """A trained model, its report, and its weights after each phase."""
    folder = tmp_path_factory.mktemp("smart") / "model"
    kept: dict[str, dict[str, torch.Tensor]] = {}
    right = partial_folder.finish_phase

    def watched(model, state, spent):
        kept[state.name] = {name: value.clone() for name, value in model.state_dict().items()}
        right(model, state, spent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.finish_phase", watched)
        training = {"weight_decay": 0.3, "save_steps": 2}
        report = exitkit.train(model=str(encoder), output=folder, recipe=RECIPE, training=training, **QUICK)
    return folder, report, kept


def test_the_second_phase_leaves_the_first_bit_identical(smart: tuple[Path, dict, dict]) -> None:
    _, _, kept = smart
    assert list(kept) == [GATES, EXITS]
    changed = {name for name in kept[EXITS] if not torch.equal(kept[EXITS][name], kept[GATES][name])}
    assert changed
    assert all(name.startswith(("heads.", f"scaffold.{EXITS}.")) for name in changed)


def test_what_only_training_needs_is_not_in_the_artifact(smart: tuple[Path, dict, dict]) -> None:
    folder, _, kept = smart
    assert any(name.startswith("scaffold.") for name in kept[EXITS])
    names = set(load_file(folder / "exits.safetensors"))
    assert all(name.startswith(("heads.", "probe/skip-gate/")) for name in names)
    AutoModelForSequenceClassification.from_pretrained(folder)


def test_gates_are_linear_and_come_back_trained(smart: tuple[Path, dict, dict]) -> None:
    folder, _, kept = smart
    model = artifact.read(folder, REGISTRY)
    assert model.card.probes == {"skip-gate": {"kind": "linear"}}
    gates = model.model.probes["skip-gate"]
    assert all(isinstance(gate, LinearGate) for gate in gates)
    assert torch.equal(gates[2].out.weight, kept[EXITS]["probes.skip-gate.2.out.weight"])


def test_metrics_say_what_the_gates_do(smart: tuple[Path, dict, dict]) -> None:
    folder, report, _ = smart
    assert json.loads((folder / "metrics.json").read_text()) == report
    assert report["ungated_score"] == report["exits"][-1]["score"]
    assert 0 <= report["gated_score"] <= 1
    assert len(report["skipped"]) == 4
    model = artifact.read(folder, REGISTRY)
    rows = read("demo:reviews", "validation", task=model.task)
    gates = run_all(model, Sample.of(rows, model).batches(64), gates_only("skip-gate", model, REGISTRY), "gates")
    ran = gates.layers.float()
    assert report["rows"] == len(ran)
    assert report["skip_rate"] == pytest.approx(float((4 - ran).mean()) / 4), "of rows"
    assert report["skipped"] == pytest.approx([1 - q / gates.work.tokens for q in gates.work.queries]), "of tokens"


@pytest.mark.parametrize("saves", [3])  # on the way from soft gates to hard ones
def test_a_killed_run_resumes_to_the_same_bits(
    saves: int, smart: tuple[Path, dict, dict], encoder: Path, tmp_path: Path
) -> None:
    calls = 0
    right = RecipeTrainer._save

    def dies(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == saves:
            raise Killed
        right(self, *args, **kwargs)

    training = {"weight_decay": 0.3, "save_steps": 2}
    given = {"model": str(encoder), "output": tmp_path / "m", "recipe": RECIPE, "training": training, **QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeTrainer, "_save", dies)
        with pytest.raises(Killed):
            exitkit.train(**given)
    exitkit.train(resume=True, **given)
    expected, found = weights_of(smart[0]), weights_of(tmp_path / "m")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_train_calibrate_benchmark_predict(smart: tuple[Path, dict, dict], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smart[0], folder)
    found = exitkit.calibrate(
        folder, target_speedup=1.3, currency="layers", policy="skip-gate", data="demo:reviews", split="validation[:64]"
    )
    assert found["feasible"]
    assert found["measured_speedup"]["layers"] == pytest.approx(found["predicted_speedup"])
    assert found["drop"] == max(found["full_score"], found["gated_score"]) - found["score"]
    assert not list(folder.glob("search-*")), "runs are kept until settings are stored"
    frontier = artifact.read_policies(folder)["policies"]["skip-gate"]["frontier"]
    speeds = [point["speedup"]["layers"] for point in frontier]
    assert speeds == sorted(speeds)
    assert len(speeds) > 5
    report = exitkit.benchmark(
        folder, rounds=1, policy="skip-gate", speedups="1x,1.3x", data="demo:reviews", split="test[:40]"
    )
    one, faster = report["runs"]
    assert one["speedup"]["layers"] == 1.0
    assert faster["settings"] == found["settings"]
    assert faster["drop"] == max(faster["full_score"], faster["gated_score"]) - faster["score"]
    answers = exitkit.load(folder).predict(["a good film", "the film was dull and slow"], policy="skip-gate")
    assert all(answer.keys() == {"label", "score", "exit", "layers"} for answer in answers)
    assert all(0 <= answer["layers"] <= answer["exit"] for answer in answers)


def test_other_exits_one_exit_and_published_gates_train_too(encoder: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "gate": "attention"}
    for exits, count in ("2,4", 2), ("4", 1):
        folder = tmp_path / exits
        report = exitkit.train(
            model=str(encoder), output=folder, exits=exits, recipe=recipe, **{**QUICK, "max_train_samples": 64}
        )
        assert len(report["exits"]) == count
        gates = artifact.read(folder, REGISTRY).model.probes["skip-gate"]
        assert all(isinstance(gate, AttentionGate) for gate in gates), "the artifact remembers their kind"


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_a_rate_is_held(rate: float, encoder: Path, tmp_path: Path) -> None:
    gates = {"skip_rate": rate, "gate_learning_rate": 0.02, "gate_weight": 20.0, EXITS: {"epochs": 0.1}}
    given = {**QUICK, "max_train_samples": 800}
    report = exitkit.train(model=str(encoder), output=tmp_path / "m", recipe={**RECIPE, **gates}, **given)
    assert report["skip_rate"] == pytest.approx(rate, abs=0.15)


def test_without_its_policy_the_recipe_says_what_is_missing() -> None:
    with pytest.raises(
        UsageError, match="recipe 'smartbert' trains the gates of policy 'skip-gate', which is not there"
    ):
        SmartBert().prepare(tiny_model())
