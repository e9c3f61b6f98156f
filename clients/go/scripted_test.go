package limbeck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// script is a server that does what a test says.
type script struct {
	limbeckv1.UnimplementedTrainingServiceServer
	limbeckv1.UnimplementedTeacherServiceServer
	create    func(*limbeckv1.CreateRunRequest) (*limbeckv1.CreateRunResponse, error)
	run       func() (*limbeckv1.GetRunResponse, error)
	watch     func(*limbeckv1.WatchRunRequest, limbeckv1.TrainingService_WatchRunServer) error
	artifacts []*limbeckv1.Artifact
	download  func(*limbeckv1.DownloadArtifactRequest, limbeckv1.TrainingService_DownloadArtifactServer) error
	signals   func(*limbeckv1.StreamSignalsRequest, limbeckv1.TeacherService_StreamSignalsServer) error
	score     func(limbeckv1.TeacherService_ScoreServer) error
	generate  func(limbeckv1.TeacherService_GenerateServer) error
	head      func(limbeckv1.TeacherService_GetOutputHeadServer) error
}

func (s *script) CreateRun(_ context.Context, r *limbeckv1.CreateRunRequest) (*limbeckv1.CreateRunResponse, error) {
	return s.create(r)
}

func (s *script) GetRun(context.Context, *limbeckv1.GetRunRequest) (*limbeckv1.GetRunResponse, error) {
	return s.run()
}

func (s *script) WatchRun(r *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
	return s.watch(r, stream)
}

func (s *script) ListArtifacts(context.Context, *limbeckv1.ListArtifactsRequest) (*limbeckv1.ListArtifactsResponse, error) {
	return &limbeckv1.ListArtifactsResponse{Artifacts: s.artifacts}, nil
}

func (s *script) DownloadArtifact(
	r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer,
) error {
	return s.download(r, stream)
}

func (s *script) StreamSignals(r *limbeckv1.StreamSignalsRequest, stream limbeckv1.TeacherService_StreamSignalsServer) error {
	return s.signals(r, stream)
}

func (s *script) Score(stream limbeckv1.TeacherService_ScoreServer) error { return s.score(stream) }

func (s *script) Generate(stream limbeckv1.TeacherService_GenerateServer) error {
	return s.generate(stream)
}

func (s *script) GetOutputHead(_ *limbeckv1.GetOutputHeadRequest, stream limbeckv1.TeacherService_GetOutputHeadServer) error {
	return s.head(stream)
}

// play serves a script, and gives a client of it. When the test ends, nothing of the client may be left.
func play(t *testing.T, s *script, options ...Option) *Client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	limbeckv1.RegisterTrainingServiceServer(server, s)
	limbeckv1.RegisterTeacherServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	before := runtime.NumGoroutine()
	client, err := Connect(context.Background(), listener.Addr().String(), append([]Option{Log(func(line string) { t.Log(line) })}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		gone(t, before)
	})
	return client
}

// gone waits until no more goroutines are there than before.
func gone(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			var stacks bytes.Buffer
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Fatalf("%d goroutines are left, there were %d:\n%s", runtime.NumGoroutine(), before, stacks.String())
		}
	}
}

