"""What a teacher says: the type, the codec, the store."""

from limbeck.signals.head import OutputHead
from limbeck.signals.header import SignalHeader
from limbeck.signals.signal import Samples, Signal, TokenLogprobs
from limbeck.signals.store import SignalStore, SignalWriter
from limbeck.signals.topk import TopK

__all__ = ["OutputHead", "Samples", "Signal", "SignalHeader", "SignalStore", "SignalWriter", "TokenLogprobs", "TopK"]
