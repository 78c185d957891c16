"""Encoder families: one file per block shape."""

from __future__ import annotations

from exitkit.encoders.albert import AlbertEncoder
from exitkit.encoders.base import Encoder
from exitkit.encoders.bert import BertEncoder
from exitkit.encoders.bilstm import BiLSTMEncoder
from exitkit.encoders.distilbert import DistilBertEncoder
from exitkit.encoders.modernbert import ModernBertEncoder
from exitkit.encoders.padded import DebertaEncoder, MPNetEncoder
from exitkit.hookspecs import Register, hookimpl

__all__ = [
    "AlbertEncoder",
    "BertEncoder",
    "BiLSTMEncoder",
    "DebertaEncoder",
    "DistilBertEncoder",
    "MPNetEncoder",
    "ModernBertEncoder",
]


@hookimpl
def register_encoders(register: Register) -> None:  # type: ignore[type-arg]
    """The families that come with exitkit."""
    known: list[type[Encoder]] = [
        AlbertEncoder,
        BertEncoder,
        BiLSTMEncoder,
        DebertaEncoder,
        DistilBertEncoder,
        ModernBertEncoder,
        MPNetEncoder,
    ]
    for encoder in known:
        for model_type in sorted(encoder.model_types):
            register(model_type, encoder)
