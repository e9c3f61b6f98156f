package limbeck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	"error_rows_invalid": errorRowsInvalid,
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
	var names, last []string
	for _, name := range listed(t) {
		if name == "cancel_run" || name == "example" { // they end the long run, which takes its time to begin
			last = append(last, name)
		} else {
			names = append(names, name)
		}
	}
	for _, name := range append(names, last...) {
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
	s.ctx, stop = context.WithTimeout(context.Background(), 28*time.Minute)
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
