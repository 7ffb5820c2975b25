package faults_test

import (
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/load"
)

// quiet: the key was made, its predecessor is gone. What else this process does with the
// token it does later.
func (s *stage) quiet(destroyed int) bool {
	return s.count("superseded key destroyed") > destroyed
}

func (s *stage) count(message string) (n int) {
	for _, line := range s.p.Logs.Lines() {
		if line.Message == message {
			n++
		}
	}
	return n
}

type made struct {
	key *keymanagerv1.PublicKey
	err error
}

// begin making the key anew.
func (s *stage) remake(id string) <-chan made {
	done := make(chan made, 1)
	go func() {
		key, err := load.Generate(s.p, id, keymanagerv1.KeyType_EC_P256)
		done <- made{key, err}
	}()
	return done
}

// The front lives: it makes the key all the same.
func TestAWorkerKilledAtEveryCallOfGenerateKeyIsMadeUpFor(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			r := group("5 worker killed in GenerateKey")
			s := bare(t, r, "")
			s.makeKey("x509-CA-A")
			for n, reached := 1, true; reached; n++ {
				reached = s.killWorkerAt(n, when)
			}
			s.play("")
			s.restart()
		})
	}
}

func (s *stage) killWorkerAt(n int, when string) bool {
	s.Helper()
	ends, destroyed := len(s.p.Deaths()), s.count("superseded key destroyed")
	s.play("* %d %s kill once shared", n, when)
	result := <-s.remake("x509-CA-A")
	if result.err != nil {
		s.Errorf("killed %s call %d: %v", when, n, result.err)
		s.row.add(func(r *row) { r.failed++ })
		s.row.count(false, 0)
		return true
	}
	await(s, "the old key's end", func() bool { return s.quiet(destroyed) })
	if len(s.fired()) == 0 {
		s.keys[0] = result.key
		return false
	}
	s.keys[0] = result.key
	err := load.Sign(s.p, result.key)
	await(s, "a line for the end of the worker", func() bool { return len(s.p.Deaths()) == ends+1 })
	if err != nil {
		s.Errorf("killed %s call %d: %v", when, n, err)
	}
	s.row.count(err == nil, 0)
	return true
}

// The front dies too, and whatever worker it started meanwhile: the next process finds the
// token as it was at that call.
func TestAPluginKilledAtEveryCallOfGenerateKeyLeavesOneKeyThatSigns(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := bare(t, group("5 plugin killed in GenerateKey"), "")
			s.makeKey("x509-CA-A")
			s.makeKey("JWT-Signer-A")
			step := 1
			if when == "after" && !long {
				step = 3 // "after" one call is "before" the next, where nothing else is going on
			}
			for n, reached := 1, true; reached; n += step {
				reached = s.killPluginAt(n, when)
			}
			s.play("")
			s.restart()
		})
	}
}

func (s *stage) killPluginAt(n int, when string) bool {
	s.Helper()
	before := s.keys[0]
	destroyed := s.count("superseded key destroyed")
	s.play("* %d-1000000 %s kill shared", n, when)
	done := s.remake("x509-CA-A")
	var result made
	answered := false
	await(s, "the fault", func() bool {
		select {
		case result = <-done:
			answered = true
		default:
		}
		return len(s.fired()) > 0 || answered && (result.err != nil || s.quiet(destroyed))
	})
	reached := len(s.fired()) > 0
	s.p.Kill()
	await(s, "the end of the plugin", s.p.Exited)
	if !answered {
		result = <-done
	}
	_ = s.p.Close()
	s.play("")
	s.start()
	wrong := s.Failed()
	s.adopt(before, result)
	s.checkKeys()
	s.checkObjects()
	if s.Failed() && !wrong {
		s.Errorf("that was: killed %s call %d", when, n)
	}
	if reached {
		s.row.count(s.Failed() == wrong, 0)
	}
	return reached
}

// adopt what is served now: the key of before or a new one while the caller has no answer,
// what it was answered if it has.
func (s *stage) adopt(before *keymanagerv1.PublicKey, result made) {
	s.Helper()
	response, err := s.p.KeyManager().GetPublicKey(s.Context(), &keymanagerv1.GetPublicKeyRequest{KeyId: before.Id})
	if err != nil {
		s.Errorf("GetPublicKey: %v", err)
		return
	}
	if result.err == nil && response.PublicKey.Fingerprint != result.key.Fingerprint {
		s.Errorf("the key that was handed out is not the one that is served")
	}
	s.keys[0] = response.PublicKey
}