// refused is an error as a server sends it.
func refused(t *testing.T, code codes.Code, reason Reason) error {
	t.Helper()
	said, err := status.New(code, string(reason)+": told").WithDetails(&limbeckv1.Error{
		Reason: string(reason), Message: "told",
		Problems: []*limbeckv1.Problem{{Message: "this", Field: "here", Hint: "so"}, {Message: "that"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return said.Err()
}

var lost = status.Error(codes.Unavailable, "scripted")

const huge = 1<<53 + 1 // no float64 holds it

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
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
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

func TestErrorsAreTyped(t *testing.T) {
	var answer error
	var calls atomic.Int32
	client := play(t, &script{create: func(*limbeckv1.CreateRunRequest) (*limbeckv1.CreateRunResponse, error) {
		calls.Add(1)
		return nil, answer
	}}, Timeout(300*time.Millisecond))
	for code, reason := range map[codes.Code]Reason{
		codes.InvalidArgument: RecipeInvalid, codes.ResourceExhausted: QuotaExceeded, codes.Internal: "NEW_REASON",
	} {
		calls.Store(0)
		answer = refused(t, code, reason)
		_, err := client.CreateRun(context.Background(), "x")
		var found *Error
		if !errors.As(err, &found) || found.Reason != reason || found.Message != "told" || len(found.Problems) != 2 || calls.Load() != 1 {
			t.Fatalf("%d calls: %#v", calls.Load(), err)
		}
		if found.Problems[0] != (Problem{Message: "this", Field: "here", Hint: "so"}) {
			t.Error(found.Problems)
		}
		if !errors.Is(err, reason) || errors.Is(err, Internal) || status.Code(errors.Unwrap(err)) != code {
			t.Error(err)
		}
	}
	for code, reason := range map[codes.Code]Reason{ // from something that is no Limbeck server
		codes.Unimplemented: RequestInvalid, codes.PermissionDenied: PermissionDenied, codes.Unknown: Internal,
	} {
		answer = status.Error(code, "odd")
		if _, err := client.CreateRun(context.Background(), "x"); !errors.Is(err, reason) {
			t.Error(err)
		}
	}
	for _, answer = range []error{lost, status.Error(codes.Internal, "stream terminated by RST_STREAM with error code")} {
		calls.Store(0)
		if _, err := client.CreateRun(context.Background(), "x"); !errors.Is(err, ServerUnavailable) || calls.Load() < 2 {
			t.Errorf("%d calls: %v", calls.Load(), err)
		}
	}
}

func TestARunIsCreatedOnceWhateverHappens(t *testing.T) {
	var ids []string
	client := play(t, &script{create: func(r *limbeckv1.CreateRunRequest) (*limbeckv1.CreateRunResponse, error) {
		if ids = append(ids, r.RequestId); len(ids) < 3 {
			return nil, lost // and nobody knows whether it was created
		}
		return &limbeckv1.CreateRunResponse{Run: &limbeckv1.Run{RunId: "r", LastSequence: huge}}, nil
	}})
	run, err := client.CreateRun(context.Background(), "x")
	if err != nil || run.LastSequence != huge || len(ids) != 3 || ids[0] != ids[1] || ids[1] != ids[2] || len(ids[0]) < 16 {
		t.Fatal(run, ids, err)
	}
	if _, err := client.CreateRun(context.Background(), "x"); err != nil || ids[3] == ids[2] {
		t.Error(ids, err)
	}
	if _, err := client.CreateRun(context.Background(), "x", RequestID("mine")); err != nil || ids[4] != "mine" {
		t.Error(ids, err)
	}
}

func TestTheTokenGoesWithEveryCall(t *testing.T) {
	client := play(t, &script{watch: func(_ *limbeckv1.WatchRunRequest, stream limbeckv1.TrainingService_WatchRunServer) error {
		sent, _ := metadata.FromIncomingContext(stream.Context())
		return status.Error(codes.FailedPrecondition, strings.Join(sent.Get("authorization"), " and "))
	}}, Token("\ufeffsesame\r\n"))
	events := client.Watch(context.Background(), "r", Oldest)
	if events.Next() || !strings.Contains(events.Err().Error(), ": Bearer sesame") {
		t.Error(events.Err())
	}
}

// ------------------------------------------------------------------------------------------------------------- files

func artifact(path string, content []byte) *limbeckv1.Artifact {
	sum := sha256.Sum256(content)
	return &limbeckv1.Artifact{Path: path, Size: uint64(len(content)), Sha256: sum[:]}
}

func startedFile(a *limbeckv1.Artifact) *limbeckv1.DownloadArtifactResponse {
	return &limbeckv1.DownloadArtifactResponse{Kind: &limbeckv1.DownloadArtifactResponse_Started{Started: a}}
}

func data(content []byte) *limbeckv1.DownloadArtifactResponse {
	return &limbeckv1.DownloadArtifactResponse{Kind: &limbeckv1.DownloadArtifactResponse_Data{Data: content}}
}

// fileIs tells whether a file holds this, and is alone in its folder.
func fileIs(t *testing.T, path string, content []byte) {
	t.Helper()
	found, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(found, content) {
		t.Errorf("%s holds %d bytes, %v", path, len(found), err)
	}
	if others, _ := filepath.Glob(path + ".*"); len(others) > 0 {
		t.Errorf("%v are left", others)
	}
}

func TestAFileIsFetchedOverLostConnections(t *testing.T) {
	content := bytes.Repeat([]byte("limbeck "), 100_000)
	whole := artifact("student/model.safetensors", content)
	var offsets []uint64
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{{Path: "recipe.yaml"}, whole},
		download: func(r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			offsets = append(offsets, r.Offset)
			if (r.Offset > 0) != bytes.Equal(r.Sha256, whole.Sha256) {
				return refused(t, codes.InvalidArgument, RequestInvalid)
			}
			_ = stream.Send(startedFile(whole))
			next := content[r.Offset:]
			if len(next) > 300_000 {
				_ = stream.Send(data(next[:300_000]))
				return lost
			}
			return stream.Send(data(next))
		},
	})
	dir := t.TempDir()
	var told []uint64
	heard := Progress(func(_ string, done, size uint64) { told = append(told, done) })
	files, err := client.Fetch(context.Background(), "r", dir, heard)
	if err != nil || len(files) != 1 || fmt.Sprint(offsets) != "[0 300000 600000]" || told[len(told)-1] != whole.Size {
		t.Fatal(files, err, offsets, told)
	}
	fileIs(t, files[0], content)
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil || len(offsets) != 3 {
		t.Error("what is there was fetched again", err)
	}
	// what an earlier process left is gone on from
	if err := os.Rename(files[0], fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256), 700_000); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil || fmt.Sprint(offsets[3:]) != "[700000]" {
		t.Error(err, offsets)
	}
	fileIs(t, files[0], content)
	// and where it is broken, it is fetched from the start
	if err := os.Rename(files[0], fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil {
		t.Error(err)
	}
	fileIs(t, files[0], content)
}

func TestBytesOfAnotherFileAreRefused(t *testing.T) {
	whole := artifact("student/a", []byte("right"))
	var calls atomic.Int32
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{whole},
		download: func(_ *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			calls.Add(1)
			_ = stream.Send(startedFile(whole))
			return stream.Send(data([]byte("wrong")))
		},
	})
	dir := t.TempDir()
	if _, err := client.Fetch(context.Background(), "r", dir); !errors.Is(err, StoreDamaged) || calls.Load() != 2 {
		t.Error(calls.Load(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "student/a")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the wrong file is there", err)
	}
}

func TestAFileThatGrowsIsFetchedAsItIsAtTheStart(t *testing.T) {
	var calls atomic.Int32
	content := []byte("one\ntwo\n")
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{{Path: "events.jsonl", Size: 4}},
		download: func(r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			switch calls.Add(1) {
			case 1:
				_ = stream.Send(startedFile(artifact("events.jsonl", content)))
				_ = stream.Send(data(content[:4]))
				return lost
			case 2: // it has grown
				return refused(t, codes.DataLoss, StoreDamaged)
			}
			content = append(content, "three\n"...)
			_ = stream.Send(startedFile(artifact("events.jsonl", content)))
			return stream.Send(data(content[r.Offset:]))
		},
	})
	dir := t.TempDir()
	files, err := client.Fetch(context.Background(), "r", dir, Path("events.jsonl"))
	if err != nil || calls.Load() != 3 {
		t.Fatal(calls.Load(), err)
	}
	fileIs(t, files[0], content)
}

