package limbeck

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

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
