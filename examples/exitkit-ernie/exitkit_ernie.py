"""Family `ernie`: models whose layers are BERT's under another model type."""

from exitkit import BertEncoder, hookimpl


class ErnieEncoder(BertEncoder):
    """BERT's block over the weights of the stock model."""

    model_types = frozenset({"ernie"})
    cuts = False  # tables that BERT lacks, such as one of task ids, would have to stand in `anatomy` first


@hookimpl
def register_encoders(register):
    """Offer `ernie`."""
    register("ernie", ErnieEncoder)
