"""Stage label: the teacher's signal of every sequence, into signals/train and signals/holdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, Teacher, TeacherInfo, Want
from limbeck.runs.contents import Contents
from limbeck.runs.prepare import HOLDOUT, TRAIN
from limbeck.runs.stage import Figures, Record, Run, in_bursts

if TYPE_CHECKING:
    from limbeck.data import Tokenizer, TokenSequence
    from limbeck.recipe import Recipe
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


def holdout_want(recipe: Recipe, info: TeacherInfo) -> Want | None:
    """What the evaluation needs of the held-out rows: a support at temperature 1 and the target, as far as there."""
    from limbeck.recipe import wanted

    if info.capabilities.isdisjoint({"top_k", "target"}) or not recipe.data.holdout:
        return None
    most = max(wanted(recipe.losses).top_k, min(EVALUATION_TOP_K, info.vocab_size))
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
        from limbeck.signals import SignalStore

        if run.contents.text_teacher is not None:  # what it tells of tokens, it told when it wrote them
            (run.path / "signals").mkdir(exist_ok=True)
            return {}
        tokenizer = run.contents.loaded_tokenizer
        teacher = checked_teacher(run, tokenizer)
        wants = {TRAIN: stored_want(run.recipe), HOLDOUT: holdout_want(run.recipe, teacher.info())}
        splits = {split: read_sequences(run.path / split) for split, want in wants.items() if want is not None}
        tokens = sum(sequence.n for sequences in splits.values() for sequence in sequences)
        figures: Figures = {"tokens": tokens, "saturated": 0, "bytes": 0}
        (run.path / "signals").mkdir(exist_ok=True)
        with ExitStack() as stack:
            writers = {split: stack.enter_context(_writer(run, split, teacher, tokenizer, wants)) for split in splits}
            for message in (message for writer in writers.values() for message in writer.repaired):
                run.log.warn("STORE_MENDED", message)
            ready = sum(s.n for split, writer in writers.items() for s in splits[split] if s.index in writer.done)
            with run.progress("tokens", tokens, ready) as advance:
                for split, writer in writers.items():
                    _score(run, teacher, splits[split], wants[split], writer, in_bursts(advance))
        for split, sequences in splits.items():
            store = SignalStore(folder_of(run.path, split))
            figures["bytes"] += store.bytes
            figures["saturated"] += _saturated(store, sequences)
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


def _writer(
    run: Run, split: str, teacher: Teacher, tokenizer: Tokenizer, wants: Mapping[str, Want | None]
) -> SignalWriter:
    from limbeck.signals import SignalWriter

    want = wants[split]
    assert want is not None, "splits that nothing is asked about are left out"
    return SignalWriter(folder_of(run.path, split), _header(teacher, tokenizer, want), shard_bytes=UNBOUNDED)


def _header(teacher: Teacher, tokenizer: Tokenizer, want: Want) -> SignalHeader:
    from limbeck.signals import SignalHeader

    info = teacher.info()
    return SignalHeader(
        vocab_size=info.vocab_size,
        k=want.top_k,
        temperatures=want.temperatures,
        target=want.target,
        tokenizer_digest=tokenizer.digest,
        template_digest=tokenizer.template_digest,
        weights_digest=info.weights_digest,
        teacher=info.name,
        tail_exact=info.tail_exact,
    )


def _score(
    run: Run,
    teacher: Teacher,
    sequences: Sequence[TokenSequence],
    want: Want | None,
    writer: SignalWriter,
    advance: Any,
) -> None:
    """Ask for what is not stored yet."""
    assert want is not None

    async def ask(group: Sequence[TokenSequence]) -> dict[int, Signal]:
        items = [ScoreItem(item_id=s.index, ids=s.ids, first_row=s.first_row, n=s.n, seed=s.index) for s in group]
        found: dict[int, Signal] = {}
        async with aclosing(teacher.score(items, want)) as answers:
            async for item_id, signal in answers:
                found[item_id] = signal
                advance(signal.n)
                if run.stop() is not None:
                    break
        return found

    for group in _groups(sequence for sequence in sequences if sequence.index not in writer.done):
        found = run.desk.ask(ask(group))
        if run.stop() is None or len(found) == len(group):
            _add(writer, group, found)
            writer.commit()
        run.check_stop()


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
    """How many stored entries hit the limit of their code. Reads every signal: each must be there, and fit."""
    found = (store.get(sequence).top_k for sequence in sequences)
    return sum(top_k.saturated for top_k in found if top_k is not None)
