"""What exitkit 0.1.0 (commit 27c2c09) saved and answered: two tiny models, policies, a cascade, and answers.json.

Made once, with that commit on the path and this folder as working directory: python make.py. Never make it anew with
a later exitkit: it is here to show that what people have saved goes on to load and to answer the same.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import exitkit
from exitkit.data import demo

TEXTS = [
    *("the plot was good", "the plot was not good", "i would hardly say the acting felt superb", "", "unknown words"),
    *("the music was awful , but the story was great .", "although the cast was good , the ending felt dull ."),
    *("we watched it at home . the humour seemed very funny", "the room was full . the score was tiresome"),
]


def train(name: str, layers: int) -> None:
    """A model of so many layers."""
    with tempfile.TemporaryDirectory() as encoder:
        demo.build_model(Path(encoder), layers=layers, width=16, heads=2)
        exitkit.train(
            model=encoder,
            data="demo:reviews",
            output=name,
            epochs=4,
            seed=1,
            recipe={"name": "joint", "learning_rate": 5e-3, "head_learning_rate": 5e-3},
        )


def main() -> None:
    """Train, calibrate, join, and write down what they answer."""
    train("large", 4)
    train("small", 1)
    exitkit.calibrate("large", policy="patience", target_speedup=1.3, currency="layers")
    exitkit.calibrate("large", policy="entropy", target_speedup=1.5, currency="flops")
    exitkit.cascade("small", "large", output="both")
    exitkit.calibrate("both", target_speedup=1.5, currency="flops")
    large, both = exitkit.load("large"), exitkit.load("both")
    answers = {
        "texts": TEXTS,
        "default": large.predict(TEXTS, probabilities=True),
        "faster": large.predict(TEXTS, probabilities=True, speedup=2),
        "patience": large.predict(TEXTS, probabilities=True, policy="patience"),
        "full": large.predict(TEXTS, probabilities=True, policy={"name": "fixed", "exit": 4}),
        "cascade": both.predict(TEXTS, probabilities=True),
    }
    Path("answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
