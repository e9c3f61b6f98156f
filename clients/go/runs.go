package limbeck

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// work is what a call may take at the server where it has much to do.
const work = 10 * time.Minute

// Plugins tells what is installed at the server, with the JSON Schema of each plugin's config.
func (c *Client) Plugins(ctx context.Context) (*limbeckv1.ListPluginsResponse, error) {
	return ask(ctx, c, c.plugins.ListPlugins, &limbeckv1.ListPluginsRequest{})
}

// Validate looks at a recipe (YAML) and all that it names. A recipe that cannot be run is an answer, too: with an Error
// and every problem in it. The server may look at large models for up to 10 minutes.
func (c *Client) Validate(ctx context.Context, recipe string) (*limbeckv1.ValidateRecipeResponse, error) {
	request := &limbeckv1.ValidateRecipeRequest{Recipe: recipe}
	return askWith(ctx, c, patience{work: work}, c.training.ValidateRecipe, request)
}

// CreateOption changes how a run is created.
type CreateOption func(*limbeckv1.CreateRunRequest)

// RequestID is the caller's name of the request, 1 to 128 characters: the same id gives the same run, however often it
// is sent, by another process too. Without it, an id is made for each call.
func RequestID(id string) CreateOption {
	return func(r *limbeckv1.CreateRunRequest) { r.RequestId = id }
}

// FailOnRestart lets the run fail where the server ends while it works; without it, the server's next start lets it go
// on from its newest checkpoint.
func FailOnRestart() CreateOption {
	return func(r *limbeckv1.CreateRunRequest) { r.Restart = limbeckv1.RestartPolicy_RESTART_POLICY_FAIL }
}

// CreateRun starts a run of a recipe (YAML) as soon as the server has room, once, whatever happens to the connection.
// Errors are RecipeInvalid, with every problem, RunExists, QuotaExceeded, and what Validate would tell.
func (c *Client) CreateRun(ctx context.Context, recipe string, options ...CreateOption) (*limbeckv1.Run, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("no request id can be drawn: %w", err)
	}
	request := &limbeckv1.CreateRunRequest{
		Recipe:    recipe,
		RequestId: hex.EncodeToString(id),
		Restart:   limbeckv1.RestartPolicy_RESTART_POLICY_RESUME,
	}
	for _, option := range options {
		option(request)
	}
	answer, err := askWith(ctx, c, patience{final: QuotaExceeded}, c.training.CreateRun, request) // a full queue stays full
	return answer.GetRun(), err
}

// Run is one run as it is now, with its recipe and every state that it was in.
func (c *Client) Run(ctx context.Context, runID string) (*limbeckv1.GetRunResponse, error) {
	return ask(ctx, c, c.training.GetRun, &limbeckv1.GetRunRequest{RunId: runID})
}

// Runs are all runs in one of the states, or all where none is given, the newest first.
func (c *Client) Runs(ctx context.Context, states ...limbeckv1.RunState) ([]*limbeckv1.Run, error) {
	var runs []*limbeckv1.Run
	request := &limbeckv1.ListRunsRequest{PageSize: 200, States: states}
	for {
		page, err := c.RunPage(ctx, request)
		if err != nil {
			return nil, err
		}
		runs = append(runs, page.Runs...)
		if page.NextPageToken == "" {
			return runs, nil
		}
		request.PageToken = page.NextPageToken
	}
}

// RunPage is one page of Runs.
func (c *Client) RunPage(ctx context.Context, request *limbeckv1.ListRunsRequest) (*limbeckv1.ListRunsResponse, error) {
	return ask(ctx, c, c.training.ListRuns, request)
}

// Pause lets a run save what is needed to go on, and rest. Returns when the request is noted; so do Resume and Cancel.
func (c *Client) Pause(ctx context.Context, runID string) (*limbeckv1.Run, error) {
	request := &limbeckv1.PauseRunRequest{RunId: runID}
	answer, err := ask(ctx, c, c.training.PauseRun, request)
	return answer.GetRun(), err
}

// Resume lets a run that is paused or has failed go on from its newest checkpoint.
func (c *Client) Resume(ctx context.Context, runID string) (*limbeckv1.Run, error) {
	request := &limbeckv1.ResumeRunRequest{RunId: runID}
	answer, err := ask(ctx, c, c.training.ResumeRun, request)
	return answer.GetRun(), err
}

// Cancel ends a run; what it has made stays in its folder.
func (c *Client) Cancel(ctx context.Context, runID string) (*limbeckv1.Run, error) {
	request := &limbeckv1.CancelRunRequest{RunId: runID}
	answer, err := ask(ctx, c, c.training.CancelRun, request)
	return answer.GetRun(), err
}

// SetKnobs gives knobs other values, by name, from the next optimizer step on, for good; all or, KnobInvalid, none.
func (c *Client) SetKnobs(ctx context.Context, runID string, values map[string]float64) (*limbeckv1.Run, error) {
	request := &limbeckv1.UpdateKnobsRequest{RunId: runID, Values: values}
	answer, err := ask(ctx, c, c.training.UpdateKnobs, request)
	return answer.GetRun(), err
}

// SaveCheckpoint saves a checkpoint after the step under way, and returns when it is complete, after 10 minutes at most.
func (c *Client) SaveCheckpoint(ctx context.Context, runID string) (*limbeckv1.Checkpoint, error) {
	request := &limbeckv1.SaveCheckpointRequest{RunId: runID}
	answer, err := askWith(ctx, c, patience{work: work}, c.training.SaveCheckpoint, request)
	return answer.GetCheckpoint(), err
}

// Checkpoints are those of a run that are complete, the oldest first.
func (c *Client) Checkpoints(ctx context.Context, runID string) ([]*limbeckv1.Checkpoint, error) {
	request := &limbeckv1.ListCheckpointsRequest{RunId: runID}
	answer, err := ask(ctx, c, c.training.ListCheckpoints, request)
	return answer.GetCheckpoints(), err
}

// Artifacts are the files of a run that can be fetched, by path.
func (c *Client) Artifacts(ctx context.Context, runID string) ([]*limbeckv1.Artifact, error) {
	request := &limbeckv1.ListArtifactsRequest{RunId: runID}
	answer, err := ask(ctx, c, c.training.ListArtifacts, request)
	return answer.GetArtifacts(), err
}

// Ended tells whether a run in this state has succeeded, failed or was cancelled: nothing more happens by itself.
func Ended(state limbeckv1.RunState) bool {
	switch state {
	case limbeckv1.RunState_RUN_STATE_SUCCEEDED, limbeckv1.RunState_RUN_STATE_FAILED, limbeckv1.RunState_RUN_STATE_CANCELLED:
		return true
	}
	return false
}
