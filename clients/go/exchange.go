package limbeck

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

const (
	messageBytes   = 1 << 20                // of items that a message aims at
	largestMessage = 4*messageBytes - 1<<16 // gRPC's default limit, less what is around the items
	mostItems      = 256                    // of a message
	leastCredit    = 1 << 20                // with less the server begins nothing
	mostCredit     = 1 << 62
	mostWaiting    = 4096            // answers that wait for the caller before nothing more is sent
	mostHeld       = 64 << 20        // bytes of them, where there is no credit
	goodbye        = 2 * time.Second // for the server to end an answered call
)

// Source gives what is to be sent, one at a time as it is wanted, and io.EOF after the last. It is called by one
// goroutine, and must return when ctx ends.
type Source[T any] func(ctx context.Context) (T, error)

// FromSlice is a Source of what is there.
func FromSlice[T any](items []T) Source[T] {
	return func(context.Context) (item T, err error) {
		if len(items) == 0 {
			return item, io.EOF
		}
		item, items = items[0], items[1:]
		return item, nil
	}
}

// FromChannel is a Source of what comes, until the channel is closed.
func FromChannel[T any](items <-chan T) Source[T] {
	return func(ctx context.Context) (item T, err error) {
		select {
		case item, ok := <-items:
			if !ok {
				return item, io.EOF
			}
			return item, nil
		case <-ctx.Done():
			return item, ctx.Err()
		}
	}
}

// duplex is the part of a generated stream that both calls need.
type duplex interface {
	SendMsg(message any) error
	CloseSend() error
}

// reply is one message of the server; of an answer, `part`, with its item and the bytes that it takes of the credit.
type reply struct {
	started proto.Message
	part    proto.Message
	item    uint64
	cost    uint64
	last    bool
	failed  *limbeckv1.ItemFailed
	alive   *limbeckv1.Alive
}

// exchanged is what differs between Score and Generate.
type exchanged[I, A any] interface {
	check() error
	teacherName() string
	isAlone() bool
	fullCredit() uint64 // 0: there is none
	open(ctx context.Context, c *Client) (duplex, func() (*reply, error), error)
	start(credit uint64, expected *Expectation) proto.Message
	items(encoded []proto.Message) proto.Message
	grant(bytes uint64) proto.Message
	alive(position uint64) proto.Message
	expected() *Expectation
	started(message proto.Message) (*limbeckv1.Teacher, error)
	id(item I) uint64
	encode(item I) (proto.Message, error)
	tokens(item I) uint64
	couldFit(item I, limits *limbeckv1.Limits) bool
	reader(item I) func(part proto.Message) (answer A, whole bool, err error)
}

// batch are items that are sent, and sent again, together: one, or all of a message that is scored alone.
type batch[I, A any] struct {
	ids      []uint64
	items    map[uint64]I
	encoded  []proto.Message
	bytes    int
	tokens   uint64
	answered map[uint64]bool
	waiting  map[uint64]bool // sent in this connection and neither answered nor failed
	readers  map[uint64]func(proto.Message) (A, bool, error)
	partial  map[uint64]uint64 // bytes that came of items which are not whole
	delay    time.Duration     // before it is sent again
}

func newBatch[I, A any]() *batch[I, A] {
	b := &batch[I, A]{items: map[uint64]I{}, answered: map[uint64]bool{}}
	b.reset()
	return b
}

func (b *batch[I, A]) reset() {
	b.waiting, b.partial = map[uint64]bool{}, map[uint64]uint64{}
	b.readers = map[uint64]func(proto.Message) (A, bool, error){}
}

func (b *batch[I, A]) add(id uint64, item I, encoded proto.Message, tokens uint64) {
	b.ids, b.encoded = append(b.ids, id), append(b.encoded, encoded)
	b.items[id] = item
	b.bytes += proto.Size(encoded) + 8
	b.tokens += tokens
}

type answered[A any] struct {
	answer A
	cost   uint64
}

// exchange is a call that sends items and gets answers, over as many connections as it takes: each answer is given once.
// Three goroutines work on it: one takes items from the source, one reads, one writes.
type exchange[I, A any] struct {
	client  *Client
	call    exchanged[I, A]
	source  Source[I]
	ctx     context.Context // ends with the caller's, and with close
	stop    context.CancelFunc
	retries retries // of the reading goroutine
	phases  phases
	share   *share
	begun   bool
	done    chan struct{} // closed when the reading goroutine has ended

	news, wake, room chan struct{} // for the caller, for whoever writes, for whoever takes items

	mu      sync.Mutex
	pinned  *Expectation            // the teacher that answered first: no other may go on
	of      map[uint64]*batch[I, A] // by item, what is not answered
	unsent  []*batch[I, A]
	fed     bool // whether the source has ended
	ready   []answered[A]
	held    uint64 // bytes of whole answers that the caller has not done with
	taken   uint64 // bytes of the answer that the caller has
	left    int64  // credit
	partial uint64 // bytes that came of items which are not whole
	hangUp  context.CancelFunc
	final   error // of an item or of the source
	closed  bool  // by the caller
	err     error
}

