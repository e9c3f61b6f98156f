"""rows/said.jsonl: what the teacher said of each row's tokens while it wrote them, so that they need not be scored."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import AppendLog, placed_json_lines

if TYPE_CHECKING:
    from limbeck.interfaces import Said, TeacherInfo, TextTeacherInfo
    from limbeck.recipe import Recipe
    from limbeck.signals import SignalHeader

SAID = "rows/said.jsonl"


def said_logprobs(recipe: Recipe, info: TeacherInfo | TextTeacherInfo | None) -> int:
    """How many likeliest ids a teacher is asked to tell of each token that it writes; 0 where that is of no use.

    It is of use where the stored signals are a top k or the target at temperature 1 alone, and the teacher writes the
    rows itself.
    """
    from limbeck.runs.label import stored_want

    want = stored_want(recipe)
    if want is None or info is None or recipe.generator is None or "generate_top_k" not in info.capabilities:
        return 0
    if not want.primitives() <= {"top_k", "target"} or (want.top_k and want.temperatures != (1.0,)):
        return 0
    return max(want.top_k, 1) if recipe.generator.make().needs_teacher else 0


class SaidLog:
    """Appends what was said, by the position of its sample. `repaired`: see :class:`limbeck.files.AppendLog`.

    Append it before the sample's row: a kill then leaves no row without. The last line of a position is the one that
    counts.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self.repaired = self._log.repaired

    def append(self, position: int, said: Said) -> None:
        """Keep what was said of the answer of a sample. Raises SIGNAL_INVALID for what cannot be stored, DISK_FULL."""
        from limbeck.signals import Signal
        from limbeck.signals.codec import encode

        header = _header(int(said.top_k.ids.max(initial=0)) + 1, said.top_k.k, said.target is not None)
        packed = encode(Signal(0, len(said.ids), said.top_k, said.target), header)
        line = {
            "position": position,
            "vocab_size": header.vocab_size,
            "k": header.k,
            "ids": _text(said.ids.astype("<i4").tobytes()),
            **{name: _text(bytes(raw)) for name, raw in packed.fields.items()},
        }
        self._log.append(line, sync=False)

    def sync(self) -> None:
        """Put everything appended so far on disk."""
        self._log.sync()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._log.close()

    def __enter__(self) -> SaidLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_said(path: Path) -> Mapping[int, Said]:
    """What was said, by position; read and decoded when it is asked for. Empty where there is no such file.

    A torn last line is left out. Raises LOG_DAMAGED for other damage, then or later.
    """
    return _SaidFile(path)


class _SaidFile(Mapping[int, "Said"]):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = {int(line.get("position", -1)): place for place, line in placed_json_lines(path)}

    def __getitem__(self, position: int) -> Said:
        with self._path.open("rb") as file:
            file.seek(self._at[position])
            return _said(self._path, json.loads(file.readline()))

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _said(path: Path, line: dict[str, Any]) -> Said:
    import numpy as np

    from limbeck.interfaces import Said
    from limbeck.signals.codec import Packed, decode

    try:
        header = _header(line["vocab_size"], line["k"], "target" in line)
        ids = np.frombuffer(base64.b64decode(line["ids"], validate=True), "<i4").astype(np.int32)
        fields = {name: base64.b64decode(line[name], validate=True) for name in header.row_bytes}
        signal = decode(Packed(0, len(ids), fields), header)
    except (KeyError, TypeError, ValueError, LimbeckError) as error:
        hint = "generate the rows again, or take the line out: its row is then scored"
        problem = Problem(f"position {line.get('position')} is not what was written: {error}", str(path), hint=hint)
        raise LimbeckError(Reason.LOG_DAMAGED, problems=[problem]) from error
    assert signal.top_k is not None  # k is not 0
    return Said(ids, signal.top_k, signal.target)


def _header(vocab_size: int, k: int, target: bool) -> SignalHeader:
    """What the codec needs to know of a line; whose it is, the row says."""
    from limbeck.signals import SignalHeader

    return SignalHeader(
        vocab_size=max(vocab_size, k),
        k=k,
        temperatures=(1.0,),
        target=target,
        tokenizer_digest="",
        template_digest=None,
        weights_digest="",
        teacher="",
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
