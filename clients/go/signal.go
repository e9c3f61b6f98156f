package limbeck

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

const (
	codecName    = "limbeck.topk"
	codecVersion = 1
	knee         = 32768 // below it a step of a code is 1/2048, from it on 1/512
	// Saturated is the code of every log-probability of −79.998 and less, −∞ included.
	Saturated = 65535
)

// Signal is what a teacher says of rows FirstRow … FirstRow + N − 1 of one sequence; row t speaks of token t + 1. What
// was not asked is nil. Matrices lie row after row.
type Signal struct {
	FirstRow, N int
	// TopK are the likeliest ids of each row.
	TopK *TopK
	// Target [N] are log-probabilities of the actual next token at temperature 1.
	Target []float32
	// TokenLogprobs are log-probabilities at temperature 1 of the item's TokenIDs, in their layout.
	TokenLogprobs []float32
	// Samples are draws at temperature 1.
	Samples *Samples
	// Hidden are the hidden states [N, d] of each layer that was asked.
	Hidden map[int32][]float32
	// Full [N, V] are log-probabilities of the whole vocabulary at temperature 1.
	Full []float32
}

// Samples are draws at temperature 1: distinct ids a row, S columns; a count of 0 pads.
type Samples struct {
	S           int
	IDs, Counts []int32
	Logprobs    []float32
}

// TopK are N rows of K distinct ids, the likeliest first, with quantised log-probabilities and exact tails. Use At.
type TopK struct {
	N, K int
	// IDs [N, K].
	IDs []int32
	// Codes [N, K] of the log-probabilities at temperature 1.
	Codes []uint16
	// Tails [N, len(Temperatures)]: log of the probability of all other ids.
	Tails []float32
	// Temperatures that can be had, ascending.
	Temperatures []float64
}

// At are the ids [N, k], their log-probabilities [N, k] and the log of the other ids' probability [N] at one of the
// temperatures, normalised: in each row the probabilities and the tail sum to 1. A k below K leaves the likeliest ids,
// and adds the others to the tail. CapabilityMissing for a temperature or a k that was not captured.
func (t *TopK) At(temperature float64, k int) (ids []int32, logprobs, tails []float64, err error) {
	place := -1
	for i, known := range t.Temperatures {
		if known == temperature {
			place = i
		}
	}
	if place < 0 || k < 1 || k > t.K {
		return nil, nil, nil, newError(CapabilityMissing, Problem{
			Message: fmt.Sprintf("temperature %g with %d ids was asked of a signal that holds temperatures %v with %d ids",
				temperature, k, t.Temperatures, t.K),
			Hint: "capture the signals again with it, or use a temperature and a k that were captured",
		})
	}
	ids, logprobs, tails = make([]int32, 0, t.N*k), make([]float64, 0, t.N*k), make([]float64, t.N)
	row := make([]float64, t.K)
	for n := range tails {
		for i, code := range t.Codes[n*t.K : (n+1)*t.K] {
			row[i] = logprob(code) / temperature
		}
		tail := float64(t.Tails[n*len(t.Temperatures)+place])
		shift := log1mexp(tail) - logsumexp(row)
		for i := range row {
			row[i] += shift
		}
		if k < t.K {
			tail = logsumexp([]float64{tail, logsumexp(row[k:])})
		}
		ids = append(ids, t.IDs[n*t.K:n*t.K+k]...)
		logprobs, tails[n] = append(logprobs, row[:k]...), tail
	}
	return ids, logprobs, tails, nil
}

// logprob is what a code stands for.
func logprob(code uint16) float64 {
	if code < knee {
		return -float64(code) / 2048
	}
	return -16 - float64(code-knee)/512
}

// log1mexp is log(1 − eˣ) for x ≤ 0, exact to the last bits at both ends (Mächler, 2012).
func log1mexp(x float64) float64 {
	if x > -math.Ln2 {
		return math.Log(-math.Expm1(x))
	}
	return math.Log1p(-math.Exp(x))
}

func logsumexp(values []float64) float64 {
	peak := math.Inf(-1)
	for _, x := range values {
		peak = math.Max(peak, x)
	}
	if math.IsInf(peak, -1) {
		return peak
	}
	sum := 0.0
	for _, x := range values {
		sum += math.Exp(x - peak)
	}
	return peak + math.Log(sum)
}

// checkHeader refuses what this reader does not know, and what cannot be.
func checkHeader(h *limbeckv1.SignalHeader) error {
	var wrong []Problem
	add := func(format string, values ...any) {
		wrong = append(wrong, Problem{Message: fmt.Sprintf(format, values...), Field: "header"})
	}
	if h.GetCodec() != codecName || h.GetVersion() != codecVersion {
		add("codec %q version %d is not known; %q version %d is", h.GetCodec(), h.GetVersion(), codecName, codecVersion)
	}
	if h.GetVocabSize() < 1 || h.GetVocabSize() > 1<<31 {
		add("vocab_size is %d; 1 to 2147483648 is allowed", h.GetVocabSize())
	}
	if h.GetK() > h.GetVocabSize() {
		add("k is %d; 0 to vocab_size (%d) is allowed", h.GetK(), h.GetVocabSize())
	}
	before := 0.0
	for _, t := range h.GetTemperatures() {
		if !(t > before) || math.IsInf(t, 1) {
			add("temperatures are %v; they must be positive, distinct and ascending", h.GetTemperatures())
			break
		}
		before = t
	}
	if h.GetK() > 0 && len(h.GetTemperatures()) == 0 {
		add("there is no temperature for k = %d; at least one is needed", h.GetK())
	}
	if h.GetK() == 0 && !h.GetTarget() {
		add("neither ids (k) nor target is there: nothing would be stored")
	}
	if wrong != nil {
		return newError(SignalInvalid, wrong...)
	}
	return nil
}

