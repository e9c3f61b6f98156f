"""The pre-flight: everything about a run that can be known before it, all problems in one go. Spends nothing.

It loads no weights and writes nothing into the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import Problem, Reason
from limbeck.files import existing_parent
from limbeck.interfaces import Generator, TeacherInfo, TextTeacherInfo
from limbeck.runs.contents import Contents, row_files
from limbeck.runs.estimates import Sizes, disk, memory, read_sizes, steps
from limbeck.runs.findings import Preflight, told_as_fault
from limbeck.runs.folder import check_folder
from limbeck.runs.label import holdout_want, stored_want
from limbeck.runs.stage import Record
from limbeck.runs.text_checks import cost_at_most, loss_problems
from limbeck.teachers.folder import check_layers, model_folder, text_config

if TYPE_CHECKING:
    from limbeck.data import Tokenizer
    from limbeck.plugins import Registry
    from limbeck.recipe import Recipe


def check(recipe: Recipe, registry: Registry, contents: Contents | None = None) -> Preflight:
    """Check files, rows, tokenizers, vocabulary, template, capabilities, temperatures, layers, folder, disk, memory.

    What is about a field of the recipe has the file, line and column of the recipe; what is about a row has the row's.
    """
    return _Check(recipe, registry, contents or Contents(recipe)).run()


class _Check:
    def __init__(self, recipe: Recipe, registry: Registry, contents: Contents) -> None:
        self.recipe = recipe
        self.registry = registry
        self.contents = contents
        self.gone = {str(use.resolved): use.field for use in recipe.paths if use.fault is not None}
        self.found = Preflight(told=set(self.gone))
        self.teacher: Any = None
        self.info: TeacherInfo | None = None  # of a teacher on token ids
        self.text: TextTeacherInfo | None = None  # of one that is asked with text
        self.prompt_tokens = 0
        self.tokenizer: Tokenizer | None = None
        self.figures: dict[str, float] = {}
        self.chat_rows = False

    def run(self) -> Preflight:
        found, place = self.found, self.recipe.place
        missing = sorted(self.recipe.missing_paths(), key=lambda problem: (problem.line or 0, problem.column or 0))
        found.problems += [(Reason.RECIPE_INVALID, problem) for problem in missing]
        parts: list[tuple[str, Callable[[], None]]] = [
            ("output", self._folder),
            ("", self._plugins),
            (self.recipe.teacher.field if self.recipe.teacher else "teacher", self._teacher),
            ("student", self._tokenizer),
            ("losses", self._capabilities),
            ("data", self._generator if self.recipe.generator else self._rows),
            ("student", self._templates),
            ("student", self._layers),
            ("student", self._sizes),
        ]
        for name, part in parts:
            with found.collect(name):
                part()
        found.problems = [(reason, place(problem)) for reason, problem in found.problems]
        found.warnings = [place(problem) for problem in found.warnings]
        found.rows = [place(problem) for problem in found.rows]
        return found

    def _misses(self, field: str) -> bool:
        """Whether a path that the plugin at `field` reads is not there, which has been told."""
        return any(name.startswith(f"{field}.") for name in self.gone.values())

    def _folder(self) -> None:
        output = self.recipe.output
        identity = check_folder(output)
        above = existing_parent(output)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            message = f"{output} cannot be made: {above} is {'read-only' if above.is_dir() else 'not a folder'}"
            self.found.refuse(Reason.FOLDER_NOT_OURS, message, field="output", hint="give another `output`")
        state = "new" if identity is None else f"goes on with run {identity.run_id}"
        done = [name for name in _names() if identity is not None and Record(output, name).complete]
        self.found.facts["output"] = {"folder": str(output), "state": state, "finished_stages": done}

    def _plugins(self) -> None:
        for failure in self.registry.failures:
            self.found.warnings.append(Problem(f"a plugin could not be used: {failure}"))

    def _teacher(self) -> None:
        if self.recipe.teacher is None:
            self.found.facts["teacher"] = None
            return
        if self._misses(self.recipe.teacher.field):
            return
        info: TeacherInfo | TextTeacherInfo | None = None
        with told_as_fault(self.recipe.teacher), self.found.collect(self.recipe.teacher.field, inside=True):
            self.teacher = self.recipe.teacher.make()
            info = self.teacher.info()
        if info is None:
            return
        if isinstance(info, TextTeacherInfo):
            self.text = info
            field = self.recipe.teacher.field
            self.found.warnings += [Problem(warning, field=field) for warning in info.warnings]
        else:
            self.info = info
        self.found.facts["teacher"] = {**asdict(info), "capabilities": sorted(info.capabilities)}
        if self.contents.teacher_folder is None and self.recipe.student.from_ is not None:
            message = f"{info.name} has no weights on this machine that a student could be made from"
            self.found.refuse(Reason.MODEL_INVALID, message, field="student.from", hint="name a model or a config")

    def _layers(self) -> None:
        spec, count = self.recipe.student, self.info.num_layers if self.info else None
        if spec.layers is not None:
            if count is not None:
                with self.found.collect("student.layers"):
                    check_layers(spec.layers, count)
            count = len(spec.layers)
        elif spec.model is not None:
            count = int(text_config(model_folder(spec.model)).num_hidden_layers)
        elif spec.config is not None:
            with self.found.collect("student.config"):
                count = _layers_of(spec.config)
        for loss in self.recipe.losses:
            for layer in loss.needs.student_layers:
                if count is not None and not -1 <= layer <= count:
                    message = f"layer {layer} is not one of the student's 0 … {count}, or −1 for the last"
                    self.found.refuse(Reason.MODEL_INVALID, message, field=f"{loss.field}.layers")

    def _tokenizer(self) -> None:
        folder = self.contents.tokenizer_folder
        if folder is None:
            hint = "name a model, or a tokenizer beside config"
            self.found.refuse(Reason.MODEL_INVALID, "the student has no tokenizer", field="student", hint=hint)
            return
        tokenizer = self.tokenizer = self.contents.loaded_tokenizer
        self.found.facts["tokenizer"] = {
            "folder": str(folder),
            "vocab_size": tokenizer.vocab_size,
            "digest": tokenizer.digest,
            "template_digest": tokenizer.template_digest,
            "bos_id": tokenizer.bos_id,
            "eos_ids": list(tokenizer.eos_ids),
        }
        info = self.info
        if info is None:
            return
        place = {"file": str(folder), "field": "student"}
        if info.tokenizer_digest != tokenizer.digest:
            message = "the student's tokenizer is not the teacher's: the same text gives other ids"
            hint = "take a student of the teacher's family, or train on the teacher's text: write its completions "
            hint += "to a file, name that in data.path, and take cross_entropy without teacher"
            self.found.refuse(Reason.TOKENIZER_MISMATCH, message, hint=hint, **place)
        elif tokenizer.vocab_size > info.vocab_size:
            message = f"the tokenizer has {tokenizer.vocab_size:,} ids, the teacher's vocabulary is {info.vocab_size:,}"
            self.found.refuse(Reason.TOKENIZER_MISMATCH, message, **place)
        if info.bos_id != tokenizer.bos_id:
            message = f"the teacher's texts begin with id {info.bos_id}, these will begin with {tokenizer.bos_id}"
            self.found.warnings.append(Problem(message, field="data.bos", hint="`bos` says which"))

    def _capabilities(self) -> None:
        from limbeck.recipe import wanted
        from limbeck.teachers.requests import check_score

        if self.text is not None:
            self.found.problems += [(Reason.CAPABILITY_MISSING, one) for one in loss_problems(self.recipe, self.text)]
        if self.info is None:
            return
        want, stored = wanted(self.recipe.losses), stored_want(self.recipe)
        self.found.facts["signals"] = {
            "source": self.recipe.signals.source,
            "want": None if not want.primitives() else asdict(want),
            "stored": None if stored is None else asdict(stored),
        }
        for loss in self.recipe.losses:
            if (asked := wanted([loss])).primitives():
                with self.found.collect(loss.field, inside=True):
                    self.teacher.score([], asked)  # begins nothing, and knows best what to do about a refusal
                    check_score(self.info, [], asked)
        if (held := holdout_want(self.recipe, self.info)) is not None:
            with self.found.collect("data.holdout", inside=True):
                self.teacher.score([], held)
                check_score(self.info, [], held)
        bos, most = self.info.bos_id is not None, self.info.max_length
        if self.recipe.data.max_length + bos > most:
            more = ", and a leading <bos> comes on top" if bos else ""
            message = f"max_length is {self.recipe.data.max_length}{more}; the teacher reads at most {most}"
            hint = f"set it to {most - bos} or less"
            self.found.warnings.append(Problem(message, field="data.max_length", hint=hint))

    def _generator(self) -> None:
        bound = self.recipe.generator
        assert bound is not None
        can = self.info is None or "generate" in self.info.capabilities
        if self._misses(bound.field):
            return
        with told_as_fault(bound):
            generator: Generator = bound.make()
            if generator.needs_teacher and self.recipe.teacher is None:
                names = list(self.recipe.candidates)
                hint = f"pick one of teachers, e.g. teacher: {names[0]}" if names else "add teacher:"
                self.found.refuse(
                    Reason.CAPABILITY_MISSING, "this generator needs a teacher", field=bound.field, hint=hint
                )
            elif generator.needs_teacher and self.info is not None and not can:
                message = f"teacher {self.info.name} cannot write text"
                self.found.refuse(Reason.CAPABILITY_MISSING, message, field=bound.field)
            files = [Path(name) for name in generator.inputs() if name.endswith(".jsonl")]
            with self.found.collect(bound.field):
                count = generator.count()
                self.found.facts["data"] = {"generator": bound.name, "samples": count}
                if count is not None:
                    self._too_many_held_out(count)
        self._prompts(files)
        if self.text is not None and generator.needs_teacher and self.tokenizer is not None:
            with self.found.collect(bound.field):
                self.found.facts["generation"] = cost_at_most(generator, self.prompt_tokens, self.text)

    def _rows(self) -> None:
        from limbeck.data import prepare, read_rows

        recipe, spec = self.recipe, self.recipe.data
        files = row_files(recipe)
        if self.text is not None:
            message = f"teacher {self.text.name} is asked nothing: the rows are there, and it answers with text alone"
            hint = "leave it out, or let data.generator ask it"
            self.found.warnings.append(Problem(message, field="teacher", hint=hint))
        there = [path for path in files if str(path) not in self.gone]
        rows, problems = read_rows(there)
        self.chat_rows = any("messages" in row.value for row in rows)
        self.found.facts["data"] = {"files": [str(path) for path in files], "rows": len(rows)}
        pairs = [loss for loss in recipe.losses if loss.needs.pairs]
        if pairs and rows and not any(row.format == "preference" for row in rows):
            message = f"{pairs[0].name} needs preference rows (prompt, chosen, rejected); there are none"
            self.found.refuse(Reason.DATA_INVALID, message, field=pairs[0].field)
        lines = {(problem.file, problem.line) for problem in problems if problem.line}
        if there != files or self._too_many_held_out(len(rows) + len(lines)):
            spec = spec.model_copy(update={"holdout": 0})  # what the rows hold can be told, not whether it is enough
        if self.tokenizer is None or not there:
            self.found.problems += [(Reason.DATA_INVALID, problem) for problem in problems]
            return
        prepared = prepare(rows, problems, self.tokenizer, spec)
        self.figures = dict(prepared.figures)
        self.found.facts["data"] |= prepared.figures
        self.found.rows += [*prepared.bad, *prepared.notes]
        longest = int(prepared.figures.get("longest", 0))
        if self.info is not None and longest > self.info.max_length:
            message = f"the longest sequence has {longest} tokens, the teacher reads at most {self.info.max_length}"
            hint = f"set data.max_length to {self.info.max_length - 1} or less"
            self.found.refuse(Reason.DATA_INVALID, message, field="data.max_length", hint=hint)

    def _too_many_held_out(self, rows: int) -> bool:
        """Refuse a number of held-out rows that leaves none of `rows` to train on."""
        holdout = self.recipe.data.holdout
        if not 1 <= holdout >= rows > 0:
            return False
        there = "is only 1 row" if rows == 1 else f"are only {rows:,} rows"
        message = f"holds out {holdout:,}, but there {there}: none is left to train on"
        self.found.refuse(Reason.DATA_INVALID, message, field="data.holdout", hint=f"allowed is up to {rows - 1:,}")
        return True

    def _prompts(self, files: list[Path]) -> None:
        """Encode what a generator will ask, so that no answer is paid for that could not be trained."""
        from limbeck.data import prompt_of, read_rows

        if self.tokenizer is None:
            return
        rows, _ = read_rows(files)  # its own rules are the generator's to tell
        own = self.recipe.data.max_length + (self.tokenizer.bos_id is not None)
        for row in rows:
            place: dict[str, Any] = {"file": row.source, "line": row.line}
            prompt = prompt_of(row)
            if not isinstance(prompt, str):
                self.chat_rows = True
                if not self.tokenizer.has_template:
                    hint = "name a Jinja file in data.chat_template, or write prompts as text"
                    message = "a prompt of chat messages, but the tokenizer has no chat template"
                    self.found.refuse(Reason.DATA_INVALID, message, hint=hint, **place)
                    return
            with self.found.collect("data"):
                length = len(self.tokenizer.encode_prompt(prompt))
                self.prompt_tokens += length
                if length >= own:
                    message = f"the prompt has {length} tokens, data.max_length is {self.recipe.data.max_length}"
                    hint = "nothing of an answer would be left to train; raise it, or shorten the prompt"
                    problem = Problem(message, hint=hint, **place)
                    if self.recipe.data.on_bad_row == "error":
                        self.found.problems.append((Reason.DATA_INVALID, problem))
                    else:
                        self.found.warnings.append(problem)

    def _templates(self) -> None:
        if self.info is None or self.tokenizer is None or self.recipe.data.chat_template is not None:
            return
        if self.info.template_digest != self.tokenizer.template_digest:
            message = "the student's chat template is not the teacher's"
            hint = "name the one to use in data.chat_template"
            problem = Problem(message, file=str(self.contents.tokenizer_folder), field="student", hint=hint)
            if self.chat_rows or self.recipe.generator is not None:
                self.found.problems.append((Reason.TOKENIZER_MISMATCH, problem))
            else:
                self.found.warnings.append(problem)

    def _sizes(self) -> None:
        if self.recipe.student.from_ is not None and self.contents.student_folder is None:
            return  # that the teacher has no weights to take has been told
        if any(problem.field == "student.config" for _, problem in self.found.problems):
            return
        sizes: Sizes = read_sizes(self.contents)
        parameters = {"student": sizes.student, "teacher": self.info.parameters if self.info else None}
        self.found.facts["parameters"] = parameters
        if self.figures:
            self.found.facts["training"] = steps(self.recipe, self.figures)
        self.found.facts["memory"] = memory(self.recipe, sizes, self.info)
        estimate = disk(self.recipe, sizes, self.info, self.figures)
        self.found.facts["disk"] = estimate
        need, free = estimate["need_bytes"], estimate["free_bytes"]
        if need > free:
            message = f"the run needs about {need:,} bytes of disk, {free:,} are free"
            hint = "free some space, or give `output` on another disk; a run that fills the disk can go on later"
            self.found.warnings.append(Problem(message, field="output", hint=hint))


def _layers_of(config: dict[str, Any] | str) -> int | None:
    """Layers of a student from scratch; None where they are its family's default. Raises MODEL_INVALID."""
    if isinstance(config, str):
        return int(text_config(Path(config)).num_hidden_layers)
    layers = config.get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def _names() -> tuple[str, ...]:
    return ("generate", "prepare", "label", "train", "twin", "evaluate", "report")
