package limbeck

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// tap is one call that the server streams to. It is given up where nothing comes for too long: a connection may seem
// alive long after whoever was behind it has gone. Times that the caller takes between two messages do not count.
type tap[M any] struct {
	client *Client
	ctx    context.Context // the caller's
	stop   context.CancelFunc
	conn   *grpc.ClientConn
	recv   func() (M, error)
	silent atomic.Bool
}

// opening is one of the generated client's methods that stream answers.
type opening[Q any, S any] func(ctx context.Context, request Q, options ...grpc.CallOption) (S, error)

func open[Q any, M any, S interface{ Recv() (M, error) }](
	ctx context.Context, c *Client, call opening[Q, S], request Q,
) (*tap[M], error) {
	out, err := c.outgoing(ctx)
	if err != nil {
		return nil, err
	}
	t := &tap[M]{client: c, ctx: ctx, conn: c.channel.current()}
	out, t.stop = context.WithCancel(out)
	timer := t.watch()
	defer timer.Stop()
	stream, err := call(out, request)
	if err != nil {
		t.stop()
		return nil, t.failure(err)
	}
	t.recv = stream.Recv
	return t, nil
}

// next is the next message; io.EOF after the last.
func (t *tap[M]) next() (M, error) {
	timer := t.watch()
	message, err := t.recv()
	timer.Stop()
	if err == nil {
		t.client.reached()
		return message, nil
	}
	t.stop()
	if err == io.EOF {
		return message, io.EOF
	}
	return message, t.failure(err)
}

func (t *tap[M]) watch() *time.Timer {
	return time.AfterFunc(t.client.settings.times.silence, func() {
		t.silent.Store(true)
		t.stop()
	})
}

func (t *tap[M]) failure(err error) error {
	if t.silent.Load() && t.ctx.Err() == nil {
		t.client.channel.leave(t.conn)
		return t.client.silence()
	}
	return t.client.failure(t.ctx, err)
}

// silence is the error of a call that nothing came from for too long.
func (c *Client) silence() *Error {
	return newError(PeerSilent, Problem{
		Message: "nothing came for " + c.settings.times.silence.String(), Field: c.settings.name(),
	})
}

// drain hands over each message of one call, to its end.
func drain[Q any, M any, S interface{ Recv() (M, error) }](
	ctx context.Context, c *Client, call opening[Q, S], request Q, each func(M) error,
) error {
	t, err := open[Q, M](ctx, c, call, request)
	if err != nil {
		return err
	}
	defer t.stop()
	for {
		message, err := t.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = each(message)
		}
		if err != nil {
			return err
		}
	}
}
