package limbeck

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// budget are the tokens that a client has under way, over all its calls: the server's limit is kept before it has to
// refuse.
type budget struct {
	mu      sync.Mutex
	limit   uint64
	known   chan struct{} // closed when a teacher was seen
	used    uint64
	changed chan struct{} // closed, and made anew, with each change
}

// share is what one call has taken of the budget.
type share struct {
	mu     sync.Mutex
	tokens uint64
}

func (s *share) held() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens
}

func newBudget() *budget { return &budget{known: make(chan struct{}), changed: make(chan struct{})} }

// learn notes the server's limit; 0 for none.
func (b *budget) learn(limit uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit == 0 {
		close(b.known)
	}
	if b.limit = limit; limit == 0 {
		b.limit = 1 << 62
	}
	b.change()
}

func (b *budget) change() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait waits until the limit is known.
func (b *budget) wait(ctx context.Context) error {
	select {
	case <-b.known:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *budget) most() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit
}

// take waits until `tokens` more may be sent for a call. It takes half of what the others leave, so that one whose
// caller waits never stops another for good. What is too large for the limit goes alone: the server says why it cannot
// be.
func (b *budget) take(ctx context.Context, s *share, tokens uint64) error {
	for {
		b.mu.Lock()
		if b.fits(s, tokens) {
			b.used += tokens
			s.mu.Lock()
			s.tokens += tokens
			s.mu.Unlock()
			b.mu.Unlock()
			return nil
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// give gives back what was taken.
func (b *budget) give(s *share, tokens uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens = min(tokens, s.tokens)
	b.used -= tokens
	s.tokens -= tokens
	b.change()
}

func (b *budget) fits(s *share, tokens uint64) bool {
	own := s.held()
	if b.used == 0 {
		return true
	}
	if own == 0 {
		return b.used+tokens <= b.limit
	}
	others := b.used - own
	return others <= b.limit && own+tokens <= (b.limit-others)/2
}

// silence notices where nothing was heard for too long.
type silence struct {
	limit time.Duration
	timer *time.Timer
	conn  *grpc.ClientConn // that was listened to
	mu    sync.Mutex
	fired bool
}

func newSilence(limit time.Duration, then func()) *silence {
	s := &silence{limit: limit}
	s.timer = time.AfterFunc(limit, func() {
		s.mu.Lock()
		s.fired = true
		s.mu.Unlock()
		then()
	})
	return s
}

func (s *silence) reset() { s.timer.Reset(s.limit) }

func (s *silence) stop() { s.timer.Stop() }

func (s *silence) noticed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired
}
