package limbeck

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

func TestAddresses(t *testing.T) {
	for text, expected := range map[string]string{
		"localhost":            "localhost:7411",
		"127.0.0.1:80":         "127.0.0.1:80",
		" 127.0.0.1:80\n":      "127.0.0.1:80",
		"[::1]:9":              "[::1]:9",
		"[::1]":                "[::1]:7411",
		"teacher.example:7411": "teacher.example:7411",
	} {
		found, problem := split(text)
		if problem != nil || found.String() != expected {
			t.Errorf("%q is %s, %v", text, found, problem)
		}
	}
	for _, text := range []string{
		"", " ", "http://a:1", "a/b", "a:", "a:0", "a:65536", "a:500611", "a:x", "a:+1", "::1", "[::1", "a b", "a:1:2",
	} {
		if found, problem := split(text); problem == nil {
			t.Errorf("%q is taken for %s", text, found)
		}
	}
	for host, expected := range map[string]bool{
		"localhost": true, "LocalHost.": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"10.0.0.1": false, "localhost.example": false, "0.0.0.0": false, "1": false,
	} {
		if isLoopback(host) != expected {
			t.Errorf("%s: %t", host, !expected)
		}
	}
}

func TestEverythingThatIsWrongIsToldAtOnce(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := Connect(context.Background(), "a:0", Replicas("b:x"), TLSCA(missing), TLSCert(missing, ""), Insecure(),
		Token("a b"), TokenFile(missing), Timeout(0))
	var failed *Error
	if !errors.As(err, &failed) || failed.Reason != RequestInvalid {
		t.Fatal(err)
	}
	fields := map[string]int{}
	for _, problem := range failed.Problems {
		fields[problem.Field]++
	}
	for field, count := range map[string]int{
		"address": 2, "TLSCA": 1, "TLSCert": 2, "Insecure": 1, "TokenFile": 1, "Timeout": 1,
	} {
		if fields[field] != count {
			t.Errorf("%d problems of %s, %d are expected: %s", fields[field], field, count, err)
		}
	}
}

func TestTLSUnlessTheServerIsHereOrInsecureSaysSo(t *testing.T) {
	for _, one := range []struct {
		address string
		options []Option
		tls     bool
	}{
		{"127.0.0.1", nil, false},
		{"teacher.example", nil, true},
		{"teacher.example", []Option{Insecure()}, false},
		{"127.0.0.1", []Option{Replicas("teacher.example")}, true},
	} {
		found, err := settle(one.address, one.options)
		if err != nil || (found.tls != nil) != one.tls {
			t.Errorf("%v: %v", one.address, err)
		}
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, option := range []Option{TLSCA(junk), TLSCert(junk, junk)} {
		if _, err := settle("localhost", []Option{option}); !errors.Is(err, RequestInvalid) {
			t.Error(err)
		}
	}
}

func TestATokenIsCleanedAndNeverTold(t *testing.T) {
	cases := "../../tests/data/C11"
	for _, name := range []string{"token_crlf_bom.txt", "token_with_newline.txt"} {
		found, err := settle("localhost", []Option{TokenFile(filepath.Join(cases, name))})
		if err != nil {
			t.Fatal(err)
		}
		out, err := found.outgoing(context.Background())
		sent, _ := metadata.FromOutgoingContext(out)
		if err != nil || sent.Get("authorization")[0] != "Bearer hv-token-123" {
			t.Errorf("%s: %q, %v", name, sent, err)
		}
	}
	_, err := settle("localhost", []Option{TokenFile(filepath.Join(cases, "token_two_lines.txt"))})
	if !errors.Is(err, RequestInvalid) || !strings.Contains(err.Error(), "2 lines") || strings.Contains(err.Error(), "hv-token") {
		t.Error(err)
	}
	for _, text := range []string{"", "\ufeff \n", "sesame open", "sesame\x00", "sesame\u2028open", "sésame", "sesame\nopen"} {
		if _, err := settle("localhost", []Option{Token(text)}); !errors.Is(err, RequestInvalid) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestATokenFileIsReadAnewForEachCall(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	found, err := settle("localhost", []Option{TokenFile(file)})
	if err != nil {
		t.Fatal(err)
	}
	write("second\n")
	out, err := found.outgoing(context.Background())
	if sent, _ := metadata.FromOutgoingContext(out); err != nil || sent.Get("authorization")[0] != "Bearer second" {
		t.Error(sent, err)
	}
	write("\xff\xfe")
	if _, err := found.outgoing(context.Background()); !errors.Is(err, RequestInvalid) {
		t.Error(err)
	}
}

func TestTheReasonsAreThoseOfTheCatalogue(t *testing.T) {
	catalogue, err := os.ReadFile("../../engine/limbeck/errors.py")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("error.go")
	if err != nil {
		t.Fatal(err)
	}
	names := func(form string, text []byte) string {
		var found []string
		for _, match := range regexp.MustCompile(form).FindAllSubmatch(text, -1) {
			found = append(found, string(match[1]))
		}
		return strings.Join(found, " ")
	}
	theirs, ours := names(`(?m)^    [A-Z_]+ = "([A-Z_]+)"$`, catalogue), names(`(?m)^\t\w+ +Reason = "([A-Z_]+)"$`, own)
	if theirs != ours || len(strings.Fields(ours)) < 30 {
		t.Errorf("the catalogue has\n%s\nhere there are\n%s", theirs, ours)
	}
}

func TestRetriesGiveUp(t *testing.T) {
	settings, err := settle("localhost", []Option{Timeout(time.Hour), RetryFor(time.Nanosecond)})
	if err != nil {
		t.Fatal(err)
	}
	client := &Client{settings: settings, closed: make(chan struct{})}
	lost := unavailable("localhost", "gone")
	patient := retries{client: client}
	first, err := patient.delay(lost)
	if err != nil || first > firstDelay {
		t.Error(first, err)
	}
	if again, err := patient.delay(lost); err != nil || again > first {
		t.Errorf("the same failure moved the next try from %s to %s, %v", first, again, err)
	}
	client.met = true // RetryFor counts from now on
	if _, err := patient.delay(lost); !errors.Is(err, ServerUnavailable) || !strings.Contains(err.Error(), "tried for") {
		t.Error(err)
	}
	patient.progress()
	if _, err := patient.delay(newError(RunUnknown)); !errors.Is(err, RunUnknown) {
		t.Error(err)
	}
	close(client.closed)
	if _, err := patient.delay(lost); err != error(lost) {
		t.Error(err)
	}
}
