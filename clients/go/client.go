package limbeck

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

const (
	firstDelay   = 100 * time.Millisecond // before a call is tried again; doubles, less up to a half by chance
	longestDelay = 5 * time.Second
)

// Client is a client of one server, or of its replicas. It may be used by several goroutines.
type Client struct {
	settings *settings
	channel  *channel
	training limbeckv1.TrainingServiceClient
	plugins  limbeckv1.PluginServiceClient
	teachers limbeckv1.TeacherServiceClient
	budget   *budget
	closed   chan struct{}

	mu     sync.Mutex
	met    bool // whether the server was ever reached
	limits *limbeckv1.Limits
}

// Connect makes a client of the server at address: host:port, [v6]:port, or host for the port 7411. Nothing is sent
// before the first call, and ctx is not kept. TLS is used unless the address is of this machine or Insecure says so. A
// server of this machine is reached directly, whatever proxy the environment names.
//
// Returns RequestInvalid with everything that is wrong with address and options.
func Connect(ctx context.Context, address string, options ...Option) (*Client, error) {
	settings, err := settle(address, options)
	if err != nil {
		return nil, err
	}
	channel := &channel{settings: settings}
	if channel.conn, err = settings.dial(ctx); err != nil {
		return nil, wrongConnection(Problem{Message: err.Error(), Field: "address"})
	}
	return &Client{
		settings: settings,
		channel:  channel,
		training: limbeckv1.NewTrainingServiceClient(channel),
		plugins:  limbeckv1.NewPluginServiceClient(channel),
		teachers: limbeckv1.NewTeacherServiceClient(channel),
		budget:   newBudget(),
		closed:   make(chan struct{}),
		limits:   &limbeckv1.Limits{},
	}, nil
}

// Close ends all calls and the connection. A second call does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	done := c.isClosed()
	if !done {
		close(c.closed)
	}
	c.mu.Unlock()
	if done {
		return nil
	}
	return c.channel.close()
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// outgoing is the context of a call.
func (c *Client) outgoing(ctx context.Context) (context.Context, error) {
	if c.isClosed() {
		return nil, &Error{Reason: ServerUnavailable, Message: "The client is closed."}
	}
	return c.settings.outgoing(ctx)
}

func (c *Client) reached() {
	c.mu.Lock()
	c.met = true
	c.mu.Unlock()
}

// seen notes what a server says of a teacher: the limits hold for all calls.
func (c *Client) seen(teacher *limbeckv1.Teacher) {
	c.mu.Lock()
	c.met = true
	if teacher.Limits != nil {
		c.limits = teacher.Limits
	}
	limit := c.limits.TokensInFlight
	c.mu.Unlock()
	c.budget.learn(limit)
}

// failure is an error of a call made with ctx: the context's own where it has ended.
func (c *Client) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) { // the server heard of it, too, and was quicker
		return context.DeadlineExceeded
	}
	if own, ok := err.(*Error); ok {
		return own
	}
	return errorOfCall(err, c.settings.name())
}

// pause waits; it ends early, with an error, with the context or the client.
func (c *Client) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.closed:
		return &Error{Reason: ServerUnavailable, Message: "The client is closed."}
	}
}

// method is one of the generated client's that ask for one thing.
type method[Q, A any] func(ctx context.Context, request Q, options ...grpc.CallOption) (A, error)

// ask is one question and one answer, within the client's timeout; tried again where that may help.
func ask[Q, A any](ctx context.Context, c *Client, call method[Q, A], request Q) (A, error) {
	return askWith(ctx, c, patience{}, call, request)
}

// patience with a call: what the server, once it was reached, may take in addition to the client's timeout, and a reason
// that is no matter of a moment here.
type patience struct {
	work  time.Duration
	final Reason
}

func askWith[Q, A any](ctx context.Context, c *Client, p patience, call method[Q, A], request Q) (A, error) {
	var none A
	timeout := c.settings.times.timeout
	end := time.Now().Add(timeout)
	last := end.Add(p.work)
	for delay := firstDelay; ; delay = min(2*delay, longestDelay) {
		began := time.Now()
		answer, err := askOnce(ctx, c, last, call, request)
		if err == nil {
			c.reached()
			return answer, nil
		}
		if time.Since(began) > timeout { // it was at work when it was lost: patience begins anew
			if end = time.Now().Add(timeout); end.After(last) {
				end = last
			}
		}
		failed, own := err.(*Error)
		wait := jittered(delay)
		if !own || !failed.again() || failed.Reason == p.final || c.isClosed() || time.Now().Add(wait).After(end) {
			return none, err
		}
		if err := c.pause(ctx, wait); err != nil {
			return none, err
		}
	}
}

func askOnce[Q, A any](ctx context.Context, c *Client, end time.Time, call method[Q, A], request Q) (A, error) {
	var none A
	out, err := c.outgoing(ctx)
	if err != nil {
		return none, err
	}
	out, cancel := context.WithDeadline(out, end)
	defer cancel()
	answer, err := call(out, request)
	if err != nil {
		return none, c.failure(ctx, err)
	}
	return answer, nil
}

// retries tells when an interrupted call is tried again, and when no more. Used by one goroutine.
type retries struct {
	client *Client
	since  time.Time
	count  int
	next   time.Time // when the next try is due
}

// progress: something was answered, patience begins anew.
func (r *retries) progress() { r.since, r.count, r.next = time.Time{}, 0, time.Time{} }

// delay is how long to wait before the next try, or the error to give up with.
func (r *retries) delay(err error) (time.Duration, error) {
	failed, own := err.(*Error)
	if !own || !failed.again() || r.client.isClosed() {
		return 0, err
	}
	now := time.Now()
	if r.since.IsZero() {
		r.since = now
	}
	r.client.mu.Lock()
	met := r.client.met
	r.client.mu.Unlock()
	patience := r.client.settings.times.timeout
	if met {
		patience = r.client.settings.times.retryFor
	}
	left := patience - now.Sub(r.since)
	if left <= 0 {
		tried := Problem{Message: fmt.Sprintf("tried for %.0f s without an answer", now.Sub(r.since).Seconds())}
		problems := append(append([]Problem{}, failed.Problems...), tried)
		return 0, &Error{Reason: failed.Reason, Message: failed.Message, Problems: problems, Cause: failed.Cause}
	}
	if !now.Before(r.next) { // else it is one failure with the last: a worker's death fails many items
		if r.count == 0 {
			text := strings.ReplaceAll(failed.Error(), "\n ", ";")
			r.client.settings.log(fmt.Sprintf("%s: trying again for up to %.0f s: %s", r.client.settings.name(), left.Seconds(), text))
		}
		r.next = now.Add(min(jittered(min(firstDelay<<r.count, longestDelay)), left))
		if r.count < 16 {
			r.count++
		}
	}
	return r.next.Sub(now), nil
}

// wait waits for the next try, or returns the error to give up with.
func (r *retries) wait(ctx context.Context, err error) error {
	delay, err := r.delay(err)
	if err != nil {
		return err
	}
	return r.client.pause(ctx, delay)
}

// again repeats a call until it goes well, is no use, or was tried for long enough.
func (r *retries) again(ctx context.Context, call func() error) error {
	for {
		err := call()
		if err == nil {
			return nil
		}
		if err := r.wait(ctx, err); err != nil {
			return err
		}
	}
}

func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.5 + rand.Float64()/2))
}

func min[T int | uint64 | time.Duration](a, b T) T {
	if a < b {
		return a
	}
	return b
}

func max[T int | uint64 | int64 | time.Duration](a, b T) T {
	if a > b {
		return a
	}
	return b
}
