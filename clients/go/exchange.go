package limbeck

import (
	"context"
	"errors"
	"fmt"
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
		return x.client.silence()
	}
	return x.client.failure(x.ctx, err)
}

// ----------------------------------------------------------------------------------------------------------- sending

// feed takes items from the source as the server's limit and the caller's pace allow.
func (x *exchange[I, A]) feed() {
	err := x.feeding()
	x.mu.Lock()
	if err == nil {
		x.fed = true
	} else if x.final == nil {
		x.final = err
	}
	hangUp := x.hangUp
	x.mu.Unlock()
	if err != nil && hangUp != nil {
		hangUp()
	}
	ring(x.wake)
	ring(x.news)
}

func (x *exchange[I, A]) feeding() error {
	if err := x.client.budget.wait(x.ctx); err != nil {
		return err
	}
	group := newBatch[I, A]()
	for {
		item, err := x.source(x.ctx)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err != nil {
			if len(group.ids) > 0 {
				return x.add(group)
			}
			return nil
		}
		id, tokens := x.call.id(item), x.call.tokens(item)
		encoded, err := x.call.encode(item)
		if err != nil {
			return unfit(id, "the item cannot be sent: "+err.Error(), "")
		}
		size := proto.Size(encoded) + 8
		if size > largestMessage {
			text := fmt.Sprintf("the item takes %d bytes, a message holds %d", size, largestMessage)
			return unfit(id, text, "ask for its rows in parts")
		}
		if _, twice := group.items[id]; twice {
			return repeated(id)
		}
		if len(group.ids) > 0 && (group.tokens+tokens > x.client.budget.most()/2 || group.bytes+size > largestMessage) {
			if err := x.add(group); err != nil {
				return err
			}
			group = newBatch[I, A]()
		}
		group.add(id, item, encoded, tokens)
		if !x.call.isAlone() {
			if err := x.add(group); err != nil {
				return err
			}
			group = newBatch[I, A]()
		}
	}
}

func (x *exchange[I, A]) add(b *batch[I, A]) error {
	full := func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return len(x.ready) >= mostWaiting || x.held > max(x.call.fullCredit(), mostHeld)
	}
	for full() {
		select {
		case <-x.room:
		case <-x.ctx.Done():
			return x.ctx.Err()
		}
	}
	if err := x.client.budget.take(x.ctx, x.share, b.tokens); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range b.ids {
		if _, known := x.of[id]; known {
			return repeated(id)
		}
	}
	for _, id := range b.ids {
		x.of[id] = b
	}
	x.unsent = append(x.unsent, b)
	ring(x.wake)
	return nil
}

