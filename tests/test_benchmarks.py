"""benchmarks/streaming.py: its help teaches, and its parts run, the cheapest of them here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STREAMING = Path(__file__).parents[1] / "benchmarks" / "streaming.py"


def streaming(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(STREAMING), *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sizes_and_errors_of_the_codecs_are_what_is_published():
    rows = re.findall(r"^│ (.+?)│([^│]+)│([^│]+)│([^│]+)│", streaming("--only", "size", "--rows", "8"), re.M)
    found = {(name.strip(), int(k)): (size.strip(), float(error.split()[0])) for name, k, size, error in rows}
    assert {key: size for key, (size, _) in found.items() if "JSON" not in key[0]} == {
        ("Limbeck", 50): "221",
        ("Limbeck", 64): "280",
        ("Limbeck", 128): "552",
        ("int32 ids, fp16", 64): "384",
        ("int32 ids, fp32", 64): "512",
        ("polynomial, 1 exact", 50): "127",  # these two by DistillKit's formula, for ids of 18 bits
        ("polynomial, 16 exact", 128): "344",
    }
    assert all(error < 8e-8 for (name, _), (_, error) in found.items() if name == "Limbeck")
    assert found["polynomial, 16 exact", 128][1] > 1e-5


def test_its_help_tells_of_every_part():
    text = streaming("--help")
    parts = re.search(r"--only \{(.+?)\}", text)
    assert parts is not None
    assert all(re.search(rf"^    {part} +\S", text, re.M) for part in parts[1].split(","))
