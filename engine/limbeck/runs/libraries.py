"""What the libraries of a run are told before they are imported."""

from __future__ import annotations

import os


def prepare_libraries() -> None:
    """Keep progress bars and advice of libraries out of what a run shows; warnings stay.

    Also lets torch, which reads it when first imported, take huge pages: buffers as large as a vocabulary are faster.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
