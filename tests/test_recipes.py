"""Published ways to train exits: formulas by hand, who is frozen, whose turn it is; every recipe on odd shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, SMALL
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import exitkit
from exitkit.data.batches import encode
from exitkit.data.sources import read
from exitkit.engine.cost import ReplayCost, prices, speedups
from exitkit.engine.loop import full_pass, run
from exitkit.engine.replay import record, replay
from exitkit.engine.schedule import schedule
from exitkit.errors import UsageError
from exitkit.plugins import installed
from exitkit.recipe import Conflict, EveryExit, Recipe
from exitkit.tasks import Classification, MultiLabel, Regression
from exitkit.testing import tiny_batch, tiny_model
from exitkit.training.losses import distillation
from exitkit.training.recipes import berxit, elastic, fastbert, rome
from exitkit.training.recipes.joint import Joint
from exitkit.training.start import starting_model
from exitkit.training.train import attach_probes
from exitkit.training.trainer import RecipeTrainer, arguments, run_phase

REGISTRY = installed()
TASK = Classification(("a", "b", "c"))
ALL = ["joint", "two-stage", "deebert", "pabee", "elastic", "rome", "berxit", "fastbert", "smartbert"]


def seen(logits: torch.Tensor, labels: list[int], **more: object) -> EveryExit:
    return EveryExit(logits, torch.tensor(labels), layers=tuple(range(1, len(logits) + 1)), task=TASK, **more)


def total(recipe: Recipe, phase: str, everything: EveryExit) -> float:
    return float(recipe.combine(recipe.losses(phase, everything)))


LOGITS = torch.tensor([[[1.0, 0.0, -1.0]], [[0.5, 2.0, 0.0]], [[0.0, 3.0, 1.0]]])


# --- losses


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> float:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def test_distillation_is_the_softened_divergence_times_the_squared_temperature() -> None:
    teacher, student = LOGITS[2], LOGITS[0]
    assert distillation(teacher, student, TASK, 3.0).item() == pytest.approx(9 * kl(teacher, student, 3.0), rel=1e-5)
    assert distillation(torch.tensor([[2.0]]), torch.tensor([[0.5]]), Regression(), 3.0).item() == pytest.approx(2.25)
    p, q = torch.tensor(1.0).sigmoid(), torch.tensor(-0.5).sigmoid()
    coin = float(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    found = distillation(torch.tensor([[1.0, 1.0]]), torch.tensor([[-0.5, -0.5]]), MultiLabel(("a", "b")), 1.0)
    assert found.item() == pytest.approx(coin, rel=1e-5)


def test_two_stages_train_the_last_exit_and_then_the_others_alike() -> None:
    each = [float(cross_entropy(logits, torch.tensor([1]))) for logits in LOGITS]
    recipe = REGISTRY.recipe("deebert")()
    assert total(recipe, "fine-tune", seen(LOGITS, [1])) == pytest.approx(each[2])
    assert total(recipe, "exits", seen(LOGITS, [1])) == pytest.approx(each[0] + each[1])
    assert recipe.learning_rate == recipe.head_learning_rate == 2e-5


def test_elastic_weighs_all_exits_alike() -> None:
    each = [float(cross_entropy(logits, torch.tensor([1]))) for logits in LOGITS]
    assert total(elastic.Elastic(), "joint", seen(LOGITS, [1])) == pytest.approx(sum(each))


def test_romes_loss_by_hand() -> None:
    each = [float(cross_entropy(logits, torch.tensor([1]))) for logits in LOGITS]
    by_hand = each[2] + sum(0.1 * each[e] + 0.9 * 9 * kl(LOGITS[2], LOGITS[e], 3.0) / 3 for e in (0, 1))
    assert total(rome.Rome(), "rome", seen(LOGITS, [1])) == pytest.approx(by_hand, rel=1e-5)


def test_in_multi_label_rome_divides_by_the_two_sides_of_a_coin() -> None:
    """One label of two, one row, T = 1: an element-wise mean over labels and the two sides of each."""
    labels, kind = torch.tensor([[1.0, 0.0]]), MultiLabel(("a", "b"))
    given = EveryExit(torch.tensor([[[0.0, 0.0]], [[2.0, -2.0]]]), labels, (1, 2), kind)
    p = 1 / (1 + math.exp(-2))
    coin = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)  # the same for both labels
    taught = rome.Rome(temperature=1.0).losses("rome", given)["taught_1"]
    assert taught.item() == pytest.approx(0.9 * coin / 2, rel=1e-5)


def test_the_last_exit_learns_nothing_from_teaching() -> None:
    logits = LOGITS.clone().requires_grad_()
    losses = rome.Rome().losses("rome", seen(logits, [1]))
    taught = sum(loss for name, loss in losses.items() if name.startswith("taught"))
    (gradient,) = torch.autograd.grad(taught, logits)
    assert (gradient[2] == 0).all()
    assert (gradient[:2] != 0).any()
    logits = LOGITS.clone().requires_grad_()
    recipe = fastbert.FastBert()
    (gradient,) = torch.autograd.grad(
        recipe.combine(recipe.losses("exits", replace(seen(logits, [1]), labels=None))), logits
    )
    assert (gradient[2] == 0).all()


def test_fastbert_learns_exits_without_labels() -> None:
    recipe = fastbert.FastBert()
    by_hand = kl(LOGITS[2], LOGITS[0]) + kl(LOGITS[2], LOGITS[1])
    assert total(recipe, "exits", replace(seen(LOGITS, [1]), labels=None)) == pytest.approx(by_hand, rel=1e-5)
    tune, exits = recipe.phases(tiny_model(), 1)
    assert (tune.label_free, exits.label_free) == (False, True)
    assert (tune.fine_tunes, exits.fine_tunes) == (True, False)


def test_berxit_takes_turns_and_its_probe_learns_the_error() -> None:
    model = tiny_model()
    attach_probes(model, "berxit", REGISTRY)
    passed = full_pass(model, tiny_batch(5))
    labels = torch.tensor([0, 1, 2, 0, 1])
    recipe = berxit.Berxit()
    given = EveryExit(passed.logits, labels, model.exits, TASK, features=passed.features, model=model)
    even, odd = (recipe.losses("alternating", replace(given, step=step)) for step in (4, 5))
    assert set(even) == {"last", "probe"}
    assert set(odd) == {f"exit_{e}" for e in range(1, 6)} | {"probe"}
    plain = berxit.Berxit(learn_to_exit=False)
    assert set(plain.losses("alternating", replace(given, step=5))) == {f"exit_{e}" for e in range(1, 6)} | {"last"}
    wrong = (passed.logits[:-1].argmax(-1) != labels).float()
    assert torch.equal(berxit.errors(given), wrong)
    said = torch.stack([model.probes["learned"](one)[:, 0] for one in passed.features])
    assert even["probe"].item() == pytest.approx(((said - wrong) ** 2).mean().item(), rel=1e-5)
    values = EveryExit(torch.tensor([[[1.0]], [[0.5]]]), torch.tensor([0.5]), (1, 2), Regression())
    assert berxit.errors(values).item() == pytest.approx(math.tanh(0.5))


# --- gradients


def test_equilibrium_gives_a_layer_the_average_of_the_exits_above_it() -> None:
    recipe, batch = elastic.Elastic(), tiny_batch(4)
    labels = torch.tensor([0, 1, 2, 0])
    model = tiny_model(layers=4)
    states: dict[int, torch.Tensor] = {}

    def hooks(scaled: bool):
        def between(index, before, after):
            after.hidden.retain_grad()
            states[index] = after.hidden
            return recipe.between("joint", model, index, before, after) if scaled else after

        onward = (lambda exit, stream, logits: recipe.onward("joint", model, exit, stream, logits)) if scaled else None
        return between, onward

    alone: list[list[torch.Tensor]] = []
    for exit in range(4):
        between, _ = hooks(False)
        cross_entropy(full_pass(model, batch, None, between).logits[exit], labels).backward()
        alone.append([states[i].grad if states[i].grad is not None else torch.zeros_like(states[i]) for i in range(4)])
        model.zero_grad()
    between, onward = hooks(True)
    logits = full_pass(model, batch, None, between, onward).logits
    sum(cross_entropy(one, labels) for one in logits).backward()
    for layer in range(4):
        above = [alone[exit][layer] for exit in range(layer, 4)]
        assert torch.allclose(states[layer].grad, torch.stack(above).mean(0), atol=1e-6), f"layer {layer + 1}"
    scaled = model.exit_heads[0].out.weight.grad.clone()
    model.zero_grad()
    cross_entropy(full_pass(model, batch).logits[0], labels).backward()
    assert torch.allclose(scaled, model.exit_heads[0].out.weight.grad, atol=1e-6), "heads keep their whole gradient"


def test_projection_takes_out_what_opposes_the_anchor_and_nothing_else() -> None:
    anchor = torch.tensor([1.0, 0.0])
    against, along = torch.tensor([-2.0, 3.0]), torch.tensor([2.0, 3.0])
    assert torch.equal(rome.without_opposition(anchor, against), torch.tensor([1.0, 3.0]))
    assert torch.equal(rome.without_opposition(anchor, along), anchor + along)
    assert torch.equal(rome.without_opposition(torch.zeros(2), against), against)
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(2, 30, generator=random)
        assert torch.dot(a, rome.without_opposition(a, b) - a) >= -1e-5


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_projection_covers_the_matrices_of_all_layers_but_the_last(layers: int) -> None:
    model = tiny_model(layers=layers)
    named = {id(parameter): name for name, parameter in model.stock.named_parameters()}
    found = {named[id(parameter)] for parameter in rome.shared_matrices(model)}
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in found)
    assert {name.split(".")[3] for name in found} == {str(layer) for layer in range(layers - 1)}


def _steps(encoder: Path, folder: Path, size: int, accumulate: int, anchor: str, spy: list) -> dict[str, torch.Tensor]:
    rows = read("demo:reviews", "train[:32]")
    torch.manual_seed(0)
    start = starting_model(str(encoder), rows.task, None, "mean", installed())
    for module in start.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    class Watched(rome.Rome):
        def conflict(self, phase, model):
            found = super().conflict(phase, model)

            def join(first, second):
                joined = found.join(first, second)
                spy.append((first, second, joined, before_it(model), found.parameters, model))
                return joined

            return Conflict(found.anchor, found.parameters, join)

    def before_it(model):
        """All gradients as backward left them."""
        return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}

    class Stepped(TrainerCallback):
        """Compares what the optimiser gets with what it should."""

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            _, _, joined, left, parameters, model = spy[-1]
            named = {id(p): name for name, p in model.named_parameters()}
            projected = {named[id(p)] for p in parameters}
            given = torch.cat([p.grad.flatten() for p in parameters])
            assert torch.allclose(given, joined, atol=1e-7), "the joined gradient, each part where it belongs"
            for name, parameter in model.named_parameters():
                if name not in projected and left[name] is not None:
                    assert torch.equal(parameter.grad, left[name]), f"{name} is left alone"

    recipe = Watched(learning_rate=1e-3, head_learning_rate=1e-3, anchor=anchor)
    (phase,) = recipe.phases(start.model, 1)
    extra = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulate,
        "save_strategy": "no",
        "max_grad_norm": 1e9,
    }
    args = arguments(folder, phase, seed=0, bf16=False, device=torch.device("cpu"), extra=extra)
    encoded = encode(rows, start.tokenizer, 64)
    right = RecipeTrainer.__init__

    def with_callback(self, *args, **kwargs):
        right(self, *args, **kwargs)
        self.add_callback(Stepped())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeTrainer, "__init__", with_callback)
        run_phase(start.model, recipe, phase, args, encoded, start.tokenizer, lambda *a, **k: None, None, rows.task)
    return {name: value.clone() for name, value in start.model.state_dict().items()}


@pytest.mark.parametrize("anchor", ["last", "exits"])
def test_projection_is_of_the_whole_step_under_accumulation(anchor: str, encoder: Path, tmp_path: Path) -> None:
    whole, parts = [], []
    _steps(encoder, tmp_path / "a", 16, 1, anchor, whole)
    _steps(encoder, tmp_path / "b", 4, 4, anchor, parts)
    assert len(whole) == len(parts) == 2
    for once, often in zip(whole[:1], parts[:1], strict=True):  # before the weights drift apart
        for one, other in zip(once[:3], often[:3], strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    for first, second, joined, *_ in [*whole, *parts]:
        assert torch.dot(first, joined - first) >= -1e-6
        if torch.dot(first, second) >= 0:
            assert torch.allclose(joined, first + second, atol=1e-7)


def test_an_anchor_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"recipe\.anchor.*'lst'.*'last'"):
        rome.Rome(anchor="lst")


def test_berxit_takes_turns_by_optimiser_steps_under_accumulation(encoder: Path, tmp_path: Path) -> None:
    turns: list[tuple[int, bool]] = []
    right = berxit.Berxit.losses

    def watched(self, phase, seen):
        found = right(self, phase, seen)
        turns.append((seen.step, "last" in found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(berxit.Berxit, "losses", watched)
        extra = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "save_strategy": "no"}
        given = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 64, "training": extra}
        exitkit.train(model=str(encoder), output=tmp_path / "m", recipe="berxit", **given)
    assert turns == [(step, step % 2 == 0) for step in range(4) for _ in range(4)]


@pytest.mark.parametrize("recipe", ["two-stage", "deebert", "fastbert", "berxit"])
def test_recipes_that_train_exits_apart_need_some(recipe: str, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"exit before the last.*--exits"):
        exitkit.train(model=str(encoder), data="demo:reviews", output=tmp_path / "m", recipe=recipe, exits=[4])
    assert not list(tmp_path.iterdir())


# --- the whole way


def test_pabees_exits_share_one_dense_layer_also_after_reading(encoder: Path, tmp_path: Path) -> None:
    given = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 128, "training": {"save_steps": 2}}
    exitkit.train(model=str(encoder), output=tmp_path / "model", recipe="pabee", **given)
    weights = load_file(tmp_path / "model/exits.safetensors")
    dense = [weights[f"heads.{number}.dense.weight"] for number in range(3)]
    assert torch.equal(dense[0], dense[1])
    assert torch.equal(dense[0], dense[2])
    out = [weights[f"heads.{number}.out.weight"] for number in range(3)]
    assert not torch.equal(out[0], out[1])


def start_of(family: str, encoder: Path, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    given = {**SMALL, **FAMILIES[family], "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**given)).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["albert with two groups of two", "modernbert"])
@pytest.mark.parametrize("recipe", ALL)
def test_every_recipe_trains_shared_layers_and_pre_norm(
    recipe: str, family: str, encoder: Path, tmp_path: Path
) -> None:
    start = start_of(family, encoder, tmp_path / "start")
    given = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 64, "max_length": 32}
    report = exitkit.train(model=str(start), output=tmp_path / "model", recipe=recipe, **given)
    assert len(report["exits"]) == 4
    assert exitkit.load(tmp_path / "model").predict(["the film was good"])[0]["exit"] == 4


@pytest.mark.parametrize("family", ["albert with two groups of two", "electra with narrow embeddings"])
def test_smartbert_learns_in_half_precision_where_embeddings_are_projected(
    family: str, encoder: Path, tmp_path: Path
) -> None:
    start = start_of(family, encoder, tmp_path / "start")
    given = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 32, "max_length": 16, "precision": "bf16"}
    assert exitkit.train(model=str(start), output=tmp_path / "model", recipe="smartbert", **given)["exits"]


def test_frozen_parts_of_fastbert_stay_bit_identical_and_unlabelled_texts_join(encoder: Path, tmp_path: Path) -> None:
    given = {"data": "demo:reviews", "epochs": 1, "max_train_samples": 128}
    texts = tmp_path / "more.csv"
    texts.write_text("text\n" + "".join(f"the film was good {n}\n" for n in range(200)))
    rows: list[int] = []
    right = run_phase

    def watched(model, recipe, phase, args, encoded, *rest):
        rows.append(len(encoded))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = right(model, recipe, phase, args, encoded, *rest)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        if phase.name == "exits":
            assert "labels" not in encoded.column_names
            assert changed
            assert all(name.startswith("heads.") for name in changed)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.run_phase", watched)
        exitkit.train(model=str(encoder), output=tmp_path / "m", recipe="fastbert", unlabelled=str(texts), **given)
    assert rows == [128, 328]
    kept_back = read("demo:reviews", "validation[:30]")
    texts.write_text("\n".join(["text", *(text.replace(",", "") for text in kept_back.data["text"][:]), "new"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.training.phases.run_phase", watched)
        exitkit.train(model=str(encoder), output=tmp_path / "k", recipe="fastbert", unlabelled=str(texts), **given)
    same = sum("," not in text for text in kept_back.data["text"][:])
    assert same > 0
    assert rows[-1] == 128 + 31 - same, "rows that choose settings are not learned from"
    with pytest.raises(UsageError, match="no phase of recipe 'joint' can learn without labels"):
        exitkit.train(model=str(encoder), output=tmp_path / "n", unlabelled=str(texts), **given)


def test_the_learned_policy_needs_its_probe_and_names_the_recipe(encoder: Path, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'learned' needs a probe .* --recipe berxit"):
        exitkit.calibrate(artifact, target_speedup=1.5, currency="layers", policy="learned")
    with pytest.raises(UsageError, match="--recipe berxit"):
        exitkit.load(artifact).predict(["a film"], policy="learned")
    folder = tmp_path / "other"
    recipe = {"name": "berxit", "learning_rate": 1e-3, "head_learning_rate": 1e-3}
    exitkit.train(
        model=str(encoder), data="demo:reviews", output=folder, recipe=recipe, epochs=1, max_train_samples=1000
    )
    found = exitkit.calibrate(folder, target_speedup=1.3, currency="layers", policy="learned")
    assert found["feasible"]
    assert found["predicted_speedup"] == pytest.approx(found["measured_speedup"]["layers"], rel=1e-3)
    report = exitkit.benchmark(folder, rounds=1, max_rows=60, policy="learned")
    assert len(report["runs"]) == 1
    assert json.loads((folder / "metrics.json").read_text())["recipe"] == "berxit"


def test_a_replayed_probe_decides_as_a_live_one() -> None:
    model, batch = tiny_model(), tiny_batch()
    attach_probes(model, "berxit", REGISTRY)
    model.eval()
    recorded = record(model, [batch], ["learned"])
    for threshold in (0.3, 0.5, 0.7):
        plan = schedule("learned", REGISTRY.policy("learned"), {"threshold": threshold}, model.shape)
        live, guessed = run(model, batch, plan), replay(recorded, plan)
        assert torch.equal(live.exit, guessed.exit)
        price = prices(model)
        assert price.probes == {"learned": 16}
        assert live.work.probes == 16 * sum(live.work.heads[:-1]), "the probe is paid wherever a head is asked"
        predicted = ReplayCost(recorded, price, plan).speedups(guessed)
        assert predicted == pytest.approx(speedups(live, price))


def test_joint_and_the_others_train_every_parameter_that_they_name_once() -> None:
    for name in ALL:
        model = tiny_model()
        attach_probes(model, name, REGISTRY)
        recipe = REGISTRY.recipe(name)()
        recipe.prepare(model)
        for phase in recipe.phases(model, 1):
            found = [id(parameter) for group in phase.groups for parameter in group.parameters]
            assert len(found) == len(set(found)), name
        if issubclass(REGISTRY.recipe(name), Joint):
            assert set(found) == {id(parameter) for parameter in model.parameters()}
