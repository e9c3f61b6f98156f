"""A process that has entered the sandbox: what it can still do, and what it cannot, done in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.hosting import sandbox

pytestmark = pytest.mark.skipif(not sandbox.version(), reason="this kernel has no Landlock")

HEAD = """
import json, os, sys
from pathlib import Path
from limbeck.hosting import sandbox
root, outside = Path(sys.argv[1]), Path(sys.argv[2])
assert sandbox.enter(root, [Path(path) for path in sys.argv[3:]])
def tried(act):
    try:
        return act()
    except OSError as error:
        return type(error).__name__
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("SECRET")
    return root.resolve()


def inside(root: Path, code: str, *read: Path, **environment: str) -> Any:
    """What `code` prints, as JSON, in a process that has entered the sandbox first."""
    command = [sys.executable, "-c", HEAD + code, str(root), str(root.parent / "outside"), *map(str, read)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_lies_outside_is_neither_read_nor_written_whatever_leads_there(root):
    code = """
(root / "link").symlink_to(outside / "secret")
(root / "folder").symlink_to(outside)
acts = [
    lambda: (outside / "secret").read_text(),
    lambda: (root / "link").read_text(),
    lambda: (root / "folder" / "secret").read_text(),
    lambda: os.listdir(outside),
    lambda: (outside / "new").write_text("x"),
    lambda: (root / "folder" / "new").write_text("x"),
    lambda: (outside / "secret").rename(root / "mine"),
    lambda: os.link(outside / "secret", root / "hard"),
    lambda: os.truncate(outside / "secret", 0),
    lambda: (outside / "secret").unlink(),
    lambda: Path("/etc/shadow").read_text(),
    lambda: Path("/proc/1/root/etc/hostname").read_text(),
    lambda: os.listdir("/"),
    lambda: os.mkfifo(outside / "fifo"),
]
print(json.dumps([tried(act) for act in acts]))
"""
    assert set(inside(root, code)) <= {"PermissionError", "OSError"}  # the second: a rename or link over the border
    assert (root.parent / "outside" / "secret").read_text() == "SECRET"
    assert os.listdir(root.parent / "outside") == ["secret"]


def test_a_program_that_it_starts_cannot_leave_either(root):
    code = """
import subprocess
read = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(outside / "secret")]
done = subprocess.run(read, capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout, "PermissionError" in done.stderr]))
"""
    assert inside(root, code) == [1, "", True]


def test_the_workspace_can_be_used_in_full(root):
    code = """
(root / "a" / "b").mkdir(parents=True)
(root / "a" / "b" / "f").write_text("one")
(root / "a" / "b" / "f").rename(root / "g")
os.link(root / "g", root / "h")
os.truncate(root / "g", 1)
(root / "a").rename(root / "z")
(root / "z" / "b").rmdir()
import fcntl, mmap, socket, sqlite3, tempfile, multiprocessing.shared_memory
with open(root / "g", "r+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    mmap.mmap(file.fileno(), 1).close()
with sqlite3.connect(root / "x.sqlite") as base:
    base.execute("pragma journal_mode=wal"); base.execute("create table t (a)")
with tempfile.NamedTemporaryFile() as file:
    where = file.name
multiprocessing.shared_memory.SharedMemory(create=True, size=9).unlink()
open("/dev/null", "w").write("x"); open("/dev/urandom", "rb").read(4)
server = socket.create_server(("127.0.0.1", 0)); socket.create_connection(server.getsockname())
print(json.dumps([(root / "h").read_text(), where, os.environ["HOME"], os.path.expanduser("~")]))
"""
    text, where, *homes = inside(root, code)
    assert text == "o"
    assert Path(where).is_relative_to(root / ".limbeck" / "tmp")
    assert set(homes) == {str(root / ".limbeck" / "home")}


def test_folders_that_may_be_read_are_read_alone(root, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    (more / "rows").write_text("rows")
    (more / "out").symlink_to(root.parent / "outside")
    code = """
more = Path(sys.argv[3])
acts = [lambda: (more / "rows").read_text(), lambda: (more / "out" / "secret").read_text(),
        lambda: (more / "rows").write_text("x"), lambda: (more / "new").mkdir()]
print(json.dumps([tried(act) for act in acts]))
"""
    assert inside(root, code, more) == ["rows", *["PermissionError"] * 3]


def test_what_training_needs_works_and_models_of_the_hub_come_from_the_operator_s_cache_alone(root, tmp_path, data):
    import shutil

    hub = tmp_path / "hub"
    snapshot = hub / "models--org--tok" / "snapshots" / "abc"
    shutil.copytree(data / "tok_a", snapshot)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (hub / "models--org--tok" / "refs").mkdir()
    (hub / "models--org--tok" / "refs" / "main").write_text("abc")
    code = """
import torch, transformers, tokenizers, multiprocessing
from limbeck.plugins import load_plugins
kinds = sorted({entry.kind for entry in load_plugins().entries})
tokenizer = transformers.AutoTokenizer.from_pretrained("org/tok")
torch.save(torch.ones(3), root / "t.pt")
loaded = torch.load(root / "t.pt", weights_only=True).sum().item()
worker = multiprocessing.get_context("spawn").Process(target=print, args=("",), kwargs={"end": ""})
worker.start(); worker.join()
try:
    transformers.AutoTokenizer.from_pretrained("org/other")
    other = "found"
except OSError:
    other = "not found"
print(json.dumps([kinds, len(tokenizer) > 100, loaded, worker.exitcode, other]))
"""
    found = inside(root, code, HF_HUB_CACHE=str(hub), HF_HUB_OFFLINE="0", LIMBECK_TRUST_REMOTE_CODE="1")
    assert found == [["generator", "loss", "scheduler", "teacher"], True, 3.0, 0, "not found"]


def test_remote_code_of_a_model_is_not_trusted_inside(root):
    code = """
print(json.dumps(os.environ.get("LIMBECK_TRUST_REMOTE_CODE")))
"""
    assert inside(root, code, LIMBECK_TRUST_REMOTE_CODE="1") is None


def test_a_link_that_is_swapped_between_the_check_and_the_use_leads_nowhere(root, data):
    import shutil

    shutil.copytree(data / "tok_a", root / "tok")
    (root / "inside").mkdir()
    (root / "inside" / "secret").write_text("{}\n")
    (root / "lent").symlink_to("inside")
    code = """
from limbeck.hosting.workspace import Workspace
from limbeck.plugins import load_plugins
text = '''
teacher: {plugin: echo, tokenizer: tok}
student: {config: {model_type: llama}}
data: {path: lent/secret}
losses: [{plugin: forward_kl, top_k: 4}]
output: runs/a
'''
recipe = Workspace(root).load(text, load_plugins(), None)
rows = root / "lent" / "secret"
before = rows.read_text()
(root / "lent").unlink()
(root / "lent").symlink_to(outside)
print(json.dumps([before, tried(rows.read_text)]))
"""
    assert inside(root, code) == ["{}\n", "PermissionError"]


def test_temporary_files_of_processes_that_were_killed_are_removed_by_the_next(root):
    shelf = root / ".limbeck" / "tmp"
    (shelf / "99999999" / "deep").mkdir(parents=True)
    (shelf / str(os.getpid())).mkdir()
    assert (
        inside(root, "print(json.dumps(sorted(os.listdir(root / '.limbeck' / 'tmp'), key=int)[-1] == '99999999'))")
        is False
    )
    assert (shelf / str(os.getpid())).is_dir()


def test_without_landlock_the_process_goes_on_and_is_told(root, monkeypatch):
    code = HEAD.replace("assert sandbox.enter(", "sandbox.version = lambda: 0\nassert not sandbox.enter(")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code + "print(tried(lambda: (outside / 'secret').read_text()))",
            str(root),
            str(root.parent / "outside"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "SECRET"


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_only_rights_that_the_kernel_s_version_knows_are_asked_for(root, version, monkeypatch):
    asked = []
    monkeypatch.setattr(sandbox, "version", lambda: version)
    monkeypatch.setattr(sandbox, "_furnish", lambda workspace: None)
    monkeypatch.setattr(sandbox, "_restrict", lambda handled, rules: asked.append(handled) or True)
    assert sandbox.enter(root, [])
    bits = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}[version]
    assert asked == [(1 << bits) - 1]
