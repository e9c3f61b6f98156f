package limbeck

import (
	"context"
	"fmt"
	"io"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// Cursor is where to begin in a run's history: Oldest, or After an event.
type Cursor struct {
	set      bool
	sequence uint64
}

// Oldest begins with the oldest event that is kept.
var Oldest = Cursor{}

// After begins with the event that follows this sequence: 0 is the first of all, and CursorInvalid where that is not
// kept any more.
func After(sequence uint64) Cursor { return Cursor{set: true, sequence: sequence} }

// Events are the events of a run as they happen, each once and in order, whatever happens to the connection:
//
//	events := client.Watch(ctx, runID, limbeck.Oldest)
//	for events.Next() {
//		fmt.Println(events.Event())
//	}
//	return events.Err()
//
// They end after the last event of a run that succeeded, failed or was cancelled. For use by one goroutine.
type Events struct {
	client  *Client
	ctx     context.Context
	stop    context.CancelFunc
	runID   string
	cursor  Cursor
	retries retries
	tap     *tap[*limbeckv1.WatchRunResponse]
	ready   []*limbeckv1.Event
	event   *limbeckv1.Event
	ended   bool // the last event that came is the run's last, unless it is resumed
	rests   bool // the last that was heard is a sign of life
	over    bool
	err     error
}

// Watch begins to watch a run. Nothing is asked before the first Next.
func (c *Client) Watch(ctx context.Context, runID string, from Cursor) *Events {
	e := &Events{client: c, runID: runID, cursor: from, retries: retries{client: c}}
	e.ctx, e.stop = context.WithCancel(ctx)
	return e
}

// Next waits for the next event. It returns false after the last, with the end of the context, after Close, and where
// Err has an error.
func (e *Events) Next() bool {
	for len(e.ready) == 0 && !e.over {
		err := e.more()
		if err == nil {
			continue
		}
		e.tap = nil
		if err := e.wait(err); err != nil {
			e.err = err
			e.Close()
		}
	}
	if e.over {
		e.event = nil
		return false
	}
	e.event, e.ready = e.ready[0], e.ready[1:]
	return true
}

// Event is what Next found. Its Sequence is where another Watch may go on.
func (e *Events) Event() *limbeckv1.Event { return e.event }

// Err is why Next returned false; nil after the last event and after Close.
func (e *Events) Err() error { return e.err }

// Close ends the watching. A second call does nothing, nor is it needed after Next has returned false.
func (e *Events) Close() {
	e.over, e.ready = true, nil
	e.stop()
}

// wait waits for the next try. A server ends a call that has nothing to say for long: no more than that is lost then.
func (e *Events) wait(err error) error {
	rested := e.rests
	e.rests = false
	if failed, own := err.(*Error); own && rested && failed.Reason == ServerUnavailable {
		return e.client.pause(e.ctx, firstDelay)
	}
	return e.retries.wait(e.ctx, err)
}

// more reads one message.
func (e *Events) more() error {
	if e.tap == nil {
		request := &limbeckv1.WatchRunRequest{RunId: e.runID}
		if e.cursor.set {
			request.AfterSequence = &e.cursor.sequence
		}
		tap, err := open[*limbeckv1.WatchRunRequest, *limbeckv1.WatchRunResponse](
			e.ctx, e.client, e.client.training.WatchRun, request,
		)
		if err != nil {
			return err
		}
		e.tap = tap
	}
	message, err := e.tap.next()
	if err == io.EOF {
		return e.finish()
	}
	if err != nil {
		return err
	}
	e.retries.progress() // a run may rest for as long as it likes
	e.rests = message.GetAlive() != nil
	return e.take(message.GetEvents().GetEvents())
}

func (e *Events) take(events []*limbeckv1.Event) error {
	for _, event := range events {
		if e.cursor.set && event.Sequence <= e.cursor.sequence {
			continue // delivery is at least once
		}
		if due := e.cursor.sequence + 1; e.cursor.set && event.Sequence != due {
			e.tap.stop()
			return &Error{Reason: LogDamaged, Message: "Events of the run are missing.", Problems: []Problem{{
				Message: fmt.Sprintf("sequence %d came where %d was due", event.Sequence, due), Field: "run " + e.runID,
			}}}
		}
		e.cursor = After(event.Sequence)
		e.ended = event.GetStateChanged() != nil && Ended(event.GetStateChanged().State)
		e.ready = append(e.ready, event)
	}
	return nil
}

// finish is for a call that ended well. Where its last event is not the run's, something between ended it, or all was
// seen before.
func (e *Events) finish() error {
	if !e.ended {
		found, err := e.client.Run(e.ctx, e.runID)
		if err != nil {
			return err
		}
		if !Ended(found.Run.State) || found.Run.LastSequence > e.cursor.sequence {
			message := fmt.Sprintf("the call ended after event %d, and the run goes on", e.cursor.sequence)
			return unavailable(e.client.settings.name(), message)
		}
	}
	e.Close()
	return nil
}
