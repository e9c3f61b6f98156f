"""Teachers and stored signals over the wire: speed, size, error, memory, and what of a teacher's time is hidden.

    python benchmarks/streaming.py                            every part, on drawn numbers and a small random model
    python benchmarks/streaming.py --model FOLDER             on those of a causal LM
    python benchmarks/streaming.py --only replay --only size  some of the parts

Each part prints one table, whose ratios are of one run with its contenders in turn; the medians of the rounds are told.

    replay    stored signals (k = 64, 262,144 words) read into NumPy arrays: `limbeck serve` and limbeck.client, against
              raw TCP and Arrow Flight with the same bytes and the same decoding, and HTTP with JSON `prompt_logprobs`
              as vLLM writes them. Servers and clients are processes of their own
    size      bytes a token and KL(p‖p̂) of Limbeck's codec, ids with fp16 and fp32, that JSON, and a polynomial codec in
              the two configurations that DistillKit publishes
    remote    the teacher plugin `limbeck` against the same teacher in process, on the same batches
    clients   1, 4, 16, 64 clients of one server: tokens a second of all, and the server's memory
    online    student steps with a remote teacher that is asked ahead, against the slower of the two alone
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from streaming.tables import WIDTH

for name, value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("TQDM_DISABLE", "1")):
    os.environ.setdefault(name, value)
Part = Callable[[argparse.Namespace, Path], Table]


def parts() -> dict[str, Part]:
    from streaming import clients, online, remote, replay, size

    return {
        "replay": replay.table,
        "size": size.table,
        "remote": remote.table,
        "clients": clients.table,
        "online": online.table,
    }


def arguments() -> argparse.Namespace:
    known = parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*known], help="this part; may be given several times")
    parser.add_argument("--model", type=Path, help="folder of a causal LM: its numbers, and the teacher to be asked")
    parser.add_argument(
        "--text", type=Path, default=Path(__file__).parents[1] / "LICENSE", help="what it reads for replay and size"
    )
    parser.add_argument(
        "--rows", type=int, default=256, help="distributions for size; replay repeats them (%(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=524_288, help="tokens stored for replay (%(default)s)")
    parser.add_argument("--json-share", type=float, default=1 / 16, help="share of them sent as JSON (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of replay, remote and online (%(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each number of clients (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a batch of remote and online (%(default)s)")
    parser.add_argument("--time", type=int, default=96, help="tokens of such a sequence (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="batches of a round of remote and online (%(default)s)")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="of torch for remote; online: half (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of teacher and student (%(default)s)")
    options = parser.parse_args()
    options.parts = [known[name] for name in known if name in (options.only or known)]
    return options


def main() -> None:
    options = arguments()
    console = Console(width=WIDTH)
    console.print(f"{os.cpu_count()} cores; {', '.join(f'{load:.1f}' for load in os.getloadavg())} processes before\n")
    for part in options.parts:
        with tempfile.TemporaryDirectory(prefix="limbeck-streaming-") as folder:
            console.print(part(options, Path(folder)))
            console.print()


if __name__ == "__main__":
    main()
