"""Rows: formats, chat rendering, loss masks, split, quarantine."""

from limbeck.data.prepare import Prepared, answer_ids, prepare, retokenized
from limbeck.data.rows import Row, prompt_of, read_rows, reject_reason
from limbeck.data.sequence import TokenSequence
from limbeck.data.store import read_sequences, write_sequences
from limbeck.data.tokenizer import Tokenizer

__all__ = [
    "Prepared",
    "Row",
    "TokenSequence",
    "Tokenizer",
    "answer_ids",
    "prepare",
    "prompt_of",
    "read_rows",
    "read_sequences",
    "reject_reason",
    "retokenized",
    "write_sequences",
]
