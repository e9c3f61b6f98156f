package limbeck

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

func fetchStudent(t *testing.T, s *served) {
	done := s.tiny(t)
	client, dropped := s.connect(t, "train", s.Proxy), map[string]bool{}
	files, err := client.Fetch(s.ctx, done.id, t.TempDir(), Progress(func(path string, _, _ uint64) {
		if !dropped[path] && len(dropped) < 3 {
			dropped[path] = true
			s.drop(t)
		}
	}))
	if err != nil || len(dropped) == 0 {
		t.Fatal(dropped, err)
	}
	known, err := s.client.Artifacts(s.ctx, done.id)
	if err != nil {
		t.Fatal(err)
	}
	output, due := filepath.Join(s.Workspace, s.run(t, done.id).Output), 0
	for _, artifact := range known {
		if strings.HasPrefix(artifact.Path, "checkpoints/") {
			t.Error(artifact)
		}
		if !strings.HasPrefix(artifact.Path, "student/") {
			continue
		}
		found, err := os.ReadFile(files[due])
		there, _ := os.ReadFile(filepath.Join(output, artifact.Path))
		sum := sha256.Sum256(found)
		if err != nil || !strings.HasSuffix(files[due], artifact.Path) || !bytes.Equal(sum[:], artifact.Sha256) || !bytes.Equal(found, there) {
			t.Error(files[due], artifact, err)
		}
		due++
	}
	if due != len(files) {
		t.Error(files)
	}
}

// download is the call itself, for what no client would ask.
func (s *served) download(t *testing.T, request *limbeckv1.DownloadArtifactRequest) error {
	t.Helper()
	return drain[*limbeckv1.DownloadArtifactRequest, *limbeckv1.DownloadArtifactResponse](
		s.ctx, s.client, s.client.training.DownloadArtifact, request,
		func(*limbeckv1.DownloadArtifactResponse) error { return nil },
	)
}

