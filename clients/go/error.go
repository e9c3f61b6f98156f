package limbeck

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

// Reason is the stable name of what went wrong: what a program may decide by. A Reason is an error itself, so that
// errors.Is(err, limbeck.RunUnknown) asks for one. A newer server may send reasons that are not listed here.
type Reason string

// The error catalogue of Limbeck.
const (
	RecipeInvalid      Reason = "RECIPE_INVALID"
	DataInvalid        Reason = "DATA_INVALID"
	NothingToTrain     Reason = "NOTHING_TO_TRAIN"
	PluginUnknown      Reason = "PLUGIN_UNKNOWN"
	PluginInvalid      Reason = "PLUGIN_INVALID"
	ExtraMissing       Reason = "EXTRA_MISSING"
	ModelInvalid       Reason = "MODEL_INVALID"
	TokenizerMismatch  Reason = "TOKENIZER_MISMATCH"
	CapabilityMissing  Reason = "CAPABILITY_MISSING"
	SignalInvalid      Reason = "SIGNAL_INVALID"
	StoreDamaged       Reason = "STORE_DAMAGED"
	LogDamaged         Reason = "LOG_DAMAGED"
	FolderNotOurs      Reason = "FOLDER_NOT_OURS"
	RunLocked          Reason = "RUN_LOCKED"
	ResumeRefused      Reason = "RESUME_REFUSED"
	GenerationFailed   Reason = "GENERATION_FAILED"
	ScoringFailed      Reason = "SCORING_FAILED"
	SelfCheckFailed    Reason = "SELF_CHECK_FAILED"
	LossNotFinite      Reason = "LOSS_NOT_FINITE"
	KnobInvalid        Reason = "KNOB_INVALID"
	DiskFull           Reason = "DISK_FULL"
	ServerInvalid      Reason = "SERVER_INVALID"
	RequestInvalid     Reason = "REQUEST_INVALID"
	Unauthenticated    Reason = "UNAUTHENTICATED"
	PermissionDenied   Reason = "PERMISSION_DENIED"
	TeacherUnknown     Reason = "TEACHER_UNKNOWN"
	TeacherMismatch    Reason = "TEACHER_MISMATCH"
	TeacherUnavailable Reason = "TEACHER_UNAVAILABLE"
	TeacherRefused     Reason = "TEACHER_REFUSED"
	BudgetExhausted    Reason = "BUDGET_EXHAUSTED"
	DatasetUnknown     Reason = "DATASET_UNKNOWN"
	CursorInvalid      Reason = "CURSOR_INVALID"
	RunUnknown         Reason = "RUN_UNKNOWN"
	RunState           Reason = "RUN_STATE"
	RunExists          Reason = "RUN_EXISTS"
	RunCrashed         Reason = "RUN_CRASHED"
	ArtifactUnknown    Reason = "ARTIFACT_UNKNOWN"
	QuotaExceeded      Reason = "QUOTA_EXCEEDED"
	ServerUnavailable  Reason = "SERVER_UNAVAILABLE"
	PeerSilent         Reason = "PEER_SILENT"
	Internal           Reason = "INTERNAL"
)

// Error is the reason's name.
func (r Reason) Error() string { return string(r) }

// Problem is one fault of an input: what was wrong, where, and what to do. Strings are empty and numbers 0 where there
// is nothing to say.
type Problem struct {
	// Message says what was wrong with which value, and what is allowed.
	Message string
	// File, Line and Column are its place; both count from 1. A server names its files relative to its workspace, and the
	// recipe "recipe".
	File         string
	Line, Column int
	// Field is as a user would write it: losses[0].temperature, item 7.
	Field string
	// Hint says what to do.
	Hint string
}

// String is the problem in one line.
func (p Problem) String() string {
	place := p.File
	for _, number := range []int{p.Line, p.Column} {
		if number == 0 {
			continue
		}
		if place == "" {
			place = fmt.Sprintf("line %d", number)
		} else {
			place += fmt.Sprintf(":%d", number)
		}
	}
	var parts []string
	for _, part := range []string{place, p.Field} {
		if part != "" {
			parts = append(parts, part+":")
		}
	}
	text := strings.Join(append(parts, p.Message), " ")
	if p.Hint != "" {
		text += " (" + p.Hint + ")"
	}
	return text
}

// Error is what every method returns that did not go well, but for the end of the caller's own context: errors.As finds
// it, errors.Is compares with a Reason.
type Error struct {
	// Reason is the server's own where it sent one. ServerUnavailable: it was not reached, or the client is closed.
	// PeerSilent: nothing came from it for too long.
	Reason Reason
	// Message is a sentence for a person, and may change.
	Message string
	// Problems are all faults of the input.
	Problems []Problem
	// Cause is the error that it was made of, if any.
	Cause error
}

// Error is the message and every problem, one a line.
func (e *Error) Error() string {
	lines := []string{fmt.Sprintf("%s: %s", e.Reason, e.Message)}
	for _, problem := range e.Problems {
		lines = append(lines, "  "+problem.String())
	}
	return strings.Join(lines, "\n")
}

// Is tells whether target is the reason.
func (e *Error) Is(target error) bool { return target == error(e.Reason) }

// Unwrap is the error that it was made of, if any.
func (e *Error) Unwrap() error { return e.Cause }

