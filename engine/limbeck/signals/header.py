"""What stored or sent signals are: codec, sizes, temperatures, and whose they are."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason

CODEC = "limbeck.topk"
VERSION = 1
# The dtype of each field's numbers; u1 is a row of packed bits. All little-endian.
DTYPES = {"ids_low": "<u2", "ids_high": "u1", "logprobs": "<u2", "tails": "<f4", "target": "<f4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalHeader:
    """What every row of a store or stream shares. Digests are of contents (sha256 hex).

    `k` ids of a vocabulary of `vocab_size` with tails at `temperatures` (ascending); k = 0 for none. `target`: the
    actual next token's log-probability is there. `tail_exact`: tails are sums over the complement, not 1 − Σ.
    `partial`: of a sequence's rows only the first ones may be there, or none. Raises SIGNAL_INVALID where the values
    cannot be.
    """

    vocab_size: int
    k: int
    temperatures: tuple[float, ...]
    target: bool
    tokenizer_digest: str
    template_digest: str | None
    weights_digest: str
    teacher: str
    tail_exact: bool = True
    codec: str = CODEC
    version: int = VERSION
    partial: bool = False

    def __post_init__(self) -> None:
        wrong = []
        if (self.codec, self.version) != (CODEC, VERSION):
            wrong.append(f"codec {self.codec!r} version {self.version} is not known; {CODEC!r} version {VERSION} is")
        if not 1 <= self.vocab_size <= 2**31:
            wrong.append(f"vocab_size is {self.vocab_size}; 1 to 2147483648 is allowed")
        if not 0 <= self.k <= self.vocab_size:
            wrong.append(f"k is {self.k}; 0 to vocab_size ({self.vocab_size}) is allowed")
        good = all(0 < t < math.inf for t in self.temperatures)
        if not good or sorted(set(self.temperatures)) != list(self.temperatures):
            wrong.append(f"temperatures are {list(self.temperatures)}; they must be positive, distinct and ascending")
        if self.k and not self.temperatures:
            wrong.append(f"there is no temperature for k = {self.k}; at least one is needed")
        if self.k == 0 and not self.target:
            wrong.append("neither ids (k) nor target is there: nothing would be stored")
        if wrong:
            raise LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(text, field="header") for text in wrong])

    @property
    def high_bits(self) -> int:
        """h: bits of an id above the low 16."""
        return max(0, (self.vocab_size - 1).bit_length() - 16)

    @property
    def row_bytes(self) -> dict[str, int]:
        """Bytes a row by field, in the order of the wire, for the fields that are there."""
        sizes = {}
        if self.k:
            high = (self.k * self.high_bits + 7) // 8
            sizes = {"ids_low": 2 * self.k, "ids_high": high, "logprobs": 2 * self.k}
            sizes["tails"] = 4 * len(self.temperatures)
        return sizes | ({"target": 4} if self.target else {})

    def to_json(self) -> dict[str, Any]:
        """The header as JSON: every field (`partial` only where it is true), and the dtypes of what is there."""
        value = dataclasses.asdict(self) | {"temperatures": list(self.temperatures)}
        if not self.partial:
            del value["partial"]
        return value | {"dtypes": {name: DTYPES[name] for name in self.row_bytes}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SignalHeader:
        """Read :meth:`to_json`'s value. Raises SIGNAL_INVALID for another codec, or for what is not a header."""
        named: dict[str, Any] = {field.name: value.get(field.name) for field in dataclasses.fields(cls)}
        named["partial"] = bool(value.get("partial", False))
        if (named["codec"], named["version"]) != (CODEC, VERSION):
            message = f"codec {named['codec']!r} version {named['version']} is not known; {CODEC!r} {VERSION} is"
            raise LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message, field="header.codec")])
        try:
            named["temperatures"] = tuple(map(float, value["temperatures"]))
            return cls(**named)
        except (TypeError, KeyError, ValueError) as error:
            problem = Problem(f"not a header of signals: {error}", field="header")
            raise LimbeckError(Reason.SIGNAL_INVALID, problems=[problem]) from error

    def text(self) -> str:
        """The header as one line of JSON, the same for equal headers."""
        return json.dumps(self.to_json(), sort_keys=True)

    def differences(self, other: SignalHeader) -> list[str]:
        """One line for each field in which `other` differs."""
        return [
            f"{field.name} is {getattr(other, field.name)!r}, here it is {getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