func fetchRefusesAnotherFile(t *testing.T, s *served) {
	done, dir := s.tiny(t), t.TempDir()
	err := s.download(t, &limbeckv1.DownloadArtifactRequest{
		RunId: done.id, Path: "student/config.json", Offset: 10, Sha256: make([]byte, 32),
	})
	refusedWith(t, err, StoreDamaged)
	known, err := s.client.Artifacts(s.ctx, done.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, artifact := range known {
		if artifact.Path == "student/config.json" {
			artifact.Sha256 = make([]byte, 32)
			f := &fetching{client: s.client, runID: done.id, dir: dir, heard: func(string, uint64, uint64) {}}
			refusedWith(t, f.fetch(s.ctx, artifact, filepath.Join(dir, "config.json")), StoreDamaged)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Error(left)
	}
}

// ------------------------------------------------------------------------------------------------ signals and scores

type decoded struct {
	Sequence uint64
	FirstRow int `json:"first_row"`
	N        int
	Tokens   []int32
	IDs      [][]int32
	At       map[string]struct {
		Logprobs [][]number
		Tails    []number
	}
}

func streamSignals(t *testing.T, s *served) {
	content, err := os.Open(s.Signals)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	expected := json.NewDecoder(content)
	signals := s.connect(t, "score", s.Proxy).Signals(s.ctx, s.Dataset, 0, WithTokens())
	count := uint64(0)
	for signals.Next() {
		stored := signals.Signal()
		if count++; stored.Sequence == 5 || stored.Sequence == 20 {
			s.drop(t)
		}
		var due decoded
		if err := expected.Decode(&due); err != nil || due.Sequence != stored.Sequence || stored.Sequence != count {
			t.Fatal(stored.Sequence, due.Sequence, err)
		}
		signal, err := stored.Signal()
		if err != nil || signal.FirstRow != due.FirstRow || signal.N != due.N {
			t.Fatal(signal, err)
		}
		tokens, err := stored.Tokens()
		if err != nil || fmt.Sprint(tokens.IDs) != fmt.Sprint(due.Tokens) {
			t.Fatal(tokens, err)
		}
		for name, at := range due.At {
			temperature, _ := strconv.ParseFloat(name, 64)
			ids, logprobs, tails, err := signal.TopK.At(temperature, signal.TopK.K)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "tails", tails, at.Tails)
			for row, k := 0, signal.TopK.K; row < due.N; row++ {
				near(t, "logprobs", logprobs[row*k:(row+1)*k], at.Logprobs[row])
				if fmt.Sprint(ids[row*k:(row+1)*k]) != fmt.Sprint(due.IDs[row]) {
					t.Fatal(ids, due.IDs)
				}
			}
		}
	}
	if signals.Err() != nil || count < 20 || expected.More() {
		t.Error(count, signals.Err())
	}
}

func tokenItems(count, tokens int) (items []ScoreItem) {
	draw := rand.New(rand.NewSource(1))
	for i := 0; i < count; i++ {
		ids := make([]int32, tokens)
		for j := range ids {
			ids[j] = 5 + draw.Int31n(256)
		}
		items = append(items, ScoreItem{ID: uint64(i), IDs: ids, N: uint32(tokens - 1)})
	}
	return items
}

var topK = &limbeckv1.Want{TopK: 64, Target: true}

func (s *served) score(client *Client, want *limbeckv1.Want, items []ScoreItem, options ...ScoreOption) (map[uint64]*Signal, error) {
	scores := client.Score(s.ctx, s.Teacher, want, FromSlice(items), options...)
	defer scores.Close()
	found := map[uint64]*Signal{}
	for scores.Next() {
		if found[scores.ID()] != nil {
			return found, fmt.Errorf("item %d is answered twice", scores.ID())
		}
		found[scores.ID()] = scores.Signal()
	}
	return found, scores.Err()
}

func scoreWithCredits(t *testing.T, s *served) {
	const credit = 1 << 20
	scores := s.connect(t, "score", s.Address).Score(s.ctx, s.Teacher, topK, FromSlice(tokenItems(100, 200)), Credit(credit))
	defer scores.Close()
	seen, most := map[uint64]bool{}, uint64(0)
	for scores.Next() {
		if signal := scores.Signal(); seen[scores.ID()] || signal.N != 199 || len(signal.TopK.IDs) != 199*64 || len(signal.Target) != 199 {
			t.Fatal(scores.ID(), signal)
		}
		seen[scores.ID()] = true
		for wait := time.Now(); len(seen) == 1; time.Sleep(time.Millisecond) { // be slow until the credit is used up
			if unread := unreadBytes(scores); unread > credit/2 || time.Since(wait) > time.Minute {
				break
			}
		}
		most = max(most, unreadBytes(scores))
	}
	if scores.Err() != nil || len(seen) != 100 {
		t.Fatal(len(seen), scores.Err())
	}
	if most < credit/2 || most > credit+1<<20 {
		t.Errorf("%d bytes were unread", most)
	}
}

func unreadBytes(scores *Scores) uint64 {
	scores.exchange.mu.Lock()
	defer scores.exchange.mu.Unlock()
	return scores.exchange.held + scores.exchange.partial
}

func errorItem(t *testing.T, s *served) {
	items := tokenItems(3, 200)
	items[1] = ScoreItem{ID: 1, IDs: make([]int32, 600), N: 5}
	client := s.connect(t, "score", s.Address)
	_, err := s.score(client, topK, items)
	failed := refusedWith(t, err, RequestInvalid)
	if len(failed.Problems) != 1 || failed.Problems[0].Field != "item 1" || !strings.Contains(err.Error(), "512") {
		t.Error(err)
	}
	// the call itself goes on
	call := &scoring{teacher: s.Teacher, want: topK, credit: 1 << 20}
	out, err := client.outgoing(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream, receive, err := call.open(out, client)
	if err != nil {
		t.Fatal(err)
	}
	var encoded []proto.Message
	for _, item := range items {
		message, err := call.encode(item)
		if err != nil {
			t.Fatal(err)
		}
		encoded = append(encoded, message)
	}
	for _, message := range []proto.Message{call.start(1<<20, nil), call.items(encoded)} {
		if err := stream.SendMsg(message); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answered, refused := map[uint64]bool{}, []uint64{}
	for {
		message, err := receive()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if message.last {
			answered[message.item] = true
		}
		if message.failed != nil {
			refused = append(refused, message.failed.ItemId)
		}
	}
	if fmt.Sprint(answered, refused) != "map[0:true 2:true] [1]" {
		t.Error(answered, refused)
	}
}
