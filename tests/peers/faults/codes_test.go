package faults_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// answer a token may give, as the recovery table has it: what it means to who asked, and
// what mends it.
type answer struct {
	name  string
	word  string // for the script
	code  codes.Code
	class string
}

// mended answers cost no call; the others may, if it is said what the token answered.
var mended = map[string]bool{"SESSION": true, "LOGIN": true, "HANDLE": true, "DEVICE": true, "ABSENT": true}

var statuses = map[string]codes.Code{
	"UNAVAILABLE": codes.Unavailable, "RESOURCE_EXHAUSTED": codes.ResourceExhausted,
	"FAILED_PRECONDITION": codes.FailedPrecondition, "PERMISSION_DENIED": codes.PermissionDenied,
	"UNIMPLEMENTED": codes.Unimplemented, "INVALID_ARGUMENT": codes.InvalidArgument, "INTERNAL": codes.Internal,
}

// newer than the header that the failing module is built with
var numbers = map[string]string{"CKR_OPERATION_CANCEL_FAILED": "0x202", "CKR_TOKEN_RESOURCE_EXCEEDED": "0x201",
	"CKR_KEY_EXHAUSTED": "0x203", "CKR_UNWRAPPING_KEY_HANDLE_INVALID": "0xf0"}

// answers reads the recovery table itself, so that no code is forgotten here.
func answers(t testing.TB) (all []answer) {
	t.Helper()
	table, err := os.ReadFile("../../../hsm/wire/rv.c")
	if err != nil {
		t.Fatal(err)
	}
	for _, cells := range regexp.MustCompile(`ROW\((CKR_\w+), (\w+), (\w+)\)`).FindAllStringSubmatch(string(table), -1) {
		a := answer{name: cells[1], word: cells[1], code: statuses[cells[2]], class: cells[3]}
		if number := numbers[a.name]; number != "" {
			a.word = number
		}
		if a.name != "CKR_OK" {
			all = append(all, a)
		}
	}
	all = append(all, answer{"a code of the vendor's own", "0x80000123", codes.Unavailable, "DEVICE"},
		answer{"an unknown code", "0x7654", codes.Unavailable, "DEVICE"})
	if len(all) < 90 {
		t.Fatalf("only %d codes in the table", len(all))
	}
	return all
}

// oneOfEach class.
func oneOfEach(all []answer) (few []answer) {
	seen := map[string]bool{}
	for _, a := range all {
		if !seen[a.class] {
			seen[a.class] = true
			few = append(few, a)
		}
	}
	return few
}

// may a call fail so?
func (a answer) allows(err error) bool {
	return !mended[a.class] && status.Code(err) == a.code && strings.Contains(err.Error(), a.name)
}

var both = []string{"before", "after"}

// answered by the token in place of, or behind, its work.
func (s *stage) answered(function string, all []answer, whens []string, times []int) {
	s.Helper()
	for _, a := range all {
		for _, when := range whens {
			for _, n := range times {
				script := fmt.Sprintf("%s %s %s times %d shared", function, when, a.word, n)
				s.suffer(fault{name: script, script: script, want: n, allow: a.allows})
			}
		}
	}
}

// share i of n, where several stages share the work.
func share(all []answer, i, n int) (part []answer) {
	for j, a := range all {
		if j%n == i {
			part = append(part, a)
		}
	}
	return part
}

func TestWhatTheTokenAnswersToASignatureOrAKeyPairIsMendedOrSaid(t *testing.T) {
	t.Parallel()
	const shares = 3
	for _, function := range []string{"C_Sign", "C_SignInit", "C_GenerateKeyPair"} {
		for i := range shares {
			t.Run(fmt.Sprintf("%s %d", function, i), func(t *testing.T) {
				t.Parallel()
				s := newStage(t, group("2 error code from "+function), "")
				s.answered(function, share(answers(t), i, shares), both, []int{1, 3})
				s.finish()
			})
		}
	}
}

func TestWhatTheTokenAnswersToASearchIsMendedOrSaid(t *testing.T) {
	t.Parallel()
	const shares = 3
	for _, function := range []string{"C_FindObjects", "C_GetAttributeValue"} {
		for i := range shares {
			t.Run(fmt.Sprintf("%s %d", function, i), func(t *testing.T) {
				t.Parallel()
				s := newStage(t, group("2 error code from "+function), "")
				part := share(answers(t), i, shares)
				s.answered(function, part, []string{"before"}, []int{1})
				if !long {
					part = share(oneOfEach(answers(t)), i, shares)
				}
				s.answered(function, part, []string{"after"}, []int{1})
				s.answered(function, part, both, []int{3})
				s.finish()
			})
		}
	}
}

