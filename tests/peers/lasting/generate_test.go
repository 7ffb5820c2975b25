package lasting_test

import (
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// A library that lost its daemon may sign on, or look for keys, and make none: a TPM's does. It says
// that it knows not what became of the key, and says so for as long as its process lives.
func TestAWorkerThatMakesNoKeyAnyMoreCostsNoCall(t *testing.T) {
	t.Parallel()
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	module.Play(t, "C_GenerateKeyPair 2-99 before CKR_GENERAL_ERROR")
	s := scene.Setting{Data: module.In(token.PluginData("")), Environ: append(token.Env(), module.Env()...)}
	p, first, l := s.Busy(t, 4)
	second := scene.Generate(t, p, "x509-CA-B", keymanagerv1.KeyType_EC_P256)
	scene.Sign(t, p, first, second)
	l.EndWithoutFailures()
}

// A key pair may take minutes. Its trial signature is as quick as any other, or hangs.
func TestATrialSignatureThatHangsCostsNoCall(t *testing.T) {
	t.Parallel()
	counted(t)
	const patient = "operation_timeout = \"1s\"\ngenerate_timeout = \"10m\"\n"
	p := newTroubled(t, patient)
	key := scene.Generate(t, p.Plugin, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	p.module.Play(t, "C_Sign 1 before hang once shared")
	another := scene.Generate(t, p.Plugin, "x509-CA-B", keymanagerv1.KeyType_EC_P256)
	if fired := len(p.module.Fired(t)); fired != 1 {
		t.Errorf("%d trial signatures hung, want 1", fired)
	}
	scene.Sign(t, p.Plugin, key, another)
}
