"""Reading rows, and the room itself, import nothing heavy."""

from __future__ import annotations

import subprocess
import sys


def test_the_room_and_the_preview_command_import_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, limbeck.data, limbeck.data.show, limbeck.cli.preview\n"
        "limbeck.data.read_rows([])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pyarrow', 'jinja2'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