// highBits are the bits of an id above the low 16.
func highBits(h *limbeckv1.SignalHeader) int {
	return max(0, bits.Len32(h.VocabSize-1)-16)
}

// rowBytes are the bytes that a row takes of each field, in their order.
func rowBytes(h *limbeckv1.SignalHeader) (sizes [5]int) {
	if k := int(h.GetK()); k > 0 {
		sizes = [5]int{2 * k, (k*highBits(h) + 7) / 8, 2 * k, 4 * len(h.Temperatures), 0}
	}
	if h.GetTarget() {
		sizes[4] = 4
	}
	return sizes
}

var fieldNames = [5]string{"ids_low", "ids_high", "logprobs", "tails", "target"}

func fieldsOf(p *limbeckv1.PackedSignal) [5][]byte {
	return [5][]byte{p.GetIdsLow(), p.GetIdsHigh(), p.GetLogprobs(), p.GetTails(), p.GetTarget()}
}

// Decode reads the packed rows of one sequence. A stream's own decode for themselves; this is for whoever has stored
// signals of his own. SignalInvalid for a codec that is not known and for bytes that cannot be.
func Decode(packed *limbeckv1.PackedSignal, header *limbeckv1.SignalHeader) (*Signal, error) {
	if err := checkHeader(header); err != nil {
		return nil, err
	}
	return decode(int(packed.GetFirstRow()), int(packed.GetN()), fieldsOf(packed), header)
}

// decode reads n rows with a header that was checked.
func decode(firstRow, n int, fields [5][]byte, h *limbeckv1.SignalHeader) (*Signal, error) {
	for i, size := range rowBytes(h) {
		if len(fields[i]) != n*size {
			return nil, invalid("%s holds %d bytes, %d rows of %d are needed", fieldNames[i], len(fields[i]), n, size)
		}
	}
	found := &Signal{FirstRow: firstRow, N: n}
	if h.Target {
		found.Target = float32s(fields[4])
	}
	if h.K == 0 {
		return found, nil
	}
	k := int(h.K)
	top := &TopK{N: n, K: k, IDs: make([]int32, n*k), Codes: make([]uint16, n*k), Temperatures: h.Temperatures}
	for i := range top.IDs {
		top.IDs[i] = int32(binary.LittleEndian.Uint16(fields[0][2*i:]))
		top.Codes[i] = binary.LittleEndian.Uint16(fields[2][2*i:])
	}
	if high := highBits(h); high > 0 {
		width := (k*high + 7) / 8
		for row := 0; row < n; row++ {
			addHigh(top.IDs[row*k:(row+1)*k], fields[1][row*width:(row+1)*width], high)
		}
	}
	for _, id := range top.IDs {
		if id < 0 || uint32(id) >= h.VocabSize {
			return nil, invalid("id %d is outside of the vocabulary of %d", uint32(id), h.VocabSize)
		}
	}
	top.Tails = float32s(fields[3])
	for _, tail := range top.Tails {
		if !(tail <= 0) {
			return nil, invalid("a tail is NaN or above 0")
		}
	}
	found.TopK = top
	return found, nil
}

// addHigh adds the bits above 16 to the ids of a row: a number of `width` bits each, the least significant first.
func addHigh(ids []int32, packed []byte, width int) {
	var held uint64
	var count, at int
	for i := range ids {
		for count < width {
			held |= uint64(packed[at]) << count
			count += 8
			at++
		}
		ids[i] |= int32(held&(1<<width-1)) << 16
		held >>= width
		count -= width
	}
}

func float32s(raw []byte) []float32 {
	values := make([]float32, len(raw)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return values
}

func bfloat16s(raw []byte) []float32 {
	values := make([]float32, len(raw)/2)
	for i := range values {
		values[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(raw[2*i:])) << 16)
	}
	return values
}

func int32s(raw []byte) []int32 {
	values := make([]int32, len(raw)/4)
	for i := range values {
		values[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return values
}

func int32Bytes(values []int32) []byte {
	raw := make([]byte, 4*len(values))
	for i, value := range values {
		binary.LittleEndian.PutUint32(raw[4*i:], uint32(value))
	}
	return raw
}

func int64Bytes(values []int64) []byte {
	raw := make([]byte, 8*len(values))
	for i, value := range values {
		binary.LittleEndian.PutUint64(raw[8*i:], uint64(value))
	}
	return raw
}

func invalid(format string, values ...any) *Error {
	return newError(SignalInvalid, Problem{Message: fmt.Sprintf(format, values...)})
}
