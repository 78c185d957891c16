"""The encoder families that come with exitkit, registered as those of others are."""

from __future__ import annotations

from exitkit.engine.encoders.albert import AlbertEncoder
from exitkit.engine.encoders.base import Encoder
from exitkit.engine.encoders.bert import BertEncoder
from exitkit.engine.encoders.bilstm import BiLSTMEncoder
from exitkit.engine.encoders.distilbert import DistilBertEncoder
from exitkit.engine.encoders.modernbert import ModernBertEncoder
from exitkit.engine.encoders.padded import DebertaEncoder, MPNetEncoder
from exitkit.hookspecs import Register, hookimpl


@hookimpl
def register_encoders(register: Register[Encoder]) -> None:
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
