"""Encoder families: one file per block shape."""

from __future__ import annotations

from exitkit.encoders.bert import BertEncoder
from exitkit.encoders.distilbert import DistilBertEncoder
from exitkit.encoders.modernbert import ModernBertEncoder
from exitkit.hookspecs import Register, hookimpl

__all__ = ["BertEncoder", "DistilBertEncoder", "ModernBertEncoder"]


@hookimpl
def register_encoders(register: Register) -> None:  # type: ignore[type-arg]
    """The families whose arithmetic exitkit owns."""
    for encoder in (BertEncoder, DistilBertEncoder, ModernBertEncoder):
        for model_type in sorted(encoder.model_types):
            register(model_type, encoder)
