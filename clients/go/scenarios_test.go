package limbeck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// The scenarios of clients/scenarios.json, against the server of clients/serve.py; see clients/README.md.
var scenarios = map[string]func(*testing.T, *served){
	"list_plugins": listPlugins, "draw_form": drawForm, "validate_recipe": validateRecipe, "create_run": createRun,
	"create_is_idempotent": createIsIdempotent, "watch_across_drops": watchAcrossDrops,
	"watch_from_a_cursor": watchFromACursor, "list_runs": listRuns, "steer_a_knob": steerAKnob,
	"save_checkpoint": saveCheckpoint, "pause_and_resume": pauseAndResume, "cancel_run": cancelRun,
	"fetch_student": fetchStudent, "fetch_refuses_another_file": fetchRefusesAnotherFile,
	"signal_vectors": func(t *testing.T, s *served) { checkVectors(t, s.Vectors) }, "stream_signals": streamSignals,
	"score_with_credits": scoreWithCredits, "error_item": errorItem, "error_recipe_invalid": errorRecipeInvalid,
	"error_path_outside": errorPathOutside, "error_run_unknown": errorRunUnknown, "error_run_state": errorRunState,
	"error_run_exists": errorRunExists, "error_knob_invalid": errorKnobInvalid, "error_cursor_invalid": errorCursorInvalid,
	"error_artifact_unknown": errorArtifactUnknown, "error_quota_exceeded": errorQuotaExceeded,
	"error_request_invalid": errorRequestInvalid, "error_teacher_unknown": errorTeacherUnknown,
	"error_teacher_mismatch": errorTeacherMismatch, "error_capability_missing": errorCapabilityMissing,
	"error_dataset_unknown": errorDatasetUnknown, "error_unauthenticated": errorUnauthenticated,
	"error_permission_denied": errorPermissionDenied, "error_server_unavailable": errorServerUnavailable,
	"tls_and_token": tlsAndToken, "token_files": tokenFiles, "proxy_environment": proxyEnvironment,
	"silent_peer": silentPeer, "wide_integers": wideIntegers, "example": example,
}

func listed(t *testing.T) (names []string) {
	t.Helper()
	content, err := os.ReadFile("../scenarios.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ Name string }
	if err := json.Unmarshal(content, &list); err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		names = append(names, one.Name)
	}
	return names
}

func TestTheScenariosAreThoseOfTheList(t *testing.T) {
	names := map[string]bool{}
	for _, name := range listed(t) {
		if names[name] = true; scenarios[name] == nil {
			t.Errorf("%s is not tested", name)
		}
	}
	for name := range scenarios {
		if !names[name] {
			t.Errorf("%s is not in the list", name)
		}
	}
}

func TestScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("they take a real server, and minutes")
	}
	s := serve(t)
	for _, name := range listed(t) {
		if run := scenarios[name]; run != nil {
			t.Run(name, func(t *testing.T) { run(t, s) })
		}
	}
}

// served is what clients/serve.py says.
type served struct {
	Address      string
	TLSAddress   string `json:"tls_address"`
	CA           string
	OtherCA      string `json:"other_ca"`
	Tokens       map[string]string
	Workspace    string
	Recipes      map[string]string
	InvalidLines []int `json:"invalid_lines"`
	Teacher      string
	Dataset      string
	Proxy        string
	Drop         string
	Silent       string
	Vectors      string
	Signals      string
	Integers     string

	ctx    context.Context
	client *Client
	done   *finished
	long   string // the run that trains
}

// finished is a run of the tiny recipe that has ended, and what a watcher saw over dropped connections.
type finished struct {
	id, recipe string
	events     []*limbeckv1.Event
	drops      int
}

// serve starts the server, or finds the one whose line is in the file that LIMBECK_SERVED names.
func serve(t *testing.T) *served {
	t.Helper()
	s := &served{}
	var line []byte
	var err error
	if file := os.Getenv("LIMBECK_SERVED"); file != "" {
		line, err = os.ReadFile(file)
	} else {
		line, err = start(t)
	}
	if err == nil {
		err = json.Unmarshal(line, s)
	}
	if err != nil {
		t.Fatalf("clients/serve.py: %v", err)
	}
	var stop context.CancelFunc
	s.ctx, stop = context.WithTimeout(context.Background(), 14*time.Minute)
	t.Cleanup(stop)
	s.client = s.connect(t, "train", s.Address)
	t.Cleanup(func() {
		if s.long != "" {
			_, _ = s.client.Cancel(s.ctx, s.long)
		}
	})
	return s
}

