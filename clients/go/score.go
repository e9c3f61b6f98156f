package limbeck

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// ScoreItem is one sequence to score: all ids are read, rows FirstRow … FirstRow + N − 1 are answered; row t speaks of
// token t + 1.
type ScoreItem struct {
	// ID is the caller's name of it, unique among the items that are not answered yet. Draws depend on (Seed, ID).
	ID uint64
	// IDs are its tokens, with the leading <bos>: text never travels.
	IDs []int32
	// FirstRow and N are the rows asked.
	FirstRow, N uint32
	// TokenIDs are for Want.TokenIds: [N, m], row after row; or with Offsets [N + 1] any number of each row: row j asks
	// TokenIDs[Offsets[j]:Offsets[j+1]].
	TokenIDs []int32
	Offsets  []int64
	// Seed makes samples repeatable.
	Seed uint64
}

// ScoreOption changes how items are scored.
type ScoreOption func(*scoring)

// Credit is how many bytes of answers may be under way and unread, 1 MiB at least: 64 MiB, unless said otherwise. A
// caller that is slow holds the server back.
func Credit(bytes uint64) ScoreOption { return func(s *scoring) { s.credit = bytes } }

// Alone lets items share batches with nobody else's, in this order, so that the same items give the same bits.
func Alone() ScoreOption { return func(s *scoring) { s.alone = true } }

// ScoredBy refuses another teacher than the one expected.
func ScoredBy(expected *Expectation) ScoreOption {
	return func(s *scoring) { s.expectation = expected }
}

// Scores are the answers to scored items, each once, in any order. Used as Events are, by one goroutine.
type Scores struct {
	exchange *exchange[ScoreItem, scored]
	answer   scored
}

type scored struct {
	id     uint64
	signal *Signal
}

// Score asks a teacher for signals. Items are taken as the server's limit on tokens allows, and sent again after a lost
// connection. The error of an item that cannot be scored ends the call, after the answers before it. Nothing is asked
// before the first Next; Close is needed where Next has not returned false.
func (c *Client) Score(
	ctx context.Context, teacher string, want *limbeckv1.Want, items Source[ScoreItem], options ...ScoreOption,
) *Scores {
	call := &scoring{teacher: teacher, want: want, credit: 64 << 20}
	for _, option := range options {
		option(call)
	}
	return &Scores{exchange: newExchange[ScoreItem, scored](ctx, c, call, items)}
}

// Next waits for the next answer. It returns false after the last, with the end of the context, after Close, and where
// Err has an error. What it found before counts as read, and gives the server new credit.
func (s *Scores) Next() bool {
	var ok bool
	s.answer, ok = s.exchange.next()
	return ok
}

// ID is the item whose answer Next found.
func (s *Scores) ID() uint64 { return s.answer.id }

// Signal is the answer that Next found.
func (s *Scores) Signal() *Signal { return s.answer.signal }

// Err is why Next returned false; nil after the last answer.
func (s *Scores) Err() error { return s.exchange.failure() }

// Close ends the call. A second call does nothing.
func (s *Scores) Close() { s.exchange.close() }

// scoring is what Score says.
type scoring struct {
	teacher     string
	want        *limbeckv1.Want
	credit      uint64
	alone       bool
	expectation *Expectation
	seen        *limbeckv1.Teacher
	header      *limbeckv1.SignalHeader
}

func (s *scoring) check() error {
	if s.credit < leastCredit || s.credit > mostCredit {
		message := fmt.Sprintf("is %d bytes, %d up to %d are allowed", s.credit, leastCredit, uint64(mostCredit))
		return newError(RequestInvalid, Problem{Message: message, Field: "Credit"})
	}
	return nil
}

func (s *scoring) teacherName() string    { return s.teacher }
func (s *scoring) isAlone() bool          { return s.alone }
func (s *scoring) fullCredit() uint64     { return s.credit }
func (s *scoring) expected() *Expectation { return s.expectation }
func (s *scoring) id(i ScoreItem) uint64  { return i.ID }

