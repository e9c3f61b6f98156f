"""The losses as a library: the head and its closed-form gradient. Needs torch and transformers (`limbeck[train]`)."""

from limbeck.functional.bare import distill_loss, make_terms
from limbeck.functional.batch import Answer, SignalBatch
from limbeck.functional.collate import collate
from limbeck.functional.forward import HeadOutput, install_head, remove_head
from limbeck.functional.head import Head
from limbeck.functional.loss import head_loss
from limbeck.functional.output import LossOutput, check_finite
from limbeck.functional.terms import Term, Values

__all__ = [
    "Answer",
    "Head",
    "HeadOutput",
    "LossOutput",
    "SignalBatch",
    "Term",
    "Values",
    "check_finite",
    "collate",
    "distill_loss",
    "head_loss",
    "install_head",
    "make_terms",
    "remove_head",
]
