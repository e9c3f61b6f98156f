"""The teacher `echo` is a teacher, is deterministic and needs no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Teacher, Want
from limbeck.teachers.selfcheck import self_check
from limbeck.testing.teachers import TeacherConformance, ask, completions, scores
from limbeck_echo.config import EchoConfig
from limbeck_echo.teacher import EchoTeacher

TOKENIZER = Path(__file__).parents[3] / "tests" / "data" / "tok_a"


class TestEcho(TeacherConformance):
    @pytest.fixture
    def teacher(self) -> Teacher:
        return EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER)))


def test_it_passes_the_self_check():
    ask(self_check(EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER))), Tokenizer.load(TOKENIZER)))


def test_its_numbers_never_change():
    ids = np.array([2, 104, 105, 33, 104], np.int32)
    teacher = EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER)))
    signal = ask(scores(teacher, [ScoreItem(0, ids, 1, 3)], Want(target=True)))[0]
    np.testing.assert_allclose(signal.target, EXPECTED, atol=1e-5)


EXPECTED = [-8.602568, -9.047888, -8.037889]


def test_it_repeats_words_of_the_prompt():
    tokenizer = Tokenizer.load(TOKENIZER)
    teacher = EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER)))
    prompt = tokenizer.encode_prompt("abcabc")
    answer = ask(completions(teacher, [Prompt(0, prompt)], Sampling(max_new_tokens=30)))[0]
    assert len(answer.ids) > 0
    assert set(tokenizer.decode(answer.ids)) <= set("abc")


def test_another_seed_is_another_model():
    one, two = (EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER), seed=seed)) for seed in (0, 1))
    assert one.info().weights_digest != two.info().weights_digest
    item = ScoreItem(0, np.array([2, 9, 8], np.int32), 0, 2)
    first, second = (ask(scores(teacher, [item], Want(full=True)))[0].full for teacher in (one, two))
    assert np.abs(first - second).max() > 0.1


def test_a_larger_vocabulary_than_the_tokenizer_may_be_played():
    teacher = EchoTeacher(EchoConfig(tokenizer=str(TOKENIZER), vocab_size=400))
    signal = ask(scores(teacher, [ScoreItem(0, np.array([2, 399], np.int32), 0, 1)], Want(full=True)))[0]
    assert signal.full.shape == (1, 400)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(LimbeckError) as caught:
        EchoTeacher(EchoConfig(tokenizer=str(tmp_path / "none"))).info()
    assert caught.value.reason is Reason.MODEL_INVALID


def test_it_is_found_by_its_entry_point_and_works_where_torch_is_not_installed():
    code = (
        "import asyncio, sys, numpy as np\n"
        "from importlib.machinery import PathFinder\n"
        "plain = PathFinder.find_spec\n"
        "def without_torch(name, path=None, target=None):\n"
        "    return None if name.partition('.')[0] == 'torch' else plain(name, path, target)\n"
        "PathFinder.find_spec = without_torch\n"
        "from importlib.metadata import entry_points\n"
        "module = next(e for e in entry_points(group='limbeck.plugins') if e.name == 'echo').load()\n"
        "plugin = next(p for p in module.limbeck_teachers() if p.name == 'echo')\n"
        f"teacher = plugin.factory(plugin.config(tokenizer={str(TOKENIZER)!r}))\n"
        "from limbeck.interfaces import *\n"
        "async def go():\n"
        "    items = [ScoreItem(0, np.array([2, 9, 8], np.int32), 0, 2)]\n"
        "    return [a async for a in teacher.score(items, Want(top_k=2))]\n"
        "assert len(asyncio.run(go())) == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
