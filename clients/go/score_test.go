package limbeck

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// scorer answers items with k = 1 and the target, in fragments of so many rows.
type scorer struct {
	t        *testing.T
	rows     uint32
	cost     uint32
	mu       sync.Mutex
	credit   int64
	lowest   int64
	items    map[uint64]int
	alive    int
	starts   []*limbeckv1.ScoreStart
	answered int
}

var scoreTeacher = &limbeckv1.Teacher{
	Name: "t", State: limbeckv1.Teacher_STATE_READY, VocabSize: 300, TokenizerDigest: "tok", WeightsDigest: "w",
	Limits: &limbeckv1.Limits{TokensInFlight: 64, AnswerBytes: 1 << 20},
}

var scoreHeader = &limbeckv1.SignalHeader{
	Codec: codecName, Version: 1, VocabSize: 300, K: 1, Temperatures: []float64{1}, Target: true,
}

func (s *scorer) begin(stream limbeckv1.TeacherService_ScoreServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.starts = append(s.starts, first.GetStart())
	s.credit = int64(first.GetStart().GetCredit())
	s.mu.Unlock()
	return stream.Send(&limbeckv1.ScoreResponse{Kind: &limbeckv1.ScoreResponse_Started{Started: &limbeckv1.ScoreStarted{
		Teacher: scoreTeacher, Header: scoreHeader,
	}}})
}

// answer sends an item's rows, as far as the credit goes; `most` fragments at most.
func (s *scorer) answer(stream limbeckv1.TeacherService_ScoreServer, item *limbeckv1.ScoreItem, most int) error {
	for row := uint32(0); row < item.N; row += s.rows {
		if most--; most < 0 {
			return nil
		}
		for { // one fragment may overdraw
			s.mu.Lock()
			left := s.credit
			s.mu.Unlock()
			if left > 0 {
				break
			}
			if stream.Context().Err() != nil {
				return stream.Context().Err()
			}
			time.Sleep(time.Millisecond)
		}
		n := item.N - row
		if n > s.rows {
			n = s.rows
		}
		part := &limbeckv1.PackedSignal{FirstRow: item.FirstRow + row, N: n}
		for i := uint32(0); i < n; i++ {
			at := byte(item.FirstRow + row + i)
			part.IdsLow = append(part.IdsLow, at, 0)
			part.Logprobs = append(part.Logprobs, 0, 8) // −1
			part.Tails = append(part.Tails, 0, 0, 0, 0xbf)
			part.Target = append(part.Target, 0, 0, 0, 0xbf)
		}
		s.mu.Lock()
		s.credit -= int64(s.cost)
		if s.credit < s.lowest {
			s.lowest = s.credit
		}
		s.mu.Unlock()
		fragment := &limbeckv1.Fragment{ItemId: item.ItemId, Cost: s.cost, Signal: part, Last: row+n == item.N}
		if err := stream.Send(&limbeckv1.ScoreResponse{Kind: &limbeckv1.ScoreResponse_Fragment{Fragment: fragment}}); err != nil {
			return err
		}
	}
	return nil
}

// listen hands over each message of items.
func (s *scorer) listen(stream limbeckv1.TeacherService_ScoreServer, items func(*limbeckv1.ScoreItems)) {
	for {
		message, err := stream.Recv()
		if err != nil {
			items(nil)
			return
		}
		s.mu.Lock()
		s.credit += int64(message.GetGrant().GetBytes())
		if message.GetAlive() != nil {
			s.alive++
		}
		s.mu.Unlock()
		if message.GetItems() != nil {
			s.mu.Lock()
			for _, item := range message.GetItems().Items {
				s.items[item.ItemId]++
			}
			s.mu.Unlock()
			items(message.GetItems())
		}
	}
}

func scoreItems(n int) (items []ScoreItem) {
	for i := 0; i < n; i++ {
		items = append(items, ScoreItem{ID: huge + uint64(i), IDs: make([]int32, 8), FirstRow: 1, N: 5, Seed: huge})
	}
	return items
}

// checkScores takes all answers, and sees that each came once and is right.
func checkScores(t *testing.T, scores *Scores, n int, each func()) {
	t.Helper()
	seen := map[uint64]bool{}
	for scores.Next() {
		signal := scores.Signal()
		if seen[scores.ID()] || signal.N != 5 || signal.FirstRow != 1 || len(signal.Target) != 5 {
			t.Errorf("item %d: %+v", scores.ID(), signal)
		}
		if fmt.Sprint(signal.TopK.IDs, signal.TopK.Codes[0], signal.Target[4]) != "[1 2 3 4 5] 2048 -0.5" {
			t.Errorf("item %d: %v %v %v", scores.ID(), signal.TopK.IDs, signal.TopK.Codes, signal.Target)
		}
		seen[scores.ID()] = true
		each()
	}
	if scores.Err() != nil || len(seen) != n {
		t.Fatalf("%d answers: %v", len(seen), scores.Err())
	}
}

