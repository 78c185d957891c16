"""A checkpoint is data: no file in it runs, and none makes transformers ask whether it may."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import unsealed
from typer.testing import CliRunner

from exitkit.cli import app

ROOT = Path(__file__).parent.parent
CODE = sorted([*(ROOT / "exitkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
LOADERS = {"from_pretrained", "from_config", "AutoTokenizer", "get_class_from_dynamic_module", "pipeline"}


def edit(file: Path, **fields: object) -> None:
    plain = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**plain, **fields}))


def unknown_family(folder: Path) -> None:
    edit(folder / "config.json", model_type="evilbert", auto_map={"AutoConfig": "evil.Config"})


def known_family(folder: Path) -> None:
    autos = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    edit(folder / "config.json", auto_map=dict.fromkeys(autos, "evil.Config"))


def no_family(folder: Path) -> None:
    edit(folder / "config.json", model_type=None, auto_map={"AutoConfig": "evil.Config"})


def tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Config", "evil.Config"]})


def tokenizer_of_no_family(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Config"]})


def processor(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="AutoProcessor")
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "evil.Config"})


def processor_in_config(folder: Path) -> None:
    plain = json.loads((folder / "tokenizer_config.json").read_text())
    plain.pop("tokenizer_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))
    edit(folder / "config.json", tokenizer_class="AutoProcessor")
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "evil.Config"})


def kernel(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/evil")


def private_kernel(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="somebody/evil")


def other_config(folder: Path) -> None:
    edit(folder / "config.json", configuration_files=["config.1.0.0.json"])
    edit(folder / "config.1.0.0.json", model_type="evilbert", auto_map={"AutoConfig": "evil.Config"})


def other_weights(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="pytorch_model.bin")


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "fp8"})


def adapter(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="somebody/evil", peft_type="LORA")


EVIL: list[tuple[Callable[[Path], None], str]] = [
    (unknown_family, "unknown model type 'evilbert'"),
    (no_family, "config.json cannot be read"),
    (processor, "tokenizer_class 'AutoProcessor' is no tokenizer"),
    (processor_in_config, "tokenizer_class 'AutoProcessor' is no tokenizer"),
    (kernel, "asks for the attention 'somebody/evil'"),
    (private_kernel, "asks for the attention 'somebody/evil'"),
    (other_config, "has configuration_files"),
    (other_weights, "has transformers_weights"),
    (quantised, "has quantization_config"),
    (adapter, "holds an adapter"),
]
IGNORED = [known_family, tokenizer, tokenizer_of_no_family]


@pytest.fixture
def evil(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact with code beside it that leaves a mark where it runs."""
    monkeypatch.chdir(tmp_path)
    (artifact / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
        "from transformers import BertConfig\nclass Config(BertConfig): pass\n"
    )
    return unsealed(artifact)


def answers_of_yes(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that whoever writes the data answers with yes."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], input="y\n" * 20)
    assert "run the custom code" not in result.output
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(("make", "told"), EVIL, ids=lambda one: getattr(one, "__name__", ""))
def test_a_model_that_asks_for_more_than_data_is_refused_and_nothing_of_it_runs(
    make: Callable[[Path], None], told: str, evil: Path, tmp_path: Path
) -> None:
    make(evil)
    exit_code, stdout, stderr = answers_of_yes("predict", evil)
    assert (exit_code in (1, 2), stdout) == (True, "")
    assert told in stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("make", IGNORED, ids=lambda one: one.__name__)
def test_classes_that_a_model_brings_for_a_known_family_are_not_looked_at(
    make: Callable[[Path], None], evil: Path, tmp_path: Path
) -> None:
    make(evil)
    exit_code, stdout, _ = answers_of_yes("predict", evil)
    assert exit_code == 0
    assert len(stdout.splitlines()) == 20
    assert not (tmp_path / "mark").exists()


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "inspect": lambda evil, _: ["inspect", evil],
    "train": lambda evil, _: ["train", "--model", evil, "--data", "demo:reviews", "--output", "out"],
    "calibrate": lambda evil, _: ["calibrate", evil, "--target-speedup", "2x"],
    "benchmark": lambda evil, _: ["benchmark", evil, "--output", "out"],
    "teacher": lambda evil, _: (
        ["distill", "--teacher", evil, "--data", "demo:reviews", "--student-layers", 2, "--output", "out"]
    ),
    "student": lambda evil, good: (
        ["distill", "--teacher", good, "--data", "demo:reviews", "--student", evil, "--output", "out"]
    ),
    "config of a student": lambda evil, good: (
        ["distill", "--teacher", good, "--data", "demo:reviews", "--student", evil / "config.json", "--output", "out"]
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ours", [True, False], ids=["artifact", "checkpoint"])
def test_no_command_runs_code_of_a_model(command: str, ours: bool, evil: Path, trained: Path, tmp_path: Path) -> None:
    unknown_family(evil)
    if not ours:
        (evil / "exitkit.yaml").unlink()
    exit_code, _, _ = answers_of_yes(*COMMANDS[command](evil, trained))
    assert exit_code in (1, 2)
    assert not (tmp_path / "mark").exists()


def test_the_code_would_run_if_transformers_were_asked(evil: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    unknown_family(evil)
    AutoConfig.from_pretrained(evil, trust_remote_code=True)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_one_module_loads_what_transformers_reads(file: Path) -> None:
    if file == ROOT / "exitkit" / "artifacts" / "pretrained.py":
        return
    nodes = list(ast.walk(ast.parse(file.read_text())))
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not (named | imported) & LOADERS
