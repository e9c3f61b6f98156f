// Package limbeck is the Go client of Limbeck, which distils large language models into small ones: it starts, watches
// and steers runs of a server (`limbeck serve`), fetches what they made, and streams a teacher's signals.
//
//	client, err := limbeck.Connect(ctx, "127.0.0.1:7411", limbeck.TokenFile("token"))
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	run, err := client.CreateRun(ctx, recipe)
//	if err != nil {
//		return err
//	}
//	events := client.Watch(ctx, run.RunId, limbeck.Oldest)
//	for events.Next() {
//		fmt.Println(events.Event())
//	}
//	return events.Err()
//
// Messages are those of the published contract, package limbeck.dev/go/limbeck/v1, whose comments are the manual.
//
// Every method takes a context and ends with it. What fails is an *Error with a Reason of the catalogue and every
// problem of the input; where the caller's own context has ended, it is the context's error. A lost connection is tried
// again where that may help, and nothing is lost, doubled or out of order by it.
package limbeck
