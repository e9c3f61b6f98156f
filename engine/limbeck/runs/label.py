"""Stage label: the teacher's signal of every sequence, into signals/train and signals/holdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, Teacher, TeacherInfo, TextTeacherInfo, Want
from limbeck.runs.contents import Contents
from limbeck.runs.prepare import HOLDOUT, TRAIN
from limbeck.runs.said import said_logprobs
from limbeck.runs.stage import Figures, Record, Run, in_bursts

if TYPE_CHECKING:
    from limbeck.data import Tokenizer, TokenSequence
    from limbeck.recipe import Recipe
    from limbeck.runs.spoken import Spoken
    from limbeck.signals import Signal, SignalHeader, SignalStore, SignalWriter

ASK_TOKENS = 16_384  # tokens of a group, asked for at once: enough for full batches, few enough that a stop is near
UNBOUNDED = 1 << 62  # a shard is a group, so the writer must not end one by itself
EVALUATION_TOP_K = 64  # at least: a recipe with a small top_k must not be judged on a small support


def stored_want(recipe: Recipe) -> Want | None:
    """What the store of the training rows holds; None where training reads no stored signal."""
    from limbeck.recipe import wanted

    want = wanted(recipe.losses)
    if recipe.signals.source != "cached" or not want.primitives():
        return None
    return want


def holdout_want(recipe: Recipe, info: TeacherInfo | TextTeacherInfo, told: int = 0) -> Want | None:
    """What the evaluation needs of the held-out rows: a support at temperature 1 and the target, as far as there.

    Of a teacher that is asked with text, what it `told` of each token while it wrote them.
    """
    from limbeck.recipe import wanted

    if isinstance(info, TextTeacherInfo):
        return Want(top_k=told, target=True) if told and recipe.data.holdout else None
    if info.capabilities.isdisjoint({"top_k", "target"}) or not recipe.data.holdout:
        return None
    told = min(EVALUATION_TOP_K, info.vocab_size, info.max_top_k or info.vocab_size)
    most = max(wanted(recipe.losses).top_k, told)
    top_k = most if "top_k" in info.capabilities else 0
    return Want(top_k=top_k, temperatures=(1.0,), target="target" in info.capabilities)


class Label:
    """Scores the rows that are not stored yet, group by group, each a shard: a kill costs the group at work.

    Groups and shards follow from the rows alone, so that whatever is scored again gives the same bytes.
    """

    name, version = "label", 1
    outputs: tuple[str, ...] = ("signals",)
    work: tuple[str, ...] = ()
    after: tuple[str, ...] = ("prepare",)

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        want = stored_want(contents.recipe)
        return {"teacher": contents.teacher, "want": None if want is None else asdict(want)}

    def whole(self, folder: Path) -> bool:
        """See :class:`limbeck.runs.stage.Sealed`."""
        from limbeck.signals import SignalStore

        try:
            stores = [SignalStore(header.parent) for header in sorted((folder / "signals").glob("*/header.json"))]
        except LimbeckError:
            return False
        size = sum(store.bytes for store in stores)
        return size == Record(folder, self.name).figures.get("bytes") and not any(store.verify() for store in stores)

    def run(self, run: Run) -> Figures:
        from limbeck.data import read_sequences
        from limbeck.runs.spoken import Spoken
        from limbeck.signals import SignalStore, SignalWriter

        tokenizer, text = run.contents.loaded_tokenizer, run.contents.text_teacher
        info = text or run.desk.teacher.info()
        told = said_logprobs(run.recipe, info)
        wants = {TRAIN: stored_want(run.recipe), HOLDOUT: holdout_want(run.recipe, info, told)}
        if text is not None and not told:  # it answers with text alone
            wants = {}
        splits = {split: read_sequences(run.path / split) for split, want in wants.items() if want is not None}
        tokens = sum(sequence.n for sequences in splits.values() for sequence in sequences)
        figures: Figures = {"tokens": tokens, "saturated": 0, "bytes": 0}
        (run.path / "signals").mkdir(exist_ok=True)
        with ExitStack() as stack:
            parts: list[_Part] = []
            for split, sequences in splits.items():
                want = wants[split]
                assert want is not None, "splits that nothing is asked about are left out"
                spoken = Spoken(run.path, sequences, want) if told else None
                header = _header(info, tokenizer, want, said=told >= max(want.top_k, 1))
                writer = SignalWriter(folder_of(run.path, split), header, shard_bytes=UNBOUNDED)
                parts.append(_Part(sequences, want, stack.enter_context(writer), spoken))
            for message in (message for part in parts for message in part.writer.repaired):
                run.log.warn("STORE_MENDED", message)
            ready = sum(s.n for part in parts for s in part.sequences if s.index in part.writer.done)
            with run.progress("tokens", tokens, ready) as advance:
                for part in parts:
                    _fill(run, part, advance)
        for split, sequences in splits.items():
            store = SignalStore(folder_of(run.path, split))
            figures["bytes"] += store.bytes
            figures["saturated"] += _saturated(store, sequences)
        if told:
            figures |= _said(parts)
        return figures


def folder_of(run_folder: Path, split: str) -> Path:
    """Where the signals of a split lie."""
    return run_folder / "signals" / Path(split).stem


def checked_teacher(run: Run, tokenizer: Tokenizer) -> Teacher:
    """The run's teacher, after its self-check: a shift by one must not go unseen."""
    from limbeck.teachers.selfcheck import self_check

    if not run.desk.checked:
        run.desk.ask(self_check(run.desk.teacher, tokenizer))
        run.desk.checked = True
    return run.desk.teacher