func TestScoresStayWithinTheCredit(t *testing.T) {
	s := &scorer{t: t, rows: 2, cost: 200_000, items: map[uint64]int{}}
	client := play(t, &script{score: func(stream limbeckv1.TeacherService_ScoreServer) error {
		if err := s.begin(stream); err != nil {
			return err
		}
		queue := make(chan *limbeckv1.ScoreItems, 1000)
		go s.listen(stream, func(items *limbeckv1.ScoreItems) { queue <- items })
		for items := range queue {
			if items == nil {
				return nil
			}
			for _, item := range items.Items {
				if err := s.answer(stream, item, 100); err != nil {
					return err
				}
			}
		}
		return nil
	}})
	want := &limbeckv1.Want{TopK: 1, Target: true}
	scores := client.Score(context.Background(), "t", want, FromSlice(scoreItems(60)), Credit(1<<20))
	checkScores(t, scores, 60, func() {})
	if s.lowest < -200_000 || s.starts[0].Credit != 1<<20 {
		t.Errorf("the credit went down to %d from %d", s.lowest, s.starts[0].Credit)
	}
	for id, times := range s.items {
		if times != 1 {
			t.Errorf("item %d was sent %d times", id, times)
		}
	}
	scores = client.Score(context.Background(), "t", want, FromSlice(scoreItems(1)), Credit(1))
	if scores.Next() || !errors.Is(scores.Err(), RequestInvalid) {
		t.Error(scores.Err())
	}
	scores.Close()
}

func TestWhatIsNotAnsweredIsSentAgainAfterALostConnection(t *testing.T) {
	for _, alone := range []bool{false, true} {
		s := &scorer{t: t, rows: 2, cost: 100, items: map[uint64]int{}}
		var connections atomic.Int32
		client := play(t, &script{score: func(stream limbeckv1.TeacherService_ScoreServer) error {
			if err := s.begin(stream); err != nil {
				return err
			}
			connections.Add(1)
			whole := 3
			if connections.Load() == 3 {
				whole = 1000
			}
			queue := make(chan *limbeckv1.ScoreItems, 1000)
			go s.listen(stream, func(items *limbeckv1.ScoreItems) { queue <- items })
			for items := range queue {
				if items == nil {
					return nil
				}
				for _, item := range items.Items {
					most := 100
					if whole--; whole < 0 { // half of an answer, then nothing
						_ = s.answer(stream, item, 1)
						return lost
					}
					if err := s.answer(stream, item, most); err != nil {
						return err
					}
				}
			}
			return nil
		}})
		options := []ScoreOption{}
		if alone {
			options = append(options, Alone())
		}
		scores := client.Score(context.Background(), "t", &limbeckv1.Want{TopK: 1, Target: true}, FromSlice(scoreItems(12)), options...)
		checkScores(t, scores, 12, func() {})
		if len(s.starts) != 3 || s.starts[0].Expectation != nil || s.starts[2].Expectation.GetWeightsDigest() != "w" {
			t.Error("after the first answer no other teacher may go on:", s.starts)
		}
	}
}

