package limbeck

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

const poll = 500 * time.Millisecond // between two looks at a teacher that starts

// Teachers are the teachers of the server, by name.
func (c *Client) Teachers(ctx context.Context) ([]*limbeckv1.Teacher, error) {
	answer, err := c.listTeachers(ctx)
	return answer.GetTeachers(), err
}

// Datasets are the stored signals of the server, by name.
func (c *Client) Datasets(ctx context.Context) ([]*limbeckv1.Dataset, error) {
	answer, err := c.listTeachers(ctx)
	return answer.GetDatasets(), err
}

func (c *Client) listTeachers(ctx context.Context) (*limbeckv1.ListTeachersResponse, error) {
	return ask(ctx, c, c.teachers.ListTeachers, &limbeckv1.ListTeachersRequest{})
}

// Teacher is one teacher as it is now; or, after wait at the latest, one that does not start any more. What it is doing
// meanwhile is told to Log.
func (c *Client) Teacher(ctx context.Context, name string, wait time.Duration) (*limbeckv1.Teacher, error) {
	end := time.Now().Add(wait)
	phases := phases{client: c, teacher: name}
	for {
		answer, err := ask(ctx, c, c.teachers.GetTeacher, &limbeckv1.GetTeacherRequest{Name: name})
		if err != nil {
			return nil, err
		}
		found := answer.GetTeacher()
		if found.GetVocabSize() > 0 {
			c.seen(found)
		}
		left := time.Until(end)
		if found.GetState() != limbeckv1.Teacher_STATE_STARTING || left <= 0 {
			return found, nil
		}
		phases.hear(found.Phase, found.PhaseSeconds)
		if err := c.pause(ctx, min(poll, left)); err != nil {
			return nil, err
		}
	}
}

// phases tells what a teacher that starts is doing: each new phase, and how long it has lasted now and then.
type phases struct {
	client  *Client
	teacher string
	phase   string
	next    time.Time
}

func (p *phases) hear(phase string, seconds float64) {
	if now := time.Now(); phase != p.phase || !now.Before(p.next) {
		p.phase, p.next = phase, now.Add(p.client.settings.times.alive)
		if phase == "" {
			phase = "it starts"
		}
		p.client.settings.log(fmt.Sprintf("teacher %s: %s, %.0f s", p.teacher, phase, seconds))
	}
}

// OutputHead is a teacher's output head: logits = SoftCap·tanh(z / SoftCap) with z = Scale·(W h + b); without SoftCap,
// logits = z. With hidden states it gives the exact vocabulary.
type OutputHead struct {
	VocabSize, HiddenSize int
	// Weight [VocabSize, HiddenSize] is W.
	Weight []float32
	// Bias [VocabSize] is b; nil for none.
	Bias []float32
	// Scale is the factor of W h + b; SoftCap is 0 for none.
	Scale, SoftCap float64
}

// OutputHead fetches a teacher's output head and verifies its sha256. CapabilityMissing where it has none.
func (c *Client) OutputHead(ctx context.Context, teacher string) (*OutputHead, error) {
	var head *OutputHead
	retries := retries{client: c}
	err := retries.again(ctx, func() (err error) {
		head, err = c.outputHead(ctx, teacher)
		return err
	})
	return head, err
}

func (c *Client) outputHead(ctx context.Context, teacher string) (*OutputHead, error) {
	var head *limbeckv1.OutputHead
	var content []byte
	err := drain[*limbeckv1.GetOutputHeadRequest, *limbeckv1.GetOutputHeadResponse](
		ctx, c, c.teachers.GetOutputHead, &limbeckv1.GetOutputHeadRequest{Teacher: teacher},
		func(message *limbeckv1.GetOutputHeadResponse) error {
			if head == nil {
				if head = message.GetHead(); head == nil {
					return wrongHead(teacher, "bytes came before the head")
				}
				return checkHead(teacher, head)
			}
			chunk := message.GetChunk()
			there := uint64(len(content))
			if chunk.GetOffset() != there || there+uint64(len(chunk.GetData())) > head.Bytes {
				return wrongHead(teacher, "bytes at %d came where those at %d were due", chunk.GetOffset(), there)
			}
			content = append(content, chunk.GetData()...)
			return nil
		},
	)
	if err != nil {
		return nil, err
	}
	if uint64(len(content)) < head.GetBytes() || head == nil {
		text := fmt.Sprintf("the call ended after %d of %d bytes", len(content), head.GetBytes())
		return nil, unavailable(c.settings.name(), text)
	}
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != head.Sha256 {
		return nil, wrongHead(teacher, "its bytes have the sha256 %x, %s is stated", sum, head.Sha256)
	}
	found := &OutputHead{
		VocabSize: int(head.VocabSize), HiddenSize: int(head.HiddenSize), Scale: head.Scale, SoftCap: head.Softcap,
	}
	found.Weight = floats(content, head.Dtype)
	if head.Bias {
		size := found.VocabSize * found.HiddenSize
		found.Weight, found.Bias = found.Weight[:size:size], found.Weight[size:]
	}
	return found, nil
}

// checkHead sees that the bytes announced are what the shape says: nothing larger is ever held.
func checkHead(teacher string, head *limbeckv1.OutputHead) error {
	expected := uint64(head.VocabSize) * uint64(head.HiddenSize)
	if head.Bias {
		expected += uint64(head.VocabSize)
	}
	expected *= 4
	if head.Dtype == limbeckv1.Dtype_DTYPE_BFLOAT16 {
		expected /= 2
	}
	if head.Bytes != expected || expected == 0 {
		return wrongHead(teacher, "%d bytes are announced, [%d, %d] takes %d", head.Bytes, head.VocabSize, head.HiddenSize, expected)
	}
	return nil
}

func wrongHead(teacher, format string, values ...any) error {
	problem := Problem{Message: fmt.Sprintf(format, values...), Field: "output head of " + teacher}
	return newError(SignalInvalid, problem)
}

func floats(raw []byte, dtype limbeckv1.Dtype) []float32 {
	if dtype == limbeckv1.Dtype_DTYPE_BFLOAT16 {
		return bfloat16s(raw)
	}
	return float32s(raw)
}
