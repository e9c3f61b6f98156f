package limbeck

import (
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

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
