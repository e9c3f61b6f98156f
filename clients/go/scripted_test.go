package limbeck

import (
	"bytes"
	"context"
	"net"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
		Problems: []*limbeckv1.Problem{{Message: "this", Field: "here", Hint: "so", File: "recipe", Line: 3, Column: 9}, {Message: "that"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return said.Err()
}

var lost = status.Error(codes.Unavailable, "scripted")

const huge = 1<<53 + 1 // no float64 holds it