func TestNothingLeadsOutOfTheFolder(t *testing.T) {
	s := &script{download: func(_ *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
		t.Error("it was asked for")
		return lost
	}}
	client := play(t, s)
	for _, path := range []string{
		"../x", "student/../../x", "/etc/x", "student//x", "student/./x", "student/", "student\\x", "c:x", "student/x\x00", "..",
	} {
		s.artifacts = []*limbeckv1.Artifact{artifact("student/good", nil), artifact(path, []byte("x"))}
		if _, err := client.Fetch(context.Background(), "r", t.TempDir(), Path("")); !errors.Is(err, Internal) {
			t.Errorf("%q: %v", path, err)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "student")); err != nil {
		t.Fatal(err)
	}
	s.artifacts = []*limbeckv1.Artifact{artifact("student/x", []byte("x"))}
	if _, err := client.Fetch(context.Background(), "r", dir); !errors.Is(err, FolderNotOurs) {
		t.Error(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir, Path("twin")); !errors.Is(err, ArtifactUnknown) {
		t.Error(err)
	}
}

// ------------------------------------------------------------------------------------------------------------- scores

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

func TestTextsAreContinued(t *testing.T) {
	var connections atomic.Int32
	client := play(t, &script{generate: func(stream limbeckv1.TeacherService_GenerateServer) error {
		connections.Add(1)
		if _, err := stream.Recv(); err != nil {
			return err
		}
		header := &limbeckv1.SignalHeader{Codec: codecName, Version: 1, VocabSize: 300, K: 1, Temperatures: []float64{1}, Target: true}
		_ = stream.Send(&limbeckv1.GenerateResponse{Kind: &limbeckv1.GenerateResponse_Started{Started: &limbeckv1.GenerateStarted{
			Teacher: scoreTeacher, Header: header,
		}}})
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		row := func(first uint32) *limbeckv1.PackedSignal {
			return &limbeckv1.PackedSignal{FirstRow: first, N: 1, IdsLow: []byte{7, 0}, Logprobs: []byte{0, 8}, Tails: []byte{0, 0, 0, 0xbf}}
		}
		send := func(c *limbeckv1.Completion) {
			_ = stream.Send(&limbeckv1.GenerateResponse{Kind: &limbeckv1.GenerateResponse_Completion{Completion: c}})
		}
		prompt := message.GetPrompts().Prompts[0]
		end := uint32(9)
		send(&limbeckv1.Completion{ItemId: prompt.ItemId, Said: row(2), More: true})
		if connections.Load() == 1 {
			return lost
		}
		send(&limbeckv1.Completion{
			ItemId: prompt.ItemId, Said: row(3), Ids: int32Bytes([]int32{7}), EndId: &end,
			FinishReason: limbeckv1.Completion_FINISH_REASON_STOP,
		})
		_, _ = stream.Recv()
		return nil
	}})
	texts := client.Generate(context.Background(), "t", &limbeckv1.Sampling{MaxNewTokens: 4, Logprobs: 1},
		FromSlice([]Prompt{{ID: huge, IDs: []int32{1, 2, 3}}}))
	if !texts.Next() {
		t.Fatal(texts.Err())
	}
	found := texts.Completion()
	if found.ID != huge || fmt.Sprint(found.IDs, found.Cut, found.Said.IDs, found.Said.TopK.IDs, found.Said.Target) != "[7] false [7 9] [7 7] []" {
		t.Errorf("%+v %+v", found, found.Said)
	}
	if texts.Next() || texts.Err() != nil || connections.Load() != 2 {
		t.Error(texts.Err(), connections.Load())
	}
}

func TestAHeadIsFetchedAndVerified(t *testing.T) {
	content := []byte{0x80, 0x3f, 0, 0x40, 0x40, 0x40, 0x80, 0x40, 0, 0, 0x80, 0xbf} // 1 2 3 4, 0 −1 in bfloat16
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	var calls atomic.Int32
	client := play(t, &script{head: func(stream limbeckv1.TeacherService_GetOutputHeadServer) error {
		calls.Add(1)
		head := &limbeckv1.OutputHead{
			VocabSize: 2, HiddenSize: 2, Dtype: limbeckv1.Dtype_DTYPE_BFLOAT16, Bias: true, Scale: 0.5, Softcap: 30, Bytes: 12, Sha256: sum,
		}
		_ = stream.Send(&limbeckv1.GetOutputHeadResponse{Kind: &limbeckv1.GetOutputHeadResponse_Head{Head: head}})
		for offset := 0; offset < 12; offset += 6 {
			if calls.Load() == 1 && offset > 0 {
				return nil // too early
			}
			chunk := &limbeckv1.Chunk{Offset: uint64(offset), Data: content[offset : offset+6]}
			_ = stream.Send(&limbeckv1.GetOutputHeadResponse{Kind: &limbeckv1.GetOutputHeadResponse_Chunk{Chunk: chunk}})
		}
		return nil
	}})
	head, err := client.OutputHead(context.Background(), "t")
	if err != nil || calls.Load() != 2 || fmt.Sprint(head.Weight, head.Bias, head.Scale, head.SoftCap) != "[1 2 3 4] [0 -1] 0.5 30" {
		t.Fatal(head, calls.Load(), err)
	}
	sum = strings.Repeat("0", 64)
	if _, err := client.OutputHead(context.Background(), "t"); !errors.Is(err, SignalInvalid) {
		t.Error(err)
	}
}
