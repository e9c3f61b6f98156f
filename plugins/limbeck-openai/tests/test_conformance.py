"""The teacher `openai` is a text teacher, by every api, whole and streamed."""

import subprocess
import sys

import pytest

from limbeck.interfaces import TextPrompt
from limbeck.testing.text_teachers import TextTeacherConformance

APIS = [{"api": api, "stream": stream} for api in ("chat", "responses", "completions") for stream in (False, True)]


class TestEveryApi(TextTeacherConformance):
    @pytest.fixture(params=APIS, ids=lambda options: options["api"] + "-streamed" * options["stream"])
    def options(self, request):
        return request.param

    @pytest.fixture
    def teacher(self, serve, make, options):
        return make(serve(), logprobs=5, price={"input": 1.0, "output": 2.0}, concurrency=2, **options)

    @pytest.fixture
    def prompts(self, options):
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]
        second = "Name a river." if options["api"] == "completions" else chat
        return [TextPrompt(20, "The river Po rises in"), TextPrompt(21, second), TextPrompt(22, "Où coule le 🜁 ?")]


class TestWithoutLogprobsAndPrices(TextTeacherConformance):
    @pytest.fixture
    def teacher(self, serve, make):
        return make(serve())


def test_it_is_found_by_its_entry_point_and_imports_no_client_before_it_is_made():
    code = (
        "import sys\n"
        "from importlib.metadata import entry_points\n"
        "module = next(e for e in entry_points(group='limbeck.plugins') if e.name == 'openai').load()\n"
        "plugin, = module.limbeck_teachers()\n"
        "config = plugin.config(model='small')\n"
        "heavy = {'openai', 'httpx', 'httpx2', 'sqlite3', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert plugin.factory(config).info().model == 'small'\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
