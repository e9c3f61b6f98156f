"""What a teacher says: the type, the codec, the store."""

from limbeck.signals.signal import Samples, Signal, TokenLogprobs
from limbeck.signals.topk import TopK

__all__ = ["Samples", "Signal", "TokenLogprobs", "TopK"]
