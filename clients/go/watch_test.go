package limbeck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protojson"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

func event(sequence uint64, state limbeckv1.RunState) *limbeckv1.Event {
	found := &limbeckv1.Event{Sequence: sequence}
	if state != 0 {
		found.Kind = &limbeckv1.Event_StateChanged{StateChanged: &limbeckv1.StateChanged{State: state}}
	}
	return found
}

func said(events ...*limbeckv1.Event) *limbeckv1.WatchRunResponse {
	return &limbeckv1.WatchRunResponse{Kind: &limbeckv1.WatchRunResponse_Events{Events: &limbeckv1.Events{Events: events}}}
}

const succeeded = limbeckv1.RunState_RUN_STATE_SUCCEEDED

func sequences(events *Events) (found []uint64) {
	for events.Next() {
		found = append(found, events.Event().Sequence)
	}
	return found
}

func TestEachEventComesOnceOverLostConnections(t *testing.T) {
	var asked []string
	client := play(t, &script{watch: func(r *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		after := "unset"
		if r.AfterSequence != nil {
			after = fmt.Sprint(*r.AfterSequence)
		}
		asked = append(asked, after)
		switch len(asked) {
		case 1:
			return lost
		case 2:
			_ = stream.Send(said(event(huge, 0), event(huge+1, 0)))
			return lost
		case 3: // once more what the client has
			_ = stream.Send(said(event(huge+1, 0), event(huge+2, 0)))
			return lost
		}
		_ = stream.Send(said(event(huge+3, succeeded)))
		return nil
	}})
	events := client.Watch(context.Background(), "r", Oldest)
	if found := fmt.Sprint(sequences(events)); found != fmt.Sprint([]uint64{huge, huge + 1, huge + 2, huge + 3}) || events.Err() != nil {
		t.Error(found, events.Err())
	}
	if found := fmt.Sprint(asked); found != fmt.Sprintf("[unset unset %d %d]", huge+1, huge+2) {
		t.Error(found)
	}
	if events.Next() || events.Event() != nil {
		t.Error("there is an event after the last")
	}
}

func TestCursorsGoOutAsTheyAre(t *testing.T) {
	var asked *limbeckv1.WatchRunRequest
	client := play(t, &script{watch: func(r *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		asked = r
		return refused(t, codes.OutOfRange, CursorInvalid)
	}})
	for _, one := range []struct {
		from     Cursor
		expected string
	}{
		{Oldest, `{"runId":"r"}`}, {After(0), `{"runId":"r","afterSequence":"0"}`},
		{After(huge), `{"runId":"r","afterSequence":"9007199254740993"}`},
	} {
		events := client.Watch(context.Background(), "r", one.from)
		if events.Next() || !errors.Is(events.Err(), CursorInvalid) {
			t.Error(events.Err())
		}
		if found, _ := protojson.Marshal(asked); strings.ReplaceAll(string(found), " ", "") != one.expected {
			t.Errorf("%s, %s is expected", found, one.expected)
		}
	}
}

func TestEventsThatAreMissingAreAnError(t *testing.T) {
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		_ = stream.Send(said(event(1, 0), event(3, succeeded)))
		return nil
	}})
	events := client.Watch(context.Background(), "r", After(0))
	if found := sequences(events); len(found) > 1 || !errors.Is(events.Err(), LogDamaged) {
		t.Error(found, events.Err())
	}
}

func TestAnEndThatIsNotTheRunsIsGoneOnFrom(t *testing.T) {
	var calls atomic.Int32
	state := limbeckv1.RunState_RUN_STATE_TRAINING
	client := play(t, &script{
		watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
			if calls.Add(1) == 1 {
				_ = stream.Send(said(event(1, 0)))
			} else {
				_ = stream.Send(said(event(2, succeeded)))
			}
			return nil
		},
		run: func() (*limbeckv1.GetRunResponse, error) {
			return &limbeckv1.GetRunResponse{Run: &limbeckv1.Run{State: state, LastSequence: 2}}, nil
		},
	})
	events := client.Watch(context.Background(), "r", Oldest)
	if found := fmt.Sprint(sequences(events)); found != "[1 2]" || events.Err() != nil {
		t.Error(found, events.Err())
	}
	state = succeeded // all was seen before: there is nothing to say
	client.training = answering{client.training}
	events = client.Watch(context.Background(), "r", After(2))
	if events.Next() || events.Err() != nil {
		t.Error(events.Event(), events.Err())
	}
}

// answering is a connection on which WatchRun ends at once.
type answering struct {
	limbeckv1.TrainingServiceClient
}

func (a answering) WatchRun(ctx context.Context, r *limbeckv1.WatchRunRequest, _ ...grpc.CallOption) (
	limbeckv1.TrainingService_WatchRunClient, error,
) {
	return ending{}, nil
}

type ending struct {
	limbeckv1.TrainingService_WatchRunClient
}

