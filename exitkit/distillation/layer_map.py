"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.errors import UsageError, one_of

NAMED = ("uniform", "last", "skip")


def evenly(layers: int, of: int) -> tuple[int, ...]:
    """`layers` of `of` layers (from 1), evenly spread, the last one among them: ⌈m · of / layers⌉."""
    return tuple(-(-m * of // layers) for m in range(1, layers + 1))


def layer_map(text: str, student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's M layers; 0 = this one gets no layer loss.

    `uniform` spreads evenly, m → m · N / M (TinyBERT, 1909.10351, section 3; rounded up where M does not divide N).
    `last` takes the teacher's last layers, m → N − M + m. `skip` is uniform without the last layer, which soft targets
    teach anyway (PKD-Skip, 1908.09355, section 3.2). Else M numbers with commas.

    Raises UsageError: not of this form, of the wrong length, or naming a layer that is not there.
    """
    if text in NAMED:
        if student > teacher:
            raise UsageError(
                f"--layer-map {text}: the student has {student} layers and the teacher {teacher}, so that there is no "
                f"such map. Write {student} numbers, 0 for layers that learn from none."
            )
        if text == "last":
            return tuple(range(teacher - student + 1, teacher + 1))
        found = evenly(student, teacher)
        return found if text == "uniform" else (*found[:-1], 0)
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--layer-map {text}: {one_of('map', text, NAMED)} Or give numbers like 2,5,8.")
    found = tuple(int(part) for part in parts)
    if len(found) != student:
        raise UsageError(
            f"--layer-map {text}: {len(found)} numbers for a student of {student} layers. Give one for each layer, "
            "from the bottom up; 0 means no layer loss."
        )
    for layer in found:
        if layer > teacher:
            raise UsageError(f"--layer-map {text}: the teacher has no layer {layer}; it has layers 1 to {teacher}.")
    return found


def text_of(layer_map: Sequence[int]) -> str:
    """A map as it is written on the command line."""
    return ",".join(map(str, layer_map))