// A token that cannot be opened is tried again, and calls wait; a PIN it refuses is not,
// until its file has changed.
func TestWhatTheTokenAnswersToALoginIsWaitedFor(t *testing.T) {
	t.Parallel()
	const shares = 4
	for _, function := range []string{"C_Login", "C_OpenSession"} {
		for i := range shares {
			t.Run(fmt.Sprintf("%s %d", function, i), func(t *testing.T) {
				t.Parallel()
				s := newStage(t, group("2 error code from "+function), "")
				for _, a := range share(answers(t), i, shares) {
					s.refusedToOpen(function, "before", 1, a)
					if long {
						s.refusedToOpen(function, "after", 1, a)
						s.refusedToOpen(function, "before", 3, a)
					}
				}
				s.finish()
			})
		}
	}
}

// refusedToOpen n times. What has been asked again and again is a token that is away.
func (s *stage) refusedToOpen(function, when string, n int, a answer) {
	s.Helper()
	script := fmt.Sprintf("%s %s %s times %d shared", function, when, a.word, n)
	s.suffer(fault{name: script, script: script, want: n, pace: 1500 * time.Millisecond, provoke: func() {
		if len(s.fired()) == 0 {
			s.kill()
		}
		if a.class == "PIN" && len(s.fired()) > 0 {
			s.touchPIN()
		}
	}, after: func(*stage) {
		if a.class == "PIN" {
			s.touchPIN()
		}
	}})
}

func (s *stage) touchPIN() {
	s.Helper()
	if err := os.WriteFile(s.token.PINFile, []byte(s.token.PIN+"\n"), 0o600); err != nil {
		s.Error(err)
	}
}

// The functions whose every answer is told of above get them all; of these the classes do,
// in the long run all codes.
func TestWhatTheTokenAnswersToAnythingElseIsMendedOrSaid(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		functions []string
		provoke   func(*stage) func()
	}{
		"signing":    {signing, nil},
		"generating": {generating, nil},
		"opening":    {opening, func(s *stage) func() { return s.kill }},
		"closing":    {closing, func(s *stage) func() { return s.configure }},
		"idle":       {idle, nil},
	} {
		for _, when := range both {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				s := newStage(t, group("2 error code while "+name), "keep_alive = \"1s\"\n")
				all := oneOfEach(answers(t))
				if long {
					all = answers(t)
				}
				var provoke func()
				if c.provoke != nil {
					provoke = c.provoke(s)
				}
				for _, function := range c.functions {
					if !everyAnswer[function] {
						s.anythingElse(function, when, all, provoke)
					}
				}
				s.finish()
			})
		}
	}
}

var everyAnswer = map[string]bool{"C_Sign": true, "C_SignInit": true, "C_GenerateKeyPair": true,
	"C_FindObjects": true, "C_GetAttributeValue": true, "C_Login": true, "C_OpenSession": true}

func (s *stage) anythingElse(function, when string, all []answer, provoke func()) {
	s.Helper()
	for _, a := range all {
		script := fmt.Sprintf("%s %s %s once shared", function, when, a.word)
		s.load.Pause(slices.Contains(idle, function))
		s.suffer(fault{name: script, script: script, allow: a.allows, provoke: provoke, pace: 500 * time.Millisecond,
			after: func(s *stage) { s.load.Pause(false) }})
	}
}

// The code of each class stays for longer than it takes to try everything once.
func TestATokenThatFailsForTenSecondsIsMendedOrSaid(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"C_Sign", "C_GenerateKeyPair"} {
		for _, when := range both {
			for _, a := range oneOfEach(answers(t)) {
				script := fmt.Sprintf("%s %s %s for 10000", function, when, a.word)
				t.Run(script, func(t *testing.T) {
					t.Parallel()
					s := newStage(t, group("2 error code for 10 s from "+function), "")
					s.suffer(fault{name: script, script: script, allow: a.allows, hold: func(s *stage) {
						await(s, script, func() bool { return len(s.fired()) > 0 })
						<-time.After(10 * time.Second) // how long the fault lasts
					}})
					s.finish()
				})
			}
		}
	}
}
