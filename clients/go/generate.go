package limbeck

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// Prompt is what a teacher continues.
type Prompt struct {
	// ID is the caller's name of it, unique among the prompts that are not answered yet.
	ID uint64
	// IDs are its tokens, with the leading <bos>.
	IDs []int32
}

// Completion is the continuation of a prompt.
type Completion struct {
	// ID is the prompt's.
	ID uint64
	// IDs are the tokens that were written, without the prompt and without the end id.
	IDs []int32
	// Cut tells whether max_new_tokens cut it; else the model ended it.
	Cut bool
	// Said is what the teacher said of each token as it wrote it, where Sampling.Logprobs asked for it.
	Said *Said
}

// Said is what a teacher said of the tokens that it wrote: a row for each of IDs, which are those of the Completion, and
// the end id where there is one.
type Said struct {
	IDs []int32
	// TopK are the likeliest ids at temperature 1.
	TopK *TopK
	// Target are the log-probabilities of IDs; nil where the teacher does not tell.
	Target []float32
}

// GenerateOption changes how prompts are continued.
type GenerateOption func(*generating)

// WrittenBy refuses another teacher than the one expected.
func WrittenBy(expected *Expectation) GenerateOption {
	return func(g *generating) { g.expectation = expected }
}

// Completions are the continuations of prompts, each once, in any order. Used as Events are, by one goroutine.
type Completions struct {
	exchange *exchange[Prompt, *Completion]
	answer   *Completion
}

// Generate asks a teacher to continue prompts. As Score, without credit.
func (c *Client) Generate(
	ctx context.Context, teacher string, sampling *limbeckv1.Sampling, prompts Source[Prompt], options ...GenerateOption,
) *Completions {
	call := &generating{teacher: teacher, sampling: sampling}
	for _, option := range options {
		option(call)
	}
	return &Completions{exchange: newExchange[Prompt, *Completion](ctx, c, call, prompts)}
}

// Next waits for the next continuation. It returns false after the last, with the end of the context, after Close, and
// where Err has an error.
func (c *Completions) Next() bool {
	var ok bool
	c.answer, ok = c.exchange.next()
	return ok
}

// Completion is what Next found.
func (c *Completions) Completion() *Completion { return c.answer }

// Err is why Next returned false; nil after the last continuation.
func (c *Completions) Err() error { return c.exchange.failure() }

// Close ends the call. A second call does nothing.
func (c *Completions) Close() { c.exchange.close() }

// generating is what Generate says.
type generating struct {
	teacher     string
	sampling    *limbeckv1.Sampling
	expectation *Expectation
	header      *limbeckv1.SignalHeader
}

func (g *generating) check() error               { return nil }
func (g *generating) teacherName() string        { return g.teacher }
func (g *generating) isAlone() bool              { return false }
func (g *generating) fullCredit() uint64         { return 0 }
func (g *generating) grant(uint64) proto.Message { return nil }
func (g *generating) expected() *Expectation     { return g.expectation }
func (g *generating) id(p Prompt) uint64         { return p.ID }
func (g *generating) tokens(p Prompt) (n uint64) {
	return uint64(len(p.IDs)) + uint64(g.sampling.GetMaxNewTokens())
}

func (g *generating) open(ctx context.Context, c *Client) (duplex, func() (*reply, error), error) {
	stream, err := c.teachers.Generate(ctx)
	if err != nil {
		return nil, nil, err
	}
	return stream, func() (*reply, error) {
		message, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		found := &reply{failed: message.GetFailed(), alive: message.GetAlive()}
		if started := message.GetStarted(); started != nil {
			found.started = started
		}
		if part := message.GetCompletion(); part != nil {
			found.part, found.item, found.cost, found.last = part, part.ItemId, uint64(proto.Size(part)), !part.More
		}
		return found, nil
	}, nil
}

func (g *generating) start(_ uint64, expected *Expectation) proto.Message {
	start := &limbeckv1.GenerateStart{Teacher: g.teacher, Sampling: g.sampling, Expectation: expected}
	return &limbeckv1.GenerateRequest{Kind: &limbeckv1.GenerateRequest_Start{Start: start}}
}

