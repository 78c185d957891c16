"""What can be asked of each command: one model per command for the command line, YAML files and Python alike.

Nothing heavy is imported here: `exitkit --help` is made from these models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from exitkit.configuration.notation import (
    METRICS,
    TASKS,
    Bytes,
    ClassWeights,
    Currency,
    Exits,
    InputFormat,
    LabelNames,
    LayerMap,
    Metric,
    Names,
    Sizes,
    Speedup,
    Speedups,
    Teachers,
    layer_map,
    named,
)


class Choice(BaseModel):
    """One or more plugins by name, and the options that stand beside the name."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(
        default_factory=list
    )

    @property
    def options(self) -> dict[str, Any]:
        """What stands beside `name`."""
        return dict(self.model_extra or {})


Chosen = Annotated[Choice, BeforeValidator(named)]


def flag(
    help: str, *, panel: str | None = None, short: str | None = None, cli: bool = True, repeat: bool = False
) -> Any:
    """Metadata of a field: its help text, whether and where it stands on the command line, whether it repeats."""
    return Field(description=help, json_schema_extra={"panel": panel, "short": short, "cli": cli, "repeat": repeat})


WHERE = "Where it runs"
COLUMNS = "Columns"


class Common(BaseModel):
    """What every command that touches a model takes."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    device: Annotated[str, flag("cpu, cuda, cuda:1, mps, or auto.", panel=WHERE)] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        flag("Number format. auto: fp32, and for training bf16 where the hardware has it.", panel=WHERE),
    ] = "auto"
    threads: Annotated[int | None, Field(ge=1), flag("CPU threads (default: what torch chooses).", panel=WHERE)] = None


class DataColumns(BaseModel):
    """Names of columns, where the usual ones do not say."""

    text_column: Annotated[str | None, flag("Column with the text.", panel=COLUMNS)] = None
    pair_column: Annotated[str | None, flag("Column with the second text of a pair.", panel=COLUMNS)] = None
    label_column: Annotated[str | None, flag("Column with the label.", panel=COLUMNS)] = None


class Training(Common, DataColumns):
    """What every command that trains takes."""

    data: Annotated[
        Any,
        flag("Labelled texts: a hub dataset, a folder, a csv/tsv/jsonl/parquet/conll file, demo:reviews, demo:tags."),
    ] = None
    output: Annotated[Path | None, flag("Folder to save the trained model in.", short="-o")] = None
    task: Annotated[
        TASKS | None,
        flag("What is predicted (default: tagged words mean tagging, floats regression, lists multi-label)."),
    ] = None
    label_names: Annotated[
        LabelNames, flag("Order of the labels in a fine-tuned model whose labels have other names: no,yes.")
    ] = None
    class_weights: Annotated[
        ClassWeights,
        flag("Weigh classes in the loss: balanced (rare ones more), or in a file a mapping of labels to weights."),
    ] = None
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False), flag("Epochs of every phase.")] = 3
    exits: Annotated[Exits, flag("Layers that get an exit: all, or a list like 2,4,6.")] = None
    pooling: Annotated[str, flag("What exits before the last read: auto, cls, mean, or mix (both). auto is mean.")] = (
        "auto"
    )
    metric: Annotated[Metric, flag(f"What scores are: {', '.join(METRICS)}.")] = None
    max_train_samples: Annotated[int | None, Field(ge=2), flag("Train on a random choice of so many rows.")] = None
    max_length: Annotated[
        int | None, Field(ge=3), flag("Cut rows to so many tokens (default: what the model can take, at most 512).")
    ] = None
    unlabelled: Annotated[
        str | None, flag("More texts for recipes with a phase that needs no labels: a file, a folder, a hub dataset.")
    ] = None
    adversarial: Annotated[
        Literal["fgm"] | None, flag("Also train on embeddings moved where the loss grows: fgm (doubles the time).")
    ] = None
    adversarial_epsilon: Annotated[
        float, Field(gt=0, allow_inf_nan=False), flag("How far embeddings are moved.", cli=False)
    ] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32), flag("Seed of everything random.")] = 42
    resume: Annotated[bool, flag("Go on where an interrupted run of the same command stopped.")] = False
    overwrite: Annotated[bool, flag("Replace an existing model in --output.")] = False
    training: Annotated[dict[str, Any], flag("Fields of transformers.TrainingArguments.", cli=False)] = Field(
        default_factory=dict
    )


class TrainConfig(Training):
    """`exitkit train`."""

    model: Annotated[
        str | None, flag("Encoder to start from: a Hugging Face id, a folder, or demo:tiny.", short="-m")
    ] = None
    recipe: Annotated[Chosen, flag("How exits are trained (see 'exitkit recipes').")] = Choice(name=["joint"])


class DistillConfig(Training):
    """`exitkit distill`."""

    teacher: Annotated[
        Teachers,
        flag("Model to learn from: one of exitkit's, or a fine-tuned checkpoint; several are averaged.", repeat=True),
    ] = Field(default_factory=list)
    data: Annotated[Any, flag("Texts to learn from, as for train; labels join in where every row has one.")] = None
    unlabelled: Annotated[str | None, flag("More texts, without labels: a file, a folder, a hub dataset.")] = None
    method: Annotated[Chosen, flag("What of the teacher is copied (see 'exitkit methods').")] = Choice(name=["logits"])
    student_layers: Annotated[
        int | None, Field(ge=1), flag("Layers of the student (default: half of the teacher's, unless the method says).")
    ] = None
    student_width: Annotated[
        int | None, Field(ge=1), flag("Width of the student, whole attention heads (default: the teacher's).")
    ] = None
    target_speedup: Annotated[
        Speedup | None,
        flag("Choose the size by the clock: a student that is so much faster than the teacher at full depth (3x)."),
    ] = None
    student: Annotated[
        str | None, flag("Instead of a size: a config.json to build the student from, or a model to start from.")
    ] = None
    extract: Annotated[
        Literal["impt", "rand", "tokens", "none"] | None,
        flag(
            "Start from the teacher's own weights: the most important ones (impt, the default), random ones (rand), "
            "token embeddings only (tokens, the default where no more fits), or none."
        ),
    ] = None
    layer_map: Annotated[
        LayerMap,
        flag("Teacher layer for each student layer: uniform, last, skip, numbers like 2,5,0 (0: none), or search."),
    ] = None
    search_rows: Annotated[
        int, Field(ge=2), flag("Rows that a student of --layer-map search learns from.", cli=False)
    ] = 1000
    search_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False), flag("Its epochs of every phase.", cli=False)] = 1
    search_generations: Annotated[int, Field(ge=1), flag("Generations of the search.", cli=False)] = 4
    search_population: Annotated[int, Field(ge=2), flag("Layer maps in a generation.", cli=False)] = 8
    no_exits: Annotated[bool, flag("Train the last exit only.")] = False
    cache_size: Annotated[
        Bytes, flag("Disk space for the teacher's outputs, so that it runs once for all epochs; 0 runs it every time.")
    ] = "4GB"
    cache: Annotated[
        Path | None, flag("Folder that keeps the teacher's outputs for later runs (default: removed at the end).")
    ] = None

    @model_validator(mode="after")
    def _one_shape(self) -> DistillConfig:
        if self.student is not None and (self.student_layers or self.student_width or self.target_speedup):
            raise ValueError(
                "--student brings its own size; leave out --student-layers, --student-width and --target-speedup"
            )
        if self.target_speedup and self.student_layers and self.student_width:
            raise ValueError("--target-speedup chooses layers or width; leave out --student-layers or --student-width")
        if self.no_exits and self.exits is not None:
            raise ValueError("--no-exits and --exits exclude each other")
        return self

    @model_validator(mode="after")
    def _one_layer_map(self) -> DistillConfig:
        """`method.layer_map` is `--layer-map` by another name."""
        options = self.method.options
        if "layer_map" in options:
            if self.layer_map is not None:
                raise ValueError("--layer-map and method.layer_map are one option; leave one out")
            self.layer_map = layer_map(options.pop("layer_map"))
            self.method = Choice(name=self.method.name, **options)
        return self


class CascadeConfig(BaseModel):
    """`exitkit cascade`."""

    model_config = ConfigDict(extra="forbid")

    artifacts: Annotated[list[Path], flag("Folders of trained models, smallest first.")] = Field(default_factory=list)
    output: Annotated[Path | None, flag("Folder of the cascade.", short="-o")] = None
    overwrite: Annotated[bool, flag("Replace a cascade that is there, with what was calibrated for it.")] = False


class CalibrateConfig(Common, DataColumns):
    """`exitkit calibrate`."""

    artifact: Annotated[Path | None, flag("Folder of a trained model, or of a cascade.")] = None
    target_speedup: Annotated[Speedup | None, flag("How much faster than the full model: 3x.")] = None
    max_drop: Annotated[
        float | None, Field(ge=0, lt=1), flag("Instead: the fastest setting that loses at most this (0.01).")
    ] = None
    policy: Annotated[
        Chosen,
        flag(
            "Exit policy, see 'exitkit plugins' (default: entropy; tagging: token-window, or sentence where words "
            "cannot halt; regression: patience; cascades: cascade).",
            short="-p",
        ),
    ] = Choice()
    currency: Annotated[Currency, flag("What the speed-up is counted in: layers, flops, or time.")] = "time"
    batch_size: Annotated[int, Field(ge=1), flag("Batch size that time is measured at.")] = 32
    per_exit: Annotated[
        bool, flag("A threshold for every exit, or none where asking is not worth it, instead of one for all.")
    ] = False
    temperature: Annotated[
        bool, flag("Fit a temperature per exit first, so that probabilities mean what they say.")
    ] = False
    min_exit: Annotated[int, Field(ge=1), flag("Nobody leaves before this exit.")] = 1
    never_early: Annotated[
        Names, flag("A label that only the last exit may give; repeat for several.", repeat=True)
    ] = Field(default_factory=list)
    metric: Annotated[Metric, flag("What the score is (default: what train used).")] = None
    data: Annotated[Any, flag("Rows to calibrate on (default: those set aside by train).")] = None
    split: Annotated[str | None, flag("Split of --data, slices too: validation[:50%].")] = None

    @model_validator(mode="after")
    def _one_aim(self) -> CalibrateConfig:
        if (self.target_speedup is None) == (self.max_drop is None):
            raise ValueError("give exactly one of --target-speedup (like 3x) and --max-drop (like 0.01).")
        return self


class BenchmarkConfig(Common, DataColumns):
    """`exitkit benchmark`."""

    artifacts: Annotated[list[Path], flag("Folders of trained models, or of cascades.")] = Field(default_factory=list)
    policy: Annotated[Chosen | None, flag("Exit policy; repeat for several.", short="-p")] = None
    speedups: Annotated[
        Speedups | None, flag("Targets to calibrate each policy to: 1x,2x,3x (1x: exits run, nobody leaves).")
    ] = None
    currency: Annotated[Currency | None, flag("What targets are counted in (default: as calibrated, or time).")] = None
    batch_size: Annotated[Sizes, flag("Batch sizes to time: 1,32.")] = [32]
    metric: Annotated[Metric, flag("What the score is (default: what train used).")] = None
    data: Annotated[Any, flag("Labelled rows to score and time (default: the training data's test split).")] = None
    split: Annotated[str | None, flag("Split of --data, slices too: validation[50%:].")] = None
    calibration_data: Annotated[Any, flag("Rows to calibrate on, if that is needed.")] = None
    calibration_split: Annotated[str | None, flag("Split of the calibration data (or of --data).")] = None
    group_column: Annotated[
        str | None,
        flag("Column that tells rows apart in the report (default: 'grade', if there is one).", panel=COLUMNS),
    ] = None
    rounds: Annotated[int, Field(ge=1), flag("How often every batch is timed.")] = 5
    max_rows: Annotated[int | None, Field(ge=1), flag("Score and time a random choice of so many rows.")] = None
    output: Annotated[Path | None, flag("Report folder (default: DIR-report).", short="-o")] = None


class PredictConfig(Common):
    """`exitkit predict`."""

    artifact: Annotated[Path | None, flag("Folder of a trained model, or of a cascade.")] = None
    input: Annotated[
        str, flag("File to answer (csv, tsv, jsonl, json, parquet, CoNLL, plain lines), - for stdin.", short="-i")
    ] = "-"
    input_format: Annotated[
        InputFormat, flag("What --input holds (default: as its name says; stdin: as its first line shows).")
    ] = "auto"
    output: Annotated[
        Path | None, flag("File for the answers (jsonl, csv, tsv, parquet); default: jsonl on stdout.", short="-o")
    ] = None
    batch_size: Annotated[int, Field(ge=1), flag("Rows at a time.")] = 32
    policy: Annotated[Chosen | None, flag("Exit policy (default: what calibrate stored).", short="-p")] = None
    speedup: Annotated[Speedup | None, flag("Use the calibrated setting for this speed-up.")] = None
    max_exit: Annotated[int | None, Field(ge=1), flag("Everybody is answered at this exit at the latest.")] = None
    on_error: Annotated[Literal["stop", "skip"], flag("What to do with a line that cannot be read.")] = "stop"
    probabilities: Annotated[bool, flag("Give the probabilities of all labels.")] = False
    text_column: Annotated[str | None, flag("Column with the text.", panel=COLUMNS)] = None
    pair_column: Annotated[str | None, flag("Column with the second text of a pair.", panel=COLUMNS)] = None


class CompareConfig(Common, DataColumns):
    """`exitkit compare`."""

    model: Annotated[
        str | None, flag("Encoder to start from: a Hugging Face id, a folder, or demo:tiny.", short="-m")
    ] = None
    data: Annotated[str | None, flag("Labelled texts, as for train.")] = None
    recipes: Annotated[Names, flag("Ways to train: joint,two-stage,rome.")] = Field(default_factory=lambda: ["joint"])
    policies: Annotated[Names, flag("Exit policies: entropy,patience.")] = Field(default_factory=lambda: ["entropy"])
    speedups: Annotated[Speedups, flag("Targets: 1x,2x,3x.")] = [1.0, 2.0, 3.0]
    seeds: Annotated[int, Field(ge=1), flag("How many seeds, from --seed on.")] = 3
    output: Annotated[Path | None, flag("Folder for results; an interrupted comparison goes on there.", short="-o")] = (
        None
    )
    currency: Annotated[Literal["layers", "flops"], flag("What speed-ups are counted in; for time use benchmark.")] = (
        "flops"
    )
    split: Annotated[str | None, flag("Rows to score (default: test, else validation).")] = None
    calibration_split: Annotated[str | None, flag("Rows to calibrate on (default: those set aside by train).")] = None
    halves: Annotated[bool, flag("Calibrate on a random half of --split, score the other, and the other way.")] = False
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False), flag("Epochs of every phase.")] = 3
    exits: Annotated[Exits, flag("Layers that get an exit: all, or a list like 2,4,6.")] = None
    pooling: Annotated[str, flag("What exits before the last read: auto, cls, mean, or mix.")] = "auto"
    task: Annotated[TASKS | None, flag("What is predicted (default: seen from the labels).")] = None
    metric: Annotated[Metric, flag("What scores are (default: the task's own).")] = None
    max_train_samples: Annotated[int | None, Field(ge=2), flag("Train on a random choice of so many rows.")] = None
    max_length: Annotated[int | None, Field(ge=3), flag("Cut rows to so many tokens.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32), flag("The first seed.")] = 42
    keep_models: Annotated[bool, flag("Keep the trained models; without, only results stay.")] = False
    options: Annotated[dict[str, dict[str, Any]], flag("Options by recipe: options.rome.gamma=0.5.", cli=False)] = (
        Field(default_factory=dict)
    )
    training: Annotated[dict[str, Any], flag("Fields of transformers.TrainingArguments.", cli=False)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _one_way_to_calibrate(self) -> CompareConfig:
        if self.halves and self.calibration_split is not None:
            raise ValueError("--halves calibrates on --split itself; leave out --calibration-split")
        return self


class DemoConfig(Common):
    """`exitkit demo`."""

    output: Annotated[Path, flag("Folder for the model and the report.", short="-o")] = Path("exitkit-demo")
    seed: Annotated[int, Field(ge=0, lt=2**32), flag("Seed of everything random.")] = 42
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False), flag("Epochs of training.", cli=False)] = 6
    max_train_samples: Annotated[int | None, Field(ge=10), flag("Train on fewer rows.", cli=False)] = None

    @model_validator(mode="after")
    def _never_a_file(self) -> DemoConfig:
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output {self.output} is a file; name a folder")
        return self
