"""Records of tensors, and of such records."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def copied(record: Record) -> Record:
    """A record with copies of its tensors, and of those of records in it, without history.

    Gradients may flow to a copy made outside of inference mode, wherever the original was made.
    """
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.init}
    return replace(
        record,
        **{
            name: value.detach().clone() if isinstance(value, Tensor) else copied(value)
            for name, value in values.items()
            if value is not None
        },
    )
