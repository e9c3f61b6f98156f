package limbeck

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

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
