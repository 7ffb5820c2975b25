package faults_test

import (
	"testing"
	"time"

	"spire-hsm/peers/load"
)

const hasty = "operation_timeout = \"2s\"\ngenerate_timeout = \"10s\"\n"

// hung: while one call hangs the others go on, and it is done over.
func (s *stage) hung(script string, provoke func()) {
	s.Helper()
	s.suffer(fault{name: script, script: script, provoke: provoke, pace: time.Second, after: func(s *stage) {
		if provoke != nil {
			return // nobody can sign with a token that is not open yet
		}
		begin, signed := time.Now(), s.load.Signed()
		await(s, "other calls", func() bool { return s.load.Signed() >= signed+20 })
		if took := time.Since(begin); took > load.Patience/2 {
			s.Errorf("%s: others had 20 signatures in %v only", script, took)
		}
	}})
}

func TestACallThatHangsIsDoneOverWhileOthersGoOn(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"C_Sign", "C_FindObjects", "C_GenerateKeyPair", "C_Login"} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, group("3 hang in "+function), hasty)
			var provoke func()
			if function == "C_Login" {
				provoke = s.kill
			}
			for _, how := range []string{"sleep 1000", "sleep 60000", "hang"} {
				s.hung(function+" 1 before "+how+" once shared", provoke)
				if long || function == "C_GenerateKeyPair" && how == "hang" {
					s.hung(function+" 1 after "+how+" once shared", provoke)
				}
			}
			s.finish()
		})
	}
}