// again: the same call may go well a little later.
func (e *Error) again() bool {
	switch e.Reason {
	case ServerUnavailable, TeacherUnavailable, PeerSilent, QuotaExceeded:
		return true
	}
	return false
}

// texts of the errors that this package makes itself.
var texts = map[Reason]string{
	RequestInvalid:    "The request is not valid.",
	ServerUnavailable: "The server cannot be reached.",
	PeerSilent:        "Nothing was heard from the other side for too long.",
	SignalInvalid:     "A teacher's signal is not valid.",
	CapabilityMissing: "The teacher cannot give what a loss needs.",
	TeacherMismatch:   "The teacher is not the one that was expected.",
	StoreDamaged:      "A stored file is damaged.",
	LogDamaged:        "An append-only log is damaged before its last line.",
	Unauthenticated:   "The server wants a token that it knows.",
	PermissionDenied:  "The token's role does not allow this.",
	QuotaExceeded:     "The client has too much under way.",
	Internal:          "The call failed.",
}

func newError(reason Reason, problems ...Problem) *Error {
	return &Error{Reason: reason, Message: texts[reason], Problems: problems}
}

// ErrorOf is an *Error of the Error of a message, such as that of a run that failed; nil where there is none.
func ErrorOf(message *limbeckv1.Error) error {
	if message == nil {
		return nil
	}
	return errorOf(message)
}

// errorOf is an error as the server sent it.
func errorOf(message *limbeckv1.Error) *Error {
	found := &Error{Reason: Reason(message.GetReason()), Message: message.GetMessage()}
	for _, p := range message.GetProblems() {
		found.Problems = append(found.Problems, Problem{
			Message: p.Message,
			File:    p.File,
			Line:    int(p.Line),
			Column:  int(p.Column),
			Field:   p.Field,
			Hint:    p.Hint,
		})
	}
	return found
}

// ofStatus is for a status that no Limbeck server said: proxies, other servers, gRPC itself.
var ofStatus = map[codes.Code]Reason{
	codes.Unavailable:       ServerUnavailable,
	codes.Canceled:          ServerUnavailable,
	codes.Aborted:           ServerUnavailable,
	codes.DeadlineExceeded:  ServerUnavailable,
	codes.Unauthenticated:   Unauthenticated,
	codes.PermissionDenied:  PermissionDenied,
	codes.ResourceExhausted: QuotaExceeded,
	codes.Unimplemented:     RequestInvalid,
}

var broken = []string{"RST_STREAM", "GOAWAY", "connection reset", "broken pipe", "transport is closing"}

// unreached is what gRPC says where there is no connection, and what to do.
var unreached = []struct{ sign, hint string }{
	{"signed by unknown authority", "the server's certificate is not trusted here: " + knownBy},
	{"connection closed", "see that the server runs; where it speaks TLS, " + knownBy},
	{"error reading server preface", "see that the server runs; where it speaks TLS, " + knownBy},
	{"", "see that the server runs, and that address and TLS are its own"},
}

const knownBy = "name the certificate that it, or its authority, is known by: TLSCA"

// errorOfCall is what a call ended with: the server's own error where it sent one, else by the status alone.
func errorOfCall(err error, address string) *Error {
	said := status.Convert(err)
	for _, detail := range said.Details() {
		if sent, ok := detail.(*limbeckv1.Error); ok {
			found := errorOf(sent)
			found.Cause = err
			return found
		}
	}
	text := strings.Join(strings.Fields(said.Message()), " ")
	reason, known := ofStatus[said.Code()]
	if !known {
		reason = Internal
	}
	for _, sign := range broken {
		if strings.Contains(text, sign) {
			reason = ServerUnavailable
		}
	}
	if strings.Contains(text, "larger than max") {
		reason = Internal // an answer
		if strings.Contains(text, "SERVER: ") {
			reason = RequestInvalid
		}
	}
	if text == "" {
		text = "nothing more is known"
	}
	problem := Problem{Message: fmt.Sprintf("%s: %s", said.Code(), text), Field: address}
	found := newError(reason)
	if reason == ServerUnavailable {
		for _, one := range unreached {
			if strings.Contains(text, one.sign) {
				problem.Hint = one.hint
				break
			}
		}
	} else if said.Code() == codes.Unimplemented {
		found.Message = "There is no Limbeck server at this address, or an older one."
		problem.Hint = "see the address, or update the server"
	}
	found.Problems, found.Cause = []Problem{problem}, err
	return found
}

// unavailable is a call that ended without what was due.
func unavailable(address, message string) *Error {
	return newError(ServerUnavailable, Problem{Message: message, Field: address})
}

// ofItem is the error with the item's name in it, where it has none.
func ofItem(err *Error, id uint64) *Error {
	name := fmt.Sprintf("item %d", id)
	found := &Error{Reason: err.Reason, Message: err.Message, Cause: err.Cause}
	for _, p := range err.Problems {
		if strings.HasPrefix(p.Field, name) {
			return err
		}
		if p.Field == "" {
			p.Field = name
		}
		found.Problems = append(found.Problems, p)
	}
	if len(found.Problems) == 0 {
		found.Problems = []Problem{{Message: err.Message, Field: name}}
	}
	return found
}
