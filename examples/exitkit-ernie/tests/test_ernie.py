"""The family gives what the stock model gives."""

from exitkit_ernie import ErnieEncoder

from exitkit.testing import check_family


def test_ernie_gives_what_the_stock_model_gives():
    check_family(ErnieEncoder)
