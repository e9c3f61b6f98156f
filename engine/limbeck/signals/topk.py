"""The k most likely ids with quantised log-probabilities and exact tails.

The codes are log-probabilities at temperature 1; one tail per temperature fixes the rest, so that one capture serves
many temperatures: log p_T(i) = log p₁(i)/T − logsumexp_S(log p₁/T) + log(1 − e^τ), τ the log tail at T, all in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason

KNEE = 32768  # below it a step of u is 1/2048, from it on 1/512
SATURATED = 65535  # stands for every log-probability of −79.998 and less, −inf included
LIMIT = 0.001  # a log-probability may exceed 0 by this much: rounding of the teacher's arithmetic
SUM_LIMIT = 0.01  # ids and tail at temperature 1 must sum to 1 up to this

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def quantise(logprobs: Floats) -> npt.NDArray[np.uint16]:
    """Codes of log-probabilities, to the nearest (halves to the even code); see docs/signals.md.

    Values must not be NaN; those above 0 give 0, those of −79.998 and less 65535. Any shape. Exact in float32 too:
    both pieces only scale by powers of two and subtract 16.
    """
    falling = np.maximum(-logprobs, 0.0)
    # rounded before the knee is added: in float32 the sum would be rounded, too
    code = np.where(falling < 16.0, np.rint(falling * 2048.0), np.rint((falling - 16.0) * 512.0) + KNEE)
    return np.minimum(code, SATURATED).astype(np.uint16)


def dequantise(u: npt.NDArray[np.uint16]) -> Float64:
    """The log-probabilities that codes stand for, float64 (every one of them is a float32 too)."""
    return _DECODED[u]


def log1mexp(x: Float64) -> Float64:
    """log(1 − e^x) for x ≤ 0, exact to the last bits at both ends (Mächler, 2012). −inf gives 0, 0 gives −inf."""
    with np.errstate(divide="ignore"):
        near = np.log(-np.expm1(np.maximum(x, -1.0)))
        return np.where(x > -np.log(2.0), near, np.log1p(-np.exp(x)))


def logsumexp(x: Float64) -> Float64:
    """log Σ e^x over the last axis, without overflow; −inf for an empty axis or nothing but −inf."""
    peak = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        result: Float64 = np.log(np.sum(np.exp(x - peak), axis=-1)) + peak[..., 0]
    return result


def open_tail(logprobs: Floats) -> Float64:
    """log(1 − Σ e^logprobs) [n] of k log-probabilities [n, k], in float64.

    Where the sum comes within k · 2⁻²³ of 1, the rounding of k float32 numbers, it is log(k · 2⁻²³): no less is known.
    """
    k = logprobs.shape[1]
    total = np.exp(logsumexp(logprobs.astype(np.float64)))
    result: Float64 = np.log(np.maximum(1.0 - total, k * 2.0**-23))
    return result


def _decoded() -> Float64:
    u = np.arange(SATURATED + 1, dtype=np.float64)
    return np.where(u < KNEE, -u / 2048.0, -16.0 - (u - KNEE) / 512.0)


_DECODED = _decoded()


@dataclass(frozen=True, slots=True)
class TopK:
    """n rows of k distinct ids, sorted by (u ascending, id ascending).

    `ids` int32 [n, k]; `u` uint16 [n, k], the code of the log-probability at temperature 1; `tails` f32 [n, m], log of
    the mass outside the ids at each of the m `temperatures`.
    """

    ids: npt.NDArray[np.int32]
    u: npt.NDArray[np.uint16]
    tails: npt.NDArray[np.float32]
    temperatures: tuple[float, ...]

    @classmethod
    def from_logprobs(
        cls, ids: npt.NDArray[np.integer], logprobs: Floats, tails: Floats, temperatures: Sequence[float]
    ) -> TopK:
        """Encode a teacher's answer: `ids` [n, k] in any order, `logprobs` [n, k] at temperature 1, `tails` [n, m].

        Log-probabilities are over the whole vocabulary. Raises SIGNAL_INVALID, naming each fault and its row, for NaN,
        values above +0.001, repeated or negative ids, a sum of all mass at temperature 1 that is not 1.
        """
        temperatures = tuple(float(t) for t in temperatures)
        logprobs = logprobs.astype(np.result_type(logprobs, np.float32), copy=False)
        _check(ids, logprobs, tails, temperatures)
        # u and id in one integer: sorting values is several times faster than sorting by two keys
        keys = (quantise(logprobs).astype(np.uint64) << np.uint64(32)) | ids.astype(np.uint64)
        keys.sort(axis=1)
        return cls(
            ids=(keys & np.uint64(0xFFFFFFFF)).astype(np.int32),
            u=(keys >> np.uint64(32)).astype(np.uint16),
            tails=np.minimum(tails, 0.0).astype(np.float32),
            temperatures=temperatures,
        )

    @classmethod
    def without_tail(cls, ids: npt.NDArray[np.integer], logprobs: Floats) -> TopK:
        """Of a teacher that cannot sum the complement: the tail at temperature 1 is log(1 − Σ), see :func:`open_tail`.

        Raises what :meth:`from_logprobs` raises.
        """
        return cls.from_logprobs(ids, logprobs, open_tail(logprobs)[:, None], (1.0,))

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.ids.shape[0])

    @property
    def k(self) -> int:
        """Ids per row."""
        return int(self.ids.shape[1])

    @property
    def saturated(self) -> int:
        """Entries whose log-probability was −79.998 or less and is known no better."""
        return int(np.count_nonzero(self.u == SATURATED))

    def take(self, rows: npt.NDArray[np.integer] | slice) -> TopK:
        """The same for some of the rows, in the order given."""
        return TopK(self.ids[rows], self.u[rows], self.tails[rows], self.temperatures)

    def resized(self, k: int) -> TopK:
        """The same at temperature 1 with another number of ids a row.

        With fewer, the likeliest stay and the rest is merged into the tail. With more, saturated entries of ids that
        the row does not hold are added: they say nothing, and are left to the tail by whoever reads them. Raises
        CAPABILITY_MISSING without temperature 1.
        """
        if k < self.k:
            tails = self.at(1.0, k)[2].astype(np.float32)[:, None]
            return TopK(self.ids[:, :k], self.u[:, :k], np.minimum(tails, np.float32(0.0)), (1.0,))
        ids = np.concatenate([self.ids, np.zeros((self.n, k - self.k), np.int32)], axis=1)
        for row in range(self.n if k > self.k else 0):
            unused = np.setdiff1d(np.arange(k, dtype=np.int32), self.ids[row])  # of k numbers, these are enough
            saturated = self.ids[row][self.u[row] == SATURATED]
            ids[row, self.k - len(saturated) :] = np.sort(np.append(saturated, unused[: k - self.k]))
        u = np.pad(self.u, ((0, 0), (0, k - self.k)), constant_values=SATURATED)
        return TopK(ids, u, self.tails, self.temperatures)

    def at(self, temperature: float, k: int | None = None) -> tuple[npt.NDArray[np.int32], Float64, Float64]:
        """(`ids` int32 [n, k], `logprobs` float64 [n, k], `tail` float64 [n]) at one of the `temperatures`.

        Normalised: e^logprobs and e^tail of a row sum to 1. A `k` smaller than the captured one merges the ids left
        out into the tail. Raises CAPABILITY_MISSING for a temperature or a k that was not captured.
        """
        keep = self.k if k is None else k
        if temperature not in self.temperatures or not 0 < keep <= self.k:
            raise _not_captured(temperature, keep, self)
        tail = self.tails[:, self.temperatures.index(temperature)].astype(np.float64)
        scaled = dequantise(self.u) / temperature
        logprobs = scaled + (log1mexp(tail) - logsumexp(scaled))[:, None]
        if keep < self.k:
            tail = np.logaddexp(tail, logsumexp(logprobs[:, keep:]))
        return self.ids[:, :keep], logprobs[:, :keep], tail


def _check(ids: npt.NDArray[np.integer], logprobs: Floats, tails: Floats, temperatures: tuple[float, ...]) -> None:
    shapes = (ids.ndim, logprobs.ndim, tails.ndim)
    if shapes != (2, 2, 2) or ids.shape != logprobs.shape or tails.shape != (len(ids), len(temperatures)):
        message = (
            f"ids {ids.shape}, logprobs {logprobs.shape}, tails {tails.shape} for {len(temperatures)} temperatures; "
            "[n, k], [n, k] and [n, temperatures] are needed"
        )
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message)])
    problems = [
        *_rows(np.isnan(logprobs).any(axis=1), "a log-probability is NaN"),
        *_rows((logprobs > LIMIT).any(axis=1), "a log-probability is above 0", logprobs.max(axis=1, initial=-np.inf)),
        *_rows(np.isnan(tails).any(axis=1), "a tail is NaN"),
        *_rows((tails > LIMIT).any(axis=1), "a tail is above 0", tails.max(axis=1, initial=-np.inf)),
        *_rows((ids < 0).any(axis=1), "an id is below 0", ids.min(axis=1, initial=0)),
        *_rows((np.diff(np.sort(ids, axis=1), axis=1) == 0).any(axis=1), "an id comes twice"),
    ]
    if not problems and 1.0 in temperatures:
        tail = tails[:, temperatures.index(1.0)].astype(np.float64)
        total = np.exp(logsumexp(logprobs.astype(np.float64))) + np.exp(tail)
        problems = _rows(np.abs(total - 1.0) > SUM_LIMIT, "ids and tail do not sum to 1", total)
    if problems:
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=problems)


def _rows(bad: Any, message: str, worst: Any = None) -> list[Problem]:
    """One problem for the rows where `bad` [n] holds; `worst` [n] is the value to tell of the first one."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return []
    value = "" if worst is None else f" ({worst[rows[0]]:.6g})"
    return [Problem(f"{message}{value} in row {rows[0]} ({len(rows)} of {len(bad)} rows have it)")]


def _not_captured(temperature: float, k: int, signal: TopK) -> LimbeckError:
    known = ", ".join(f"{t:g}" for t in signal.temperatures)
    message = (
        f"temperature {temperature:g} with {k} ids was asked of a signal that holds temperature {known} "
        f"with {signal.k} ids"
    )
    hint = "capture the signals again with it, or use a loss's temperature and top_k that were captured"
    return LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(message, hint=hint)])