func TestItemsFailByThemselves(t *testing.T) {
	fail := map[uint64][]Reason{huge + 1: {TeacherUnavailable, QuotaExceeded}, huge + 2: {RequestInvalid}}
	s := &scorer{t: t, rows: 5, cost: 100, items: map[uint64]int{}}
	client := play(t, &script{score: func(stream limbeckv1.TeacherService_ScoreServer) error {
		if err := s.begin(stream); err != nil {
			return err
		}
		queue := make(chan *limbeckv1.ScoreItems, 1000)
		go s.listen(stream, func(items *limbeckv1.ScoreItems) { queue <- items })
		for items := range queue {
			if items == nil {
				return nil
			}
			for _, item := range items.Items {
				if reasons := fail[item.ItemId]; len(reasons) > 0 {
					fail[item.ItemId] = reasons[1:]
					failed := &limbeckv1.ItemFailed{ItemId: item.ItemId, Error: &limbeckv1.Error{Reason: string(reasons[0]), Message: "told"}}
					_ = stream.Send(&limbeckv1.ScoreResponse{Kind: &limbeckv1.ScoreResponse_Failed{Failed: failed}})
				} else if err := s.answer(stream, item, 100); err != nil {
					return err
				}
			}
		}
		return nil
	}})
	want := &limbeckv1.Want{TopK: 1, Target: true}
	checkScores(t, client.Score(context.Background(), "t", want, FromSlice(scoreItems(2))), 2, func() {})
	if s.items[huge+1] != 3 {
		t.Errorf("it was sent %d times", s.items[huge+1])
	}
	scores := client.Score(context.Background(), "t", want, FromSlice(scoreItems(3)))
	defer scores.Close()
	for scores.Next() {
	}
	if !errors.Is(scores.Err(), RequestInvalid) || !strings.Contains(scores.Err().Error(), fmt.Sprintf("item %d", huge+2)) {
		t.Error(scores.Err())
	}
	twice := []ScoreItem{scoreItems(1)[0], scoreItems(1)[0]}
	scores = client.Score(context.Background(), "t", want, FromSlice(twice), Alone())
	defer scores.Close()
	if scores.Next() || !errors.Is(scores.Err(), RequestInvalid) {
		t.Error(scores.Err())
	}
	broken := errors.New("the source is broken")
	scores = client.Score(context.Background(), "t", want, func(context.Context) (ScoreItem, error) { return ScoreItem{}, broken })
	defer scores.Close()
	if scores.Next() || scores.Err() != broken {
		t.Error(scores.Err())
	}
}

func TestScoreSaysThatItIsAliveAndNoticesSilence(t *testing.T) {
	s := &scorer{t: t, rows: 5, cost: 100, items: map[uint64]int{}}
	var connections atomic.Int32
	enough := make(chan struct{})
	client := play(t, &script{score: func(stream limbeckv1.TeacherService_ScoreServer) error {
		if err := s.begin(stream); err != nil {
			return err
		}
		connections.Add(1)
		queue := make(chan *limbeckv1.ScoreItems, 1000)
		go s.listen(stream, func(items *limbeckv1.ScoreItems) { queue <- items })
		items := <-queue
		if connections.Load() == 1 {
			<-stream.Context().Done() // silent
			return stream.Context().Err()
		}
		for { // alive, until the client was heard three times
			_ = stream.Send(&limbeckv1.ScoreResponse{Kind: &limbeckv1.ScoreResponse_Alive{Alive: &limbeckv1.Alive{Phase: "loading"}}})
			s.mu.Lock()
			alive := s.alive
			s.mu.Unlock()
			if alive >= 6 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		close(enough)
		if err := s.answer(stream, items.Items[0], 100); err != nil {
			return err
		}
		<-queue
		return nil
	}}, Liveness(100*time.Millisecond, 400*time.Millisecond))
	scores := client.Score(context.Background(), "t", &limbeckv1.Want{TopK: 1, Target: true}, FromSlice(scoreItems(1)))
	checkScores(t, scores, 1, func() {})
	<-enough
	if connections.Load() != 2 {
		t.Error(connections.Load())
	}
}

func TestLeavingEarlyLeavesNothing(t *testing.T) {
	s := &scorer{t: t, rows: 5, cost: 100, items: map[uint64]int{}}
	ended := make(chan struct{})
	client := play(t, &script{score: func(stream limbeckv1.TeacherService_ScoreServer) error {
		defer close(ended)
		if err := s.begin(stream); err != nil {
			return err
		}
		queue := make(chan *limbeckv1.ScoreItems, 1000)
		go s.listen(stream, func(items *limbeckv1.ScoreItems) { queue <- items })
		items := <-queue
		_ = s.answer(stream, items.Items[0], 100)
		<-stream.Context().Done()
		return stream.Context().Err()
	}})
	endless := func(context.Context) (ScoreItem, error) {
		item := scoreItems(1)[0]
		item.ID = atomic.AddUint64(&counter, 1)
		return item, nil
	}
	scores := client.Score(context.Background(), "t", &limbeckv1.Want{TopK: 1, Target: true}, endless)
	if !scores.Next() {
		t.Fatal(scores.Err())
	}
	scores.Close()
	scores.Close()
	if scores.Next() || scores.Err() != nil {
		t.Error(scores.Err())
	}
	<-ended
	if client.budget.used != 0 {
		t.Errorf("%d tokens are taken", client.budget.used)
	}
}

var counter uint64
