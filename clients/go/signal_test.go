package limbeck

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// number is a float that JSON may hold as a text.
type number float64

func (n *number) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	value, err := strconv.ParseFloat(text, 64)
	*n = number(value)
	return err
}

type vector struct {
	Header struct {
		Codec        string
		Version      uint32
		VocabSize    uint32 `json:"vocab_size"`
		K            uint32
		Temperatures []float64
		Target       bool
	}
	FirstRow   uint32 `json:"first_row"`
	N          uint32
	Bytes      map[string]int
	IDs        [][]int32
	Codes      [][]uint16
	Tails      [][]number
	Target     []number
	Normalised map[string][][]number
}

// readVector reads one of the published test vectors.
func readVector(t *testing.T, file string) (vector, *limbeckv1.PackedSignal, *limbeckv1.SignalHeader) {
	t.Helper()
	var v vector
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file[:len(file)-len(".json")] + ".bin")
	if err != nil {
		t.Fatal(err)
	}
	packed := &limbeckv1.PackedSignal{FirstRow: v.FirstRow, N: v.N}
	for _, name := range fieldNames {
		part := content[:v.Bytes[name]]
		content = content[len(part):]
		switch name {
		case "ids_low":
			packed.IdsLow = part
		case "ids_high":
			packed.IdsHigh = part
		case "logprobs":
			packed.Logprobs = part
		case "tails":
			packed.Tails = part
		case "target":
			packed.Target = part
		}
	}
	header := &limbeckv1.SignalHeader{
		Codec: v.Header.Codec, Version: v.Header.Version, VocabSize: v.Header.VocabSize, K: v.Header.K,
		Temperatures: v.Header.Temperatures, Target: v.Header.Target,
	}
	return v, packed, header
}

// near compares a row with what is expected, to 1e-10.
func near(t *testing.T, what string, found []float64, expected []number) {
	t.Helper()
	if len(found) != len(expected) {
		t.Fatalf("%s: %d numbers, %d are expected", what, len(found), len(expected))
	}
	for i, e := range expected {
		if x := float64(e); found[i] != x && !(math.Abs(found[i]-x) <= 1e-10*math.Max(1, math.Abs(x))) {
			t.Errorf("%s[%d] is %v, %v is expected", what, i, found[i], x)
		}
	}
}

// checkVectors decodes each vector of a folder.
func checkVectors(t *testing.T, folder string) {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d vectors in %s: %v", len(files), folder, err)
	}
	for _, file := range files {
		v, packed, header := readVector(t, file)
		signal, err := Decode(packed, header)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for i, expected := range v.Target {
			if signal.Target[i] != float32(expected) {
				t.Errorf("%s: target %d is %v, %v is expected", file, i, signal.Target[i], expected)
			}
		}
		if header.K == 0 {
			continue
		}
		top, k := signal.TopK, int(header.K)
		for row := range v.IDs {
			for i := 0; i < k; i++ {
				if top.IDs[row*k+i] != v.IDs[row][i] || top.Codes[row*k+i] != v.Codes[row][i] {
					t.Errorf("%s: row %d, id %d", file, row, i)
				}
			}
			for i, tail := range v.Tails[row] {
				if top.Tails[row*len(v.Tails[row])+i] != float32(tail) {
					t.Errorf("%s: row %d, tail %d", file, row, i)
				}
			}
		}
		if len(v.Normalised) != len(header.Temperatures) {
			t.Errorf("%s: %d temperatures", file, len(v.Normalised))
		}
		for name, rows := range v.Normalised {
			temperature, _ := strconv.ParseFloat(name, 64)
			_, logprobs, _, err := top.At(temperature, k)
			if err != nil {
				t.Fatal(err)
			}
			for row, expected := range rows {
				near(t, file+" at "+name, logprobs[row*k:(row+1)*k], expected)
			}
		}
	}
}

func TestASmallerKAddsTheOthersToTheTail(t *testing.T) {
	_, packed, header := readVector(t, "../../tests/data/signal_vectors/one_temperature_k64.json")
	signal, err := Decode(packed, header)
	if err != nil {
		t.Fatal(err)
	}
	temperature := header.Temperatures[0]
	_, all, tails, _ := signal.TopK.At(temperature, 64)
	ids, few, merged, err := signal.TopK.At(temperature, 5)
	if err != nil || len(ids) != 5*signal.N || len(few) != 5*signal.N {
		t.Fatal(len(ids), len(few), err)
	}
	for row, tail := range merged {
		sum := math.Exp(tails[row])
		for _, x := range all[row*64+5 : (row+1)*64] {
			sum += math.Exp(x)
		}
		total := math.Exp(tail)
		for i, x := range few[row*5 : (row+1)*5] {
			total += math.Exp(x)
			if x != all[row*64+i] || ids[row*5+i] != signal.TopK.IDs[row*64+i] {
				t.Errorf("row %d, id %d", row, i)
			}
		}
		if math.Abs(tail-math.Log(sum)) > 1e-12 || math.Abs(total-1) > 1e-12 {
			t.Errorf("row %d: tail %v, %v is expected; the row sums to %v", row, tail, math.Log(sum), total)
		}
	}
	for _, asked := range []struct {
		temperature float64
		k           int
	}{{temperature + 1, 5}, {temperature, 65}, {temperature, 0}} {
		if _, _, _, err := signal.TopK.At(asked.temperature, asked.k); !errors.Is(err, CapabilityMissing) {
			t.Errorf("%v: %v", asked, err)
		}
	}
}

func TestBytesThatCannotBeAreRefused(t *testing.T) {
	file := "../../tests/data/signal_vectors/one_high_bit_padded.json"
	for name, spoil := range map[string]func(*limbeckv1.PackedSignal, *limbeckv1.SignalHeader){
		"a field too short":   func(p *limbeckv1.PackedSignal, _ *limbeckv1.SignalHeader) { p.Logprobs = p.Logprobs[1:] },
		"a row too many":      func(p *limbeckv1.PackedSignal, _ *limbeckv1.SignalHeader) { p.N++ },
		"an id too large":     func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.VocabSize = 1<<16 + 2 },
		"another codec":       func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.Codec = "other" },
		"a newer version":     func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.Version = 2 },
		"falling order":       func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.Temperatures[0] = 9 },
		"nothing at all":      func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.K = 0 },
		"no vocabulary":       func(_ *limbeckv1.PackedSignal, h *limbeckv1.SignalHeader) { h.VocabSize = 0 },
		"a positive tail":     func(p *limbeckv1.PackedSignal, _ *limbeckv1.SignalHeader) { p.Tails[3] ^= 0x80 },
		"a tail that is NaN":  func(p *limbeckv1.PackedSignal, _ *limbeckv1.SignalHeader) { p.Tails[2], p.Tails[3] = 0xff, 0xff },
		"a target not stated": func(p *limbeckv1.PackedSignal, _ *limbeckv1.SignalHeader) { p.Target = make([]byte, 12) },
	} {
		_, packed, header := readVector(t, file)
		if _, err := Decode(packed, header); err != nil {
			t.Fatal(err)
		}
		spoil(packed, header)
		if _, err := Decode(packed, header); !errors.Is(err, SignalInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVectors(t *testing.T) { checkVectors(t, "../../tests/data/signal_vectors") }