// write sends what there is to send, and a sign of life where there was nothing for long. Where it cannot, whoever reads
// knows why.
func (x *exchange[I, A]) write(ctx context.Context, stream duplex) {
	x.mu.Lock()
	x.left = max(int64(x.call.fullCredit())-int64(x.held), 0)
	message := x.call.start(uint64(x.left), x.pinned)
	x.mu.Unlock()
	alive := time.NewTimer(x.client.settings.times.alive)
	defer alive.Stop()
	for {
		if message != nil {
			if stream.SendMsg(message) != nil {
				return
			}
			alive.Reset(x.client.settings.times.alive) // one that has fired meanwhile is a sign of life too many
		}
		x.mu.Lock()
		finished := x.finished()
		message = nil
		if !finished {
			message = x.due()
		}
		x.mu.Unlock()
		if finished {
			break
		}
		if message != nil {
			continue
		}
		select {
		case <-x.wake:
		case <-alive.C:
			x.mu.Lock()
			message = x.call.alive(uint64(len(x.of)))
			x.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
	_ = stream.CloseSend()
	wait := time.NewTimer(goodbye)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
		x.mu.Lock()
		hangUp := x.hangUp
		x.mu.Unlock()
		hangUp()
	}
}

// due is what is to be sent next; nil for nothing. Under the lock.
func (x *exchange[I, A]) due() proto.Message {
	if more := x.grantDue(); more > 0 {
		x.left += more
		return x.call.grant(uint64(more))
	}
	var encoded []proto.Message
	bytes := 0
	for len(x.unsent) > 0 {
		b := x.unsent[0]
		if len(encoded) > 0 && (x.call.isAlone() || bytes+b.bytes > messageBytes || len(encoded) >= mostItems) {
			break
		}
		x.unsent = x.unsent[1:]
		bytes += b.bytes
		encoded = append(encoded, b.encoded...)
		for _, id := range b.ids {
			b.waiting[id] = true
		}
	}
	if encoded == nil {
		return nil
	}
	return x.call.items(encoded)
}

// grantDue is more credit, for what the caller has done with. While the caller waits, items that are in parts get what
// they need, or nothing would ever be whole.
func (x *exchange[I, A]) grantDue() int64 {
	credit := int64(x.call.fullCredit())
	if credit == 0 {
		return 0
	}
	target := credit - int64(x.held) - int64(x.partial)
	if x.held == 0 {
		target = max(target, int64(2*leastCredit))
	}
	due := target - x.left
	if due >= credit/4 || (x.left < leastCredit && due >= leastCredit/4) {
		return due
	}
	return 0
}

// ----------------------------------------------------------------------------------------------------------- reading

func (x *exchange[I, A]) read(receive func() (*reply, error), heard *silence) error {
	for {
		message, err := receive()
		if err == io.EOF {
			x.mu.Lock()
			unanswered := len(x.of)
			x.mu.Unlock()
			return unavailable(x.client.settings.name(), fmt.Sprintf("the call ended with %d items unanswered", unanswered))
		}
		if err != nil {
			return x.ending(heard, err)
		}
		heard.reset()
		switch {
		case message.started != nil:
			err = x.started(message.started)
		case message.part != nil:
			err = x.take(message)
		case message.failed != nil:
			err = x.fail(message.failed)
		case message.alive.GetPhase() != "":
			x.phases.hear(message.alive.Phase, message.alive.PhaseSeconds)
		}
		if err != nil {
			return err
		}
	}
}

func (x *exchange[I, A]) started(message proto.Message) error {
	teacher, err := x.call.started(message)
	if err != nil {
		return err
	}
	x.client.seen(teacher)
	x.mu.Lock()
	x.pinned = Expect(teacher) // answers of two teachers would be mixed in silence
	x.mu.Unlock()
	return nil
}

func (x *exchange[I, A]) take(message *reply) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.left -= int64(message.cost)
	b := x.of[message.item]
	if b == nil {
		field := fmt.Sprintf("item %d", message.item)
		return newError(SignalInvalid, Problem{Message: "an answer came for what was not asked", Field: field})
	}
	if b.answered[message.item] { // asked again only for its company
		if message.last {
			x.settle(b, message.item)
		}
		return nil
	}
	if b.readers[message.item] == nil {
		b.readers[message.item] = x.call.reader(b.items[message.item])
	}
	answer, whole, err := b.readers[message.item](message.part)
	if err != nil {
		return err
	}
	x.partial += message.cost
	b.partial[message.item] += message.cost
	if !whole {
		ring(x.wake)
		return nil
	}
	cost := b.partial[message.item]
	x.held += cost
	x.ready = append(x.ready, answered[A]{answer, cost})
	ring(x.news)
	x.retries.progress()
	b.answered[message.item] = true
	x.settle(b, message.item)
	return nil
}

// settle: an item is done with in this connection; so is its batch, or what of it failed is sent again. Under the lock.
func (x *exchange[I, A]) settle(b *batch[I, A], id uint64) {
	delete(b.waiting, id)
	delete(b.readers, id)
	x.partial -= b.partial[id]
	delete(b.partial, id)
	ring(x.wake)
	if len(b.waiting) > 0 {
		return
	}
	if len(b.answered) < len(b.ids) {
		time.AfterFunc(b.delay, func() { x.sendAgain(b) })
		return
	}
	for _, id := range b.ids {
		delete(x.of, id)
	}
	ring(x.news)
	x.client.budget.give(x.share, b.tokens)
}

func (x *exchange[I, A]) sendAgain(b *batch[I, A]) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range b.ids {
		if x.of[id] != b {
			return
		}
	}
	for _, other := range x.unsent {
		if other == b {
			return
		}
	}
	if len(b.waiting) == 0 {
		x.unsent = append(x.unsent, b)
		ring(x.wake)
	}
}

// fail is for an item that is not answered: its error, or it is sent again where that may help.
func (x *exchange[I, A]) fail(failed *limbeckv1.ItemFailed) error {
	err := ofItem(errorOf(failed.Error), failed.ItemId)
	x.client.mu.Lock()
	limits := x.client.limits
	x.client.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.of[failed.ItemId]
	again := b != nil && (err.Reason == TeacherUnavailable ||
		err.Reason == QuotaExceeded && x.call.couldFit(b.items[failed.ItemId], limits))
	if !again {
		x.final = err
		return err
	}
	delay, gaveUp := x.retries.delay(err)
	if gaveUp != nil {
		x.final = gaveUp
		return gaveUp
	}
	b.delay = delay
	x.settle(b, failed.ItemId)
	return nil
}

func unfit(id uint64, message, hint string) error {
	return newError(RequestInvalid, Problem{Message: message, Field: fmt.Sprintf("item %d", id), Hint: hint})
}

func repeated(id uint64) error { return unfit(id, "another item of this id is not answered yet", "") }
