"""Configuration: a file, flags over it, `--set` over both, and the same by every road."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitkit.configuration.config import BenchmarkConfig, CalibrateConfig, DistillConfig, PredictConfig, TrainConfig
from exitkit.configuration.notation import bytes_of
from exitkit.configuration.parsing import merge, ordered, parse
from exitkit.errors import UsageError

VALUES = {
    "epochs": st.floats(0.1, 50).map(lambda value: round(value, 3)),
    "seed": st.integers(0, 10**6),
    "max_length": st.integers(3, 512),
    "pooling": st.sampled_from(["auto", "cls", "mean", "mix"]),
    "metric": st.sampled_from(["accuracy", "f1_macro", "mcc", "f1:yes"]),
    "exits": st.lists(st.integers(1, 12), min_size=1, max_size=4),
    "task": st.sampled_from(["classification", "regression", "multi-label"]),
    "adversarial": st.just("fgm"),
}
SHARES = st.integers(0, 1000).map(lambda value: value / 1000)
SOME = st.fixed_dictionaries({}, optional=VALUES)
FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILES
@given(in_file=SOME, flags=SOME, sets=SOME)
def test_set_beats_flags_and_flags_beat_the_file(tmp_path: Path, in_file: dict, flags: dict, sets: dict) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in in_file.items()}))
    found = merge(TrainConfig, flags, file, [f"{key}={json.dumps(value)}" for key, value in sets.items()])
    expected = parse(TrainConfig, {**in_file, **flags, **sets})
    assert found == expected


@FILES
@given(values=SOME)
def test_what_is_parsed_and_written_down_parses_to_the_same(values: dict) -> None:
    first = parse(TrainConfig, values)
    plain = yaml.safe_load(yaml.safe_dump(first.model_dump(mode="json", exclude={"data"})))
    assert parse(TrainConfig, plain) == first


@given(st.floats(1, 999).map(lambda value: round(value, 2)), st.sampled_from(["", "x", "X", " x", "×"]))
def test_a_speedup_is_a_number_however_it_is_written(value: float, suffix: str) -> None:
    assert parse(CalibrateConfig, {"target_speedup": f"{value}{suffix}"}).target_speedup == value
    assert parse(BenchmarkConfig, {"speedups": f"{value}{suffix},2x"}).speedups == [value, 2.0]


@given(st.text(max_size=12))
def test_any_other_speedup_is_refused_with_what_was_given(text: str) -> None:
    try:
        found = parse(CalibrateConfig, {"target_speedup": text}).target_speedup
    except UsageError as error:
        assert "--target-speedup" in str(error)  # noqa: PT017  # some texts are speed-ups
    else:
        assert found is not None
        assert found >= 1


@given(name=st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1, max_size=12))
def test_an_unknown_setting_is_never_taken(name: str) -> None:
    if name in PredictConfig.model_fields:
        return
    with pytest.raises(UsageError, match=name):
        parse(PredictConfig, {name: 1})


@given(knob=st.sampled_from(["threshold", "patience"]), value=SHARES, other=SHARES)
def test_settings_of_policies_are_kept_beside_their_names(knob: str, value: float, other: float) -> None:
    found = merge(
        CalibrateConfig,
        {"policy": ["entropy"], "target_speedup": "2x"},
        None,
        [f"policy.{knob}={value}", f"policy.entropy.{knob}={other}"],
    )
    assert found.policy.name == ["entropy"]
    assert found.policy.options == {knob: value, "entropy": {knob: other}}


def test_a_flag_for_the_name_keeps_the_files_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: {name: joint, learning_rate: 0.1}\n")
    found = merge(TrainConfig, {"recipe": ["two-stage"]}, file)
    assert (found.recipe.name, found.recipe.options) == (["two-stage"], {"learning_rate": 0.1})


@pytest.mark.parametrize("content", ["a: [", "- 1", "7", "{1: 2}", "a: 2024-13-45"])
def test_a_file_that_is_no_mapping_of_settings_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=str(file)):
        merge(TrainConfig, {}, file)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("100", 100), ("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2 * 1024**3)]
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


def test_teachers_are_repeated_or_separated_by_commas() -> None:
    assert parse(DistillConfig, {"teacher": ["a,b", "c"]}).teacher == ["a", "b", "c"]
    assert parse(DistillConfig, {"teacher": "a,b"}).teacher == ["a", "b"]


def test_a_commands_own_settings_come_first() -> None:
    assert list(ordered(DistillConfig))[:2] == ["teacher", "data"]
    assert next(iter(ordered(TrainConfig))) == "model"
    assert ordered(DistillConfig).keys() == DistillConfig.model_fields.keys()


def test_a_layer_map_may_be_a_list() -> None:
    assert parse(DistillConfig, {"layer_map": [2, 0, 8]}).layer_map == "2,0,8"
    assert parse(DistillConfig, {"layer_map": 3}).layer_map == "3"


def test_a_layer_map_may_stand_beside_its_method() -> None:
    found = parse(DistillConfig, {"method": {"name": "layers", "layer_map": [2, 4], "attention": False}})
    assert (found.layer_map, found.method.options) == ("2,4", {"attention": False})
    with pytest.raises(UsageError, match="are one option"):
        parse(DistillConfig, {"method": {"name": "layers", "layer_map": "last"}, "layer_map": "uniform"})


def test_blanks_around_the_parts_of_a_list_are_not_part_of_them() -> None:
    asked = parse(DistillConfig, {"label_names": "no, yes ,", "teacher": "one, two"})
    assert (asked.label_names, asked.teacher) == (["no", "yes"], ["one", "two"])


def test_names_of_the_data_are_taken_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "label-names: [no, 'yes', 1e3, 007, 2024-01-01, ~]\nclass_weights: {no: 2, off: 0.5}\n"
        "label_column: on\ntext_column:\nexits: [2, 4]\nresume: no\n"
    )
    found = merge(TrainConfig, {}, file)
    assert found.label_names == ["no", "yes", "1e3", "007", "2024-01-01", "~"]
    assert found.class_weights == {"no": 2.0, "off": 0.5}
    assert (found.label_column, found.text_column, found.exits, found.resume) == ("on", None, [2, 4], False)
    found = merge(TrainConfig, {}, None, ["label_names=[no, yes]", "class_weights.no=2", "text_column=y"])
    assert (found.label_names, found.class_weights, found.text_column) == (["no", "yes"], {"no": 2.0}, "y")
    assert merge(CalibrateConfig, {"target_speedup": "2x"}, None, ["never_early=[no]"]).never_early == ["no"]
    with pytest.raises(UsageError, match="class-weights"):
        merge(TrainConfig, {}, None, ["class_weights={no: much}"])