@dataclass(frozen=True)
class _Part:
    """A split at work: its sequences, what is wanted of them, where it goes, what was said of them."""

    sequences: Sequence[TokenSequence]
    want: Want
    writer: SignalWriter
    spoken: Spoken | None


def _header(info: TeacherInfo | TextTeacherInfo, tokenizer: Tokenizer, want: Want, *, said: bool) -> SignalHeader:
    """What the store holds. `said`: some of it may come from what was said, whose tails are 1 − Σ."""
    from limbeck.signals import SignalHeader

    text = isinstance(info, TextTeacherInfo)
    return SignalHeader(
        vocab_size=tokenizer.vocab_size if isinstance(info, TextTeacherInfo) else info.vocab_size,
        k=want.top_k,
        temperatures=want.temperatures,
        target=want.target,
        tokenizer_digest=tokenizer.digest,
        template_digest=tokenizer.template_digest,
        weights_digest=info.digest if isinstance(info, TextTeacherInfo) else info.weights_digest,
        teacher=info.name,
        tail_exact=not isinstance(info, TextTeacherInfo) and info.tail_exact and not said,
        partial=text,
    )


def _fill(run: Run, part: _Part, advance: Callable[[int], None]) -> None:
    """Store what is not stored yet: what was said as it was, and what the teacher answers of the others."""
    tell = in_bursts(advance)

    async def ask(teacher: Teacher, group: Sequence[TokenSequence]) -> dict[int, Signal]:
        items = [ScoreItem(item_id=s.index, ids=s.ids, first_row=s.first_row, n=s.n, seed=s.index) for s in group]
        found: dict[int, Signal] = {}
        async with aclosing(teacher.score(items, part.want)) as answers:
            async for item_id, signal in answers:
                found[item_id] = signal
                tell(signal.n)
                if run.stop() is not None:
                    break
        return found

    for group in _groups(sequence for sequence in part.sequences if sequence.index not in part.writer.done):
        found = {} if part.spoken is None else _spoken(part.spoken, group, part.writer.header)
        rest = [sequence for sequence in group if sequence.index not in found]
        advance(sum(sequence.n for sequence in group if sequence.index in found))
        if rest:
            teacher = checked_teacher(run, run.contents.loaded_tokenizer)
            found |= run.desk.ask(ask(teacher, rest))
        if run.stop() is None or len(found) == len(group):
            _add(part.writer, group, found)
            part.writer.commit()
        run.check_stop()


def _spoken(spoken: Spoken, group: Sequence[TokenSequence], header: SignalHeader) -> dict[int, Signal]:
    """The signals of a group that were said: all of them, as far as they go, or the whole ones."""
    if header.partial:
        return {sequence.index: spoken.part(sequence) for sequence in group}
    signals = ((sequence.index, spoken.whole(sequence)) for sequence in group)
    return {index: signal for index, signal in signals if signal is not None}


def _said(parts: Sequence[_Part]) -> Figures:
    """How many sequences were said of, and trained tokens that nothing is known of. Raises TOKENIZER_MISMATCH.

    A teacher whose tokens are never those of the student says nothing: its losses would train nothing.
    """
    figures: Figures = {"said": 0, "unsaid_tokens": 0}
    for part in parts:
        assert part.spoken is not None, "something was asked for while the rows were written"
        tokens = 0
        for sequence in part.sequences:
            found = _spoken(part.spoken, [sequence], part.writer.header).get(sequence.index)
            figures["said"] += found is not None and found.n > 0
            tokens += len(sequence.kept)
            if found is not None and found.partial:
                figures["unsaid_tokens"] += int((sequence.kept >= found.first_row + found.n).sum())
        if part is parts[0] and 0 < tokens == figures["unsaid_tokens"]:  # of the rows that are trained
            message = "nothing was said of any trained token: the teacher's tokens are not those that the student reads"
            hint = "take a student of the teacher's family, or train on its text: {plugin: cross_entropy}"
            raise LimbeckError(Reason.TOKENIZER_MISMATCH, problems=[Problem(message, field="student", hint=hint)])
    return figures


def _add(writer: SignalWriter, group: Sequence[TokenSequence], found: Mapping[int, Signal]) -> None:
    """Keep a whole group or nothing: asked again in other company, a sequence's last bits could be others."""
    missing = [sequence for sequence in group if sequence.index not in found]
    if missing:
        problems = [Problem("the teacher gave no signal", file=s.source, line=s.line) for s in missing]
        raise LimbeckError(Reason.SCORING_FAILED, problems=problems)
    for sequence in group:
        writer.add(sequence, found[sequence.index])


def _groups(sequences: Iterator[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """What is asked at once and stored as one shard. A resumed run, or one that lost a shard, asks the same groups."""
    group: list[TokenSequence] = []
    tokens = 0
    for sequence in sequences:
        group.append(sequence)
        tokens += len(sequence.ids)
        if tokens >= ASK_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _saturated(store: SignalStore, sequences: Sequence[TokenSequence]) -> int:
    """How many stored entries hit the limit of their code. Reads every signal: each must be there, and fit.

    In a partial store such entries stand for ids of which nothing was told, and are not counted.
    """
    found = [top_k.saturated for top_k in (store.get(sequence).top_k for sequence in sequences) if top_k is not None]
    return 0 if store.header.partial else sum(found)