func (s *scoring) tokens(i ScoreItem) uint64 { return uint64(len(i.IDs)) }

func (s *scoring) open(ctx context.Context, c *Client) (duplex, func() (*reply, error), error) {
	stream, err := c.teachers.Score(ctx)
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
		if part := message.GetFragment(); part != nil {
			found.part, found.item, found.cost, found.last = part, part.ItemId, uint64(part.Cost), part.Last
		}
		return found, nil
	}, nil
}

func (s *scoring) start(credit uint64, expected *Expectation) proto.Message {
	start := &limbeckv1.ScoreStart{Teacher: s.teacher, Want: s.want, Expectation: expected, Credit: credit}
	return &limbeckv1.ScoreRequest{Kind: &limbeckv1.ScoreRequest_Start{Start: start}}
}

func (s *scoring) items(encoded []proto.Message) proto.Message {
	items := &limbeckv1.ScoreItems{Alone: s.alone}
	for _, item := range encoded {
		items.Items = append(items.Items, item.(*limbeckv1.ScoreItem))
	}
	return &limbeckv1.ScoreRequest{Kind: &limbeckv1.ScoreRequest_Items{Items: items}}
}

func (s *scoring) grant(bytes uint64) proto.Message {
	return &limbeckv1.ScoreRequest{Kind: &limbeckv1.ScoreRequest_Grant{Grant: &limbeckv1.Grant{Bytes: bytes}}}
}

func (s *scoring) alive(position uint64) proto.Message {
	return &limbeckv1.ScoreRequest{Kind: &limbeckv1.ScoreRequest_Alive{Alive: &limbeckv1.Alive{Position: position}}}
}

func (s *scoring) started(message proto.Message) (*limbeckv1.Teacher, error) {
	started := message.(*limbeckv1.ScoreStarted)
	if started.Header != nil {
		if err := checkHeader(started.Header); err != nil {
			return nil, err
		}
	}
	s.header, s.seen = started.Header, started.GetTeacher()
	if s.seen == nil {
		return nil, invalid("the server does not say what the teacher is")
	}
	return s.seen, nil
}

func (s *scoring) encode(i ScoreItem) (proto.Message, error) {
	if s.want.GetTokenIds() && i.TokenIDs == nil {
		return nil, errors.New("TokenIDs are wanted and it has none")
	}
	return &limbeckv1.ScoreItem{
		ItemId: i.ID, Ids: int32Bytes(i.IDs), FirstRow: i.FirstRow, N: i.N,
		TokenIds: int32Bytes(i.TokenIDs), Offsets: int64Bytes(i.Offsets), Seed: i.Seed,
	}, nil
}

// couldFit tells whether the item is within the limits where nothing else is under way.
func (s *scoring) couldFit(i ScoreItem, limits *limbeckv1.Limits) bool {
	bytes := uint64(4*len(i.TokenIDs)) + uint64(i.N)*s.rowCost()
	return within(uint64(len(i.IDs)), limits.TokensInFlight) && within(bytes, limits.AnswerBytes)
}

func within(value, limit uint64) bool { return limit == 0 || value <= limit }

// rowCost is the bytes of the answer to each row, but for those of TokenIDs.
func (s *scoring) rowCost() uint64 {
	cost := 12 * uint64(s.want.GetSamples())
	if s.header != nil {
		for _, size := range rowBytes(s.header) {
			cost += uint64(size)
		}
	}
	if s.want.GetFull() {
		cost += 4 * uint64(s.seen.GetVocabSize())
	}
	width := uint64(4)
	if s.want.GetHiddenDtype() == limbeckv1.Dtype_DTYPE_BFLOAT16 {
		width = 2
	}
	return cost + width*uint64(len(s.want.GetLayers()))*uint64(s.seen.GetHiddenSize())
}