func (ending) Recv() (*limbeckv1.WatchRunResponse, error) { return nil, io.EOF }

func TestASilentServerIsGivenUpAndTriedAgain(t *testing.T) {
	var calls atomic.Int32
	var from sync.Map
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		where, _ := peer.FromContext(stream.Context())
		if _, known := from.LoadOrStore(where.Addr.String(), true); known {
			t.Error("the silent connection is used again")
		}
		switch calls.Add(1) {
		case 1:
			_ = stream.Send(said(event(1, 0)))
			<-stream.Context().Done() // says nothing more
			return stream.Context().Err()
		case 2: // alive for longer than the silence that is borne, then silent
			for i := 0; i < 8; i++ {
				_ = stream.Send(&limbeckv1.WatchRunResponse{Kind: &limbeckv1.WatchRunResponse_Alive{Alive: &limbeckv1.WatchAlive{}}})
				time.Sleep(50 * time.Millisecond)
			}
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		_ = stream.Send(said(event(2, succeeded)))
		return nil
	}}, Liveness(time.Second, 300*time.Millisecond))
	events := client.Watch(context.Background(), "r", Oldest)
	if found := fmt.Sprint(sequences(events)); found != "[1 2]" || events.Err() != nil || calls.Load() != 3 {
		t.Error(found, events.Err(), calls.Load())
	}
}

func TestASilentServerIsToldWhenPatienceEnds(t *testing.T) {
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		<-stream.Context().Done()
		return stream.Context().Err()
	}}, Liveness(time.Second, 50*time.Millisecond), Timeout(200*time.Millisecond))
	events := client.Watch(context.Background(), "r", Oldest)
	if events.Next() || !errors.Is(events.Err(), PeerSilent) {
		t.Error(events.Err())
	}
}

func TestContextsEndEverythingAndNothingIsLeft(t *testing.T) {
	begun := make(chan struct{}, 16)
	client := play(t, &script{
		watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
			begun <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
		signals: func(_ *limbeckv1.StreamSignalsRequest, stream limbeckv1.TeacherService_StreamSignalsServer) error {
			begun <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
		score: func(stream limbeckv1.TeacherService_ScoreServer) error {
			begun <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
		generate: func(stream limbeckv1.TeacherService_GenerateServer) error {
			begun <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
		head: func(stream limbeckv1.TeacherService_GetOutputHeadServer) error {
			begun <- struct{}{}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
	})
	never := make(chan ScoreItem)
	prompts := make(chan Prompt)
	for name, call := range map[string]func(context.Context) error{
		"watch": func(ctx context.Context) error {
			events := client.Watch(ctx, "r", Oldest)
			events.Next()
			return events.Err()
		},
		"signals": func(ctx context.Context) error {
			signals := client.Signals(ctx, "d", 0)
			signals.Next()
			return signals.Err()
		},
		"score": func(ctx context.Context) error {
			scores := client.Score(ctx, "t", &limbeckv1.Want{TopK: 1}, FromChannel(never))
			scores.Next()
			return scores.Err()
		},
		"generate": func(ctx context.Context) error {
			texts := client.Generate(ctx, "t", &limbeckv1.Sampling{MaxNewTokens: 1}, FromChannel(prompts))
			texts.Next()
			return texts.Err()
		},
		"head": func(ctx context.Context) error {
			_, err := client.OutputHead(ctx, "t")
			return err
		},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-begun
			cancel()
		}()
		if err := call(ctx); err != context.Canceled {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
		if err := call(ctx); err != context.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		select {
		case <-begun:
		default:
		}
	}
	// a client that is closed ends what is under way
	ended := make(chan error, 1)
	go func() {
		events := client.Watch(context.Background(), "r", Oldest)
		events.Next()
		ended <- events.Err()
	}()
	<-begun
	_ = client.Close()
	if err := <-ended; !errors.Is(err, ServerUnavailable) {
		t.Error(err)
	}
	if _, err := client.Runs(context.Background()); !errors.Is(err, ServerUnavailable) || !strings.Contains(err.Error(), "closed") {
		t.Error(err)
	}
}

func TestARestingRunIsWatchedOnWithoutAWord(t *testing.T) {
	var calls atomic.Int32
	var told atomic.Int32
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		if calls.Add(1) > 3 {
			return stream.Send(said(event(1, succeeded)))
		}
		_ = stream.Send(&limbeckv1.WatchRunResponse{Kind: &limbeckv1.WatchRunResponse_Alive{Alive: &limbeckv1.WatchAlive{}}})
		return lost // as a server does after 10 minutes
	}}, Log(func(string) { told.Add(1) }))
	events := client.Watch(context.Background(), "r", Oldest)
	if found := fmt.Sprint(sequences(events)); found != "[1]" || events.Err() != nil || told.Load() != 0 {
		t.Error(found, events.Err(), told.Load())
	}
}
