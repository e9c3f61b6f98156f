package limbeck

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

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
		if found.Problems[0] != (Problem{Message: "this", File: "recipe", Line: 3, Column: 9, Field: "here", Hint: "so"}) {
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
	for said, due := range map[string]string{ // where there is no connection
		"last connection error: connection closed":            "where it speaks TLS, name the certificate",
		"connection error: x509: signed by unknown authority": "known by: TLSCA",
		"connection refused":                                  "address and TLS are its own",
	} {
		if err := errorOfCall(status.Error(codes.Unavailable, said), "a:1"); !strings.Contains(err.Problems[0].Hint, due) {
			t.Error(err)
		}
	}
	answer = status.Error(codes.ResourceExhausted, "SERVER: Received message larger than max (5 vs. 4)")
	if _, err := client.CreateRun(context.Background(), "x"); !errors.Is(err, RequestInvalid) {
		t.Error(err)
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
