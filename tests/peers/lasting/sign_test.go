package lasting_test

import (
	"fmt"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// troubled is a plugin whose token misbehaves by a script.
type troubled struct {
	*host.Plugin
	module *faulty.Module
	begun  time.Time
	spare  int // workers that are started beside
}

func newTroubled(t *testing.T, data string) *troubled {
	t.Helper()
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	s := scene.Setting{Data: module.In(token.PluginData(data)), Environ: append(token.Env(), module.Env()...)}
	return &troubled{Plugin: s.Ready(t), module: module, begun: time.Now()}
}

func (p *troubled) keys(t *testing.T) []*keymanagerv1.PublicKey {
	t.Helper()
	return []*keymanagerv1.PublicKey{scene.Generate(t, p.Plugin, "x509-CA-A", keymanagerv1.KeyType_EC_P256),
		scene.Generate(t, p.Plugin, "JWT-Signer-A", keymanagerv1.KeyType_EC_P256)}
}

// bounded: workers, and so logins, however many errors there were.
func (p *troubled) bounded(t *testing.T) {
	t.Helper()
	took := time.Since(p.begun)
	workers := 1 + len(p.Ends())
	t.Logf("%d workers in %.1f s", workers, took.Seconds())
	if most := 3 + p.spare + int(took.Seconds()); workers > most {
		t.Errorf("%d workers in %v, want at most %d", workers, took, most)
	}
}

func TestErrorsOfSomeSignaturesFailNoCall(t *testing.T) {
	for _, percent := range []int{10, 30, 50} {
		t.Run(fmt.Sprintf("%d percent", percent), func(t *testing.T) {
			t.Parallel()
			p := newTroubled(t, "")
			keys := p.keys(t)
			p.module.Play(t, "C_Sign before CKR_DEVICE_ERROR percent %d", percent)
			l := load.Start(t, p.Plugin, 8, keys...)
			time.Sleep(12 * time.Second) // how long the trouble lasts
			l.EndWithoutFailures()
			p.bounded(t)
		})
	}
}

func TestTroubleOfTheWholeTokenThatEndsInTimeFailsNoCall(t *testing.T) {
	for _, action := range []string{"CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR", "CKR_KEY_HANDLE_INVALID", "abort", "segv"} {
		for _, milliseconds := range []int{25, 500, 3000} {
			script := fmt.Sprintf("C_Sign before %s for %d", action, milliseconds)
			t.Run(script, func(t *testing.T) {
				t.Parallel()
				p := newTroubled(t, "")
				l := load.Start(t, p.Plugin, 4, p.keys(t)...)
				p.module.Play(t, "%s", script)
				time.Sleep(time.Duration(milliseconds) * time.Millisecond)
				l.Await(20)
				l.EndWithoutFailures()
				p.bounded(t)
			})
		}
	}
}
