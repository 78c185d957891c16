"""What a student learns from: every loss against a value by hand, and no padding in any of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from families import batch, stock, with_exits
from torch.nn.functional import cross_entropy

from exitkit.distillation.layer_map import layer_map
from exitkit.distillation.losses import answer_losses, hidden_loss, relations_loss, scores_loss
from exitkit.distillation.methods.layers import Layers
from exitkit.distillation.methods.logits import Logits
from exitkit.distillation.methods.minilm import MiniLM, relation_heads
from exitkit.distiller import Lesson, Reads
from exitkit.engine.attention import scores
from exitkit.engine.internals import Internals
from exitkit.engine.loop import full_pass
from exitkit.engine.stream import pack
from exitkit.errors import UsageError
from exitkit.policy import Shape
from exitkit.recipe import EveryExit
from exitkit.tasks import Classification, MultiLabel, Regression
from exitkit.testing import tiny_model

TASK = Classification(("a", "b", "c"))
STUDENT = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]], [[0.5, 2.0, 0.0], [1.0, 1.0, 3.0]]])  # [E, U, C]
TEACHER = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]])


def seen(labels: list[int] | None, labelled: list[bool] | None = None, **more: object) -> EveryExit:
    return EveryExit(
        STUDENT,
        None if labels is None else torch.tensor(labels),
        layers=(1, 3),
        task=TASK,
        labelled=None if labelled is None else torch.tensor(labelled),
        lesson=Lesson(TEACHER),
        **more,
    )


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> float:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean()) * temperature**2


def test_answers_are_soft_targets_and_labels_weighted_by_depth() -> None:
    found = answer_losses(seen([1, 0]), "soft", 2.0, 0.3)
    hard = [float(cross_entropy(logits, torch.tensor([1, 0]))) for logits in STUDENT]
    soft = [kl(TEACHER, logits, 2.0) for logits in STUDENT]
    by_hand = {
        "taught_1": 1 / 4 * 0.7 * soft[0], "taught_2": 3 / 4 * 0.7 * soft[1],
        "exit_1": 1 / 4 * 0.3 * hard[0], "exit_2": 3 / 4 * 0.3 * hard[1],
    }  # fmt: skip
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(by_hand, rel=1e-5)


def test_without_labels_the_teacher_alone_teaches() -> None:
    found = answer_losses(seen(None), "soft", 2.0, 0.3)
    assert set(found) == {"taught_1", "taught_2"}
    assert found["taught_2"].item() == pytest.approx(3 / 4 * kl(TEACHER, STUDENT[1], 2.0), rel=1e-5)


def test_rows_without_a_label_do_not_enter_the_labels_part() -> None:
    some = answer_losses(seen([1, 2], [True, False]), "soft", 1.0, 0.5)
    alone = float(cross_entropy(STUDENT[1, :1], torch.tensor([1])))
    assert some["exit_2"].item() == pytest.approx(3 / 4 * 0.5 * alone / 2, rel=1e-5), "a mean over both rows"
    first, second = (kl(TEACHER[row : row + 1], STUDENT[1, row : row + 1], 1.0) for row in (0, 1))
    assert some["taught_2"].item() == pytest.approx(3 / 4 * (0.5 * first + second) / 2, rel=1e-5)
    taught = answer_losses(seen([1, 2], [True, False]), "soft", 1.0, 1.0)["taught_2"]
    assert taught.item() == pytest.approx(3 / 4 * second / 2, rel=1e-5), "whatever `hard`, the others learn from it"
    nobody = answer_losses(seen([1, 2], [False, False]), "soft", 1.0, 0.5)
    assert nobody["exit_2"].item() == 0


def test_differences_of_logits_are_squared_and_averaged() -> None:
    found = answer_losses(seen(None), "mse", 5.0, 0.0)
    assert found["taught_2"].item() == pytest.approx(3 / 4 * (0.25 + 1 + 1 + 1 + 1 + 9) / 6)


def test_other_tasks_are_taught_by_coins_and_by_values() -> None:
    values = EveryExit(torch.tensor([[[0.5]]]), None, (1,), Regression(), lesson=Lesson(torch.tensor([[2.0]])))
    assert Logits().losses("answers", values)["taught_1"].item() == pytest.approx(2.25)
    labels = MultiLabel(("a", "b"))
    coins = EveryExit(torch.tensor([[[-0.5, 0.0]]]), None, (1,), labels, lesson=Lesson(torch.tensor([[1.0, 0.0]])))
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5))
    by_hand = (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    assert Logits(temperature=1.0).losses("answers", coins)["taught_1"].item() == pytest.approx(by_hand, rel=1e-5)


def test_states_are_compared_through_the_projection() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    projection = torch.nn.Linear(1, 2)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0], [2.0]]))
        projection.bias.copy_(torch.tensor([0.0, 1.0]))
    # projected: [1, 3] and [2, 5]
    assert hidden_loss(student, teacher, projection).item() == pytest.approx((0 + 9 + 4 + 1) / 4)
    assert hidden_loss(student.bfloat16(), teacher, projection).item() == pytest.approx((0 + 9 + 4 + 1) / 4)
    assert hidden_loss(teacher, teacher + 2, None).item() == pytest.approx(4.0)


def test_scores_are_compared_head_by_head_or_by_their_mean() -> None:
    student, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 3.0], [0.0, 2.0]])
    assert scores_loss(student, teacher).item() == pytest.approx((1 + 0 + 0 + 4) / 4)
    assert scores_loss(student, torch.tensor([[1.0], [3.0]])).item() == pytest.approx(((2 - 1) ** 2 + 9) / 2)


def test_relations_are_compared_between_the_tokens_of_a_sequence() -> None:
    """By hand: two sequences of two tokens and one, one relation head; only queries of the first relate differently."""
    student, teacher = torch.zeros(3, 3, 1), torch.zeros(3, 3, 4)
    student[0, 0], student[1, 0] = 1.0, 2.0  # products [[1, 2], [2, 4]] over √1
    teacher[0, 0, 0], teacher[1, 0, 0] = 2.0, -2.0  # products [[4, -4], [-4, 4]] over √4
    teacher[2] = 7.0  # a sequence of one token relates to nothing else

    def divergence(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def first(difference: float) -> float:
        return 1 / (1 + math.exp(-difference))

    by_hand = (divergence(first(4), first(-1)) + divergence(first(-4), first(-2))) / 3
    assert relations_loss(student, teacher, (2, 1), 1).item() == pytest.approx(by_hand, rel=1e-5)


def test_relation_heads_are_compared_one_by_one() -> None:
    torch.manual_seed(0)
    own, theirs = torch.randn(5, 3, 4), torch.randn(5, 3, 6)
    halves = [relations_loss(own[..., a : a + 2], theirs[..., b : b + 3], (2, 3), 1) for a, b in ((0, 0), (2, 3))]
    assert relations_loss(own, theirs, (2, 3), 2).item() == pytest.approx(sum(halves).item() / 2, rel=1e-5)
    assert relations_loss(own, own, (2, 3), 2).item() == pytest.approx(0, abs=1e-6)
    together = relations_loss(own, theirs, (2, 3), 2)
    parts = ((slice(2), (2,)), (slice(2, 5), (3,)))
    apart = [relations_loss(own[part], theirs[part], lengths, 2) for part, lengths in parts]
    assert together.item() == pytest.approx((2 * apart[0] + 3 * apart[1]).item() / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "found"),
    [(384, 384, 24), (192, 384, 12), (384, 768, 24), (16, 32, 1), (40, 60, 2), (8, 8, 1)],
)
def test_relation_heads_divide_both_widths(student: int, teacher: int, found: int) -> None:
    assert relation_heads(student, teacher) == found


def test_what_minilm_reads_is_one_layer_of_each() -> None:
    student, teacher = Shape(3, 3, 2, 8, "classification"), Shape(6, 6, 2, 12, "classification")
    assert MiniLM().reads("relations", student, teacher) == Reads(False, vectors=((3, 6),))
    assert MiniLM(layer=5).reads("relations", student, teacher).vectors == ((3, 5),)
    assert MiniLM().reads("answers", student, teacher) == Reads()
    with pytest.raises(UsageError, match="no layer 7; it has layers 1 to 6"):
        MiniLM(layer=7).reads("relations", student, teacher)
    with pytest.raises(UsageError, match="3 does not divide both widths, 8 of the student and 12 of the teacher"):
        MiniLM(relation_heads=3).reads("relations", student, teacher)
    with pytest.raises(UsageError, match=r"method\.layer: -1 is negative"):
        MiniLM(layer=-1)


def test_the_layers_phase_is_the_plain_sum_of_its_pairs() -> None:
    model, (a, b) = tiny_model(), (torch.ones(2, 3), torch.zeros(2, 3))
    lesson = Lesson(None, hidden=((a, b), (a, 3 * a)), scores=((a, 2 * a),))
    losses = Layers().losses("layers", replace(seen(None), lesson=lesson, model=model))
    assert Layers().combine(losses).item() == pytest.approx(1 + 4 + 1)


def test_what_layers_reads_follows_the_map_and_zero_reads_nothing() -> None:
    student, teacher = Shape(3, 3, 2, 8, "classification"), Shape(6, 6, 2, 16, "classification")
    method = Layers(layer_map="2,0,6")
    assert method.reads("layers", student, teacher) == Reads(False, ((0, 0), (1, 2), (3, 6)), ((1, 2), (3, 6)))
    assert Layers(attention=False).reads("layers", student, teacher).scores == ()
    assert method.reads("answers", student, teacher) == Reads()
    assert set(method.scaffold(student, teacher)) == {"projection"}
    assert method.scaffold(teacher, teacher) == {}


@pytest.mark.parametrize(
    ("text", "student", "teacher", "found"),
    [
        ("uniform", 4, 12, (3, 6, 9, 12)),
        ("uniform", 4, 6, (2, 3, 5, 6)),
        ("uniform", 3, 3, (1, 2, 3)),
        ("last", 3, 12, (10, 11, 12)),
        ("skip", 6, 12, (2, 4, 6, 8, 10, 0)),
        ("2,5,8", 3, 9, (2, 5, 8)),
        (" 0,0, 9", 3, 9, (0, 0, 9)),
        ("3,0", 2, 3, (3, 0)),
    ],
)
def test_layer_maps(text: str, student: int, teacher: int, found: tuple[int, ...]) -> None:
    assert layer_map(text, student, teacher) == found


@pytest.mark.parametrize(
    ("text", "student", "words"),
    [
        ("unifrom", 3, "Did you mean 'uniform'"),
        ("2,5", 3, "2 numbers for a student of 3 layers"),
        ("2,5,7", 3, "no layer 7; it has layers 1 to 6"),
        ("2,-1,3", 3, "unknown map"),
        ("uniform", 8, "the student has 8 layers and the teacher 6"),
    ],
)
def test_maps_that_mean_nothing_are_refused(text: str, student: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layer_map(text, student, 6)


@pytest.mark.parametrize("options", [{"hard": 1.5}, {"temperature": 0.0}, {"loss": "sof"}])
def test_options_that_mean_nothing_are_refused(options: dict) -> None:
    for method in (Logits, Layers, MiniLM):
        with pytest.raises(UsageError, match=f"method.{next(iter(options))}"):
            method(**options)


# --- what is compared


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra with narrow embeddings"])
def test_scores_before_the_softmax_are_those_of_stock_attention(family: str) -> None:
    model = stock(family)
    model.set_attn_implementation("eager")
    rows = batch(model, (9, 4, 9))
    with torch.no_grad():
        theirs = model(**rows, output_attentions=True, output_hidden_states=True)
        made = with_exits(model)
        notes = Internals(made.encoder, [0, 2], [2])
        full_pass(made, rows, notes.embedded, notes.between)
    ours, start = notes.attention(2), 0
    for row, tokens in ((1, 4), (0, 9), (2, 9)):  # packed: shorter ones first
        pairs = ours[start : start + tokens**2].view(tokens, tokens, -1)
        given = theirs.attentions[1][row, :, :tokens, :tokens].permute(1, 2, 0)
        assert torch.allclose(pairs.softmax(dim=1), given, atol=1e-9)
        start += tokens**2
    assert start == len(ours)
    packed = torch.cat([theirs.hidden_states[2][row, :tokens] for row, tokens in ((1, 4), (0, 9), (2, 9))])
    assert torch.allclose(notes.states(2), packed, atol=1e-9)


def test_padding_never_enters_what_is_compared() -> None:
    model = with_exits(stock("bert"))
    rows = batch(model.stock, (5, 3))
    wide = {name: torch.nn.functional.pad(value, (0, 7)) for name, value in rows.items()}
    wide["input_ids"][:, 5:] = 42  # whatever stands there
    wide["input_ids"][1, 3:] = 17

    def inside(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        notes = Internals(model.encoder, [0, 4], [1, 4], [4])
        full_pass(model, given, notes.embedded, notes.between)
        assert notes.lengths == (3, 5)
        return [notes.states(0), notes.states(4), notes.attention(1), notes.attention(4), notes.attended(4)]

    narrow = inside(rows)
    assert [len(part) for part in narrow] == [8, 8, 34, 34, 8]
    assert all(torch.equal(a, b) for a, b in zip(narrow, inside(wide), strict=True))


def test_scores_are_scaled_products() -> None:
    _, stream = pack({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 2).long()})
    query = torch.tensor([[[1.0, 0.0, 0.0, 2.0]], [[0.0, 1.0, 0.0, 0.0]]])
    key = torch.tensor([[[4.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 6.0]]])
    assert torch.equal(scores(query, key, stream), torch.tensor([[2.0], [6.0], [1.0], [0.0]]))
