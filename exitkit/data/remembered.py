"""The columns that a model was trained with, looked for in other data before the usual names are."""

from __future__ import annotations

import logging
from dataclasses import replace

from exitkit.data.catalogue import Source, catalogue
from exitkit.data.columns import Columns
from exitkit.data.fields import paths

log = logging.getLogger("exitkit")


def remembered(source: Source, asked: Columns, trained: Columns) -> Columns:
    """The columns asked for, filled up with those of training where every split of the data has them.

    Whoever names a text decides about its pair as well. A column that is not there is left to be found by the usual
    names, and a line says so.
    """
    tables = [table().names for table in catalogue(source).tables.values()]

    def there(*names: str | None) -> bool:
        return all(paths(name, known) for name in names for known in tables if name is not None)

    found = asked
    if asked.text is None and asked.text_pair is None and trained.text is not None:
        if there(trained.text, trained.text_pair):
            found = replace(found, text=trained.text, text_pair=trained.text_pair)
        else:
            _tell("text", trained.text)
    if asked.label is None and trained.label is not None:
        if there(trained.label):
            found = replace(found, label=trained.label)
        else:
            _tell("label", trained.label)
    return found


def _tell(what: str, name: str) -> None:
    log.info("no column '%s', which held the %s at training: it is looked for by the usual names", name, what)
