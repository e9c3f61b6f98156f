// Distil from Go: go run . SERVER RECIPE FOLDER makes a student from a recipe and fetches it into a folder.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"limbeck.dev/go/limbeck"
)

func distil(ctx context.Context, server, recipe, folder string) error {
	token, ca := limbeck.TokenFile(os.Getenv("LIMBECK_TOKEN_FILE")), limbeck.TLSCA(os.Getenv("LIMBECK_TLS_CA"))
	client, err := limbeck.Connect(ctx, server, token, ca)
	if err != nil {
		return err
	}
	defer client.Close()
	plugins, err := client.Plugins(ctx)
	if err != nil {
		return err
	}
	for _, plugin := range plugins.Plugins {
		fmt.Printf("%-14s %-18s %s\n", plugin.Kind, plugin.Name, plugin.Summary)
	}
	run, err := client.CreateRun(ctx, recipe)
	if err != nil {
		return err // with every problem of the recipe
	}
	fmt.Println("run", run.RunId) // it goes on by itself, whatever becomes of this program
	events := client.Watch(ctx, run.RunId, limbeck.Oldest)
	for events.Next() { // each event once, whatever happens to the connection
		event := events.Event()
		if state := event.GetStateChanged(); state != nil {
			fmt.Printf("\r\033[K%s\n", state.State)
			if err := limbeck.ErrorOf(state.Error); err != nil { // it has failed
				return err
			}
		} else if metrics := event.GetMetrics(); metrics != nil {
			fmt.Printf("\r\033[Kstep %d: loss %.4f", event.Step, metrics.Values["loss"])
		}
		if event.Step == 10 && event.GetMetrics() != nil { // steer: the labels count for more from now on
			if _, err := client.SetKnobs(ctx, run.RunId, map[string]float64{"losses.cross_entropy.weight": 0.2}); err != nil {
				return err
			}
		}
	}
	if events.Err() != nil {
		return events.Err()
	}
	_, err = client.Fetch(ctx, run.RunId, folder)
	return err
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("what is asked is: SERVER RECIPE FOLDER")
	}
	recipe, err := os.ReadFile(os.Args[2])
	if err == nil {
		err = distil(context.Background(), os.Args[1], string(recipe), os.Args[3])
	}
	if err != nil {
		log.Fatal(err)
	}
}