func start(t *testing.T) ([]byte, error) {
	python := os.Getenv("LIMBECK_PYTHON")
	if python == "" {
		python = "../../.venv/bin/python"
	}
	here, err := os.Getwd()
	if err == nil {
		here, err = filepath.EvalSymlinks(here) // in GOPATH mode it is a link
	}
	if err != nil {
		return nil, err
	}
	process := exec.Command(python, filepath.Join(here, "..", "serve.py"))
	process.Stderr = os.Stderr
	in, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := process.Wait(); err != nil {
			t.Error("the server did not end well:", err)
		}
	})
	var line json.RawMessage
	err = json.NewDecoder(out).Decode(&line)
	return line, err
}

// connect is a client that lasts as long as the test. Token is a file's name; "" for none.
func (s *served) connect(t *testing.T, token, address string, options ...Option) *Client {
	t.Helper()
	client, err := Connect(context.Background(), address, append([]Option{TokenFile(s.Tokens[token])}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newID() string { return fmt.Sprintf("go-%x-%x", time.Now().UnixNano(), rand.Uint32()) }

// recipe is one with a folder of its own.
func (s *served) recipe(name string) string {
	return strings.ReplaceAll(s.Recipes[name], "OUTPUT", newID())
}

// drop has all connections through the proxy dropped.
func (s *served) drop(t *testing.T) {
	t.Helper()
	bell, err := net.Dial("tcp", s.Drop)
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	if _, err := bell.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func stateOf(event *limbeckv1.Event) string {
	if event.GetStateChanged() == nil {
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(event.GetStateChanged().State.String(), "RUN_STATE_"))
}

func statesOf(events []*limbeckv1.Event) string {
	var states []string
	for _, event := range events {
		if state := stateOf(event); state != "" {
			states = append(states, state)
		}
	}
	return strings.Join(states, " ")
}

func (s *served) run(t *testing.T, id string) *limbeckv1.Run {
	t.Helper()
	found, err := s.client.Run(s.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return found.Run
}

// until watches until the run is in a state.
func (s *served) until(t *testing.T, id, state string, from Cursor) (found []*limbeckv1.Event) {
	t.Helper()
	events := s.client.Watch(s.ctx, id, from)
	defer events.Close()
	for events.Next() {
		found = append(found, events.Event())
		if stateOf(events.Event()) == state {
			return found
		}
	}
	t.Fatalf("no %s after %s: %v", state, statesOf(found), events.Err())
	return nil
}

// all are the events of a run that has ended.
func (s *served) all(t *testing.T, client *Client, id string, from Cursor) (found []*limbeckv1.Event) {
	t.Helper()
	events := client.Watch(s.ctx, id, from)
	for events.Next() {
		found = append(found, events.Event())
	}
	if events.Err() != nil {
		t.Fatal(events.Err())
	}
	return found
}

// tiny is the run that all scenarios share: watched through the proxy, whose connections are dropped while it trains and
// while it ends.
func (s *served) tiny(t *testing.T) *finished {
	t.Helper()
	if s.done != nil {
		return s.done
	}
	done := &finished{recipe: s.recipe("tiny")}
	run, err := s.client.CreateRun(s.ctx, done.recipe)
	if err != nil {
		t.Fatal(err)
	}
	done.id = run.RunId
	events := s.connect(t, "train", s.Proxy).Watch(s.ctx, done.id, Oldest)
	for events.Next() {
		done.events = append(done.events, events.Event())
		if state := stateOf(events.Event()); len(done.events) == 1 || state == "training" || state == "evaluating" {
			s.drop(t)
			done.drops++
		}
	}
	if events.Err() != nil {
		t.Fatal(events.Err())
	}
	s.done = done
	return done
}

// trains makes the long run train, and creates it where there is none.
func (s *served) trains(t *testing.T) string {
	t.Helper()
	if s.long == "" || Ended(s.run(t, s.long).State) {
		run, err := s.client.CreateRun(s.ctx, s.recipe("long"))
		if err != nil {
			t.Fatal(err)
		}
		s.long = run.RunId
	}
	if run := s.run(t, s.long); run.State == limbeckv1.RunState_RUN_STATE_PAUSED {
		if _, err := s.client.Resume(s.ctx, s.long); err != nil {
			t.Fatal(err)
		}
	}
	if run := s.run(t, s.long); run.State != limbeckv1.RunState_RUN_STATE_TRAINING {
		s.until(t, s.long, "training", After(run.LastSequence))
	}
	return s.long
}

// refusedWith expects an error of a reason, and gives it.
func refusedWith(t *testing.T, err error, reason Reason) *Error {
	t.Helper()
	var found *Error
	if !errors.As(err, &found) || found.Reason != reason {
		t.Fatalf("%s is expected, not %v", reason, err)
	}
	return found
}

// ----------------------------------------------------------------------------------------------------------- plugins

func listPlugins(t *testing.T, s *served) {
	found, err := s.client.Plugins(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	names, kinds := map[string]bool{}, map[limbeckv1.Plugin_Kind]bool{}
	for _, p := range found.Plugins {
		names[p.Kind.String()+" "+p.Name], kinds[p.Kind] = true, true
		if p.Distribution == "" || p.Version == "" || p.Summary == "" {
			t.Error(p)
		}
	}
	if len(kinds) != 4 || !names["KIND_LOSS forward_kl"] || !names["KIND_TEACHER transformers"] || !json.Valid([]byte(found.RecipeSchema)) {
		t.Error(names)
	}
}

func drawForm(t *testing.T, s *served) {
	found, err := s.client.Plugins(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, plugin := range found.Plugins {
		fields, err := Form(plugin.ConfigSchema)
		if err != nil {
			t.Errorf("%s: %v", plugin.Name, err)
		}
		if plugin.Name != "forward_kl" {
			continue
		}
		by := map[string]Field{}
		for _, f := range fields {
			if by[f.Name] = f; f.Description == "" || f.Title == "" || len(f.Types) == 0 && len(f.Choices) == 0 {
				t.Errorf("%+v", f)
			}
		}
		weight, temperature := by["weight"], by["temperature"]
		if string(weight.Default) != "1.0" || weight.AtLeast == nil || *weight.AtLeast != 0 || weight.Types[0] != "number" {
			t.Errorf("%+v", weight)
		}
		if temperature.Above == nil || *temperature.Above != 0 || by["top_k"].Types[0] != "integer" || len(weight.Types) < 2 {
			t.Errorf("%+v %+v", temperature, by["top_k"])
		}
		if fields[0].Name != "plugin" || fields[1].Name != "name" {
			t.Error("they are out of order:", fields)
		}
	}
}

// -------------------------------------------------------------------------------------------------------------- runs

func validateRecipe(t *testing.T, s *served) {
	good, err := s.client.Validate(s.ctx, s.recipe("tiny"))
	if err != nil || good.Error != nil || good.Facts == "" {
		t.Fatal(good, err)
	}
	var resolved struct {
		Training struct {
			MaxSteps int `json:"max_steps"`
		}
	}
	if err := json.Unmarshal([]byte(good.Resolved), &resolved); err != nil || resolved.Training.MaxSteps != 200 {
		t.Error(good.Resolved, err)
	}
	bad, err := s.client.Validate(s.ctx, s.recipe("invalid"))
	if err != nil || Reason(bad.Error.GetReason()) != RecipeInvalid {
		t.Fatal(bad, err)
	}
	var lines []int
	for _, problem := range bad.Error.Problems {
		lines = append(lines, int(problem.Line))
		if problem.Column == 0 {
			t.Error(problem)
		}
	}
	if fmt.Sprint(lines) != fmt.Sprint(s.InvalidLines) {
		t.Error(lines)
	}
}

func createRun(t *testing.T, s *served) {
	done := s.tiny(t)
	found, err := s.client.Run(s.ctx, done.id)
	if err != nil {
		t.Fatal(err)
	}
	states := statesOf(done.events)
	if states != "created validating queued preparing labelling training evaluating reporting succeeded" {
		t.Error(states)
	}
	var told []*limbeckv1.Event
	for _, one := range found.States {
		told = append(told, &limbeckv1.Event{Kind: &limbeckv1.Event_StateChanged{StateChanged: &limbeckv1.StateChanged{State: one.State}}})
	}
	if run := found.Run; statesOf(told) != states || run.Attempt != 1 || int(run.LastSequence) != len(done.events) || !Ended(run.State) {
		t.Error(found)
	}
}

func createIsIdempotent(t *testing.T, s *served) {
	recipe, id := s.recipe("long"), RequestID(newID())
	first, err := s.client.CreateRun(s.ctx, recipe, id)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.client.CreateRun(s.ctx, recipe, id)
	if err != nil || again.RunId != first.RunId {
		t.Error(again, err)
	}
	_, err = s.client.CreateRun(s.ctx, recipe+"# another\n", id)
	refusedWith(t, err, RunExists)
	if _, err := s.client.Cancel(s.ctx, first.RunId); err != nil {
		t.Fatal(err)
	}
	s.until(t, first.RunId, "cancelled", Oldest)
	if again, err = s.client.CreateRun(s.ctx, recipe, id); err != nil || again.RunId != first.RunId {
		t.Error(again, err)
	}
}

func watchAcrossDrops(t *testing.T, s *served) {
	done := s.tiny(t)
	for i, event := range done.events {
		if event.Sequence != uint64(i+1) || event.RunId != done.id {
			t.Fatalf("event %d is %v", i, event)
		}
	}
	if done.drops != 3 || !strings.HasSuffix(statesOf(done.events), " succeeded") {
		t.Error(done.drops, statesOf(done.events))
	}
}

func watchFromACursor(t *testing.T, s *served) {
	done := s.tiny(t)
	for _, one := range []struct {
		from Cursor
		due  []*limbeckv1.Event
	}{{After(0), done.events}, {Oldest, done.events}, {After(5), done.events[5:]}} {
		found := s.all(t, s.client, done.id, one.from)
		if len(found) != len(one.due) {
			t.Fatalf("%d events, %d are due", len(found), len(one.due))
		}
		for i, event := range found {
			if !proto.Equal(event, one.due[i]) {
				t.Error(event, one.due[i])
			}
		}
	}
}

func listRuns(t *testing.T, s *served) {
	done := s.tiny(t)
	runs, err := s.client.Runs(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var all, paged []string
	for i, run := range runs {
		all = append(all, run.RunId)
		if i > 0 && run.Created.AsTime().After(runs[i-1].Created.AsTime()) {
			t.Error("the newest is not the first")
		}
	}
	for token := ""; ; {
		page, err := s.client.RunPage(s.ctx, &limbeckv1.ListRunsRequest{PageSize: 1, PageToken: token})
		if err != nil || len(page.Runs) > 1 {
			t.Fatal(page, err)
		}
		for _, run := range page.Runs {
			paged = append(paged, run.RunId)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if fmt.Sprint(all) != fmt.Sprint(paged) || !strings.Contains(fmt.Sprint(all), done.id) {
		t.Error(all, paged)
	}
	ended, err := s.client.Runs(s.ctx, succeeded)
	if err != nil || len(ended) == 0 {
		t.Error(ended, err)
	}
	for _, run := range ended {
		if run.State != succeeded {
			t.Error(run)
		}
	}
	found, err := s.client.Run(s.ctx, done.id)
	if err != nil || found.Recipe != done.recipe {
		t.Fatal(found, err)
	}
	for i := 1; i < len(found.States); i++ {
		if found.States[i].Time.AsTime().Before(found.States[i-1].Time.AsTime()) {
			t.Error(found.States)
		}
	}
}

const weight = "losses.forward_kl.weight"

func steerAKnob(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).LastSequence
	if _, err := s.client.SetKnobs(s.ctx, id, map[string]float64{weight: 0.25}); err != nil {
		t.Fatal(err)
	}
	events := s.client.Watch(s.ctx, id, After(before))
	defer events.Close()
	var changed *limbeckv1.Event
	for events.Next() {
		event := events.Event()
		if event.GetKnobChanged() != nil {
			changed = event
		}
		if event.GetMetrics() != nil && changed != nil && event.Step > changed.Step {
			if event.GetMetrics().Values["knobs."+weight] != 0.25 {
				t.Error(event)
			}
			break
		}
	}
	if knob := changed.GetKnobChanged(); events.Err() != nil || knob.GetKnob() != weight || knob.GetAfter() != 0.25 {
		t.Fatal(changed, events.Err())
	}
	for _, knob := range s.run(t, id).Knobs {
		if knob.Name == weight && (knob.GetValue() != 0.25 || knob.AtLeast == nil || *knob.AtLeast != 0) {
			t.Error(knob)
		}
	}
}

func saveCheckpoint(t *testing.T, s *served) {
	id := s.trains(t)
	saved, err := s.client.SaveCheckpoint(s.ctx, id)
	if err != nil || saved.Step == 0 || saved.Bytes == 0 {
		t.Fatal(saved, err)
	}
	known, err := s.client.Checkpoints(s.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range known {
		if one.Path == saved.Path && one.Step == saved.Step && one.Bytes == saved.Bytes {
			return
		}
	}
	t.Error(saved, known)
}

func pauseAndResume(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).LastSequence
	if _, err := s.client.Pause(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	watched := s.client.Watch(s.ctx, id, After(before)) // over all of it
	defer watched.Close()
	var seen []*limbeckv1.Event
	stopped := uint64(0)
	for watched.Next() {
		event := watched.Event()
		seen = append(seen, event)
		switch stateOf(event) {
		case "paused":
			for _, one := range seen {
				stopped = max(stopped, one.Step)
			}
			if run := s.run(t, id); run.State != limbeckv1.RunState_RUN_STATE_PAUSED {
				t.Error(run)
			}
			if _, err := s.client.Pause(s.ctx, id); err != nil { // again: nothing
				t.Error(err)
			}
			if _, err := s.client.Resume(s.ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if stopped > 0 && event.GetMetrics() != nil && event.Attempt == 2 {
			if event.Step != stopped+1 {
				t.Errorf("it goes on with step %d after %d", event.Step, stopped)
			}
			break
		}
	}
	states := statesOf(seen)
	if watched.Err() != nil || !strings.HasPrefix(states, "pausing paused queued ") || !strings.HasSuffix(states, " training") {
		t.Error(states, watched.Err())
	}
	for i, event := range seen {
		if event.Sequence != before+1+uint64(i) {
			t.Fatal(event)
		}
	}
}

func cancelRun(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).LastSequence
	if _, err := s.client.Cancel(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	seen := s.all(t, s.client, id, After(before))
	if states := statesOf(seen); states != "cancelling cancelled" {
		t.Error(states)
	}
	again, err := s.client.Cancel(s.ctx, id)
	if err != nil || again.State != limbeckv1.RunState_RUN_STATE_CANCELLED || again.LastSequence != seen[len(seen)-1].Sequence {
		t.Error(again, err)
	}
}

// ------------------------------------------------------------------------------------------------------------- files

func fetchStudent(t *testing.T, s *served) {
	done := s.tiny(t)
	client, dropped := s.connect(t, "train", s.Proxy), map[string]bool{}
	files, err := client.Fetch(s.ctx, done.id, t.TempDir(), Progress(func(path string, _, _ uint64) {
		if !dropped[path] && len(dropped) < 3 {
			dropped[path] = true
			s.drop(t)
		}
	}))
	if err != nil || len(dropped) == 0 {
		t.Fatal(dropped, err)
	}
	known, err := s.client.Artifacts(s.ctx, done.id)
	if err != nil {
		t.Fatal(err)
	}
	output, due := filepath.Join(s.Workspace, s.run(t, done.id).Output), 0
	for _, artifact := range known {
		if strings.HasPrefix(artifact.Path, "checkpoints/") {
			t.Error(artifact)
		}
		if !strings.HasPrefix(artifact.Path, "student/") {
			continue
		}
		found, err := os.ReadFile(files[due])
		there, _ := os.ReadFile(filepath.Join(output, artifact.Path))
		sum := sha256.Sum256(found)
		if err != nil || !strings.HasSuffix(files[due], artifact.Path) || !bytes.Equal(sum[:], artifact.Sha256) || !bytes.Equal(found, there) {
			t.Error(files[due], artifact, err)
		}
		due++
	}
	if due != len(files) {
		t.Error(files)
	}
}

// download is the call itself, for what no client would ask.
func (s *served) download(t *testing.T, request *limbeckv1.DownloadArtifactRequest) error {
	t.Helper()
	return drain[*limbeckv1.DownloadArtifactRequest, *limbeckv1.DownloadArtifactResponse](
		s.ctx, s.client, s.client.training.DownloadArtifact, request,
		func(*limbeckv1.DownloadArtifactResponse) error { return nil },
	)
}

func fetchRefusesAnotherFile(t *testing.T, s *served) {
	done, dir := s.tiny(t), t.TempDir()
	err := s.download(t, &limbeckv1.DownloadArtifactRequest{
		RunId: done.id, Path: "student/config.json", Offset: 10, Sha256: make([]byte, 32),
	})
	refusedWith(t, err, StoreDamaged)
	known, err := s.client.Artifacts(s.ctx, done.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, artifact := range known {
		if artifact.Path == "student/config.json" {
			artifact.Sha256 = make([]byte, 32)
			f := &fetching{client: s.client, runID: done.id, dir: dir, heard: func(string, uint64, uint64) {}}
			refusedWith(t, f.fetch(s.ctx, artifact, filepath.Join(dir, "config.json")), StoreDamaged)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Error(left)
	}
}

// ------------------------------------------------------------------------------------------------ signals and scores

type decoded struct {
	Sequence uint64
	FirstRow int `json:"first_row"`
	N        int
	Tokens   []int32
	IDs      [][]int32
	At       map[string]struct {
		Logprobs [][]number
		Tails    []number
	}
}

func streamSignals(t *testing.T, s *served) {
	content, err := os.Open(s.Signals)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	expected := json.NewDecoder(content)
	signals := s.connect(t, "score", s.Proxy).Signals(s.ctx, s.Dataset, 0, WithTokens())
	count := uint64(0)
	for signals.Next() {
		stored := signals.Signal()
		if count++; stored.Sequence == 5 || stored.Sequence == 20 {
			s.drop(t)
		}
		var due decoded
		if err := expected.Decode(&due); err != nil || due.Sequence != stored.Sequence || stored.Sequence != count {
			t.Fatal(stored.Sequence, due.Sequence, err)
		}
		signal, err := stored.Signal()
		if err != nil || signal.FirstRow != due.FirstRow || signal.N != due.N {
			t.Fatal(signal, err)
		}
		tokens, err := stored.Tokens()
		if err != nil || fmt.Sprint(tokens.IDs) != fmt.Sprint(due.Tokens) {
			t.Fatal(tokens, err)
		}
		for name, at := range due.At {
			temperature, _ := strconv.ParseFloat(name, 64)
			ids, logprobs, tails, err := signal.TopK.At(temperature, signal.TopK.K)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "tails", tails, at.Tails)
			for row, k := 0, signal.TopK.K; row < due.N; row++ {
				near(t, "logprobs", logprobs[row*k:(row+1)*k], at.Logprobs[row])
				if fmt.Sprint(ids[row*k:(row+1)*k]) != fmt.Sprint(due.IDs[row]) {
					t.Fatal(ids, due.IDs)
				}
			}
		}
	}
	if signals.Err() != nil || count < 20 || expected.More() {
		t.Error(count, signals.Err())
	}
}

func tokenItems(count, tokens int) (items []ScoreItem) {
	draw := rand.New(rand.NewSource(1))
	for i := 0; i < count; i++ {
		ids := make([]int32, tokens)
		for j := range ids {
			ids[j] = 5 + draw.Int31n(256)
		}
		items = append(items, ScoreItem{ID: uint64(i), IDs: ids, N: uint32(tokens - 1)})
	}
	return items
}

var topK = &limbeckv1.Want{TopK: 64, Target: true}

func (s *served) score(client *Client, want *limbeckv1.Want, items []ScoreItem, options ...ScoreOption) (map[uint64]*Signal, error) {
	scores := client.Score(s.ctx, s.Teacher, want, FromSlice(items), options...)
	defer scores.Close()
	found := map[uint64]*Signal{}
	for scores.Next() {
		if found[scores.ID()] != nil {
			return found, fmt.Errorf("item %d is answered twice", scores.ID())
		}
		found[scores.ID()] = scores.Signal()
	}
	return found, scores.Err()
}

func scoreWithCredits(t *testing.T, s *served) {
	const credit = 1 << 20
	scores := s.connect(t, "score", s.Address).Score(s.ctx, s.Teacher, topK, FromSlice(tokenItems(100, 200)), Credit(credit))
	defer scores.Close()
	seen, most := map[uint64]bool{}, uint64(0)
	for scores.Next() {
		if signal := scores.Signal(); seen[scores.ID()] || signal.N != 199 || len(signal.TopK.IDs) != 199*64 || len(signal.Target) != 199 {
			t.Fatal(scores.ID(), signal)
		}
		seen[scores.ID()] = true
		for wait := time.Now(); len(seen) == 1; time.Sleep(time.Millisecond) { // be slow until the credit is used up
			if unread := unreadBytes(scores); unread > credit/2 || time.Since(wait) > time.Minute {
				break
			}
		}
		most = max(most, unreadBytes(scores))
	}
	if scores.Err() != nil || len(seen) != 100 {
		t.Fatal(len(seen), scores.Err())
	}
	if most < credit/2 || most > credit+1<<20 {
		t.Errorf("%d bytes were unread", most)
	}
}

func unreadBytes(scores *Scores) uint64 {
	scores.exchange.mu.Lock()
	defer scores.exchange.mu.Unlock()
	return scores.exchange.held + scores.exchange.partial
}

func errorItem(t *testing.T, s *served) {
	items := tokenItems(3, 200)
	items[1] = ScoreItem{ID: 1, IDs: make([]int32, 600), N: 5}
	client := s.connect(t, "score", s.Address)
	_, err := s.score(client, topK, items)
	failed := refusedWith(t, err, ScoringFailed)
	if len(failed.Problems) != 1 || failed.Problems[0].Field != "item 1" || !strings.Contains(err.Error(), "512") {
		t.Error(err)
	}
	// the call itself goes on
	call := &scoring{teacher: s.Teacher, want: topK, credit: 1 << 20}
	out, err := client.outgoing(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream, receive, err := call.open(out, client)
	if err != nil {
		t.Fatal(err)
	}
	var encoded []proto.Message
	for _, item := range items {
		message, err := call.encode(item)
		if err != nil {
			t.Fatal(err)
		}
		encoded = append(encoded, message)
	}
	for _, message := range []proto.Message{call.start(1<<20, nil), call.items(encoded)} {
		if err := stream.SendMsg(message); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answered, refused := map[uint64]bool{}, []uint64{}
	for {
		message, err := receive()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if message.last {
			answered[message.item] = true
		}
		if message.failed != nil {
			refused = append(refused, message.failed.ItemId)
		}
	}
	if fmt.Sprint(answered, refused) != "map[0:true 2:true] [1]" {
		t.Error(answered, refused)
	}
}

// ------------------------------------------------------------------------------------------------------------ errors

func errorRecipeInvalid(t *testing.T, s *served) {
	_, err := s.client.CreateRun(s.ctx, s.recipe("invalid"))
	var fields []string
	for _, problem := range refusedWith(t, err, RecipeInvalid).Problems {
		fields = append(fields, problem.Field)
	}
	if fmt.Sprint(fields) != "[student.layers losses[0].plugin training.learning_rate]" {
		t.Error(err)
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

// ------------------------------------------------------------------------------------------------------- connections

func tlsAndToken(t *testing.T, s *served) {
	client := s.connect(t, "train", s.TLSAddress, TLSCA(s.CA))
	teacher, err := client.Teacher(s.ctx, s.Teacher, time.Minute)
	if err != nil || teacher.State != limbeckv1.Teacher_STATE_READY {
		t.Fatal(teacher, err)
	}
	if _, err := client.Runs(s.ctx); err != nil {
		t.Error(err)
	}
	if found, err := s.score(client, topK, tokenItems(2, 9)); err != nil || len(found) != 2 {
		t.Error(err)
	}
	_, port, _ := net.SplitHostPort(s.TLSAddress)
	replicas := s.connect(t, "train", "localhost:"+port, TLSCA(s.CA), Replicas(s.TLSAddress))
	for i := 0; i < 4; i++ {
		if _, err := replicas.Teachers(s.ctx); err != nil {
			t.Error(err)
		}
	}
	other := s.connect(t, "train", s.TLSAddress, TLSCA(s.OtherCA), Timeout(time.Second))
	_, err = other.Runs(s.ctx)
	refusedWith(t, err, ServerUnavailable)
}

func tokenFiles(t *testing.T, s *served) {
	for _, name := range []string{"newline", "crlf_bom"} {
		if _, err := s.connect(t, name, s.Address).Plugins(s.ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Connect(s.ctx, s.Address, TokenFile(s.Tokens["two_lines"]))
	refusedWith(t, err, RequestInvalid)
	lines, _ := os.ReadFile(s.Tokens["two_lines"])
	for _, line := range strings.Fields(string(lines)) {
		if strings.Contains(err.Error(), line) {
			t.Error("the token is told")
		}
	}
}

func proxyEnvironment(t *testing.T, s *served) {
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:9")
	}
	for _, name := range []string{"no_proxy", "NO_PROXY"} {
		t.Setenv(name, "")
	}
	_, port, _ := net.SplitHostPort(s.Address)
	for _, address := range []string{s.Address, "localhost:" + port} {
		if _, err := s.connect(t, "train", address).Teachers(s.ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.connect(t, "train", s.TLSAddress, TLSCA(s.CA)).Teachers(s.ctx); err != nil {
		t.Error(err)
	}
}

func silentPeer(t *testing.T, s *served) {
	id := s.trains(t)
	before := s.run(t, id).LastSequence
	var mu sync.Mutex
	var told []string
	client := s.connect(t, "train", s.Silent, Liveness(time.Second, 3*time.Second), Log(func(line string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, line)
	}))
	events := client.Watch(s.ctx, id, After(before))
	defer events.Close()
	var first time.Time
	for due := before + 1; events.Next(); due++ {
		if events.Event().Sequence != due {
			t.Fatalf("event %d came where %d was due", events.Event().Sequence, due)
		}
		if now := events.Event().Time.AsTime(); first.IsZero() {
			first = now
		} else if now.Sub(first) > 8*time.Second { // three connections at least, each of which passes 2 s on
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if events.Err() != nil || len(told) < 2 || !strings.Contains(told[0], string(PeerSilent)) {
		t.Error(told, events.Err())
	}
}

func wideIntegers(t *testing.T, s *served) {
	done := s.tiny(t)
	content, err := os.ReadFile(s.Integers)
	if err != nil {
		t.Fatal(err)
	}
	var texts map[string]string
	if err := json.Unmarshal(content, &texts); err != nil {
		t.Fatal(err)
	}
	wide := map[string]uint64{}
	for name, text := range texts {
		if wide[name], err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	digits := strings.NewReplacer(",", "", "_", "", "\u202f", "")
	err = s.watchError(s.client, done.id, After(wide["sequence"]))
	if refusedWith(t, err, CursorInvalid); !strings.Contains(digits.Replace(err.Error()), texts["sequence"]) {
		t.Error(err)
	}
	err = s.download(t, &limbeckv1.DownloadArtifactRequest{RunId: done.id, Path: "recipe.yaml", Offset: wide["offset"]})
	if err == nil || !strings.Contains(digits.Replace(err.Error()), texts["offset"]) {
		t.Error(err)
	}
	for _, from := range []Cursor{After(wide["zero"]), Oldest} {
		events := s.client.Watch(s.ctx, done.id, from)
		if !events.Next() || events.Event().Sequence != 1 {
			t.Error(events.Err())
		}
		events.Close()
	}
	// a seed that a float64 does not hold draws otherwise than the one that it holds
	drawn := func(seed uint64) string {
		item := tokenItems(1, 40)[0]
		item.ID, item.Seed = wide["sequence"], seed
		found, err := s.score(s.client, &limbeckv1.Want{Samples: 8}, []ScoreItem{item})
		if err != nil || found[wide["sequence"]] == nil {
			t.Fatal(err)
		}
		return fmt.Sprint(found[wide["sequence"]].Samples.IDs)
	}
	seed := wide["seed"]
	if uint64(float64(seed)) == seed || drawn(seed) != drawn(seed) || drawn(seed) == drawn(uint64(float64(seed))) {
		t.Error("the seed has lost digits")
	}
	// JSON
	event := &limbeckv1.Event{Sequence: wide["sequence"], Step: wide["offset"]}
	text, err := protojson.Marshal(event)
	if err != nil || !strings.Contains(string(text), `"`+texts["sequence"]+`"`) || !strings.Contains(string(text), `"`+texts["offset"]+`"`) {
		t.Error(string(text), err)
	}
	again := &limbeckv1.Event{}
	if err := protojson.Unmarshal(text, again); err != nil || !proto.Equal(event, again) {
		t.Error(again, err)
	}
	if err := protojson.Unmarshal([]byte(`{"sequence": `+texts["sequence"]+`}`), again); err != nil || again.Sequence != wide["sequence"] {
		t.Error(again, err)
	}
	for _, odd := range []string{"1.5", "-1", "18446744073709551616", fmt.Sprint(math.MaxFloat64)} {
		if protojson.Unmarshal([]byte(`{"sequence": `+odd+`}`), again) == nil {
			t.Errorf("%s was taken for %d", odd, again.Sequence)
		}
	}
}

func example(t *testing.T, s *served) {
	source, err := os.ReadFile("examples/distil/main.go")
	if err != nil || bytes.Count(source, []byte("\n")) > 60 {
		t.Errorf("the example has %d lines: %v", bytes.Count(source, []byte("\n")), err)
	}
	dir := t.TempDir()
	recipe := filepath.Join(dir, "recipe.yaml")
	if err := os.WriteFile(recipe, []byte(s.recipe("tiny")), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.long != "" { // make room
		_, _ = s.client.Cancel(s.ctx, s.long)
	}
	command := exec.CommandContext(s.ctx, "go", "run", "./examples/distil", s.Address, recipe, dir)
	command.Env = append(os.Environ(), "LIMBECK_TOKEN_FILE="+s.Tokens["train"])
	said, err := command.CombinedOutput()
	for _, due := range []string{"forward_kl", "RUN_STATE_TRAINING", "step 200: loss ", "RUN_STATE_SUCCEEDED"} {
		if err != nil || !strings.Contains(string(said), due) {
			t.Fatalf("%s is not in %s: %v", due, said, err)
		}
	}
	student, err := os.ReadFile(filepath.Join(dir, "student", "model.safetensors"))
	if err != nil || len(student) < 1000 {
		t.Fatal(hex.EncodeToString(student), err)
	}
}
