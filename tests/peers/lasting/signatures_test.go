package lasting_test

import (
	"fmt"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	ec  = keymanagerv1.KeyType_EC_P256
	rsa = keymanagerv1.KeyType_RSA_2048
)

// verified are those settings under which every signature is.
var verified = []struct {
	name    string
	keyType keymanagerv1.KeyType
	option  string
	token   string // a script
}{
	{"every signature", ec, "verify_signatures = \"always\"\n", ""},
	{"EC on a slow token", ec, "", "profile latency 5"},
	{"RSA", rsa, "", ""},
}

// Each caller verifies what it gets, so that a wrong signature is a failed call, too.
func TestNoWrongSignatureLeavesWhenALibraryRenumbersItsKeys(t *testing.T) {
	for _, v := range verified {
		for _, trouble := range []string{"renumber 60000", "renumber 100"} {
			for _, lasts := range []time.Duration{300 * time.Millisecond, 3 * time.Second} {
				t.Run(fmt.Sprintf("%s, %s, for %v", v.name, trouble, lasts), func(t *testing.T) {
					t.Parallel()
					l, module := signingWithTwoKeys(t, v.keyType, v.option, v.token)
					module.Play(t, "%s\nprofile %s", v.token, trouble)
					time.Sleep(lasts)
					module.Play(t, "%s", v.token)
					l.Await(100)
					l.EndWithoutFailures()
				})
			}
		}
	}
}

func TestAWrongOrShortSignatureIsMadeAnew(t *testing.T) {
	for _, v := range verified {
		for _, trouble := range []string{"bend", "shorten"} {
			t.Run(v.name+", "+trouble, func(t *testing.T) {
				t.Parallel()
				l, module := signingWithTwoKeys(t, v.keyType, v.option, v.token)
				module.Play(t, "%s\nC_Sign 10-17 before %s shared\nC_Sign 40 before %s shared", v.token, trouble, trouble)
				l.Await(200)
				if fired := len(module.FiredIn(t, "C_Sign")); fired != 9 {
					t.Errorf("%d signatures were spoilt, want 9", fired)
				}
				l.EndWithoutFailures()
			})
		}
	}
}

// signingWithTwoKeys of one type, that a library can take for each other.
func signingWithTwoKeys(t *testing.T, keyType keymanagerv1.KeyType, option, script string) (*load.Load, *faulty.Module) {
	t.Helper()
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	s := scene.Setting{Data: module.In(token.PluginData(option)), Environ: append(token.Env(), module.Env()...)}
	p := s.Ready(t)
	keys := []*keymanagerv1.PublicKey{scene.Generate(t, p, "x509-CA-A", keyType), scene.Generate(t, p, "JWT-Signer-A", keyType)}
	module.Play(t, "%s", script)
	return load.Start(t, p, 8, keys...), module
}
