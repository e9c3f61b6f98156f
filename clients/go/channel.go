package limbeck

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// channel is the connection of a client, another one after it fell silent: something between the client and the server
// may keep a connection open, and answer its pings, for good.
type channel struct {
	settings *settings
	mu       sync.Mutex
	conn     *grpc.ClientConn
	closed   bool
}

func (c *channel) current() *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// Invoke is for the generated clients, as is NewStream.
func (c *channel) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	return c.current().Invoke(ctx, method, args, reply, options...)
}

func (c *channel) NewStream(
	ctx context.Context, about *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return c.current().NewStream(ctx, about, method, options...)
}

// leave gives a silent connection up, unless that was done already. Its other calls end, and are tried again.
func (c *channel) leave(silent *grpc.ClientConn) {
	c.mu.Lock()
	if c.closed || c.conn != silent {
		c.mu.Unlock()
		return
	}
	fresh, err := c.settings.dial(context.Background())
	if err == nil { // nothing that a dial checks has changed
		c.conn = fresh
	}
	c.mu.Unlock()
	if err == nil {
		_ = silent.Close()
	}
}

func (c *channel) close() error {
	c.mu.Lock()
	c.closed = true
	conn := c.conn
	c.mu.Unlock()
	return conn.Close()
}
