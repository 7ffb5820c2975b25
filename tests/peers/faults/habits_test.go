package faults_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Habits of real HSMs, as tests/support/faulty_module.c has them, and what an operator configures
// for them.
var habits = []struct{ profile, options string }{
	{"cloudhsm", ""},
	{"yubihsm", "cka_id_length = 2\nlabel_max = 40\n"},
	{"rawpoint", ""},
	{"nopub", ""},
	{"lag 3", ""},
	{"logout", ""},
	{"die-until-finalize", ""},
	{"full", ""},
	{"dangling 16 3", ""},
	{"idle 1000", "keep_alive = \"0\"\n"},
	// What they say of themselves, and the form they say it in (tests/hsm/habits.c has all).
	{"token-flags-off 0xffffffff", ""},
	{"token-flags 0x102", ""},
	{"unpadded", ""},
	{"not-present", ""},
	{"plain-start", ""},
	{"blank-mechanisms", ""},
	{"stateless", ""},
	{"own-login", ""},
	{"one-attribute\nprofile exact", ""},
	{"no-lengths\nprofile narrow", ""},
	{"one-object", ""},
	{"from-zero", ""},
	{"rude", ""},
	{"moving", ""},
	{"slowgen 1\nC_Initialize before sleep 700\nC_Login before sleep 700", ""},
}

// A full token makes no keys, and says so.
func onlyFull(err error) bool {
	return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "CKR_DEVICE_MEMORY")
}

func TestTheHabitsOfOtherHSMsCostNoCall(t *testing.T) {
	t.Parallel()
	for _, habit := range habits {
		t.Run(habit.profile, func(t *testing.T) {
			t.Parallel()
			s := bare(t, group("7 "+strings.Fields(habit.profile)[0]), habit.options)
			f := fault{name: habit.profile, script: "profile " + habit.profile, hold: func(s *stage) {
				s.load.Round()
				s.kill()
				s.load.Round()
			}}
			if habit.profile == "full" {
				f.allow = onlyFull
			} else {
				s.play("%s", f.script) // a token it is from the beginning
			}
			s.begin()
			for range 3 {
				s.suffer(f)
			}
			s.habit = f.script
			s.finish()
		})
	}
}