func newExchange[I, A any](ctx context.Context, c *Client, call exchanged[I, A], source Source[I]) *exchange[I, A] {
	x := &exchange[I, A]{
		client: c, call: call, source: source,
		retries: retries{client: c}, phases: phases{client: c, teacher: call.teacherName()}, share: &share{},
		done: make(chan struct{}),
		news: make(chan struct{}, 1), wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		pinned: call.expected(), of: map[uint64]*batch[I, A]{},
	}
	x.ctx, x.stop = context.WithCancel(ctx)
	return x
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// next waits for an answer. What was given before counts as consumed from now on.
func (x *exchange[I, A]) next() (answer A, ok bool) {
	x.begin()
	for {
		ended := x.isDone()
		x.mu.Lock()
		x.held, x.taken = x.held-x.taken, 0
		if x.closed {
			x.mu.Unlock()
			return answer, false
		}
		if len(x.ready) > 0 {
			found := x.ready[0]
			x.ready, x.taken = x.ready[1:], found.cost
			x.mu.Unlock()
			ring(x.wake)
			ring(x.room)
			return found.answer, true
		}
		finished := x.finished()
		x.mu.Unlock()
		ring(x.wake)
		ring(x.room)
		if finished || ended {
			return answer, false
		}
		select {
		case <-x.news:
		case <-x.done:
		}
	}
}

func (x *exchange[I, A]) begin() {
	if x.begun {
		return
	}
	x.begun = true
	if err := x.call.check(); err != nil {
		x.err = err
		close(x.done)
		return
	}
	go x.feed()
	go x.run()
}

func (x *exchange[I, A]) isDone() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// close ends the call. What is under way at the server is dropped; an answered call says goodbye by itself.
func (x *exchange[I, A]) close() {
	if !x.begun {
		x.begun = true
		close(x.done)
	}
	x.mu.Lock()
	x.closed = true
	finished := x.finished()
	x.mu.Unlock()
	if !finished {
		x.stop()
		<-x.done
	}
	x.client.budget.give(x.share, x.share.held())
}

// finished: everything is answered. Under the lock.
func (x *exchange[I, A]) finished() bool { return x.fed && len(x.of) == 0 }

func (x *exchange[I, A]) failure() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// ------------------------------------------------------------------------------------------------------- connections

func (x *exchange[I, A]) run() {
	defer close(x.done)
	defer x.stop()
	for {
		err := x.connected()
		x.mu.Lock()
		finished, final := x.finished(), x.final
		x.mu.Unlock()
		if finished {
			return
		}
		if final == nil {
			if final = x.retries.wait(x.ctx, err); final == nil {
				x.beginAgain()
				continue
			}
		}
		x.mu.Lock()
		if !x.closed {
			x.err = final
		}
		x.mu.Unlock()
		return
	}
}

// beginAgain is for after a lost connection: nothing was kept there.
func (x *exchange[I, A]) beginAgain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	known := map[*batch[I, A]]bool{}
	again := x.unsent[:0:0]
	for _, b := range x.unsent {
		known[b] = true
		again = append(again, b)
	}
	for _, b := range x.of {
		if !known[b] {
			known[b] = true
			again = append(again, b)
		}
		b.reset()
	}
	x.unsent, x.partial = again, 0
}

// connected is one connection: it returns when everything is answered, or with the error that the connection ended with.
func (x *exchange[I, A]) connected() error {
	out, err := x.client.outgoing(x.ctx)
	if err != nil {
		return err
	}
	out, hangUp := context.WithCancel(out)
	defer hangUp()
	x.mu.Lock()
	x.hangUp = hangUp
	final := x.final
	x.mu.Unlock()
	if final != nil {
		return final
	}
	heard := newSilence(x.client.settings.times.silence, hangUp)
	defer heard.stop()
	heard.conn = x.client.channel.current()
	stream, receive, err := x.call.open(out, x.client)
	if err != nil {
		return x.ending(heard, err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		x.write(out, stream)
	}()
	err = x.read(receive, heard)
	hangUp()
	<-written
	return err
}

func (x *exchange[I, A]) ending(heard *silence, err error) error {
	if heard.noticed() && x.ctx.Err() == nil {
		x.client.channel.leave(heard.conn)
		return x.client.silence()
	}
	return x.client.failure(x.ctx, err)
}