func (g *generating) items(encoded []proto.Message) proto.Message {
	prompts := &limbeckv1.Prompts{}
	for _, item := range encoded {
		prompts.Prompts = append(prompts.Prompts, item.(*limbeckv1.Prompt))
	}
	return &limbeckv1.GenerateRequest{Kind: &limbeckv1.GenerateRequest_Prompts{Prompts: prompts}}
}

func (g *generating) alive(position uint64) proto.Message {
	return &limbeckv1.GenerateRequest{Kind: &limbeckv1.GenerateRequest_Alive{Alive: &limbeckv1.Alive{Position: position}}}
}

func (g *generating) started(message proto.Message) (*limbeckv1.Teacher, error) {
	started := message.(*limbeckv1.GenerateStarted)
	if g.header = nil; g.sampling.GetLogprobs() > 0 {
		if started.Header == nil { // it would be left out in silence
			message := "the server is of a version that tells no log-probabilities of texts"
			return nil, newError(CapabilityMissing, Problem{Message: message, Field: "Logprobs"})
		}
		if err := checkHeader(started.Header); err != nil {
			return nil, err
		}
		g.header = started.Header
	}
	if started.Teacher == nil {
		return nil, invalid("the server does not say what the teacher is")
	}
	return started.Teacher, nil
}

func (g *generating) encode(p Prompt) (proto.Message, error) {
	if len(p.IDs) == 0 {
		return nil, errors.New("it has no ids, not even <bos>")
	}
	return &limbeckv1.Prompt{ItemId: p.ID, Ids: int32Bytes(p.IDs)}, nil
}

// couldFit tells whether the prompt is within the limits where nothing else is under way.
func (g *generating) couldFit(p Prompt, limits *limbeckv1.Limits) bool {
	most := uint64(g.sampling.GetMaxNewTokens())
	bytes := 4 * most
	if g.header != nil {
		for _, size := range rowBytes(g.header) {
			bytes += (most + 1) * uint64(size)
		}
	}
	return within(g.tokens(p), limits.TokensInFlight) && within(bytes, limits.AnswerBytes)
}

// reader puts the messages of one prompt's continuation together.
func (g *generating) reader(prompt Prompt) func(proto.Message) (*Completion, bool, error) {
	var parts []*limbeckv1.PackedSignal
	rows := 0
	return func(message proto.Message) (*Completion, bool, error) {
		part := message.(*limbeckv1.Completion)
		if g.header != nil {
			if due := len(prompt.IDs) - 1 + rows; int(part.GetSaid().GetFirstRow()) != due {
				return nil, false, g.wrong(prompt, "row %d came, row %d was due", part.GetSaid().GetFirstRow(), due)
			}
			rows += int(part.GetSaid().GetN())
			parts = append(parts, part.GetSaid())
		}
		if part.More {
			return nil, false, nil
		}
		found := &Completion{
			ID: part.ItemId, IDs: int32s(part.Ids), Cut: part.FinishReason == limbeckv1.Completion_FINISH_REASON_LENGTH,
		}
		if g.header == nil {
			return found, true, nil
		}
		said := &Said{IDs: found.IDs}
		if part.EndId != nil {
			said.IDs = append(append([]int32{}, found.IDs...), int32(*part.EndId))
		}
		found.Said = said
		return found, true, g.said(prompt, said, parts, rows)
	}
}

func (g *generating) said(prompt Prompt, said *Said, parts []*limbeckv1.PackedSignal, rows int) error {
	if rows != len(said.IDs) {
		return g.wrong(prompt, "%d rows came for %d tokens", rows, len(said.IDs))
	}
	fields := joinedFields(parts, func(p *limbeckv1.PackedSignal) *limbeckv1.PackedSignal { return p })
	header := proto.Clone(g.header).(*limbeckv1.SignalHeader)
	header.Target = len(fields[4]) > 0
	signal, err := decode(len(prompt.IDs)-1, rows, fields, header)
	if err != nil {
		return err
	}
	said.TopK, said.Target = signal.TopK, signal.Target
	return nil
}

func (g *generating) wrong(prompt Prompt, format string, values ...any) error {
	return newError(SignalInvalid, Problem{Message: fmt.Sprintf(format, values...), Field: fmt.Sprintf("item %d", prompt.ID)})
}
