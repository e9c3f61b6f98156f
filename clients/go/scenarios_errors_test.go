package limbeck

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

func errorRecipeInvalid(t *testing.T, s *served) {
	_, err := s.client.CreateRun(s.ctx, s.recipe("invalid"))
	var fields []string
	var lines []int
	for _, problem := range refusedWith(t, err, RecipeInvalid).Problems {
		fields, lines = append(fields, problem.Field), append(lines, problem.Line)
		if problem.File != "recipe" || problem.Column == 0 {
			t.Error(problem)
		}
	}
	if fmt.Sprint(fields) != "[student.layers losses[0].plugin training.learning_rate]" {
		t.Error(err)
	}
	if fmt.Sprint(lines) != fmt.Sprint(s.InvalidLines) {
		t.Error(err)
	}
}

func errorRowsInvalid(t *testing.T, s *served) {
	made, err := s.client.CreateRun(s.ctx, s.recipe("broken"))
	if err != nil {
		t.Fatal(err)
	}
	events := s.all(t, s.client, made.RunId, Oldest)
	if states := statesOf(events); states != "created validating failed" {
		t.Fatal(states)
	}
	said, told := s.run(t, made.RunId).GetError(), events[len(events)-1].GetStateChanged().GetError()
	if !proto.Equal(said, told) || Reason(said.GetReason()) != DataInvalid || len(said.GetProblems()) != 1 {
		t.Fatal(said, told)
	}
	if problem := said.Problems[0]; problem.File != "broken.jsonl" || problem.Line != 3 {
		t.Error(problem)
	}
	if text := fmt.Sprint(said, events); strings.Contains(text, filepath.Dir(s.Workspace)) {
		t.Error(text)
	}
}

func errorPathOutside(t *testing.T, s *served) {
	var texts []string
	for _, name := range []string{"outside", "absent"} {
		_, err := s.client.CreateRun(s.ctx, s.recipe(name))
		refusedWith(t, err, RecipeInvalid)
		texts = append(texts, strings.ReplaceAll(err.Error(), name, "…"))
	}
	if texts[0] != texts[1] || strings.Contains(texts[0], filepath.Dir(s.Workspace)) {
		t.Error(texts)
	}
}

// callsOf are all calls that take a run's id.
func (s *served) callsOf(t *testing.T, client *Client, id string) map[string]error {
	errs := map[string]error{}
	_, errs["run"] = client.Run(s.ctx, id)
	_, errs["pause"] = client.Pause(s.ctx, id)
	_, errs["resume"] = client.Resume(s.ctx, id)
	_, errs["cancel"] = client.Cancel(s.ctx, id)
	_, errs["knobs"] = client.SetKnobs(s.ctx, id, map[string]float64{weight: 1})
	_, errs["save"] = client.SaveCheckpoint(s.ctx, id)
	_, errs["checkpoints"] = client.Checkpoints(s.ctx, id)
	_, errs["artifacts"] = client.Artifacts(s.ctx, id)
	_, errs["fetch"] = client.Fetch(s.ctx, id, t.TempDir())
	errs["download"] = drain[*limbeckv1.DownloadArtifactRequest, *limbeckv1.DownloadArtifactResponse](
		s.ctx, client, client.training.DownloadArtifact,
		&limbeckv1.DownloadArtifactRequest{RunId: id, Path: "recipe.yaml"},
		func(*limbeckv1.DownloadArtifactResponse) error { return nil },
	)
	events := client.Watch(s.ctx, id, Oldest)
	events.Next()
	errs["watch"] = events.Err()
	events.Close()
	return errs
}

