package limbeck

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

func tlsAndToken(t *testing.T, s *served) {
	client := s.connect(t, "train", s.TLSAddress, TLSCA(s.CA))
	teacher, err := client.Teacher(s.ctx, s.Teacher, time.Minute)
	if err != nil || teacher.State != limbeckv1.Teacher_STATE_READY {
		t.Fatal(teacher, err)
	}
	if _, err := client.Runs(s.ctx); err != nil {
		t.Error(err)
	}
	if found, err := s.score(client, topK, tokenItems(2, 9)); err != nil || len(found) != 2 {
		t.Error(err)
	}
	_, port, _ := net.SplitHostPort(s.TLSAddress)
	replicas := s.connect(t, "train", "localhost:"+port, TLSCA(s.CA), Replicas(s.TLSAddress))
	for i := 0; i < 4; i++ {
		if _, err := replicas.Teachers(s.ctx); err != nil {
			t.Error(err)
		}
	}
	other := s.connect(t, "train", s.TLSAddress, TLSCA(s.OtherCA), Timeout(time.Second))
	_, err = other.Runs(s.ctx)
	if refusedWith(t, err, ServerUnavailable); !strings.Contains(err.Error(), "is not trusted here") {
		t.Error(err)
	}
}

func tokenFiles(t *testing.T, s *served) {
	for _, name := range []string{"newline", "crlf_bom"} {
		if _, err := s.connect(t, name, s.Address).Plugins(s.ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Connect(s.ctx, s.Address, TokenFile(s.Tokens["two_lines"]))
	refusedWith(t, err, RequestInvalid)
	lines, _ := os.ReadFile(s.Tokens["two_lines"])
	for _, line := range strings.Fields(string(lines)) {
		if strings.Contains(err.Error(), line) {
			t.Error("the token is told")
		}
	}
}

func proxyEnvironment(t *testing.T, s *served) {
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:9")
	}
	for _, name := range []string{"no_proxy", "NO_PROXY"} {
		t.Setenv(name, "")
	}
	_, port, _ := net.SplitHostPort(s.Address)
	for _, address := range []string{s.Address, "localhost:" + port} {
		if _, err := s.connect(t, "train", address).Teachers(s.ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.connect(t, "train", s.TLSAddress, TLSCA(s.CA)).Teachers(s.ctx); err != nil {
		t.Error(err)
	}
}

func silentPeer(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).LastSequence
	var mu sync.Mutex
	var told []string
	client := s.connect(t, "train", s.Silent, Liveness(time.Second, 3*time.Second), Log(func(line string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, line)
	}))
	events := client.Watch(s.ctx, id, After(before))
	defer events.Close()
	var first time.Time
	for due := before + 1; events.Next(); due++ {
		if events.Event().Sequence != due {
			t.Fatalf("event %d came where %d was due", events.Event().Sequence, due)
		}
		if now := events.Event().Time.AsTime(); first.IsZero() {
			first = now
		} else if now.Sub(first) > 8*time.Second { // three connections at least, each of which passes 2 s on
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if events.Err() != nil || len(told) < 2 || !strings.Contains(told[0], string(PeerSilent)) {
		t.Error(told, events.Err())
	}
}

func wideIntegers(t *testing.T, s *served) {
	done := s.tiny(t)
	content, err := os.ReadFile(s.Integers)
	if err != nil {
		t.Fatal(err)
	}
	var texts map[string]string
	if err := json.Unmarshal(content, &texts); err != nil {
		t.Fatal(err)
	}
	wide := map[string]uint64{}
	for name, text := range texts {
		if wide[name], err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	digits := strings.NewReplacer(",", "", "_", "", "\u202f", "")
	err = s.watchError(s.client, done.id, After(wide["sequence"]))
	if refusedWith(t, err, CursorInvalid); !strings.Contains(digits.Replace(err.Error()), texts["sequence"]) {
		t.Error(err)
	}
	err = s.download(t, &limbeckv1.DownloadArtifactRequest{RunId: done.id, Path: "recipe.yaml", Offset: wide["offset"]})
	if err == nil || !strings.Contains(digits.Replace(err.Error()), texts["offset"]) {
		t.Error(err)
	}
	for _, from := range []Cursor{After(wide["zero"]), Oldest} {
		events := s.client.Watch(s.ctx, done.id, from)
		if !events.Next() || events.Event().Sequence != 1 {
			t.Error(events.Err())
		}
		events.Close()
	}
	// a seed that a float64 does not hold draws otherwise than the one that it holds
	drawn := func(seed uint64) string {
		item := tokenItems(1, 40)[0]
		item.ID, item.Seed = wide["sequence"], seed
		found, err := s.score(s.client, &limbeckv1.Want{Samples: 8}, []ScoreItem{item})
		if err != nil || found[wide["sequence"]] == nil {
			t.Fatal(err)
		}
		return fmt.Sprint(found[wide["sequence"]].Samples.IDs)
	}
	seed := wide["seed"]
	if uint64(float64(seed)) == seed || drawn(seed) != drawn(seed) || drawn(seed) == drawn(uint64(float64(seed))) {
		t.Error("the seed has lost digits")
	}
	// JSON
	event := &limbeckv1.Event{Sequence: wide["sequence"], Step: wide["offset"]}
	text, err := protojson.Marshal(event)
	if err != nil || !strings.Contains(string(text), `"`+texts["sequence"]+`"`) || !strings.Contains(string(text), `"`+texts["offset"]+`"`) {
		t.Error(string(text), err)
	}
	again := &limbeckv1.Event{}
	if err := protojson.Unmarshal(text, again); err != nil || !proto.Equal(event, again) {
		t.Error(again, err)
	}
	if err := protojson.Unmarshal([]byte(`{"sequence": `+texts["sequence"]+`}`), again); err != nil || again.Sequence != wide["sequence"] {
		t.Error(again, err)
	}
	for _, odd := range []string{"1.5", "-1", "18446744073709551616", fmt.Sprint(math.MaxFloat64)} {
		if protojson.Unmarshal([]byte(`{"sequence": `+odd+`}`), again) == nil {
			t.Errorf("%s was taken for %d", odd, again.Sequence)
		}
	}
}

func example(t *testing.T, s *served) {
	source, err := os.ReadFile("examples/distil/main.go")
	if err != nil || bytes.Count(source, []byte("\n")) > 67 {
		t.Errorf("the example has %d lines: %v", bytes.Count(source, []byte("\n")), err)
	}
	dir := t.TempDir()
	recipe := filepath.Join(dir, "recipe.yaml")
	if err := os.WriteFile(recipe, []byte(s.recipe("tiny")), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.long != "" { // make room
		_, _ = s.client.Cancel(s.ctx, s.long)
	}
	command := exec.CommandContext(s.ctx, "go", "run", "./examples/distil", s.Address, recipe, dir)
	command.Env = append(os.Environ(), "LIMBECK_TOKEN_FILE="+s.Tokens["train"])
	said, err := command.CombinedOutput()
	for _, due := range []string{"forward_kl", "KIND_SCHEDULER ", "\nrun ", "TRAINING\n", "step 200: loss ", "SUCCEEDED\n"} {
		if err != nil || !strings.Contains(string(said), due) {
			t.Fatalf("%s is not in %s: %v", due, said, err)
		}
	}
	student, err := os.ReadFile(filepath.Join(dir, "student", "model.safetensors"))
	if err != nil || len(student) < 1000 {
		t.Fatal(hex.EncodeToString(student), err)
	}
}
