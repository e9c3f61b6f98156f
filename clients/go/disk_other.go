//go:build !unix

package limbeck

import "os"

// lock does nothing here: two Fetches of one file at once into one folder are the caller's to avoid.
func lock(*os.File) error { return nil }

func full(error) bool { return false }