func errorRunUnknown(t *testing.T, s *served) {
	for name, err := range s.callsOf(t, s.client, newID()) {
		if !errors.Is(err, RunUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func errorRunState(t *testing.T, s *served) {
	done := s.tiny(t)
	for name, err := range s.callsOf(t, s.client, done.id) {
		switch name {
		case "pause", "resume", "cancel", "save":
			if !errors.Is(err, RunState) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if run := s.run(t, done.id); int(run.LastSequence) != len(done.events) {
		t.Error(run)
	}
}

func errorRunExists(t *testing.T, s *served) {
	_, err := s.client.CreateRun(s.ctx, s.tiny(t).recipe)
	refusedWith(t, err, RunExists)
}

func errorKnobInvalid(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).Knobs
	_, err := s.client.SetKnobs(s.ctx, id, map[string]float64{
		"losses.nothing.weight": 1, "losses.cross_entropy.weight": 0.3, weight: -1,
	})
	refusedWith(t, err, KnobInvalid)
	if text := err.Error(); !strings.Contains(text, "losses.nothing.weight") || !strings.Contains(text, weight) {
		t.Error(text)
	}
	for i, knob := range s.run(t, id).Knobs {
		if !proto.Equal(knob, before[i]) {
			t.Error(knob, before[i])
		}
	}
}

func (s *served) watchError(client *Client, id string, from Cursor) error {
	events := client.Watch(s.ctx, id, from)
	defer events.Close()
	events.Next()
	return events.Err()
}

func (s *served) signalsError(client *Client, dataset string, after uint64) error {
	signals := client.Signals(s.ctx, dataset, after)
	defer signals.Close()
	signals.Next()
	return signals.Err()
}

func errorCursorInvalid(t *testing.T, s *served) {
	done := s.tiny(t)
	refusedWith(t, s.watchError(s.client, done.id, After(uint64(len(done.events))+1)), CursorInvalid)
	refusedWith(t, s.signalsError(s.client, s.Dataset, 1_000_000), CursorInvalid)
}

var quoted = regexp.MustCompile(`'.*?'`)

func errorArtifactUnknown(t *testing.T, s *served) {
	done := s.tiny(t)
	saved, err := s.client.Checkpoints(s.ctx, done.id)
	if err != nil || len(saved) == 0 {
		t.Fatal(saved, err)
	}
	texts := map[string]bool{}
	for _, path := range []string{
		"student/nothing", saved[0].Path + "/manifest.json", "../../rows.jsonl", "/etc/hostname", "student/..",
	} {
		err := s.download(t, &limbeckv1.DownloadArtifactRequest{RunId: done.id, Path: path})
		refusedWith(t, err, ArtifactUnknown)
		texts[quoted.ReplaceAllString(err.Error(), "…")] = true // the path, shortened where it might be the server's
		if strings.Contains(err.Error(), s.Workspace) {
			t.Error(err)
		}
	}
	if len(texts) != 1 {
		t.Error(texts)
	}
	dir := t.TempDir()
	_, err = s.client.Fetch(s.ctx, done.id, dir, Path("student/nothing"))
	refusedWith(t, err, ArtifactUnknown)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Error(left)
	}
}

func errorQuotaExceeded(t *testing.T, s *served) {
	client := s.connect(t, "greedy", s.Address)
	var made []string
	var err error
	for err == nil && len(made) < 40 {
		var run *limbeckv1.Run
		if run, err = client.CreateRun(s.ctx, s.recipe("long")); err == nil {
			made = append(made, run.RunId)
		}
	}
	for _, id := range made {
		if _, err := client.Cancel(s.ctx, id); err != nil {
			t.Error(err)
		}
	}
	refusedWith(t, err, QuotaExceeded)
	for _, id := range made {
		s.until(t, id, "cancelled", Oldest)
	}
	again, err := client.CreateRun(s.ctx, s.recipe("long"))
	if err != nil || len(made) == 0 {
		t.Fatal(made, err)
	}
	if _, err := client.Cancel(s.ctx, again.RunId); err != nil {
		t.Fatal(err)
	}
	s.until(t, again.RunId, "cancelled", Oldest)
}

func errorRequestInvalid(t *testing.T, s *served) {
	for _, id := range []string{"", strings.Repeat("x", 129)} {
		_, err := s.client.CreateRun(s.ctx, s.recipe("tiny"), RequestID(id))
		refusedWith(t, err, RequestInvalid)
	}
	_, err := s.client.RunPage(s.ctx, &limbeckv1.ListRunsRequest{PageToken: "none"})
	refusedWith(t, err, RequestInvalid)
}

func errorTeacherUnknown(t *testing.T, s *served) {
	_, err := s.client.Teacher(s.ctx, "nobody", 0)
	refusedWith(t, err, TeacherUnknown)
	scores := s.client.Score(s.ctx, "nobody", topK, FromSlice(tokenItems(1, 9)))
	defer scores.Close()
	if scores.Next() {
		t.Error(scores.ID())
	}
	refusedWith(t, scores.Err(), TeacherUnknown)
}

func errorTeacherMismatch(t *testing.T, s *served) {
	other := strings.Repeat("0", 64)
	for reason, expected := range map[Reason]*Expectation{
		TokenizerMismatch: {TokenizerDigest: &other}, TeacherMismatch: {WeightsDigest: &other},
	} {
		found, err := s.score(s.client, topK, tokenItems(2, 9), ScoredBy(expected))
		if refusedWith(t, err, reason); len(found) > 0 {
			t.Error(found)
		}
	}
	teacher, err := s.client.Teacher(s.ctx, s.Teacher, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := s.score(s.client, topK, tokenItems(2, 9), ScoredBy(Expect(teacher))); err != nil || len(found) != 2 {
		t.Error(err)
	}
}

func errorCapabilityMissing(t *testing.T, s *served) {
	_, err := s.score(s.client, &limbeckv1.Want{Layers: []int32{-1}}, tokenItems(1, 9))
	refusedWith(t, err, CapabilityMissing)
}

func errorDatasetUnknown(t *testing.T, s *served) {
	refusedWith(t, s.signalsError(s.client, "nothing", 0), DatasetUnknown)
}

func errorUnauthenticated(t *testing.T, s *served) {
	for _, name := range []string{"", "unknown", "expired"} {
		client := s.connect(t, name, s.Address)
		errs := map[string]error{"watch": s.watchError(client, "r", Oldest), "signals": s.signalsError(client, s.Dataset, 0)}
		_, errs["plugins"] = client.Plugins(s.ctx)
		_, errs["runs"] = client.Runs(s.ctx)
		_, errs["teachers"] = client.Teachers(s.ctx)
		_, errs["score"] = s.score(client, topK, tokenItems(1, 9))
		for call, err := range errs {
			if !errors.Is(err, Unauthenticated) {
				t.Errorf("%s, %s: %v", name, call, err)
			}
			if token, _ := os.ReadFile(s.Tokens[name]); len(token) > 0 && strings.Contains(err.Error(), string(token)) {
				t.Errorf("%s: the token is told", call)
			}
		}
	}
}

func errorPermissionDenied(t *testing.T, s *served) {
	client := s.connect(t, "score", s.Address)
	if found, err := s.score(client, topK, tokenItems(2, 9)); err != nil || len(found) != 2 {
		t.Error(err)
	}
	signals := client.Signals(s.ctx, s.Dataset, 0)
	defer signals.Close()
	if !signals.Next() || signals.Signal().Sequence != 1 {
		t.Error(signals.Err())
	}
	errs := s.callsOf(t, client, s.tiny(t).id)
	_, errs["plugins"] = client.Plugins(s.ctx)
	_, errs["runs"] = client.Runs(s.ctx)
	_, errs["validate"] = client.Validate(s.ctx, "{}")
	_, errs["create"] = client.CreateRun(s.ctx, "{}")
	for call, err := range errs {
		if !errors.Is(err, PermissionDenied) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func errorServerUnavailable(t *testing.T, s *served) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	client := s.connect(t, "train", nobody.Addr().String(), Timeout(time.Second))
	_, err = client.Runs(s.ctx)
	refusedWith(t, err, ServerUnavailable)
	refusedWith(t, s.watchError(client, "r", Oldest), ServerUnavailable)
	_, err = s.score(client, topK, tokenItems(1, 9))
	refusedWith(t, err, ServerUnavailable)
}
