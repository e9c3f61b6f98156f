package limbeck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
)

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
