"""Files of an artifact that do not hold what was saved are named, whatever is wrong with them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import logged
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import exitkit
from exitkit.artifacts import artifact, inspection, manifest
from exitkit.artifacts.cascade import read as read_cascade
from exitkit.artifacts.damage import told
from exitkit.calibration.study import runs_file
from exitkit.cli import app
from exitkit.errors import ExitkitError
from exitkit.plugins import installed

SAVED = Path(__file__).parent / "saved_by_0_1_0"
READ_BY_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json"}
SEALED = {"config.json", "model.safetensors", "exits.safetensors", "exitkit.yaml", *READ_BY_TOKENIZERS}
Change = Callable[[Any], Any]


@pytest.fixture
def unsealed(tmp_path: Path) -> Path:
    """A tiny model of which nobody wrote down what its files held."""
    shutil.copytree(SAVED / "large", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sealed(unsealed: Path) -> Path:
    return seal(unsealed)


def seal(folder: Path) -> Path:
    (folder / manifest.FILE).write_text(manifest.text(folder, SEALED))
    return folder


def message_of(folder: Path, look: Callable[[Path], object] = exitkit.load) -> str:
    with pytest.raises(ExitkitError) as error:
        look(folder)
    return str(error.value)


# --- content ---------------------------------------------------------------------------------------------------------


def test_saving_a_model_seals_what_is_read_with_it(unsealed: Path, tmp_path: Path) -> None:
    model = artifact.read(unsealed, installed())
    (tmp_path / "again").mkdir()
    artifact.write(tmp_path / "again", model.model, model.tokenizer, model.card)
    files = manifest.read(tmp_path / "again")
    assert files is not None
    assert set(files) == SEALED
    for name, held in files.items():
        assert held is not None
        assert held.size == (tmp_path / "again" / name).stat().st_size
    exitkit.load(tmp_path / "again")


@pytest.mark.parametrize("name", sorted(SEALED))
def test_one_changed_byte_anywhere_is_noticed_and_the_file_named(name: str, sealed: Path) -> None:
    whole = (sealed / name).read_bytes()
    dice, registry = random.Random(name), installed()

    def look(folder: Path) -> object:
        return artifact.read(folder, registry)

    for _ in range(12):
        place = dice.randrange(len(whole))
        changed = bytes([whole[place] ^ dice.randrange(1, 256)])
        (sealed / name).write_bytes(whole[:place] + changed + whole[place + 1 :])
        assert str(sealed / name) in message_of(sealed, look)
    for other in (whole[:-1], whole + b"\n", b""):
        (sealed / name).write_bytes(other)
        assert str(sealed / name) in message_of(sealed, look)
    (sealed / name).write_bytes(whole)
    exitkit.load(sealed)


def test_size_and_date_are_no_evidence(sealed: Path) -> None:
    file = sealed / "model.safetensors"
    before, whole = file.stat(), bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert f"{file} is damaged, or was changed" in message_of(sealed)
    assert f"{file} is damaged, or was changed" in message_of(sealed, inspection.inspect)


def test_a_tokenizer_that_adds_no_tokens_of_its_own_is_noticed(sealed: Path) -> None:
    plain = json.loads((sealed / "tokenizer.json").read_text())
    (sealed / "tokenizer.json").write_text(json.dumps({**plain, "post_processor": None}))
    assert str(sealed / "tokenizer.json") in message_of(sealed)


def test_whoever_changed_a_file_can_load_it(sealed: Path) -> None:
    weights = load_file(sealed / "model.safetensors")
    weights["classifier.bias"].add_(100 * weights["classifier.bias"].new_tensor([1, 0]))
    save_file(weights, sealed / "model.safetensors", metadata={"format": "pt"})
    assert str(sealed / "model.safetensors") in message_of(sealed)
    changed = exitkit.load(sealed, verify=False).predict(["the plot was good"], policy={"name": "fixed", "exit": 4})
    assert changed[0]["label"] == "negative"
    (sealed / manifest.FILE).unlink()
    exitkit.load(sealed)


@pytest.mark.parametrize("name", ["policy.yaml", "README.md", "metrics.json"])
def test_files_that_people_edit_are_not_sealed(name: str, sealed: Path) -> None:
    with (sealed / name).open("a") as file:
        file.write("\n")
    exitkit.load(sealed)


def test_a_model_without_a_manifest_loads_with_one_note(unsealed: Path) -> None:
    with logged() as said:
        exitkit.load(unsealed).predict(["the plot was good"])
    assert said == [f"{unsealed} has no manifest.json: whether its files are as they were saved is not checked"]
    with logged() as said:
        exitkit.load(unsealed, verify=False)
        exitkit.load(seal(unsealed))
    assert said == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../config.json": None}, "a name without folders is needed"),
        ({"/etc/passwd": None}, "a name without folders is needed"),
        ({"..": None}, "a name without folders is needed"),
        ({"config.json": {"sha256": "0", "size": 1}}, "files.config.json.sha256"),
        ({"config.json": {"sha256": "0" * 64, "size": -1}}, "files.config.json.size"),
        ([], "files: []: input should be a valid dictionary"),
    ],
)
def test_a_damaged_manifest_is_named(files: object, words: str, unsealed: Path) -> None:
    (unsealed / manifest.FILE).write_text(json.dumps({"format": 1, "files": files}))
    assert f"{unsealed / manifest.FILE} is damaged: " in (message := message_of(unsealed))
    assert words in message


def test_own_files_are_told_from_those_of_others(unsealed: Path) -> None:
    ours = {file.name for file in unsealed.iterdir()}
    (unsealed / "search-entropy.jsonl").touch()
    (unsealed / "policy.yaml.partial").touch()
    for name in ("NOTES.txt", "search-.jsonl", "modeling_mine.py", "vocab"):
        (unsealed / name).touch()
    (unsealed / "merges.txt").mkdir()
    expected = ours | {"search-entropy.jsonl", "policy.yaml.partial"}
    assert artifact.own_files(unsealed) == expected
    assert artifact.own_files(seal(unsealed)) == expected | {manifest.FILE}
    (unsealed / "vocab.txt").touch()
    assert "vocab.txt" not in artifact.own_files(unsealed), "a manifest says which tokenizer files are ours"
    (unsealed / manifest.FILE).write_text("{")
    assert expected <= artifact.own_files(unsealed)


# --- fields ----------------------------------------------------------------------------------------------------------


def at(*path: Any, value: Any) -> Change:
    """Set a value deep in plain data."""

    def change(plain: Any) -> Any:
        here = plain
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value
        return plain

    return change


def without(*path: Any) -> Change:
    def change(plain: Any) -> Any:
        here = plain
        for key in path[:-1]:
            here = here[key]
        del here[path[-1]]
        return plain

    return change


def whole(value: Any) -> Change:
    return lambda _: value


ENTRY = ("policies", "entropy")
FIELDS: list[tuple[str, Change, str]] = [
    ("config.json", at("intermediate_size", value="x"), "intermediate_size"),
    ("config.json", at("num_hidden_layers", value=None), "num_hidden_layers"),
    ("config.json", without("num_hidden_layers"), "do not fit each other"),
    ("config.json", at("num_hidden_layers", value=3), "do not fit each other"),
    ("config.json", at("vocab_size", value=3), "has a token of number"),
    ("config.json", at("id2label", "0", value="x"), "has the labels ['negative', 'positive']"),
    ("config.json", whole(5), "does not hold a JSON object"),
    ("config.json", whole([]), "does not hold a JSON object"),
    ("tokenizer.json", without("model"), "tokenizer.json cannot be read"),
    ("tokenizer.json", at("added_tokens", 0, "id", value=1.5), "tokenizer.json cannot be read"),
    ("tokenizer.json", at("pre_tokenizer", value=[]), "tokenizer.json cannot be read"),
    ("tokenizer_config.json", whole([]), "tokenizer_config.json cannot be read"),
    ("tokenizer_config.json", whole(5), "tokenizer_config.json cannot be read"),
    ("tokenizer_config.json", at("cls_token", value=1.5), "tokenizer_config.json cannot be read"),
    (
        "tokenizer_config.json",
        at("model_input_names", value="x"),
        "tokenizer_config.json is damaged: its model_input_names",
    ),
    ("tokenizer_config.json", at("pad_token", value="x"), "tokenizer_config.json does not fit config.json"),
    ("exitkit.yaml", at("labels", value=[]), "has the labels"),
    ("exitkit.yaml", at("labels", value="x"), "labels: 'x'"),
    ("exitkit.yaml", at("labels", value=["positive"]), "has the labels"),
    ("exitkit.yaml", at("labels", value=["positive", "negative"]), "has the labels"),
    ("exitkit.yaml", at("labels", 0, value={}), "labels.0"),
    ("exitkit.yaml", at("labels", 1, value=[]), "labels.1"),
    ("exitkit.yaml", at("labels", 0, value="x"), "has the labels ['x', 'positive']"),
    ("exitkit.yaml", at("max_length", value=-1), "max_length: -1"),
    ("exitkit.yaml", at("max_length", value=10**9), "the model takes at most"),
    ("exitkit.yaml", at("max_length", value=True), "max_length: True"),
    ("exitkit.yaml", at("pooling", value=1.5), "pooling: 1.5"),
    ("exitkit.yaml", at("task", value=10**9), "task: 1000000000"),
    ("exitkit.yaml", at("task", value="guessing"), "unknown task 'guessing'"),
    ("exitkit.yaml", at("metric", value="beauty"), "beauty"),
    ("exitkit.yaml", at("exits", value=[]), "exits: []"),
    ("exitkit.yaml", at("exits", value=[1, 2, "x", 4]), "exits.2: 'x'"),
    ("exitkit.yaml", at("exits", value=[2, 1, 3, 4]), "layers must rise"),
    ("exitkit.yaml", at("exits", value=[1, 2, 3, 9]), "does not fit config.json"),
    ("exitkit.yaml", at("exits", value=[1, 2, 3]), "last exit sits at layer 3"),
    ("exitkit.yaml", at("exits", value=[1, 2, 4]), "does not fit exitkit.yaml"),
    ("exitkit.yaml", at("scale", value=0), "scale: 0"),
    ("exitkit.yaml", at("data", "columns", value="x"), "columns"),
    ("exitkit.yaml", without("calibration", "hash"), "hash is missing"),
    ("exitkit.yaml", without("data", "split"), "split is missing"),
    ("exitkit.yaml", at("calibration", value={}), "which rows"),
    ("exitkit.yaml", at("labls", value=[]), "labls"),
    ("policy.yaml", at("default", value={}), "default"),
    ("policy.yaml", at("default", value="hash"), "'hash' is not among the policies"),
    ("policy.yaml", at(*ENTRY, "calibration", value=1.5), "policies.entropy.calibration: 1.5"),
    ("policy.yaml", at(*ENTRY, "limits", value=10**9), "policies.entropy.limits: 1000000000"),
    ("policy.yaml", at(*ENTRY, "limits", value={"min_exit": "x"}), "policies.entropy.limits.min_exit: 'x'"),
    ("policy.yaml", at(*ENTRY, "calibration", "columns", value="x"), "policies.entropy.calibration.columns"),
    ("policy.yaml", without(*ENTRY, "calibration", "indices"), "policies.entropy.calibration.indices is missing"),
    ("policy.yaml", at(*ENTRY, "frontier", value=[]), "policies.entropy.frontier"),
    ("policy.yaml", without(*ENTRY, "chosen", "speedup", "flops"), "a speed-up is not given in flops"),
    ("policy.yaml", at(*ENTRY, "batch_size", value=0), "policies.entropy.batch_size: 0"),
    ("policy.yaml", at("policies", value=[]), "policies: []"),
    ("policy.yaml", whole([1]), "does not hold a mapping"),
]


def edit(file: Path, change: Change) -> None:
    read, say = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    file.write_text(say(change(read(file.read_text()))))


@pytest.mark.parametrize(("name", "change", "words"), FIELDS, ids=[f"{one[0]}: {one[2]}" for one in FIELDS])
def test_a_field_that_cannot_be_is_named_with_its_file_also_where_nothing_was_sealed(
    name: str, change: Change, words: str, unsealed: Path
) -> None:
    edit(unsealed / name, change)
    message = message_of(unsealed)
    assert name in message
    assert str(unsealed) in message
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (whole(None), "does not hold a mapping"),
        (whole([]), "does not hold a mapping"),
        (at("exits", value=[]), "exits"),
        (at("exits", 0, "layer", value="x"), "exits.0.layer: 'x'"),
    ],
)
def test_damaged_metrics_are_named_by_inspect(change: Change, words: str, unsealed: Path) -> None:
    edit(unsealed / "metrics.json", change)
    message = message_of(unsealed, inspection.inspect)
    assert f"{unsealed / 'metrics.json'} is damaged: " in message
    assert words in message


@pytest.mark.parametrize("name", ["exitkit.yaml", "policy.yaml", "cascade.yaml", "manifest.json"])
def test_a_file_of_a_newer_exitkit_is_not_called_damaged(name: str, sealed: Path) -> None:
    folder = sealed
    if name == "cascade.yaml":
        folder = sealed / "both"
        folder.mkdir()
        (folder / name).write_text("models: [..]")
    edit(folder / name, at("format", value=2))
    message = message_of(folder)
    assert f"{folder / name} has format 2; this exitkit reads format 1. A newer exitkit made it" in message
    assert "damaged" not in message


@pytest.mark.parametrize("name", ["exitkit.yaml", "policy.yaml"])
def test_a_few_lines_that_stand_for_more_than_there_is_room_for_are_refused(name: str, unsealed: Path) -> None:
    layers = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12))
    (unsealed / name).write_text(f"l0: &l0 [x]\n{layers}\n")
    assert "aliases stand for more than" in message_of(unsealed)
    (unsealed / name).write_text("recipe: &r {name: *r}\n")
    assert "aliases stand for more than" in message_of(unsealed)


# --- what is no file's fault -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_files_are_not_blamed_for_a_lack_of_memory_or_threads(error: Exception, tmp_path: Path) -> None:
    def never() -> Path:
        raise AssertionError

    words = r"cannot be loaded here: (out of memory|the machine gives no more threads)"
    with pytest.raises(ExitkitError, match=words), told(tmp_path, never):
        raise error


def test_whatever_a_library_raises_names_a_file(tmp_path: Path) -> None:
    for error in (Exception("odd"), AttributeError("odd"), TypeError("odd"), IndexError("odd")):
        with pytest.raises(ExitkitError, match=r"x\.json cannot be read: odd"), told(tmp_path, lambda: Path("x.json")):
            raise error


# --- other ways in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "exits.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        (2**63 - 1).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"[]",
        *(
            len(header).to_bytes(8, "little") + header
            for header in (
                b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4000000000000000000]}}',
                b'{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
            )
        ),
        b"\x80\x04\x95pickle",
    ],
    ids=range(9),
)
def test_absurd_headers_of_weights_are_refused(name: str, content: bytes, unsealed: Path) -> None:
    (unsealed / name).write_bytes(content)
    assert str(unsealed / name) in message_of(unsealed)
    assert str(unsealed / name) in message_of(unsealed, inspection.inspect)


@pytest.mark.parametrize("name", sorted(SEALED))
def test_a_link_to_what_never_ends_is_no_file(name: str, unsealed: Path) -> None:
    (unsealed / name).unlink()
    (unsealed / name).symlink_to("/dev/zero")
    assert name in message_of(unsealed)
    assert name in message_of(unsealed, inspection.inspect)


@pytest.mark.parametrize("policy", ["../../x", "a/b", "nobody's"])
def test_a_probe_of_an_unknown_policy_is_refused_whatever_its_name(policy: str, unsealed: Path) -> None:
    weights = load_file(unsealed / "exits.safetensors")
    save_file({**weights, f"probe/{policy}/w": weights["heads.0.out.bias"].clone()}, unsealed / "exits.safetensors")
    assert "unknown policy" in message_of(unsealed)


@pytest.mark.parametrize("policy", ["../../x", "a/b", "/etc/passwd", "..", "a\nb"])
def test_the_runs_of_a_search_stay_in_their_folder_whatever_its_policy_is_called(policy: str, tmp_path: Path) -> None:
    assert runs_file(tmp_path, policy).parent == tmp_path
    assert runs_file(tmp_path, policy).name.startswith("search-")


# --- cascades --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    for name in ("small", "large", "both"):
        shutil.copytree(SAVED / name, tmp_path / "runs" / name)
    return tmp_path / "runs" / "both"


def test_changed_weights_of_a_model_make_settings_of_its_cascade_doubtful(cascade: Path) -> None:
    for name in ("small", "large"):
        seal(cascade.parent / name)
    content = list(read_cascade(cascade, installed()).content)
    edit(cascade / "policy.yaml", at("policies", "cascade", "models", value=content))
    with logged() as said:
        read_cascade(cascade, installed())
    assert said == []
    small = cascade.parent / "small"
    weights = load_file(small / "model.safetensors")
    weights["classifier.bias"].add_(1e-3)
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    assert "small/model.safetensors is damaged, or was changed" in message_of(cascade)
    seal(small)  # as training it anew would
    with logged() as said:
        read_cascade(cascade, installed())
    assert "have changed since policy 'cascade' was calibrated" in said[0]


def test_inspect_shows_models_of_a_cascade_that_lie_elsewhere(cascade: Path, tmp_path: Path) -> None:
    assert inspection.inspect(cascade)["elsewhere"] == {}
    shutil.move(cascade.parent / "large", tmp_path / "far")
    (cascade.parent / "large").symlink_to(tmp_path / "far")
    assert inspection.inspect(cascade)["elsewhere"] == {"../large": str((tmp_path / "far").resolve())}
    (cascade / "cascade.yaml").write_text(f"models: [../small, {tmp_path / 'far'}]")
    assert list(inspection.inspect(cascade)["elsewhere"]) == [str(tmp_path / "far")]
    said = CliRunner().invoke(app, ["inspect", str(cascade)]).stdout
    assert "leads elsewhere" in " ".join(said.split())