// reader puts the fragments of one item together.
func (s *scoring) reader(item ScoreItem) func(proto.Message) (scored, bool, error) {
	var parts []*limbeckv1.Fragment
	rows := uint32(0)
	return func(message proto.Message) (answer scored, whole bool, err error) {
		part := message.(*limbeckv1.Fragment)
		first, n := part.GetSignal().GetFirstRow(), part.GetSignal().GetN()
		if first != item.FirstRow+rows || n < 1 || n > item.N-rows {
			return answer, false, invalid("rows %d and %d on came, rows from %d on were due", first, n, item.FirstRow+rows)
		}
		rows += n
		parts = append(parts, part)
		if part.Last != (rows == item.N) {
			return answer, false, invalid("%d of %d rows came, and that they are the last is %t", rows, item.N, part.Last)
		}
		if !part.Last {
			return answer, false, nil
		}
		signal, err := s.signal(item, parts)
		return scored{item.ID, signal}, true, err
	}
}

func (s *scoring) signal(item ScoreItem, parts []*limbeckv1.Fragment) (*Signal, error) {
	n := int(item.N)
	found := &Signal{FirstRow: int(item.FirstRow), N: n}
	if s.header != nil {
		var err error
		if found, err = decode(found.FirstRow, n, joinedFields(parts, (*limbeckv1.Fragment).GetSignal), s.header); err != nil {
			return nil, err
		}
	}
	if s.want.GetTokenIds() {
		found.TokenLogprobs = float32s(joined(parts, (*limbeckv1.Fragment).GetTokenLogprobs))
		if len(found.TokenLogprobs) != len(item.TokenIDs) {
			return nil, invalid("%d values came for %d ids", len(found.TokenLogprobs), len(item.TokenIDs))
		}
	}
	if s.want.GetSamples() > 0 {
		drawn := func(field func(*limbeckv1.Samples) []byte) []byte {
			return joined(parts, func(p *limbeckv1.Fragment) []byte { return field(p.GetSamples()) })
		}
		samples := &Samples{
			IDs:      int32s(drawn((*limbeckv1.Samples).GetIds)),
			Counts:   int32s(drawn((*limbeckv1.Samples).GetCounts)),
			Logprobs: float32s(drawn((*limbeckv1.Samples).GetLogprobs)),
		}
		size := len(samples.IDs)
		if len(samples.Counts) != size || len(samples.Logprobs) != size || size%n != 0 {
			return nil, invalid("the draws' ids, counts and log-probabilities are not of one shape")
		}
		samples.S = size / n
		found.Samples = samples
	}
	if err := s.hidden(found, parts); err != nil {
		return nil, err
	}
	if s.want.GetFull() {
		found.Full = float32s(joined(parts, (*limbeckv1.Fragment).GetFull))
		if len(found.Full) != n*int(s.seen.GetVocabSize()) {
			return nil, invalid("full has %d numbers, %d rows of %d are due", len(found.Full), n, s.seen.GetVocabSize())
		}
	}
	return found, nil
}

func (s *scoring) hidden(found *Signal, parts []*limbeckv1.Fragment) error {
	for place, layer := range s.want.GetLayers() {
		if found.Hidden == nil {
			found.Hidden = map[int32][]float32{}
		}
		var values []float32
		for _, part := range parts {
			if place >= len(part.Hidden) || part.Hidden[place].Layer != layer {
				return invalid("layer %d is missing", layer)
			}
			values = append(values, floats(part.Hidden[place].Values, part.Hidden[place].Dtype)...)
		}
		if len(values)%found.N != 0 {
			return invalid("layer %d has %d numbers, no whole number in each of %d rows", layer, len(values), found.N)
		}
		found.Hidden[layer] = values
	}
	return nil
}

func joined[P any](parts []P, field func(P) []byte) []byte {
	if len(parts) == 1 {
		return field(parts[0])
	}
	var all []byte
	for _, part := range parts {
		all = append(all, field(part)...)
	}
	return all
}

func joinedFields[P any](parts []P, packed func(P) *limbeckv1.PackedSignal) (fields [5][]byte) {
	for i := range fields {
		fields[i] = joined(parts, func(p P) []byte { return fieldsOf(packed(p))[i] })
	}
	return fields
}
