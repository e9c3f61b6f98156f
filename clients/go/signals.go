package limbeck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// Expectation is what the caller is made for: a teacher, or signals of one, that differ in what is set are refused
// before the first answer.
type Expectation = limbeckv1.Expectation

// Expect is the Expectation of a teacher as it is now.
func Expect(teacher *limbeckv1.Teacher) *Expectation {
	return &Expectation{
		TokenizerDigest: &teacher.TokenizerDigest,
		WeightsDigest:   &teacher.WeightsDigest,
		VocabSize:       &teacher.VocabSize,
	}
}

// StoredSignal is the signal of one sequence of a dataset.
type StoredSignal struct {
	// Dataset is its name, Sequence its place in it, from 1: where to go on from.
	Dataset  string
	Sequence uint64
	message  *limbeckv1.StoredSignal
	header   *limbeckv1.SignalHeader
}

// Tokens are a sequence's tokens.
type Tokens struct {
	IDs []int32
	// Trained tells which of them are trained; never the first.
	Trained []bool
	// Pair is the number of the preference pair that it is a text of, −1 for none; Rejected, whether the rejected one.
	Pair     int64
	Rejected bool
}

// Signal decodes what the teacher said. SignalInvalid for bytes that cannot be.
func (s *StoredSignal) Signal() (*Signal, error) {
	packed := s.message.GetSignal()
	return decode(int(packed.GetFirstRow()), int(packed.GetN()), fieldsOf(packed), s.header)
}

// IDsSHA256 is the sha256 of the token ids as int32, little-endian.
func (s *StoredSignal) IDsSHA256() []byte { return s.message.GetIdsSha256() }

// Tokens are its tokens, where WithTokens asked for them. SignalInvalid where they are not those that the signal was
// captured for.
func (s *StoredSignal) Tokens() (*Tokens, error) {
	raw := s.message.GetTokens()
	if raw == nil {
		return nil, s.invalid("its tokens were not asked for", "ask with WithTokens")
	}
	sum := sha256.Sum256(raw.Ids)
	if !bytes.Equal(sum[:], s.message.IdsSha256) || len(raw.Ids) != 4*len(raw.Trained) {
		return nil, s.invalid("its tokens are not those that the signal was captured for", "see the server's store")
	}
	found := &Tokens{IDs: int32s(raw.Ids), Trained: make([]bool, len(raw.Trained)), Pair: -1, Rejected: raw.Rejected}
	for i, trained := range raw.Trained {
		found.Trained[i] = trained != 0
	}
	if raw.Pair != nil {
		found.Pair = int64(*raw.Pair)
	}
	return found, nil
}

func (s *StoredSignal) invalid(message, hint string) error {
	field := fmt.Sprintf("sequence %d of %s", s.Sequence, s.Dataset)
	return newError(SignalInvalid, Problem{Message: message, Field: field, Hint: hint})
}

// SignalsOption changes what Signals asks.
type SignalsOption func(*limbeckv1.StreamSignalsRequest)

// WithTokens also asks for the token ids and which of them are trained.
func WithTokens() SignalsOption {
	return func(r *limbeckv1.StreamSignalsRequest) { r.WithTokens = true }
}

// OfTeacher refuses signals of another teacher.
func OfTeacher(expected *Expectation) SignalsOption {
	return func(r *limbeckv1.StreamSignalsRequest) { r.Expectation = expected }
}

// Signals are stored signals in the order of their dataset, each once, whatever happens to the connection; also while
// the capture still grows. Used as Events are, by one goroutine.
type Signals struct {
	client  *Client
	ctx     context.Context
	stop    context.CancelFunc
	request *limbeckv1.StreamSignalsRequest
	last    uint64
	retries retries
	tap     *tap[*limbeckv1.StreamSignalsResponse]
	dataset *limbeckv1.Dataset
	ready   []*StoredSignal
	signal  *StoredSignal
	over    bool
	err     error
}

// Signals begins to stream a dataset after a sequence: 0 for all of it. Nothing is asked before the first Next.
func (c *Client) Signals(ctx context.Context, dataset string, after uint64, options ...SignalsOption) *Signals {
	s := &Signals{
		client:  c,
		request: &limbeckv1.StreamSignalsRequest{Dataset: dataset},
		last:    after,
		retries: retries{client: c},
	}
	for _, option := range options {
		option(s.request)
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

// Next waits for the next signal. It returns false after the last, with the end of the context, after Close, and where
// Err has an error.
func (s *Signals) Next() bool {
	for len(s.ready) == 0 && !s.over {
		err := s.more()
		if err == nil {
			continue
		}
		s.tap = nil
		if err := s.retries.wait(s.ctx, err); err != nil {
			s.err = err
			s.Close()
		}
	}
	if s.over {
		s.signal = nil
		return false
	}
	s.signal, s.ready = s.ready[0], s.ready[1:]
	return true
}

// Signal is what Next found.
func (s *Signals) Signal() *StoredSignal { return s.signal }

// Err is why Next returned false; nil after the last signal and after Close.
func (s *Signals) Err() error { return s.err }

// Close ends the stream. A second call does nothing, nor is it needed after Next has returned false.
func (s *Signals) Close() {
	s.over, s.ready = true, nil
	s.stop()
}

func (s *Signals) more() error {
	if s.tap == nil {
		after := s.last
		s.request.AfterSequence = &after
		tap, err := open[*limbeckv1.StreamSignalsRequest, *limbeckv1.StreamSignalsResponse](
			s.ctx, s.client, s.client.teachers.StreamSignals, s.request,
		)
		if err != nil {
			return err
		}
		s.tap = tap
	}
	message, err := s.tap.next()
	if err == io.EOF {
		if s.dataset == nil || s.last < s.dataset.Total {
			text := fmt.Sprintf("the call ended after sequence %d of %d", s.last, s.dataset.GetTotal())
			return unavailable(s.client.settings.name(), text)
		}
		s.Close()
		return nil
	}
	if err == nil {
		err = s.take(message)
	}
	if err != nil && s.tap != nil {
		s.tap.stop()
	}
	return err
}

func (s *Signals) take(message *limbeckv1.StreamSignalsResponse) error {
	switch kind := message.Kind.(type) {
	case *limbeckv1.StreamSignalsResponse_Started:
		return s.started(kind.Started.GetDataset())
	case *limbeckv1.StreamSignalsResponse_Alive:
		s.retries.progress() // the capture may rest for as long as it likes
	case *limbeckv1.StreamSignalsResponse_Signals:
		s.retries.progress()
		for _, signal := range kind.Signals.Signals {
			if signal.Sequence <= s.last {
				continue // delivery is at least once
			}
			if s.dataset == nil || signal.Sequence != s.last+1 {
				return s.broken(fmt.Sprintf("sequence %d came where %d was due", signal.Sequence, s.last+1))
			}
			s.last = signal.Sequence
			s.ready = append(s.ready, &StoredSignal{s.request.Dataset, signal.Sequence, signal, s.dataset.Header})
		}
	}
	return nil
}

func (s *Signals) started(dataset *limbeckv1.Dataset) error {
	if err := checkHeader(dataset.GetHeader()); err != nil {
		return err
	}
	if s.dataset != nil && !proto.Equal(dataset.Header, s.dataset.Header) {
		message := "the stored signals are others than before the reconnect"
		return newError(TeacherMismatch, Problem{Message: message, Field: s.request.Dataset})
	}
	s.dataset = dataset
	return nil
}

func (s *Signals) broken(message string) error {
	return newError(SignalInvalid, Problem{Message: message, Field: s.request.Dataset})
}
