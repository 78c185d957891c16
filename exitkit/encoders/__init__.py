"""Encoder families: one file per block shape."""

from __future__ import annotations

from exitkit.encoders.albert import AlbertEncoder
from exitkit.encoders.bert import BertEncoder
from exitkit.encoders.distilbert import DistilBertEncoder
from exitkit.encoders.modernbert import ModernBertEncoder
from exitkit.encoders.padded import DebertaEncoder, MPNetEncoder
from exitkit.hookspecs import Register, hookimpl

__all__ = [
    "AlbertEncoder",
    "BertEncoder",
    "DebertaEncoder",
    "DistilBertEncoder",
    "MPNetEncoder",
    "ModernBertEncoder",
]


@hookimpl
def register_encoders(register: Register) -> None:  # type: ignore[type-arg]
    """The families that come with exitkit."""
    for encoder in (AlbertEncoder, BertEncoder, DebertaEncoder, DistilBertEncoder, ModernBertEncoder, MPNetEncoder):
        for model_type in sorted(encoder.model_types):
            register(model_type, encoder)
